"""Show how far a script is: with a bar in a terminal, with a line now and then in a log."""

import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

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

from dandap.terminal import obeyed_output

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
