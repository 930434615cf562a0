"""User errors, and helpers for their messages."""

import errno
from collections.abc import Iterable
from difflib import get_close_matches
from unicodedata import normalize


class InputError(ValueError):
    """Unusable input; the message says what was received, what was expected and what to do."""


class Stopped(Exception):
    """A requested stop; the message says how to resume, `code` is the exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" with the known name most similar to `name`, or ""."""
    # Compare letters, because a Hangul syllable combines several. Cut names: difflib is quadratic.
    by_letters = {normalize("NFD", each): each for each in known if len(each) <= 100}
    matches = get_close_matches(normalize("NFD", name[:100]), by_letters, n=1, cutoff=0.6)
    return f" Did you mean {by_letters[matches[0]]!r}?" if matches else ""


def first_line(error: BaseException) -> str:
    """Return an error's type and the first line of its message, at most 120 characters."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__


def disk_message(error: OSError) -> str:
    """Return a message about a file that cannot be read or written, with advice."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"no space left on the disk{where}. Free some space and run the command again; "
            "training continues with --resume."
        )
    hint = "Check the path and its permissions, or choose another folder."
    return f"{error.strerror or error}{where}. {hint}"


def short_list(names: Iterable[object], most: int = 8, quoted: bool = True) -> str:
    """Return the first names for a message, shortened, and the number of further names."""
    texts = [text if len(text) <= 60 else f"{text[:60]}..." for text in map(str, names)]
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(map(repr, texts[:most]) if quoted else texts[:most]) + more
