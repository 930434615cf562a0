"""Name everything that a run writes into outputs/<run>/, and find a run again."""

import platform
import subprocess
import uuid
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from dandap import ROOT
from dandap.data.rows import Table
from dandap.errors import InputError, short_list
from dandap.files import (
    checked_name,
    free_folder,
    locked,
    read_json,
    shortened,
    timestamp,
    write_json,
    write_text,
)
from dandap.recipe import Recipe, load_recipe

# A result may depend on the versions of these.
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "pandas",
    "tokenizers",
)
# A start leaves these before there is anything to go on from; a folder that holds no more may be
# started in again under its name.
BEGUN = {
    "recipe.yaml",
    "template.json",
    "environment.json",
    "data_checks.json",
    "trimmed.json",
    "metrics.jsonl",
}


class RunFolder:
    """Holds the paths of one run, and reads and writes what lies there."""

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
        self.validation_file = path / "validation_predictions.csv"
        self.validation_record = path / "validation_predictions.jsonl"
        self.report_file = path / "report.html"
        self.answers = path / "answers"

    @property
    def finished(self) -> bool:
        """Return whether the run has a trained adapter."""
        return self.weights.is_file() and self.weights.stat().st_size > 0

    def check_finished(self) -> None:
        """Raise InputError if something cannot be read that a finished run needs to answer."""
        if not self.finished:
            raise InputError(
                f"{self.adapter} holds an empty adapter. Train again, or put it back from a copy."
            )
        self.load_recipe()
        self.load_template()

    @property
    def only_begun(self) -> bool:
        """Return whether a start left the run with nothing to go on from."""
        # Hidden are the lock and files half written, which are nothing to go on from either.
        names = {path.name for path in self.path.iterdir() if not path.name.startswith(".")}
        return names <= BEGUN | {"checkpoints"} and not any(self.checkpoints.glob("checkpoint-*"))

    def environment(self) -> dict:
        """Read environment.json; raise InputError if it is missing or damaged."""
        return read_json(self.environment_file)

    def when(self, what: str) -> str:
        """Return the time (UTC) of `started` or `finished`, or "", which sorts before all times.

        It is the folder's own record, which travels with it; files' times may change in a copy.
        """
        value = self.environment().get(what)
        try:
            if value is not None:
                datetime.fromisoformat(value)
        except (TypeError, ValueError):
            raise InputError(
                f"{self.environment_file}: {what!r} is {str(value)[:60]!r}, expected a time."
            ) from None
        return value or ""

    @property
    def name_of_run(self) -> str | None:
        """Return what the run's checkpoints are signed with, so that another run's are known.

        It is None in folders of earlier versions.
        """
        return self.environment().get("run")

    def note(self, **values) -> None:
        """Write values into environment.json beside what it says."""
        write_json(self.environment_file, self.environment() | values)

    def load_recipe(self) -> Recipe:
        """Read the recipe as it was resolved when the run started."""
        if not self.recipe_file.is_file():
            raise InputError(
                f"{self.path} is no run folder (no recipe.yaml). "
                "Expected a folder that fine_tune.py made."
            )
        return load_recipe(str(self.recipe_file), {})

    def load_template(self) -> tuple[str, dict[str, str]]:
        """Read (name, template) as trained; prompts.check_template says if they can be used."""
        saved = read_json(self.template_file)
        template = saved.get("template")
        if not isinstance(saved.get("name"), str) or not isinstance(template, dict):
            raise InputError(
                f"{self.template_file} holds no name and template. "
                "Put it back from a copy of the folder."
            )
        if not all(isinstance(part, str) for part in template.values()):
            raise InputError(
                f"{self.template_file}: a part of the template is no text. "
                "Put it back from a copy of the folder."
            )
        return saved["name"], template

    def save_recipe(self, recipe: Recipe, template: dict[str, str]) -> None:
        """Write template.json and recipe.yaml, with every field of the resolved recipe."""
        # recipe.yaml comes last, because by it a folder is known as a run.
        write_json(self.template_file, {"name": recipe.template, "template": template})
        write_text(self.recipe_file, recipe.to_yaml())


def new_run(output_dir: str, name: str | None, made_from: str) -> RunFolder:
    """Make a fresh folder; refuse a name that is taken, because nothing is ever overwritten."""
    refuse_taken(output_dir, name)
    # A folder that was not refused is of a start that left nothing to go on from.
    if name and (Path(output_dir) / checked_name(name)).is_dir():
        return RunFolder(Path(output_dir) / checked_name(name))
    return RunFolder(
        free_folder(
            Path(output_dir) / checked_name(name or f"{shortened(made_from)}-{timestamp()}")
        )
    )


