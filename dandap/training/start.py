"""How a training begins: with which recipe, and as a new run or going on with one.

A run that goes on is compared with what it was started with.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from dandap import ROOT
from dandap.cli import chosen_options
from dandap.console import obeyed_output
from dandap.data.files import find_files
from dandap.data.rows import Table
from dandap.errors import InputError
from dandap.language import t
from dandap.model.distributed import is_first
from dandap.recipe import Recipe, find_recipe, load_recipe, make_recipe
from dandap.runs.folder import RunFolder, find_path, list_runs, new_environment, newest


@dataclass(frozen=True)
class Start:
    """Holds what is trained: the recipe, its name for the folder, and the run to continue."""

    name: str
    recipe: Recipe
    run: RunFolder | None = None

    @property
    def folder(self) -> Path:
        """Return where checkpoints will be written: the run's folder, or that of all runs."""
        return self.run.path if self.run else Path(self.recipe.output_dir)


def choose(arguments: argparse.Namespace) -> Start:
    """Return how to start; InputError if a test file that was named is not there."""
    options = chosen_options(arguments)
    start = _choose(arguments, options)
    # Training gets along without it, and answering would find out hours later. A recipe's own, as
    # data/test.csv, may still come.
    if "test_file" in options:
        for name in start.recipe.test_file.split(","):
            find_files(Path(name))
    return start


def _choose(arguments: argparse.Namespace, options: dict[str, str]) -> Start:
    """Choose the recipe; the bare command's is decided by the data and the machine."""
    if arguments.resume is not None:
        return choose_unfinished(arguments, options)
    if arguments.recipe:
        recipe = load_recipe(arguments.recipe, options)
        if "train_file" not in options:
            tell_own_files(recipe)
        elif "test_file" not in options:
            tell_sample_test(recipe)
        return Start(find_recipe(arguments.recipe).stem, recipe)
    # The bare command. A file that was named and is missing is refused when it is read; the demo
    # takes the place only of the default one.
    train_file = Path(options.get("train_file", Recipe.model_fields["train_file"].default))
    if not train_file.exists() and "train_file" not in options:
        return choose_demo(options, train_file)
    recipe = load_recipe(None, options)
    # This loads torch, which takes 10 s: a mistake in the command is told before.
    from dandap.model.device import why_no_gpu

    # Refused here, before anything is fetched; another model may be small enough for a CPU.
    reason = why_no_gpu()
    if reason and not arguments.preview and recipe.model == Recipe.model_fields["model"].default:
        raise InputError(
            f"{train_file} is there, and the default recipe ({recipe.model}) needs a GPU: "
            f"{reason}. A small one trains without: python fine_tune.py --recipe qwen3-0.6b; "
            "--recipe demo shows that all runs."
        )
    return Start("default", recipe)


def choose_demo(options: dict[str, str], train_file: Path) -> Start:
    """Return the demo, and say loudly that it is one."""
    demo = load_recipe("demo", options)
    if not Path(demo.train_file).is_file():
        raise InputError(
            f"there is no {train_file} here, and {ROOT} lacks the demo's data, {demo.train_file}. "
            "Put your train.csv there, or take the project's folder whole."
        )
    said = t(
        "DEMO: there is no data/train.csv, so this trains the bundled tiny model on made-up "
        "articles. For the real job put train.csv (id, context, question, answer) and test.csv "
        "(id, context, question) into data/."
    )
    Console(file=obeyed_output(), soft_wrap=True).print(said, style="bold yellow", markup=False)
    tell_own_files(demo)
    return Start("demo", demo)


def tell_own_files(recipe: Recipe) -> None:
    """Say how files of data/ are trained on, where a recipe brings data of its own."""
    train, test = (sorted(Path("data").glob(f"{name}.*")) for name in ("train", "test"))
    # Those are questions on articles; other tasks have folders of their own.
    if (
        not train
        or Path(recipe.train_file) in train
        or recipe.task != Recipe.model_fields["task"].default
    ):
        return
    options = f"--train_file {train[0]}" + (f" --test_file {test[0]}" if test else "")
    said = t("{own} is there, and this trains on {theirs}. For yours: {options}")
    print(said.format(own=train[0], theirs=recipe.train_file, options=options))


def tell_sample_test(recipe: Recipe) -> None:
    """Say that a run on people's own file would answer the test file of a recipe's sample."""
    trained, answered = (
        Path(name or "").absolute().is_relative_to(ROOT / "data/sample")
        for name in (recipe.train_file, recipe.test_file)
    )
    if answered and not trained:
        said = t("answers will be those to {theirs}, the sample's. For yours: --test_file FILE")
        print(said.format(theirs=recipe.test_file))


