"""Answers that are literal spans of the article: which token may come next."""

import codecs
import re

import torch
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from dandap.errors import InputError

FIRST_TRIED = 16  # tokens; the likeliest allowed one is nearly always among them


class Grounding:
    """Chooses tokens so that an answer stays a span of its article.

    Spans are followed in UTF-8 bytes, because a token may be a part of a character. White space around an answer does not
    count, as it does not in answers that are not grounded.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control_ids: set[int]):
        self.bytes_of = token_bytes(tokenizer, control_ids)

    def pick(self, scores: torch.Tensor, token_ids: list[int], context: str, stop_ids: list[int]) -> int:
        """The likeliest token, by scores (vocab,), that keeps the answer a span or ends it."""
        said, article = self._said(token_ids), context.encode()
        may_end = _is_span(said, article)
        for count in (FIRST_TRIED, len(scores)):
            for token in scores.topk(min(count, len(scores))).indices.tolist():
                if may_end if token in stop_ids else self._may_say(said, token, article):
                    return token
        raise InputError(f"no token continues {said!r} within the article: this tokenizer's answers cannot be grounded.")

    def text(self, token_ids: list[int]) -> str:
        """The answer; a character that was cut in the middle is left out."""
        return (_characters(self._said(token_ids)) or "").strip()

    def _said(self, token_ids: list[int]) -> bytes:
        return b"".join(self.bytes_of.get(token, b"") for token in token_ids)

    def _may_say(self, said: bytes, token: int, article: bytes) -> bool:
        longer = said + self.bytes_of.get(token, b"")
        if len(longer) == len(said) or _characters(longer) is None:
            return False
        return longer.lstrip() in article or longer.strip() in article


def _is_span(said: bytes, article: bytes) -> bool:
    """At least one character, none of them in part."""
    span = said.strip()
    return bool(span) and span in article and len((_characters(span) or "").encode()) == len(span)


def _characters(data: bytes) -> str | None:
    """The whole characters of a text's beginning; None if it starts or breaks within one."""
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return None


def token_bytes(tokenizer: PreTrainedTokenizerBase, control_ids: set[int]) -> dict[int, bytes]:
    """What each token adds to a text; control tokens add nothing and are left out.

    Byte-level vocabularies (GPT-2, Llama 3, Qwen) write bytes as printable characters; the others (SentencePiece: Llama 2,
    SOLAR, EEVE, Gemma) write a space as U+2581 and single bytes as <0xEA>.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    byte_level = backend is not None and "ByteLevel" in repr(backend.decoder)
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    added = tokenizer.added_tokens_decoder
    found = {}
    for token, token_id in tokenizer.get_vocab().items():
        if token_id in control_ids:
            continue
        if token_id in added or (byte_level and not set(token) <= byte_of.keys()):
            found[token_id] = token.encode()
        elif byte_level:
            found[token_id] = bytes(byte_of[character] for character in token)
        elif re.fullmatch("<0x[0-9A-Fa-f]{2}>", token):
            found[token_id] = bytes([int(token[3:5], 16)])
        else:
            found[token_id] = token.replace("\u2581", " ").encode()
    return found
