"""What makes training crash-proof: whole checkpoints with a manifest, the newest valid one, a lock, an orderly stop.

A checkpoint is written in `.saving/`, flushed, given a manifest (every file's size and SHA-256, and the run's name) and
renamed to its place. It counts only when its manifest holds. A finished adapter has a manifest too.
"""

import hashlib
import json
import math
import os
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback

from dandap.errors import InputError
from dandap.processes import process_count
from dandap.selection import best_step
from dandap.storage import write_text
from dandap.texts import shown

MANIFEST, STAGING = "manifest.json", ".saving"
KEPT = 2  # checkpoints: should the newest be damaged later, there is one before it


def seal(folder: Path, run: str | None = None) -> None:
    """Write the manifest of a folder's files, all flushed to the disk; the manifest last. `run` signs it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)} for path in files}
    for path in files:
        _flush(path)
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump({"files": manifest, "run": run}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    _flush(folder)


def fault(folder: Path, run: str | None = None) -> str | None:
    """Why a checkpoint or an adapter cannot be used, or None if its manifest holds and is not another run's."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        if run and manifest.get("run") not in (run, None):
            return "it is another run's"
        for name, expected in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["size"]:
                return f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
            if sha256(path) != expected["sha256"]:
                return f"{name} is damaged (its SHA-256 differs)"
    except FileNotFoundError:
        return "it has no manifest: it was not written to its end"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read ({type(error).__name__})"
    if not any(name.endswith(".safetensors") for name in files):
        return "its manifest names no weights"
    return None


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Have the system write a file, or a folder's entries, to the disk.

    Windows opens no folder and flushes no handle that cannot write; it keeps a folder's entries by itself.
    """
    try:
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:
        if not path.is_dir():
            raise
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def step_of(checkpoint: Path) -> int:
    """The number in checkpoint-<step>; -1 for another name."""
    number = checkpoint.name.rsplit("-", 1)[-1]
    return int(number) if number.isdigit() else -1


def list_checkpoints(folder: Path) -> list[Path]:
    """Newest first, valid or not."""
    return sorted((path for path in folder.glob("checkpoint-*") if step_of(path) >= 0), key=step_of, reverse=True)


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
                for unread in ("training_args.bin", "README.md"):  # a pickle, and PEFT's empty model card
                    (staging / name / unread).unlink(missing_ok=True)
                seal(staging / name, self.run)
                _put_in_place(staging / name, checkpoints / name)
                _drop_old(checkpoints, best_step(self.state))
            self.accelerator.wait_for_everyone()  # a process that leaves first has the launcher stop the one that writes
        except (OSError, RuntimeError, SafetensorError) as error:  # torch.save and safetensors have errors of their own
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
        if self.accelerator.scaler is None and not math.isfinite(float(norm)):  # fp16's scaler skips such steps by itself
            raise InputError(self._gone_wrong(f"the gradient's length is {float(norm)}", self.state.global_step + 1))
        return norm

    def log(self, logs, *args, **kwargs):
        """Every step comes by here before it is saved; stops a run whose loss is not finite."""
        if not math.isfinite(logs.get("loss", 0.0)):
            raise InputError(self._gone_wrong(f"the loss is {logs['loss']}", self.state.global_step))
        super().log(logs, *args, **kwargs)

    def _gone_wrong(self, what: str, step: int) -> str:
        ids = self.questions_of_step()
        some = ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
        return (
            f"{what} in step {step} (questions {some}): nothing more is saved. Lower learning_rate or max_grad_norm, or use "
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
    there = min(len(list_checkpoints(folder / "checkpoints")), KEPT + 1)  # they will give way to the new ones
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    if free < (most - there) * each:
        raise InputError(
            f"{folder} has {free / 1e6:,.0f} MB free; {most - there} more checkpoints of {each / 1e6:,.0f} MB need to fit. "
            "Free some space, or name another --output_dir."
        )


@contextmanager
def locked(folder: Path):
    """One process at a time works on a folder; the lock of a dead process is free."""
    file, note = folder / ".lock", folder / ".lock.owner"
    if file.is_symlink():
        raise InputError(f"{file} is a link; expected a file of the folder's own. Remove the link.")
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = note.read_text(encoding="utf-8") if note.is_file() else "another process"
        raise InputError(f"{folder} is in use by {shown(owner[:100])}. Wait until it ends, or stop it.") from None
    try:
        write_text(note, f"process {os.getpid()}")  # a host's name is nobody's business where the folder is published
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


class StopSignals(TrainerCallback):
    """SIGINT (Ctrl-C), SIGTERM and SIGHUP (a closed terminal) let the step end and be saved; a second one ends at once.

    Use as a context around training; `received` then names the signal, if one came.
    """

    received: signal.Signals | None = None

    def __enter__(self) -> "StopSignals":
        names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        # nohup has SIGHUP ignored, and a shell SIGINT of what runs in the background: that stays so.
        heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._ask) for number in heard}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        print(f"{self.received.name}: finishing this step and saving; once more to stop at once", flush=True)

    def on_step_end(self, args, state, control, **kwargs):
        number = _on_any_process(self.received or 0, args.device)
        if number:
            self.received = signal.Signals(number)
            control.should_save = control.should_training_stop = True


def _on_any_process(number: int, device: torch.device) -> int:
    """The largest of all processes' numbers: what one is told, all are, and they stop after the same step."""
    if process_count() == 1:
        return number
    asked = torch.tensor(number, device=device)
    torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
    return int(asked)
