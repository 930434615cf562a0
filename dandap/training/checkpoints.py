"""What makes training crash-proof: whole checkpoints with a manifest, and the newest valid one.

A checkpoint is written in `.saving/`, flushed, given a manifest (every file's size and SHA-256, and
the run's name) and renamed to its place. It counts only when its manifest holds. A finished adapter
has a manifest too.
"""

import math
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from transformers import Trainer

from dandap.errors import InputError, short_list
from dandap.files import existing_parent
from dandap.manifest import fault, flush, seal
from dandap.training.evaluate import best_step

STAGING = ".saving"  # where a checkpoint is written before it is renamed to its place
KEPT = 2  # checkpoints: should the newest be damaged later, there is one before it


def step_of(checkpoint: Path) -> int:
    """Return the number in checkpoint-<step>; -1 for another name."""
    number = checkpoint.name.rsplit("-", 1)[-1]
    return int(number) if number.isdigit() else -1


def list_checkpoints(folder: Path) -> list[Path]:
    """Return a folder's checkpoints, the newest first, valid or not."""
    found = [path for path in folder.glob("checkpoint-*") if step_of(path) >= 0]
    return sorted(found, key=step_of, reverse=True)


def newest_valid(folder: Path, run: str | None = None) -> tuple[Path | None, list[str]]:
    """Return the run's checkpoint to resume from, and a line for each newer one that is skipped."""
    skipped = []
    for checkpoint in list_checkpoints(folder):
        reason = fault(checkpoint, run)
        if reason is None:
            return checkpoint, skipped
        skipped.append(f"{checkpoint.name} is skipped: {reason}")
    return None, skipped


class CrashProof(Trainer):
    """Makes a Trainer crash-proof, as a mixin before it.

    Checkpoints appear whole or not at all, and nothing is saved of a run that has gone wrong.
    """

    run: str | None = None  # its name, which signs its checkpoints
    _staging: str | None = None

    def create_model_card(self, *args, **kwargs):
        """Do nothing: checkpoints hold what training needs."""

    def _get_output_dir(self, trial):
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial):
        checkpoints = Path(self.args.output_dir)
        staging = checkpoints / STAGING
        name = f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)  # what a crash left there
        # No process writes its random state there before the folder has been removed.
        self.accelerator.wait_for_everyone()
        self._staging = str(staging)
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                # A pickle, and PEFT's empty model card: nothing reads them.
                for unread in ("training_args.bin", "README.md"):
                    (staging / name / unread).unlink(missing_ok=True)
                seal(staging / name, self.run)
                _put_in_place(staging / name, checkpoints / name)
                # After the new one is in its place: at no moment is there none.
                _drop_old(checkpoints, best_step(self.state))
            # A process that leaves first has the launcher stop the one that writes.
            self.accelerator.wait_for_everyone()
        # torch.save (RuntimeError) and safetensors have errors of their own for a full disk.
        except (OSError, RuntimeError, SafetensorError) as error:
            raise InputError(
                f"the checkpoint of step {self.state.global_step} could not be written: "
                f"{str(error).splitlines()[0]}. Free some space in {checkpoints}, then continue "
                "from the last good one with --resume."
            ) from error
        finally:
            self._staging = None
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)

    def _get_grad_norm(self, model, grad_norm=None):
        """Return the gradient's length; stop a run whose gradient is not finite.

        That is before the optimizer sees it, so the adapter is still good.
        """
        # As a number at once: the host waits for it here, and not again where it is logged.
        norm = float(super()._get_grad_norm(model, grad_norm))
        # fp16's scaler skips such steps by itself.
        if self.accelerator.scaler is None and not math.isfinite(norm):
            what = f"the gradient's length is {norm}"
            # The step at hand is counted only when it has ended.
            raise InputError(self._gone_wrong(what, self.state.global_step + 1))
        return norm

    def log(self, logs, *args, **kwargs):
        """Log a step, or stop a run whose loss is not finite; steps are logged, then saved."""
        if not math.isfinite(logs.get("loss", 0.0)):
            raise InputError(
                self._gone_wrong(f"the loss is {logs['loss']}", self.state.global_step)
            )
        super().log(logs, *args, **kwargs)

    def _gone_wrong(self, what: str, step: int) -> str:
        questions = short_list(self.questions_of_step(), 5, quoted=False)
        return (
            f"{what} in step {step} (questions {questions}): nothing more is saved. Lower "
            "learning_rate or max_grad_norm, or use bfloat16 where the GPU has it; then start "
            "again, or --resume from the last checkpoint."
        )

    def questions_of_step(self) -> list[str]:
        """Return the ids of the questions of the step at hand, on this process."""
        raise NotImplementedError


def _put_in_place(written: Path, place: Path) -> None:
    """Rename a checkpoint to its place; a damaged one of the same step gives way."""
    if place.exists():
        shutil.rmtree(place)
    os.replace(written, place)
    flush(place.parent)  # else a power cut may undo the rename


def _drop_old(checkpoints: Path, best: int | None) -> None:
    """Remove old checkpoints, but for the newest KEPT valid ones, what is newer, and the best."""
    valid = 0  # a damaged one does not count: it would push out one that can be resumed from
    for checkpoint in list_checkpoints(checkpoints):
        if valid == KEPT:
            if step_of(checkpoint) != best:
                shutil.rmtree(checkpoint)
        elif fault(checkpoint) is None:
            valid += 1


def check_space(folder: Path, trained_parameters: int) -> None:
    """Refuse a disk too full for the checkpoints that are kept and the one that is written.

    A checkpoint holds float32 weights and AdamW's two moments, 12 bytes a trained parameter.
    """
    most = KEPT + 2  # the best, and the one that is being written
    each = 12 * trained_parameters + 1e6
    # Those of a resumed run will give way to the new ones.
    there = min(len(list_checkpoints(folder / "checkpoints")), KEPT + 1)
    free = shutil.disk_usage(existing_parent(folder)).free
    if free < (most - there) * each:
        raise InputError(
            f"{folder} has {free / 1e6:,.0f} MB free; {most - there} more checkpoints of "
            f"{each / 1e6:,.0f} MB need to fit. Free some space, or name another --output_dir."
        )
