r"""Show texts of files without obeying them, and go on when whoever reads the output leaves.

An id may hold an escape sequence that writes the clipboard; printed, it is spelled out (\x1b). A
console of cp949 or ASCII shows what it cannot show as \u2581. After
`python inference.py | head -1`, or when the terminal is closed, the work goes on.
"""

import contextlib
import errno
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import TextIO

# A terminal obeys these instead of showing them: C0 but tab and line feed, DEL, C1, and what turns
# the direction of writing.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")


def shown(text: str) -> str:
    r"""Return a text as it may be printed, with what a terminal would obey spelled out, as \x1b."""
    return CONTROL.sub(_spelled_out, text)


def _spelled_out(match: re.Match) -> str:
    return match[0].encode("unicode_escape").decode()


# A pipe without a reader, a closed terminal, and Windows' word for either.
GONE = (errno.EPIPE, errno.EIO, errno.EINVAL)


class Output:
    """Wraps a stream so that it outlives its reader.

    `obeyed` lets escapes through, for bars and colours, which are ours.
    """

    def __init__(self, stream: TextIO, obeyed: bool = False):
        self.stream, self.obeyed = stream, obeyed

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write a text as it may be shown, and return its length, as streams do."""
        self._unless_gone(partial(self.stream.write, text if self.obeyed else shown(text)))
        return len(text)

    def flush(self) -> None:
        """Hand on what was written, unless nobody reads it any more."""
        self._unless_gone(self.stream.flush)

    def _unless_gone(self, work) -> None:
        try:
            work()
        except OSError as error:
            leave(self.stream)
            # A full disk behind `> file` ends the script; the name is what the message calls it.
            if error.errno not in GONE:
                raise OSError(error.errno, error.strerror, "standard output") from error


def leave(stream: TextIO) -> None:
    """Let a stream that nobody reads any more lead nowhere, what it still holds included."""
    # A stream without a file behind it has no fileno; for it there is nothing to do.
    with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


@contextlib.contextmanager
def shown_output():
    """Let what is printed be shown, not obeyed; what a console cannot encode becomes an escape."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    before = sys.stdout
    sys.stdout = Output(before) if before is not None else before
    try:
        yield
    finally:
        # The flush may meet a full disk; stdout must be the old one after that, too.
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        finally:
            sys.stdout = before


def obeyed_output() -> TextIO:
    """Return stdout as bars and colours need it: their escapes reach the terminal."""
    return Output(sys.stdout.stream, obeyed=True) if isinstance(sys.stdout, Output) else sys.stdout
