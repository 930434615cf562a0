r"""Print texts of files safely, and show progress.

Control characters are escaped (\x1b), as is what the console cannot encode. A script continues
after its reader has left (`| head -1`, a closed terminal).
"""

import contextlib
import errno
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO, TypeVar, cast

from rich import progress
from rich.console import Console

# C0 except tab and line feed, DEL, C1, and characters that change the direction of writing.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")
LINE_EVERY = 30.0  # seconds between lines in a log
T = TypeVar("T")


def printable(text: str) -> str:
    r"""Return a text with its control characters escaped, as \x1b."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class Output:
    """A stream that escapes control characters and outlives its reader."""

    def __init__(self, stream: TextIO, escapes: bool = True):
        self.stream, self.escapes = stream, escapes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write a text and return its length, as streams do."""
        shown = printable(text) if self.escapes else text
        self._try(lambda: self.stream.write(shown))
        return len(text)

    def flush(self) -> None:
        """Flush the stream, if it has a reader."""
        self._try(self.stream.flush)

    def _try(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError as error:
            discard(self.stream)
            # Without a reader, or after its terminal is closed, the script continues. A full disk
            # behind `> file` ends it, with this name in its message.
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise OSError(error.errno, error.strerror, "standard output") from error


def discard(stream: TextIO) -> None:
    """Redirect a stream to the null device, including what it has buffered."""
    # A stream without a file has no fileno.
    with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as null:
        os.dup2(null.fileno(), stream.fileno())


@contextlib.contextmanager
def safe_output() -> Iterator[None]:
    """Escape what is printed: control characters, and what the console cannot encode."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    before, output = sys.stdout, Output(sys.stdout)
    sys.stdout = cast(TextIO, output)
    try:
        yield
    finally:
        sys.stdout = before
        output.flush()  # it fails on a full disk


def terminal_output() -> TextIO:
    """Return stdout for bars and colors, whose escape sequences must reach the terminal."""
    if isinstance(sys.stdout, Output):
        return cast(TextIO, Output(sys.stdout.stream, escapes=False))
    return sys.stdout


def progress_bars(rate: progress.ProgressColumn | None = None) -> progress.Progress:
    """Return a progress display, which is silent outside a terminal; the caller adds tasks."""
    console = Console(file=terminal_output())
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        rate or progress.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def track(
    items: Iterable[T], description: str, unit: str, total: int | None = None, done: int = 0
) -> Iterator[T]:
    """Yield the items under a bar, or with a line every 30 s in a log; `done` were done before."""
    total = len(cast(Sized, items)) if total is None else total
    before, started = done, time.perf_counter()
    printed = started  # short work prints no line
    # rich's own rate covers the last seconds, but answers come in batches of hundreds.
    with progress_bars(progress.TextColumn("{task.fields[rate]}")) as shown:
        task = shown.add_task(description, total=total, completed=done, rate="")
        for item in items:
            yield item
            done += 1
            now = time.perf_counter()
            rate = (done - before) / max(now - started, 1e-9)
            left = timedelta(seconds=round((total - done) / rate))
            shown.update(task, completed=done, rate=f"{left} {rate:.1f} {unit}/s")
            if shown.disable and now - printed >= LINE_EVERY:
                printed = now
                print(f"{description} {done:,}/{total:,} {unit}, {rate:.1f}/s", flush=True)
