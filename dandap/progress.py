"""What a run shows while it works: bars, one line per logged step, metrics.jsonl, and how long it will take."""

import json
import math
import time
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from dandap.storage import append_json, write_text
from dandap.terminal import obeyed_output

PRINTED_EVERY = 10  # steps
LINE_EVERY = 30.0  # seconds between lines in a log
ESTIMATE_AFTER, WARM_UP = 20, 5  # steps; the first ones are slower (kernels load, memory is allocated)


def bars() -> Progress:
    """Return a progress display, which a terminal shows; the caller adds tasks."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]}"),
        console=Console(file=obeyed_output()),
        disable=not is_terminal(),
    )


def is_terminal() -> bool:
    """Whether somebody watches; a log gets a line now and then instead of bars."""
    return Console(file=obeyed_output()).is_terminal


class Lines:
    """For logs: a line after LINE_EVERY seconds, and so on, and one at the end of what took so long."""

    def __init__(self, description: str, total: int, unit: str):
        self.description, self.total, self.unit = description, total, unit
        self.started = self.told = time.perf_counter()

    def tell(self, done: int) -> None:
        """Print how far it is, if it is time to."""
        now = time.perf_counter()
        if now - self.told >= LINE_EVERY or (done == self.total and self.told > self.started):
            self.told = now
            rate = done / max(now - self.started, 1e-9)
            print(f"{self.description} {done:,}/{self.total:,} {self.unit}, {rate:.1f} a second", flush=True)


def track(items: Iterable, description: str) -> Iterable:
    """Iterate over a sized collection with a bar."""
    with counting(description, len(items), "articles") as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def counting(description: str, total: int, unit: str):
    """Show a bar moved by the function it yields: `advance(n)`; it shows the rate in `unit` a second."""
    started, done, lines = time.perf_counter(), 0, Lines(description, total, unit)
    with bars() as progress:
        task = progress.add_task(description, total=total, rate="")

        def advance(count: int) -> None:
            nonlocal done
            done += count
            rate = done / max(time.perf_counter() - started, 1e-9)
            progress.update(task, completed=done, rate=f"{rate:.1f} {unit}/s")
            if progress.disable:
                lines.tell(done)

        yield advance


class TrainingProgress(TrainerCallback):
    """A bar over the steps, a line per log, the same numbers in metrics.jsonl, and the whole run's time early on."""

    def __init__(self, metrics_file: Path):
        self.metrics_file, self.progress = metrics_file, None

    def on_train_begin(self, args, state, control, **kwargs):
        self.started, self.first_step = time.perf_counter(), state.global_step
        self.progress = bars()
        self.task = self.progress.add_task("training", total=state.max_steps, completed=state.global_step, rate="")
        self.progress.start()

    def on_step_end(self, args, state, control, **kwargs):
        self.progress.update(self.task, completed=state.global_step)
        done = state.global_step - self.first_step
        if done == WARM_UP:
            self.warm = time.perf_counter()
        if done == ESTIMATE_AFTER and state.max_steps > state.global_step:
            seconds_a_step = (time.perf_counter() - self.warm) / (ESTIMATE_AFTER - WARM_UP)
            hours = seconds_a_step * (state.max_steps - self.first_step) / 3600
            self.progress.console.print(f"at this speed the {state.max_steps - self.first_step} steps take {_duration(hours)}")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in (logs or {}):
            return
        elapsed = time.perf_counter() - self.started
        record = {
            "step": state.global_step,
            "epoch": round(state.epoch, 4),
            "loss": logs["loss"],
            "grad_norm": logs["grad_norm"] if math.isfinite(logs["grad_norm"]) else None,  # fp16 scaling skips such steps
            "learning_rate": logs["learning_rate"],
            "seconds": round(elapsed, 1),
        }
        append_json(self.metrics_file, record)
        if state.global_step % PRINTED_EVERY and state.global_step != self.first_step + 1:
            return
        self.progress.console.print(
            f"step {state.global_step:>6}/{state.max_steps}  loss {record['loss']:.4f}  grad_norm {logs['grad_norm']:.3f}  "
            f"lr {record['learning_rate']:.2e}  epoch {record['epoch']:.2f}  {elapsed:.0f} s",
            highlight=False,
        )

    def on_train_end(self, args, state, control, **kwargs):
        self.close()

    def close(self) -> None:
        """Give the terminal back, also when training fails."""
        if self.progress:
            self.progress.stop()


def forget_after(path: Path, step: int, evaluated: set[int] = frozenset()) -> None:
    """Drop from metrics.jsonl what an interrupted run wrote after its checkpoint, a torn last line too.

    And evaluations that the checkpoint does not know: they will be made again.
    """
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            break
        if record.get("step", step + 1) > step:
            break
        if "evaluation" not in record or record["step"] in evaluated:
            kept.append(line + "\n")
    write_text(path, "".join(kept))


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"
