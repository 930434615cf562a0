r"""Print untrusted text safely, and show progress.

Control characters (\x1b) and characters that the console cannot encode are escaped. A closed pipe
(`| head -1`) or terminal does not end a script.
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

# C0 except tab and line feed, DEL, C1, and bidirectional controls.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")
LINE_EVERY = 30.0  # seconds between progress lines in a log
T = TypeVar("T")


def printable(text: str) -> str:
    r"""Return a text with its control characters escaped, as \x1b."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class Output:
    """A stream that escapes control characters and survives a closed pipe."""

    def __init__(self, stream: TextIO, escapes: bool = True):
        self.stream, self.escapes = stream, escapes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write a string and return its length."""
        shown = printable(text) if self.escapes else text
        self._try(lambda: self.stream.write(shown))
        return len(text)

    def flush(self) -> None:
        """Flush the stream, unless its reader is gone."""
        self._try(self.stream.flush)

    def _try(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError as error:
            discard(self.stream)
            # Continue without a reader or terminal; fail if stdout is redirected to a full disk.
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise OSError(error.errno, error.strerror, "standard output") from error


def discard(stream: TextIO) -> None:
    """Redirect a stream, including its buffer, to the null device."""
    # An in-memory stream has no fileno.
    with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as null:
        os.dup2(null.fileno(), stream.fileno())


@contextlib.contextmanager
def safe_output() -> Iterator[None]:
    """Escape control characters and unencodable characters in printed text."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    before, output = sys.stdout, Output(sys.stdout)
    sys.stdout = cast(TextIO, output)
    try:
        yield
    finally:
        sys.stdout = before
        output.flush()  # raises on a full disk


def terminal_output() -> TextIO:
    """Return stdout without escaping, for progress bars and colors."""
    if isinstance(sys.stdout, Output):
        return cast(TextIO, Output(sys.stdout.stream, escapes=False))
    return sys.stdout


def progress_bars(rate: progress.ProgressColumn | None = None) -> progress.Progress:
    """Return a progress display without tasks; it prints nothing outside a terminal."""
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
    """Yield the items with a progress bar, or a line every 30 s in a log, starting at `done`."""
    total = len(cast(Sized, items)) if total is None else total
    before, started = done, time.perf_counter()
    printed = started  # short work prints no line
    # rich averages the last seconds only, but answers arrive in batches of hundreds.
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