def refuse_taken(output_dir: str, name: str | None) -> None:
    """Refuse a run's name that is taken, before a model is loaded.

    A start that left nothing to resume takes no name.
    """
    if not name:
        return
    folder = Path(output_dir) / checked_name(name)
    if folder.is_dir() and not folder.is_symlink() and RunFolder(folder).only_begun:
        # The lock refuses a run that is being trained right now and has no checkpoint yet.
        with locked(folder):
            return
    if folder.exists() or folder.is_symlink():
        raise InputError(
            f"{folder} exists already. Choose another --run_name, or continue it with --resume."
        )


def named(name: str, output_dir: str) -> Path | None:
    """Return what a person means by a name: a path, or something in the folder of runs.

    Where there is neither, return None.
    """
    return next((path for path in (Path(name), Path(output_dir) / name) if path.exists()), None)


def find_run(name: str | None, output_dir: str) -> RunFolder:
    """Find a run by path or name; without a name find the newest finished one."""
    if name:
        folder = named(name, output_dir)
        if folder is None or not folder.is_dir():
            known = short_list(run.path.name for run in list_runs(output_dir)) or "none"
            raise InputError(
                f"got run {name[:200]!r}; there is no such folder. Runs in {output_dir}: {known}."
            )
        return RunFolder(folder)
    listed = list_runs(output_dir)
    finished = [run for run in listed if run.finished]
    if not finished:
        raise InputError(
            f"{output_dir} holds no finished run. "
            "Train one with `python fine_tune.py`, or name one with --run."
        )
    chosen = newest(finished, "finished")
    for run in listed:
        is_newer = run.when("started") > chosen.when("started")
        # A folder of a base's answers is never finished, and has no checkpoints.
        if is_newer and not run.finished and any(run.checkpoints.glob("checkpoint-*")):
            print(
                f"{run.path} is newer and not finished: this is {chosen.path}. "
                f"`python fine_tune.py --resume {run.path.name}` goes on with it."
            )
    return chosen


def newest(runs: list[RunFolder], what: str) -> RunFolder:
    """Return the run that `started` or `finished` last by its own record.

    Tell people if the files' times say otherwise, because then a clock may have been wrong.
    """
    chosen = max(runs, key=lambda run: run.when(what))
    written = max(runs, key=lambda run: run.environment_file.stat().st_mtime_ns)
    if written.path != chosen.path:
        print(
            f"{chosen.path} is the run that {what} last by its record, {chosen.when(what)}; "
            f"{written.path} was written to later and says {written.when(what) or 'nothing'}. "
            "If a clock was wrong, name the run that is meant."
        )
    return chosen


def list_runs(output_dir: str) -> list[RunFolder]:
    """List run folders, oldest first by their own record; name a broken one and pass it over."""
    runs = []
    for file in sorted(Path(output_dir).glob("*/recipe.yaml")):
        run = RunFolder(file.parent)
        try:
            run.when("finished")
            if run.weights.exists():
                run.check_finished()
            runs.append((run.when("started"), file.parent.name, run))
        except (InputError, OSError) as error:
            print(f"{run.path} is passed over: {error}")
    # The runs themselves have no order; those that started together are ordered by name.
    return [run for *_, run in sorted(runs, key=lambda found: found[:2])]


def now() -> str:
    """Return the time in UTC, so that runs of several machines sort."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def describe_environment(tables: list[Table]) -> dict:
    """Describe what a result depends on besides its recipe.

    These are versions, the device, the project's commit and the hashes of the data.
    """
    import torch  # 3 s, which what only reads answers need not take

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


def begin(tables: list[Table], base: dict) -> dict:
    """Describe the environment of a run that begins, with its base's identity and its own name."""
    return describe_environment(tables) | {"base": base, "run": uuid.uuid4().hex}


def _commit() -> str | None:
    """Return the project's commit, with "+changes" if files differ from it.

    Return None without git, or where the project lies in somebody else's checkout.
    """
    git = {"capture_output": True, "text": True, "check": True, "cwd": ROOT}
    try:
        top, commit = subprocess.run(
            ["git", "rev-parse", "--show-toplevel", "HEAD"], **git
        ).stdout.split("\n")[:2]
        if not ROOT.samefile(top):
            return None
        # -uno: data and outputs, which git does not track, are no changes of the project.
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], **git).stdout
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None
    return commit + ("+changes" if changed else "")
