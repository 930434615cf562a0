"""Answers that are literal spans of the article: which token may come next."""

import codecs
import re

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

MOST_BYTES = 4  # of a character; a vocabulary may have to say it byte by byte


class Grounding:
    """Chooses tokens so that an answer stays a span of its article.

    Spans are followed in UTF-8 bytes, because a token may be a part of a character. White space around an answer does not
    count, as it does not in answers that are not grounded.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control_ids: set[int]):
        self.bytes_of = token_bytes(tokenizer, control_ids)
        self.known = set(self.bytes_of.values())

    def pick(
        self,
        token_ids: list[int],
        context: str,
        stop_ids: list[int],
        left: int,
        likeliest: list[int],
    ) -> int | None:
        """The first of some tokens that keeps the answer `token_ids` a span of the context, or ends it; None if none does.

        `left` tokens may still be said, this one included: enough must remain for the span's first character.
        """
        said = self._said(token_ids)
        may_end = _is_span(said, context)
        return next(
            (
                t
                for t in likeliest
                if (may_end if t in stop_ids else self._may_say(said, t, context, left - 1))
            ),
            None,
        )

    def text(self, token_ids: list[int]) -> str:
        """The answer; a character that was cut in the middle is left out."""
        return _characters(self._said(token_ids))[0].strip()

    def _said(self, token_ids: list[int]) -> bytes:
        return b"".join(self.bytes_of.get(token, b"") for token in token_ids)

    def _may_say(self, said: bytes, token: int, context: str, left: int) -> bool:
        """Whether a token lengthens a span, or is white space around one: one such token before it, any after it."""
        new = self.bytes_of.get(token, b"")
        try:
            text, rest = _characters(said + new)
        except UnicodeDecodeError:  # it would start or break a span within a character
            return False
        if not text.strip() and left < (_missing(rest) if rest else self._to_a_character(context)):
            return False
        if (
            not text.strip()
            and rest
            and not any(c.encode().startswith(rest) for c in context if c.strip())
        ):
            return False  # it could only become white space
        if not new or (said and not text.strip() and not rest):
            return False
        longer = text.lstrip().encode() + rest
        return longer in context.encode() or (not rest and text.strip() in context)

    def _to_a_character(self, context: str) -> int:
        """How many tokens the article's easiest character takes."""
        return (
            1
            if any(
                character.encode() in self.known for character in set(context) if character.strip()
            )
            else MOST_BYTES
        )


def _missing(begun: bytes) -> int:
    """How many bytes a character lacks that has begun (RFC 3629, section 3)."""
    return (2 if begun[0] < 0xE0 else 3 if begun[0] < 0xF0 else 4) - len(begun)


def _is_span(said: bytes, context: str) -> bool:
    """At least one character, none of them in part."""
    text, rest = _characters(said)
    return not rest and bool(text.strip()) and text.strip() in context


def _characters(data: bytes) -> tuple[str, bytes]:
    """A text's whole characters, and the bytes of one that has only begun."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    return decoder.decode(data), decoder.getstate()[0]


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
