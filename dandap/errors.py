"""Define the errors that people are meant to see, and the words that messages share."""

import errno
from difflib import get_close_matches
from unicodedata import normalize

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)  # a full disk, or a user's quota of one


class InputError(ValueError):
    """Says that something the user gave cannot be used.

    The message says what was got, what was expected and what to do.
    """


class Stopped(Exception):
    """Ends a run early because it was asked to.

    The message says how to go on; `code` is the exit code.
    """

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def nearest(name: str, known) -> str:
    """Return " Did you mean 'x'?" for the known name most like `name`, or "" when none is."""
    # difflib's time grows with the product of the lengths, and a name may be a whole pasted text.
    # By letters: one that is wrong would make a word of two syllables half another word.
    by_letters = {normalize("NFD", each): each for each in known if len(each) <= 100}
    matches = get_close_matches(normalize("NFD", name[:100]), by_letters, n=1, cutoff=0.6)
    return f" Did you mean {by_letters[matches[0]]!r}?" if matches else ""


def first_line(error: BaseException) -> str:
    """Return an error's kind and the beginning of its message, to stand in a line of ours."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__


def disk_message(error: OSError) -> str:
    """Say what a file or folder refused, and what to do."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in NO_SPACE:
        return (
            f"no space is left on the disk{where}. Free some and start the same command again; "
            "what was saved is kept, and training goes on with --resume."
        )
    # What is not listed here gets the system's words and a general hint.
    way_out = {
        errno.EROFS: "It cannot be written to; name another folder (--output_dir, "
        "for answers --answers_dir).",
        errno.EACCES: "This user may not do that; name another folder, or change its permissions.",
        errno.ENAMETOOLONG: "The name is longer than the file system takes; choose a shorter one.",
        errno.ELOOP: "It is a link that leads nowhere; name what it was meant to point to.",
    }
    return (
        f"{error.strerror or error}{where}. "
        f"{way_out.get(error.errno, 'Check that path, then start again.')}"
    )


def short_list(names, most: int = 8, quoted: bool = True) -> str:
    """List names for a message: the first few, each shortened, and how many more there are."""
    names = [name if len(name) <= 60 else f"{name[:60]}..." for name in map(str, names)]
    names = list(map(repr, names)) if quoted else names
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
