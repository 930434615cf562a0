"""outputs/<run>/: everything a run wrote, under fixed names, and how a run is found again."""

import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from dandap.dataset import Table
from dandap.errors import InputError
from dandap.recipe import Recipe, load_recipe

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "pandas", "tokenizers")


class RunFolder:
    """The paths of one run."""

    def __init__(self, path: Path):
        self.path = path
        self.recipe_file = path / "recipe.yaml"
        self.template_file = path / "template.json"
        self.environment_file = path / "environment.json"
        self.findings_file = path / "data_checks.json"
        self.metrics_file = path / "metrics.jsonl"
        self.adapter = path / "adapter"
        self.checkpoints = path / "checkpoints"
        self.validation_file = path / "validation_predictions.csv"
        self.validation_record = path / "validation_predictions.jsonl"
        self.answers = path / "answers"

    @property
    def finished(self) -> bool:
        """Whether it holds a trained adapter."""
        return (self.adapter / "adapter_model.safetensors").is_file()

    @property
    def finished_at(self) -> str:
        """When training ended (UTC); "" sorts before all others if the file that says so is gone."""
        if not self.environment_file.is_file():
            return ""
        return json.loads(self.environment_file.read_text(encoding="utf-8")).get("finished", "")

    def mark_finished(self) -> None:
        """Write the time into environment.json."""
        environment = json.loads(self.environment_file.read_text(encoding="utf-8"))
        write_json(self.environment_file, environment | {"finished": now()})

    def load_recipe(self) -> Recipe:
        """The recipe as it was resolved when the run started."""
        if not self.recipe_file.is_file():
            raise InputError(f"{self.path} is no run folder (no recipe.yaml). Expected a folder that fine_tune.py made.")
        return load_recipe(str(self.recipe_file), {})

    def load_template(self) -> tuple[str, dict[str, str]]:
        """(name, template) as trained."""
        saved = json.loads(self.template_file.read_text(encoding="utf-8"))
        return saved["name"], saved["template"]

    def save_recipe(self, recipe: Recipe, template: dict[str, str]) -> None:
        """Write template.json and recipe.yaml (resolved), by which a folder is known as a run and which therefore comes last."""
        write_json(self.template_file, {"name": recipe.template, "template": template})
        write_text(self.recipe_file, recipe.to_yaml())

    def data_hashes(self) -> dict[str, str]:
        """Path -> SHA-256 of the data files when the run started."""
        return json.loads(self.environment_file.read_text(encoding="utf-8"))["data"]


def new_run(output_dir: str, name: str | None, made_from: str) -> RunFolder:
    """A fresh folder; a name that is taken is refused, because nothing is ever overwritten."""
    refuse_taken(output_dir, name)
    folder = free_folder(Path(output_dir) / safe_name(name or f"{made_from}-{timestamp()}"))
    return RunFolder(folder)


def refuse_taken(output_dir: str, name: str | None) -> None:
    """Say early that a run's name is taken, before a model is loaded."""
    if name and (Path(output_dir) / safe_name(name)).exists():
        raise InputError(
            f"{Path(output_dir) / safe_name(name)} exists already. Choose another --run_name, or continue it with --resume."
        )


def find_run(name: str | None, output_dir: str) -> RunFolder:
    """A finished run by path or name; without a name the newest finished one."""
    if name:
        folder = next((path for path in (Path(name), Path(output_dir) / name) if path.is_dir()), None)
        if folder is None:
            known = [run.path.name for run in list_runs(output_dir)]
            raise InputError(f"got run {name!r}; there is no such folder. Runs in {output_dir}: {', '.join(known) or 'none'}.")
        return RunFolder(folder)
    finished = [run for run in list_runs(output_dir) if run.finished]
    if not finished:
        raise InputError(f"{output_dir} holds no finished run. Train one with `python fine_tune.py`, or name one with --run.")
    return max(finished, key=lambda run: run.finished_at)


def list_runs(output_dir: str) -> list[RunFolder]:
    """Run folders, oldest first by when their recipe was written."""
    files = sorted(Path(output_dir).glob("*/recipe.yaml"), key=lambda path: path.stat().st_mtime)
    return [RunFolder(file.parent) for file in files]


def safe_name(name: str) -> str:
    """A name as one folder: nothing that leaves the parent folder or that a file system refuses."""
    cleaned = re.sub(r"[^\w.+-]+", "-", name).strip("-.")
    if not cleaned:
        raise InputError(f"got the name {name!r}; expected letters, digits, '-', '_' or '.'.")
    return cleaned


def timestamp() -> str:
    """Local time for folder names, to the second."""
    return time.strftime("%Y%m%d-%H%M%S")


def now() -> str:
    """UTC, so that runs of several machines sort."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def new_folder(parent: str | Path, name: str) -> Path:
    """<parent>/<name>-<time>/, never one that exists."""
    return free_folder(Path(parent) / safe_name(f"{name}-{timestamp()}"))


def free_folder(base: Path) -> Path:
    """Make the folder, or the same name with -2, -3, ... if two start in one second."""
    folder, number = base, 2
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            folder, number = base.with_name(f"{base.name}-{number}"), number + 1


def write_text(path: Path, text: str, encoding: str = "utf-8") -> None:
    """Write a file whole or not at all: beside its place first, then renamed."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding=encoding, newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json_lines(path: Path, records: Iterable[dict]) -> None:
    """Write records a line each, whole or not at all."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def refuse_existing(output: str | None, overwrite: bool) -> None:
    """Before hours of answering, not after."""
    if output and not Path(output).absolute().parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {Path(output).parent}. Make it, or name another.")
    if output and Path(output).is_dir():
        raise InputError(f"--output {output} is a folder; expected a file's name.")
    if output and Path(output).exists() and not overwrite:
        raise InputError(f"--output {output} exists already. Choose another name, or add --overwrite.")


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file so that the target is never half of it."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.copyfile(source, partial)
    os.replace(partial, target)
    print(f"copied to {target}")


def write_json(path: Path, value) -> None:
    """Write a value as readable JSON."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def describe_environment(tables: list[Table]) -> dict:
    """Versions, device, commit and data hashes: what a result depends on besides the recipe."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "gpu": gpu,
        "cuda": torch.version.cuda if gpu else None,
        "commit": _commit(),
        "data": {str(table.path): table.sha256 for table in tables},
        "started": now(),
    }


def _commit() -> str | None:
    """The project's commit, with "+changes" if files differ; None outside a git checkout or without git."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=here).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True, cwd=here
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changed else "")
