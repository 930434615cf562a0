"""Fine-tune a Korean LLM to answer in a few words.

recipe -> rows -> model -> train -> adapter and validation score

python fine_tune.py                         the demo, or the default recipe if data/train.csv exists
python fine_tune.py --recipe kanana-1.5-8b --epochs 2
python fine_tune.py --preview               one encoded example, token counts, shortened articles
python fine_tune.py --plan                  memory and batch size of every recipe, or of --recipe
python fine_tune.py --resume                continue the newest unfinished run
python fine_tune.py --folds 5               cross-validate; the five adapters vote on the test file
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from dandap import ROOT
from dandap.cli import Parser, add_options, chosen_options, parse, positive, run_script
from dandap.console import terminal_output
from dandap.data.text import find_files
from dandap.errors import InputError
from dandap.files import read_json
from dandap.model.distributed import only_main_prints, reject_multiprocess
from dandap.recipe import Recipe, find_recipe, load_recipe, make_recipe
from dandap.runs.folder import RunFolder
from tasks import get_task
from tasks.task import train_files

DEFAULT = Recipe()


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments and run."""
    arguments = parse(command_line(), argv)
    options = chosen_options(arguments)
    with only_main_prints():
        if arguments.plan:
            from dandap.model.plans import print_plans  # loads torch, as do those below

            print_plans(arguments.recipe, options, arguments.gpu_memory)
        elif arguments.folds and not arguments.preview:
            train_folds(arguments, options)
        else:
            train_one(arguments, options)


def train_one(arguments: argparse.Namespace, options: dict[str, Any]) -> None:
    """Train or preview one run."""
    run: RunFolder | None = None
    if arguments.resume is None:
        name, recipe = choose_recipe(arguments, options)
    else:
        from dandap.training.resume import find_unfinished, resumed_recipe

        run = find_unfinished(arguments.resume, options.get("output_dir", DEFAULT.output_dir))
        name = run.path.name
        saved = run.load_recipe().model_dump()
        recipe = make_recipe(saved | options, "--resume", list(options))
        if arguments.recipe:
            recipe = load_recipe(arguments.recipe, options)
        recipe = resumed_recipe(run, recipe, arguments.resume_anyway)
    check_input(recipe, options)

    from dandap.training.run import preview_training, train

    if arguments.preview:
        preview_training(recipe, run)
    else:
        train(recipe, name, run, arguments.resume_anyway)


def train_folds(arguments: argparse.Namespace, options: dict[str, Any]) -> None:
    """Cross-validate; with --resume continue in a folder of folds."""
    reject_multiprocess("fine_tune.py --folds")
    if "fold" in options:
        raise InputError("got --fold and --folds; expected one of them.")
    parent: Path | None = None
    metadata = {"recipe": arguments.recipe, "options": options}
    if arguments.resume is None:
        name, recipe = choose_recipe(arguments, options)
    else:
        from dandap.training.cross_validation import find_folds

        parent = find_folds(arguments.resume, options.get("output_dir", DEFAULT.output_dir))
        name, saved = parent.name, read_json(parent / "folds.json")
        if saved.get("folds") != arguments.folds:
            raise InputError(f"{parent} has {saved.get('folds')} folds, not {arguments.folds}.")
        started = saved.get("options")
        if not isinstance(started, dict) or not isinstance(saved.get("recipe"), str | None):
            raise InputError(f"{parent / 'folds.json'} is damaged. Restore it from a copy.")
        # The first command's options apply; this command's override them.
        recipe = load_recipe(arguments.recipe or saved["recipe"], started | options)
    check_input(recipe, options)

    from dandap.training.cross_validation import cross_validate

    result = cross_validate(
        recipe, arguments.folds, name, parent, arguments.resume_anyway, metadata
    )
    headline = get_task(recipe.task).headline
    summary = {
        "folds": str(result.folder),
        **{name: round(result.scores[name], 4) for name in headline},
        "suspects": len(result.suspects),
        "submission": result.submission and str(result.submission),
    }
    if arguments.json:
        print(json.dumps(summary, ensure_ascii=False))
    else:
        print(f"folds: {result.folder}")


