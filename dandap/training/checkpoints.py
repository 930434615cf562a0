"""Checkpoints that survive a crash, and the adapter a run ends with.

A checkpoint is written in `.saving/`, flushed, sealed with a manifest (every file's size and
SHA-256, and the run's name) and renamed to its place. It counts only if its manifest holds. A
finished adapter has a manifest too.
"""

import math
import os
import shutil
import tempfile
from pathlib import Path

from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase, Trainer, TrainerState

import metrics
from dandap.errors import InputError, short_list
from dandap.files import (
    existing_parent,
    find_damage,
    flush,
    read_json_lines,
    write_json_lines,
    write_manifest,
)
from dandap.model.distributed import is_main_process
from dandap.recipe import Recipe
from dandap.runs.folder import RunFolder, now

STAGING = ".saving"
KEPT = 2  # checkpoints: if the newest is damaged later, there is one before it


def step_of(checkpoint: Path) -> int:
    """Return the number in checkpoint-<step>; -1 for another name."""
    number = checkpoint.name.rsplit("-", 1)[-1]
    return int(number) if number.isdigit() else -1


def list_checkpoints(folder: Path) -> list[Path]:
    """Return a folder's checkpoints, the newest first, valid or not."""
    found = [path for path in folder.glob("checkpoint-*") if step_of(path) >= 0]
    return sorted(found, key=step_of, reverse=True)


def newest_valid(folder: Path, run: str | None = None) -> tuple[Path | None, list[str]]:
    """Return the run's newest valid checkpoint, and a line for each newer one that is skipped."""
    skipped: list[str] = []
    for checkpoint in list_checkpoints(folder):
        reason = find_damage(checkpoint, run)
        if reason is None:
            return checkpoint, skipped
        skipped.append(f"{checkpoint.name} is skipped: {reason}")
    return None, skipped


class AtomicCheckpoints(Trainer):
    """A mixin for trainers: checkpoints appear whole or not at all, and a diverged run stops."""

    run_id: str | None = None  # signs the checkpoints
    _staging: str | None = None

    def create_model_card(self, *args, **kwargs):
        """Do nothing: checkpoints contain only what training needs."""

    def _get_output_dir(self, trial):
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial):
        checkpoints = Path(self.args.output_dir)
        staging = checkpoints / STAGING
        name = f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)  # what a crash left
        # No process writes its random state there before the folder has been removed.
        self.accelerator.wait_for_everyone()
        self._staging = str(staging)
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                for unread in ("training_args.bin", "README.md"):  # a pickle; an empty card
                    (staging / name / unread).unlink(missing_ok=True)
                write_manifest(staging / name, self.run_id)
                if (checkpoints / name).exists():  # a damaged one of the same step
                    shutil.rmtree(checkpoints / name)
                os.replace(staging / name, checkpoints / name)
                flush(checkpoints)  # else a power cut may undo the rename
                _drop_old(checkpoints, best_step(self.state))
            # If a process left first, the launcher would stop the one that writes.
            self.accelerator.wait_for_everyone()
        # torch.save (RuntimeError) and safetensors have errors of their own for a full disk.
        except (OSError, RuntimeError, SafetensorError) as error:
            raise InputError(
                f"the checkpoint of step {self.state.global_step} could not be written: "
                f"{str(error).splitlines()[0]}. Free some space in {checkpoints}, then continue "
                "with --resume."
            ) from error
        finally:
            self._staging = None
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)

    def _get_grad_norm(self, model, grad_norm=None):
        """Return the gradient's norm; stop before a step whose gradient is not finite."""
        # Converted at once: the host waits here, and not again when it is logged.
        norm = float(super()._get_grad_norm(model, grad_norm))
        # fp16's scaler skips such steps by itself.
        if self.accelerator.scaler is None and not math.isfinite(norm):
            # The current step is counted only when it has ended.
            raise InputError(self._diverged(f"grad_norm is {norm}", self.state.global_step + 1))
        return norm

    def log(self, logs, *args, **kwargs):
        """Log a step, or stop a run whose loss is not finite; steps are logged, then saved."""
        if not math.isfinite(logs.get("loss", 0.0)):
            raise InputError(self._diverged(f"the loss is {logs['loss']}", self.state.global_step))
        super().log(logs, *args, **kwargs)

    def _diverged(self, what: str, step: int) -> str:
        names = short_list(self.questions_of_step(), 5, quoted=False)
        questions = f" (questions {names})" if names else ""
        return (
            f"{what} in step {step}{questions}: nothing more is saved. Lower learning_rate or "
            "max_grad_norm, or use bfloat16, then start again or --resume."
        )

    def questions_of_step(self) -> list[str]:
        """Return the ids of the current step's questions, where the trainer knows them."""
        return []


def _drop_old(checkpoints: Path, best: int | None) -> None:
    """Remove old checkpoints, except the best and the newest KEPT valid ones and newer ones."""
    valid = 0  # a damaged one does not count: it would push out one that can be resumed from
    for checkpoint in list_checkpoints(checkpoints):
        if valid == KEPT:
            if step_of(checkpoint) != best:
                shutil.rmtree(checkpoint)
        elif find_damage(checkpoint) is None:
            valid += 1


