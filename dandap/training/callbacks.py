"""Trainer callbacks: graceful stop, progress, experiment trackers."""

import importlib.util
import math
import os
import signal
import time
from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.integrations import INTEGRATION_TO_CALLBACK

from dandap.console import progress_bars
from dandap.errors import InputError, first_line
from dandap.files import append_json
from dandap.model.distributed import world_size
from dandap.recipe import Recipe

PRINTED_EVERY = 10  # steps
ESTIMATE_AFTER, WARM_UP = 20, 5  # steps; the first ones are slower


class StopSignals(TrainerCallback):
    """Stops training after the current step on SIGINT (Ctrl-C), SIGTERM or SIGHUP, and saves.

    A second signal stops at once. Use it as a context manager; `received` is the signal.
    All processes stop after the same step.
    """

    received: signal.Signals | None = None

    def __enter__(self) -> "StopSignals":
        names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        # Keep ignoring signals that nohup (SIGHUP) or a shell (SIGINT in the background) ignores.
        self._before = {
            number: signal.signal(number, self._request)
            for number in numbers
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number, frame) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        print(f"{self.received.name}: saving after this step. Repeat to stop now.", flush=True)

    def on_step_end(self, args, state, control, **kwargs):
        number = int(self.received or 0)
        if world_size() > 1:
            requested = torch.tensor(number, device=args.device)
            torch.distributed.all_reduce(requested, op=torch.distributed.ReduceOp.MAX)
            number = int(requested)
        if number:
            self.received = signal.Signals(number)
            control.should_save = control.should_training_stop = True


class TrainingProgress(TrainerCallback):
    """Prints progress every 10 steps and an estimate of the total time; logs to metrics.jsonl."""

    def __init__(self, metrics_file: Path):
        self.metrics_file = metrics_file
        self.progress = progress_bars()

    def on_train_begin(self, args, state, control, **kwargs):
        self.started, self.first_step = time.perf_counter(), state.global_step
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
            steps = state.max_steps - self.first_step
            seconds = (time.perf_counter() - self.warm) / (ESTIMATE_AFTER - WARM_UP) * steps
            time_text = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else ""
            time_text = time_text or f"{seconds / 60:.1f} minutes"
            self.progress.console.print(f"{steps} steps will take about {time_text}")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in (logs or {}):
            return
        elapsed = time.perf_counter() - self.started
        record = {
            "step": state.global_step,
            "epoch": round(state.epoch, 4),
            "loss": logs["loss"],
            # Not finite in steps that fp16 scaling skips; JSON has no infinity.
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
        """Restore the terminal."""
        self.progress.stop()


def check_trackers(recipe: Recipe) -> None:
    """Reject trackers whose package is not installed."""
    missing = [name for name in recipe.report_to if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"report_to: {', '.join(missing)} is not installed. Run pip install "
            f"{' '.join(missing)}."
        )


class Tracker(TrainerCallback):
    """Wraps a tracker callback of transformers; raise InputError if it does not start."""

    def __init__(self, name: str, folder: Path):
        os.environ.setdefault("WANDB_PROJECT", "dandap")
        self.name, self.callback = name, INTEGRATION_TO_CALLBACK[name]()
        if hasattr(self.callback, "logging_dir"):  # TensorBoard; not in checkpoints/
            self.callback.logging_dir = str(folder / "tensorboard")

    def on_train_begin(self, args, state, control, **kwargs):
        try:
            self.callback.on_train_begin(args, state, control, **kwargs)
        # Each tracker raises different connection and login errors.
        except Exception as error:
            raise InputError(
                f"report_to: {self.name} could not be started ({first_line(error)}). Correct its "
                "settings, or remove it."
            ) from error

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.callback.on_log(args, state, control, logs=logs, **kwargs)

    def on_train_end(self, args, state, control, **kwargs):
        self.callback.on_train_end(args, state, control, **kwargs)
