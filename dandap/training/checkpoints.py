"""What makes training crash-proof: whole checkpoints with a manifest, the newest valid one, a lock, an orderly stop.

A checkpoint is written in `.saving/`, flushed, given a manifest (every file's size and SHA-256, and the run's name) and
renamed to its place. It counts only when its manifest holds. A finished adapter has a manifest too.
"""

import math
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from transformers import Trainer

from dandap.errors import InputError, short_list
from dandap.runs.manifest import STAGING, _flush, fault, seal
from dandap.training.keep_best import best_step

KEPT = 2  # checkpoints: should the newest be damaged later, there is one before it


def step_of(checkpoint: Path) -> int:
    """The number in checkpoint-<step>; -1 for another name."""
    number = checkpoint.name.rsplit("-", 1)[-1]
    return int(number) if number.isdigit() else -1


def list_checkpoints(folder: Path) -> list[Path]:
    """Newest first, valid or not."""
    return sorted(
        (path for path in folder.glob("checkpoint-*") if step_of(path) >= 0),
        key=step_of,
        reverse=True,
    )


def newest_valid(folder: Path, run: str | None = None) -> tuple[Path | None, list[str]]:
    """(the run's checkpoint to resume from, a line for each newer one that was skipped)."""
    skipped = []
    for checkpoint in list_checkpoints(folder):
        reason = fault(checkpoint, run)
        if reason is None:
            return checkpoint, skipped
        skipped.append(f"{checkpoint.name} is skipped: {reason}")
    return None, skipped


class CrashProof(Trainer):
    """Mixed into a Trainer: checkpoints appear whole or not at all, and nothing is saved of a run that has gone wrong."""

    run: str | None = None  # its name, which signs its checkpoints
    _staging: str | None = None

    def create_model_card(self, *args, **kwargs):
        """None: checkpoints hold what training needs."""

    def _get_output_dir(self, trial):
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial):
        checkpoints = Path(self.args.output_dir)
        staging = checkpoints / STAGING
        name = f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = str(staging)
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                for unread in (
                    "training_args.bin",
                    "README.md",
                ):  # a pickle, and PEFT's empty model card
                    (staging / name / unread).unlink(missing_ok=True)
                seal(staging / name, self.run)
                _put_in_place(staging / name, checkpoints / name)
                _drop_old(checkpoints, best_step(self.state))
            self.accelerator.wait_for_everyone()  # a process that leaves first has the launcher stop the one that writes
        except (
            OSError,
            RuntimeError,
            SafetensorError,
        ) as error:  # torch.save and safetensors have errors of their own
            raise InputError(
                f"the checkpoint of step {self.state.global_step} could not be written: {str(error).splitlines()[0]}. Free some "
                f"space in {checkpoints}, then continue from the last good one with --resume."
            ) from error
        finally:
            self._staging = None
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)

    def _get_grad_norm(self, model, grad_norm=None):
        """The gradient's length; stops a run whose gradient is not finite, before the optimizer sees it."""
        norm = super()._get_grad_norm(model, grad_norm)
        if self.accelerator.scaler is None and not math.isfinite(
            float(norm)
        ):  # fp16's scaler skips such steps by itself
            raise InputError(
                self._gone_wrong(
                    f"the gradient's length is {float(norm)}", self.state.global_step + 1
                )
            )
        return norm

    def log(self, logs, *args, **kwargs):
        """Every step comes by here before it is saved; stops a run whose loss is not finite."""
        if not math.isfinite(logs.get("loss", 0.0)):
            raise InputError(
                self._gone_wrong(f"the loss is {logs['loss']}", self.state.global_step)
            )
        super().log(logs, *args, **kwargs)

    def _gone_wrong(self, what: str, step: int) -> str:
        questions = short_list(self.questions_of_step(), 5, quoted=False)
        return (
            f"{what} in step {step} (questions {questions}): nothing more is saved. Lower learning_rate or max_grad_norm, or use "
            "bfloat16 where the GPU has it; then start again, or --resume from the last checkpoint."
        )

    def questions_of_step(self) -> list[str]:
        """The ids of the questions of the step at hand (on this process)."""
        raise NotImplementedError


def _put_in_place(written: Path, place: Path) -> None:
    """Rename; a damaged checkpoint of the same step gives way."""
    if place.exists():
        shutil.rmtree(place)
    os.replace(written, place)
    _flush(place.parent)


def _drop_old(checkpoints: Path, best: int | None) -> None:
    """Keep the newest KEPT valid ones, what is newer, and the best."""
    valid = 0
    for checkpoint in list_checkpoints(checkpoints):
        if valid == KEPT:
            if step_of(checkpoint) != best:
                shutil.rmtree(checkpoint)
        elif fault(checkpoint) is None:
            valid += 1


def check_space(folder: Path, trained_parameters: int) -> None:
    """Refuse a disk too full for a checkpoint (float32 weights and AdamW's two moments) beside those that are kept."""
    most = KEPT + 2  # the best, and the one that is being written
    each = 12 * trained_parameters + 1e6
    there = min(
        len(list_checkpoints(folder / "checkpoints")), KEPT + 1
    )  # they will give way to the new ones
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    if free < (most - there) * each:
        raise InputError(
            f"{folder} has {free / 1e6:,.0f} MB free; {most - there} more checkpoints of {each / 1e6:,.0f} MB need to fit. "
            "Free some space, or name another --output_dir."
        )