def choose_recipe(arguments: argparse.Namespace, options: dict[str, Any]) -> tuple[str, Recipe]:
    """Return the run's name and recipe; without --recipe the demo, or the default for own data."""
    if arguments.recipe:
        recipe = load_recipe(arguments.recipe, options)
        if "train_file" not in options:
            suggest_own_files(recipe)
        elif is_sample(recipe.test_file) and not is_sample(recipe.train_file):
            print(
                f"WARNING: the test file is the sample's, {recipe.test_file}. Add --test_file FILE."
            )
        return find_recipe(arguments.recipe).stem, recipe
    train_file = Path(options.get("train_file", DEFAULT.train_file))
    if not train_file.exists() and "train_file" not in options:
        recipe = load_recipe("demo", options)
        if not Path(recipe.train_file).is_file():
            raise InputError(
                f"no file at {train_file}, and {ROOT} lacks the demo's data. Put your train.csv "
                "there, or use a complete copy of the project."
            )
        Console(file=terminal_output(), soft_wrap=True).print(
            "DEMO: data/train.csv does not exist, so this trains a tiny bundled model on fictional "
            "articles. For real data, put train.csv (id, context, question, answer) and test.csv "
            "(id, context, question) into data/.",
            style="bold yellow",
            markup=False,
        )
        suggest_own_files(recipe)
        return "demo", recipe
    recipe = load_recipe(None, options)
    if recipe.model == DEFAULT.model and not arguments.preview:
        from dandap.model.device import why_no_gpu  # loads torch

        if reason := why_no_gpu():
            raise InputError(
                f"{train_file} exists, but the default recipe ({recipe.model}) needs a GPU: "
                f"{reason}. A small base needs none: python fine_tune.py --recipe qwen3-0.6b"
            )
    return "default", recipe


def check_input(recipe: Recipe, options: dict[str, Any]) -> None:
    """Reject missing files and unconfirmed remote code before any data is read."""
    from dandap.model.hub import confirm_remote_code

    # Training does not need the test file, but answering would fail hours later.
    tests = recipe.test_file.split(",") if "test_file" in options else []
    for path in (*train_files(recipe), *map(Path, tests)):
        find_files(path)
    # Only this command line can enable a repository's code.
    confirm_remote_code(recipe, "trust_remote_code" in options)


def suggest_own_files(recipe: Recipe) -> None:
    """Print how to train on the files in data/ if the recipe names other files."""
    train, test = (sorted(Path("data").glob(f"{name}.*")) for name in ("train", "test"))
    if train and Path(recipe.train_file) not in train and recipe.task == DEFAULT.task:
        options = f"--train_file {train[0]}" + (f" --test_file {test[0]}" if test else "")
        print(f"Training on {recipe.train_file}, although {train[0]} exists. To use it: {options}")


def is_sample(name: str) -> bool:
    """Return whether a file is a bundled sample."""
    return Path(name).absolute().is_relative_to(ROOT / "data/sample")


def command_line() -> Parser:
    """Return the argument parser."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--recipe", metavar="NAME|PATH", help="a recipe by its name in recipes/, or a YAML file")
    add("--preview", action="store_true", help="print one encoded example and exit")
    add("--plan", action="store_true", help="print the memory that recipes need and exit")
    add("--gpu_memory", metavar="SIZE", help="with --plan: GPU size, e.g. 16GB (default: this GPU)")
    add("--resume", metavar="RUN", nargs="?", const="", help="continue a run (default: the newest)")
    add("--resume_anyway", action="store_true", help="resume even if recipe or data changed")
    add("--folds", metavar="N", type=positive, help="N-fold cross-validation by article")
    add("--json", action="store_true", help="with --folds: also print the result as JSON")
    add_options(parser, "recipe options")
    return parser


if __name__ == "__main__":
    run_script(main)
