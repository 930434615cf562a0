"""The files of a run (outputs/<run>/), and how to find runs."""

import platform
import shlex
import shutil
import subprocess
import uuid
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dandap import ROOT, files
from dandap.data.rows import Table
from dandap.errors import InputError, short_list
from dandap.recipe import Recipe, load_recipe

# Packages that may affect results.
PACKAGES = "torch transformers trl peft bitsandbytes accelerate datasets pandas tokenizers".split()
# The files that a run writes before its first checkpoint.
FIRST_FILES = set(
    "recipe.yaml template.json environment.json data_checks.json metrics.jsonl checkpoints".split()
)


class RunFolder:
    """The paths of one run, and its recipe, template and environment."""

    def __init__(self, path: Path):
        self.path = path
        self.recipe_file = path / "recipe.yaml"
        self.template_file = path / "template.json"
        self.environment_file = path / "environment.json"
        self.findings_file = path / "data_checks.json"
        self.metrics_file = path / "metrics.jsonl"
        self.adapter = path / "adapter"
        self.weights = self.adapter / "adapter_model.safetensors"
        self.checkpoints = path / "checkpoints"
        self.validation_file = path / "validation_review.csv"
        self.validation_record = path / "validation_predictions.jsonl"
        self.report_file = path / "report.html"
        self.answers = path / "answers"

    @property
    def finished(self) -> bool:
        """Return whether the run has a trained adapter."""
        return self.weights.is_file() and self.weights.stat().st_size > 0

    @property
    def is_new(self) -> bool:
        """Return whether the run has no checkpoint and no results yet."""
        # Hidden files are locks and partial writes.
        names = {path.name for path in self.path.iterdir() if not path.name.startswith(".")}
        return names <= FIRST_FILES and not any(self.checkpoints.glob("checkpoint-*"))

    def environment(self) -> dict[str, Any]:
        """Read environment.json; raise InputError if it is missing or damaged."""
        return files.read_json(self.environment_file)

    def update_environment(self, **values: Any) -> None:
        """Add values to environment.json."""
        files.write_json(self.environment_file, self.environment() | values)

    def time(self, event: str) -> str:
        """Return the recorded UTC time of "started" or "finished", or ""."""
        return str(self.environment().get(event) or "")

    @property
    def run_id(self) -> str | None:
        """Return the run's id, as in its manifests; None in old folders."""
        return self.environment().get("run")

    @property
    def quoted(self) -> str:
        """The path, quoted for the shell."""
        return shlex.quote(str(self.path))

    def load_recipe(self) -> Recipe:
        """Read the resolved recipe."""
        if not self.recipe_file.is_file():
            raise InputError(
                f"{self.path} has no recipe.yaml; expected a run folder created by fine_tune.py."
            )
        return load_recipe(str(self.recipe_file), {})

    def load_template(self) -> tuple[str, dict[str, str]]:
        """Read the (name, template) that the run was trained with."""
        saved = files.read_json(self.template_file)
        name, template = str(saved.get("name")), saved.get("template")
        if not isinstance(template, dict) or not all(isinstance(t, str) for t in template.values()):
            raise InputError(f"{self.template_file} has no valid template. Restore it from a copy.")
        return name, template

    def save_recipe(self, recipe: Recipe, template: dict[str, str]) -> None:
        """Write template.json and recipe.yaml with all fields."""
        # recipe.yaml is last, because it marks a folder as a run.
        files.write_json(self.template_file, {"name": recipe.template, "template": template})
        files.write_text(self.recipe_file, recipe.to_yaml())


def new_run(output_dir: str, name: str | None, made_from: str) -> RunFolder:
    """Create a run folder; the default name is recipe and time."""
    if not name:
        return RunFolder(files.new_folder(output_dir, made_from))
    check_name(output_dir, name)
    folder = Path(output_dir) / files.safe_name(name)
    # An existing one has no checkpoint and is reused.
    folder.mkdir(parents=True, exist_ok=True)
    return RunFolder(folder)


def check_name(output_dir: str, name: str | None) -> None:
    """Reject the name of an existing run that has a checkpoint."""
    if not name:
        return
    folder = Path(output_dir) / files.safe_name(name)
    if folder.is_dir() and not folder.is_symlink() and RunFolder(folder).is_new:
        with files.locked(folder):  # raises if the run is being trained
            return
    if folder.exists() or folder.is_symlink():
        raise InputError(
            f"{folder} exists already. Choose another --run_name, or continue it with --resume."
        )


def find_path(name: str, output_dir: str) -> Path | None:
    """Return the existing path `name` or `output_dir`/`name`, or None."""
    return next((path for path in (Path(name), Path(output_dir) / name) if path.exists()), None)


def find_run(name: str | None, output_dir: str) -> RunFolder:
    """Return a run by path or name, by default the newest finished one."""
    if name:
        folder = find_path(name, output_dir)
        if folder is None or not folder.is_dir():
            known = short_list(run.path.name for run in list_runs(output_dir)) or "none"
            raise InputError(
                f"got run {name[:200]!r}, expected one in {output_dir} ({known}) or a path."
            )
        return RunFolder(folder)
    finished = [run for run in list_runs(output_dir) if run.finished]
    if not finished:
        raise InputError(
            f"{output_dir} has no finished run. Train one with `python fine_tune.py`, or choose "
            "one with --run."
        )
    return max(finished, key=lambda run: run.time("finished"))


def list_runs(output_dir: str) -> list[RunFolder]:
    """Return the runs by recorded start time, oldest first; print and skip unreadable ones."""
    runs = []
    for file in sorted(Path(output_dir).glob("*/recipe.yaml")):
        run = RunFolder(file.parent)
        try:
            if run.finished:
                run.load_recipe()
                run.load_template()
            runs.append((run.time("started"), run))
        except (InputError, OSError) as error:
            print(f"{run.path} is skipped: {error}")
    return [run for _, run in sorted(runs, key=lambda found: found[0])]


def now() -> str:
    """Return the UTC time in ISO format."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def describe_environment(tables: list[Table]) -> dict[str, Any]:
    """Return versions, device, commit and data hashes."""
    import torch  # takes 3 s

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES if find_spec(name)},
        "platform": platform.platform(),
        "gpu": gpu,
        "cuda": torch.version.cuda if gpu else None,
        "commit": _commit(),
        "data": {str(table.path): table.sha256 for table in tables},
        "started": now(),
    }


def new_environment(tables: list[Table], base: dict[str, str]) -> dict[str, Any]:
    """Return the environment of a new run, with the identity of its base and a new run id."""
    return describe_environment(tables) | {"base": base, "run": uuid.uuid4().hex}


def _commit() -> str | None:
    """Return the project's commit, with "+changes" if tracked files differ; None without git."""
    if not shutil.which("git"):
        return None
    describe = ["describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+changes"]
    # The project may be a folder in another repository, whose commit is irrelevant.
    command = ["git", f"--git-dir={ROOT / '.git'}", *describe]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or None