def check_space(folder: Path, trained_parameters: int) -> None:
    """Reject a disk too full for the checkpoints that will exist at once.

    A checkpoint has float32 weights and AdamW's two moments, 12 bytes a trained parameter.
    """
    each = 12 * trained_parameters + 1e6
    # The best and the one being written come on top; those of a resumed run give way to new ones.
    existing = min(len(list_checkpoints(folder / "checkpoints")), KEPT + 1)
    missing = KEPT + 2 - existing
    free = shutil.disk_usage(existing_parent(folder)).free
    if free < missing * each:
        raise InputError(
            f"{folder} has {free / 1e6:,.0f} MB free; {missing} more checkpoints of "
            f"{each / 1e6:,.0f} MB need to fit. Free some space, or name another --output_dir."
        )


def find_checkpoint(run: RunFolder, model: PeftModel) -> Path:
    """Return the newest valid checkpoint, and truncate metrics.jsonl to its step.

    InputError if there is none, or if its adapter has another shape than the model's.
    """
    checkpoint, skipped = newest_valid(run.checkpoints, run.run_id)
    for line in skipped:
        print(line)
    if checkpoint is None:
        raise InputError(
            f"{run.path} has no valid checkpoint to resume from. Start it again without --resume."
        )
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    ours = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    with safe_open(checkpoint / "adapter_model.safetensors", "pt") as file:
        theirs = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise InputError(
                f"the recipe's adapter is not that of {checkpoint}: {name} is {ours.get(name)}, "
                f"there {theirs.get(name)}. lora_r and lora_target_modules cannot change in a run; "
                "start a new one."
            )
    print(f"resuming {run.path} from {checkpoint.name}")
    if is_main_process():
        shutil.rmtree(run.checkpoints / STAGING, ignore_errors=True)
        # What an interrupted run wrote after its checkpoint is dropped, a torn last line too, and
        # evaluations that the checkpoint does not know: they are made again.
        evaluated = {record["step"] for record in evaluations(load_state(checkpoint))}
        kept = []
        for record in read_json_lines(run.metrics_file):
            if record.get("step", math.inf) > step_of(checkpoint):
                break
            if "evaluation" not in record or record["step"] in evaluated:
                kept.append(record)
        write_json_lines(run.metrics_file, kept)
    return checkpoint


def load_state(checkpoint: Path) -> TrainerState:
    """Return the trainer's state at a checkpoint."""
    return TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def evaluations(state: TrainerState) -> list[dict]:
    """Return the evaluations so far; the trainer's state has them, so a resumed run knows them."""
    return [record for record in state.log_history if "evaluation" in record]


def best_step(state: TrainerState) -> int | None:
    """Return the step with the highest validation score, of equals the last; None for none."""
    found = evaluations(state)
    if not found:
        return None
    return max(found, key=lambda record: (record["evaluation"], record["step"]))["step"]


def select_step(state: TrainerState) -> int | None:
    """Return the step whose adapter is selected; None before the first evaluation.

    It is the best evaluation's if that is significantly better than the last one's (paired,
    articles resampled), else the last one's. The highest of several means is often an accident: on
    32 questions it selected the adapter of a quarter of an epoch, which lost 0.006 F1 on 265
    others.
    """
    best = best_step(state)
    if best is None:
        return None
    evaluated = {record["step"]: record for record in evaluations(state)}
    last = max(evaluated)
    ours, theirs = evaluated[best], evaluated[last]
    # Other questions, or a run from before scores were saved by question, cannot be paired.
    if "each" not in theirs or ours.get("articles") != theirs["articles"]:
        return best
    compared = metrics.compare(ours["each"], theirs["each"], theirs["articles"])
    return best if compared["interval"][0] > 0 else last


def selected_checkpoint(run: RunFolder, state: TrainerState) -> Path | None:
    """Return the selected checkpoint, or None for the last step."""
    step = select_step(state)
    if step is None:
        return None
    if step == state.global_step:
        if best_step(state) != step:
            print(
                f"step {best_step(state)} scored highest, but not significantly: the last adapter "
                "is selected"
            )
        return None
    checkpoint = run.checkpoints / f"checkpoint-{step}"
    if reason := find_damage(checkpoint):
        print(
            f"WARNING: the best adapter, of step {step}, is unusable ({reason}); the last one is "
            "selected"
        )
        return None
    print(f"the adapter of step {step} is selected: it scored significantly higher than the last")
    return checkpoint


def save_adapter(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, run: RunFolder
) -> None:
    """Write adapter and tokenizer to the run's adapter/, with a manifest, whole or not at all."""
    folder = Path(tempfile.mkdtemp(prefix=".adapter.", dir=run.path))
    try:
        # The base's name is published with the adapter, a path of this machine is not.
        model.peft_config["default"].base_model_name_or_path = (
            Path(recipe.model).name if Path(recipe.model).is_dir() else recipe.model
        )
        # Without the embeddings: else a copy of an adapted LM head is saved too.
        model.save_pretrained(str(folder), save_embedding_layers=False)
        tokenizer.save_pretrained(str(folder))
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's card names the base by its path
        write_manifest(folder, run.run_id)
        if run.adapter.exists():  # damaged, or the run would count as finished
            os.replace(run.adapter, Path(tempfile.mkdtemp(prefix="adapter-damaged-", dir=run.path)))
        run.update_environment(finished=now())  # the time; what counts is the adapter's folder
        os.replace(folder, run.adapter)
    except (OSError, SafetensorError) as error:  # safetensors has its own errors for a full disk
        raise InputError(
            f"the adapter could not be written: {str(error).splitlines()[0]}. Free some space in "
            f"{run.path}; training is done, and fine_tune.py --resume {run.path} saves it."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
