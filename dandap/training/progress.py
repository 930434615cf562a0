"""What training shows: a bar over the steps, a line per log, metrics.jsonl, and its time."""

import math
import time
from pathlib import Path

from transformers import TrainerCallback

from dandap.console import bars
from dandap.files import append_json, read_json_lines, write_json_lines

PRINTED_EVERY = 10  # steps
# Steps; the first ones are slower (kernels load, memory is allocated).
ESTIMATE_AFTER, WARM_UP = 20, 5


class TrainingProgress(TrainerCallback):
    """Shows a bar over the steps, a line per log, and the whole run's time early on.

    The same numbers go into metrics.jsonl.
    """

    def __init__(self, metrics_file: Path):
        self.metrics_file, self.progress = metrics_file, None

    def on_train_begin(self, args, state, control, **kwargs):
        self.started, self.first_step = time.perf_counter(), state.global_step
        self.progress = bars()
        self.task = self.progress.add_task(
            "training", total=state.max_steps, completed=state.global_step
        )
        self.progress.start()

    def on_step_end(self, args, state, control, **kwargs):
        self.progress.update(self.task, completed=state.global_step)
        done = state.global_step - self.first_step
        if done == WARM_UP:
            self.warm = time.perf_counter()
        if done == ESTIMATE_AFTER and state.max_steps > state.global_step:
            seconds_a_step = (time.perf_counter() - self.warm) / (ESTIMATE_AFTER - WARM_UP)
            hours = seconds_a_step * (state.max_steps - self.first_step) / 3600
            self.progress.console.print(
                f"at this speed the {state.max_steps - self.first_step} steps take "
                f"{_duration(hours)}"
            )

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in (logs or {}):
            return
        elapsed = time.perf_counter() - self.started
        record = {
            "step": state.global_step,
            "epoch": round(state.epoch, 4),
            "loss": logs["loss"],
            # fp16 scaling skips a step whose gradient is not finite; JSON has no infinity.
            "grad_norm": logs["grad_norm"] if math.isfinite(logs["grad_norm"]) else None,
            "learning_rate": logs["learning_rate"],
            "seconds": round(elapsed, 1),
        }
        append_json(self.metrics_file, record)
        if state.global_step % PRINTED_EVERY and state.global_step != self.first_step + 1:
            return
        self.progress.console.print(
            f"step {state.global_step:>6}/{state.max_steps}  loss {record['loss']:.4f}  "
            f"grad_norm {logs['grad_norm']:.3f}  lr {record['learning_rate']:.2e}  "
            f"epoch {record['epoch']:.2f}  {elapsed:.0f} s",
            highlight=False,
        )

    def on_train_end(self, args, state, control, **kwargs):
        self.close()

    def close(self) -> None:
        """Give the terminal back, also when training fails."""
        if self.progress:
            self.progress.stop()


def forget_after(path: Path, step: int, evaluated: set[int] = frozenset()) -> None:
    """Drop from metrics.jsonl what an interrupted run wrote after its checkpoint.

    A torn last line goes, too, and so do evaluations that the checkpoint does not know: they will
    be made again.
    """
    kept = []
    for record in read_json_lines(path):
        if record.get("step", step + 1) > step:
            break
        if "evaluation" not in record or record["step"] in evaluated:
            kept.append(record)
    write_json_lines(path, kept)


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"
