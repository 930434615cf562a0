"""Restrict answers to literal spans of the article, token by token."""

import codecs
import re

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

MOST_BYTES = 4  # per character, for byte tokens


class Grounding:
    """Selects tokens that keep an answer a span of its article.

    Compares UTF-8 bytes, because a token may be part of a character, and ignores surrounding white
    space.
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
        candidates: list[int],
    ) -> int | None:
        """Return the first candidate that extends or ends a span of the context, or None.

        `token_ids` is the answer so far. `left` is the number of remaining tokens, including this
        one; they must suffice for the span's first character.
        """
        answer = self._bytes(token_ids)
        text, rest = _characters(answer)
        may_end = not rest and bool(text.strip()) and text.strip() in context
        for token in candidates:
            is_stop = token in stop_ids
            if may_end if is_stop else self._may_append(answer, token, context, left - 1):
                return token
        return None

    def text(self, token_ids: list[int]) -> str:
        """Return the answer's text without an incomplete last character."""
        return _characters(self._bytes(token_ids))[0].strip()

    def _bytes(self, token_ids: list[int]) -> bytes:
        return b"".join(self.bytes_of.get(token, b"") for token in token_ids)

    def _may_append(self, answer: bytes, token: int, context: str, left: int) -> bool:
        """Return whether a token extends a span, or is white space around one.

        At most one white-space token may precede a span.
        """
        new = self.bytes_of.get(token, b"")
        try:
            text, rest = _characters(answer + new)
        except UnicodeDecodeError:  # within a character
            return False
        # Only white space so far: the remaining tokens must suffice for a character.
        if not text.strip() and left < (_missing(rest) if rest else self._to_a_character(context)):
            return False
        if not text.strip() and rest:
            characters = (c.encode() for c in context if c.strip())
            if not any(character.startswith(rest) for character in characters):
                return False  # can only become white space
        # Empty tokens and more leading white space could repeat up to the limit.
        if not new or (answer and not text.strip() and not rest):
            return False
        # A longer span, or white space after one.
        longer = text.lstrip().encode() + rest
        return longer in context.encode() or (not rest and text.strip() in context)

    def _to_a_character(self, context: str) -> int:
        """Return how many tokens suffice for a character of the article."""
        for character in set(context):
            if character.strip() and character.encode() in self.known:
                return 1
        return MOST_BYTES


def _missing(begun: bytes) -> int:
    """Return the number of missing bytes of a character (RFC 3629, section 3)."""
    return (2 if begun[0] < 0xE0 else 3 if begun[0] < 0xF0 else 4) - len(begun)


def _characters(data: bytes) -> tuple[str, bytes]:
    """Return the complete characters, and the bytes of an incomplete one.

    Raise UnicodeDecodeError for invalid bytes.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    return decoder.decode(data), decoder.getstate()[0]


def token_bytes(tokenizer: PreTrainedTokenizerBase, control_ids: set[int]) -> dict[int, bytes]:
    """Return the bytes of each token, without control tokens.

    Byte-level vocabularies (GPT-2, Llama 3, Qwen) map bytes to printable characters; SentencePiece
    (Llama 2, SOLAR, EEVE, Gemma) has U+2581 for a space and <0xEA> for single bytes.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    byte_level = backend is not None and "ByteLevel" in repr(backend.decoder)
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    added = tokenizer.added_tokens_decoder
    found = {}
    for token, token_id in tokenizer.get_vocab().items():
        if token_id in control_ids:
            continue
        # Added tokens are literal in both kinds.
        if token_id in added or (byte_level and not set(token) <= byte_of.keys()):
            found[token_id] = token.encode()
        elif byte_level:
            found[token_id] = bytes(byte_of[character] for character in token)
        elif re.fullmatch("<0x[0-9A-Fa-f]{2}>", token):
            found[token_id] = bytes([int(token[3:5], 16)])
        else:
            found[token_id] = token.replace("\u2581", " ").encode()
    return found
