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
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TextIO, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

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


LINE_EVERY = 30.0  # seconds between lines in a log
T = TypeVar("T")


def track(
    items: Iterable[T], description: str, unit: str, total: int | None = None, done: int = 0
) -> Iterator[T]:
    """Yield the items under a bar, or with lines in a log.

    `total` says how many there are where the items cannot say it, `done` how many came before.
    """
    total = len(items) if total is None else total
    lines = Lines(description, total, unit)
    with bars(unit) as progress:
        task = progress.add_task(description, total=total, completed=done, before=done)
        for item in items:
            yield item
            done += 1
            progress.update(task, completed=done)
            # Outside a terminal the bar shows nothing, so that a log gets its line here.
            if progress.disable:
                lines.tell(done)


def bars(unit: str | None = None) -> Progress:
    """Return a progress display, which a terminal shows; the caller adds tasks.

    With a `unit` it tells how many are done a second, and the time that is left at that rate; a
    task then has the field `before`, how many were done when it began.
    """
    rate = [RateColumn(unit)] if unit else [TimeRemainingColumn()]
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        *rate,
        console=Console(file=obeyed_output()),
        disable=not is_terminal(),
    )


class RateColumn(ProgressColumn):
    """Shows the rate since the beginning and the time left; rich's own is that of the last items.

    Answers come a batch at a time, hundreds within a millisecond, and then none for seconds.
    """

    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """Return the column's text, empty before the first item."""
        done, seconds = task.completed - task.fields["before"], task.finished_time or task.elapsed
        if not done or not seconds:
            return Text("-:--:--")
        left = timedelta(seconds=round((task.total - task.completed) * seconds / done))
        return Text(f"{left} {done / seconds:.1f} {self.unit}/s")


def is_terminal() -> bool:
    """Return whether somebody watches; a log gets a line now and then instead of bars."""
    return Console(file=obeyed_output()).is_terminal


class Lines:
    """Prints progress to a log: a line every LINE_EVERY seconds, one at the end of long work."""

    def __init__(self, description: str, total: int, unit: str):
        self.description, self.total, self.unit = description, total, unit
        self.started = self.told = time.perf_counter()

    def tell(self, done: int) -> None:
        """Print how far the work is, if it is time to."""
        now = time.perf_counter()
        # Work that ends before its first line is short and gets none at its end either.
        if now - self.told >= LINE_EVERY or (done == self.total and self.told > self.started):
            self.told = now
            rate = done / max(now - self.started, 1e-9)
            print(
                f"{self.description} {done:,}/{self.total:,} {self.unit}, {rate:.1f} a second",
                flush=True,
            )