def choose_unfinished(arguments: argparse.Namespace, options: dict[str, str]) -> Start:
    """Return the run to continue, with the recipe it was started with."""
    output_dir = options.get("output_dir", Recipe.model_fields["output_dir"].default)
    run = find_unfinished(arguments.resume, output_dir)
    return Start(run.path.name, kept_recipe(run, arguments, options), run)


def kept_recipe(run: RunFolder, arguments: argparse.Namespace, options: dict[str, str]) -> Recipe:
    """Return the recipe to go on with: the run's, which the command line must not change.

    InputError says what it would change; with --resume_anyway the changed one is returned.
    """
    saved = run.load_recipe()
    changed = (
        load_recipe(arguments.recipe, options)
        if arguments.recipe
        else make_recipe(saved.model_dump() | options, "--resume", options)
    )
    different = []
    for field in type(saved).model_fields:
        if getattr(saved, field) != getattr(changed, field):
            different.append(field)
    # On this command line output_dir says where to look for the run; neither changes a step.
    different = [field for field in different if field not in ("output_dir", "run_name")]
    if different and arguments.resume_anyway:
        print(f"resuming with another recipe (--resume_anyway): {', '.join(different)}")
        return changed
    if different:
        parts = []
        for field in different:
            parts.append(f"{field}={getattr(saved, field)!r} (now {getattr(changed, field)!r})")
        raise InputError(
            f"{run.path} was started with {', '.join(parts)}. A resumed run keeps its recipe: drop "
            "these options, insist with --resume_anyway, or start a new run."
        )
    return saved


def find_unfinished(name: str, output_dir: str) -> RunFolder:
    """Return the run to continue by name or path, or the newest unfinished one."""
    if name:
        run = RunFolder(find_path(name, output_dir) or Path(name))
    else:
        unfinished = [run for run in list_runs(output_dir) if is_unfinished(run)]
        if not unfinished:
            raise InputError(
                f"{output_dir} holds no unfinished run with a checkpoint. Start one without "
                "--resume; folds go on with --folds N --resume."
            )
        run = newest(unfinished, "started")
    if run.finished and not lacks_validation(run):
        raise InputError(
            f"{run.path} has finished training; nothing is left to resume. "
            f"To answer a test file: python inference.py --run {run.path}"
        )
    return run


def is_unfinished(run: RunFolder) -> bool:
    """Say whether there is something to go on from.

    A run whose files cannot be read is passed over, and a line says so.
    """
    try:
        return lacks_validation(run) if run.finished else any(run.checkpoints.glob("checkpoint-*"))
    except InputError as error:
        print(f"{run.path} is passed over: {error}")
        return False


def lacks_validation(run: RunFolder) -> bool:
    """Say whether a trained run was cut off in its last validation, before its report."""
    return (
        run.finished
        and run.findings_file.is_file()
        and not run.report_file.is_file()
        and run.load_recipe().validates
    )


def tell_what_changed(run: RunFolder, recipe: Recipe, table: Table, anyway: bool) -> None:
    """Refuse to go on over other data or another base, and tell other versions.

    What is new is noted in the run beside the old.
    """
    from dandap.model.identity import base_identity, same_base  # with the hub's library

    before, today = run.environment(), new_environment([table], base_identity(recipe))
    changed = []
    # By its hash: the file may have been moved.
    if table.sha256 not in before.get("data", {}).values():
        was = ", ".join(
            f"{path} {digest[:12]}..." for path, digest in before.get("data", {}).items()
        )
        changed.append(f"the data {table.path} (SHA-256 {table.sha256[:12]}..., then {was})")
    if "base" in before and not same_base(before["base"], today["base"]):
        changed.append(f"the base {recipe.model}")
    if changed and not anyway:
        raise InputError(
            f"{' and '.join(changed)} changed since {run.path} was started. Put the old "
            "files back, insist with --resume_anyway, or start a new run."
        )
    for what in changed:
        print(f"resuming although it differs from the start (--resume_anyway): {what}")
    # Only told: a version may round otherwise, but the run is still what its recipe says.
    old_packages = before.get("packages", {})
    for name, new in today["packages"].items():
        old = old_packages.get(name)
        if old != new:
            print(
                f"WARNING: {name} is {new}, and was {old} when the run started; its steps may come "
                "out differently"
            )
    if before.get("commit") != today["commit"]:
        print(
            f"WARNING: the project is at {today['commit']}, and was at {before.get('commit')} when "
            "the run started"
        )
    if not is_first():
        return
    noted = ("packages", "commit", "data", "base", "platform", "gpu")
    again = {name: today[name] for name in noted} | {"when": today["started"]}
    run.update_environment(resumed=[*before.get("resumed", []), again])
