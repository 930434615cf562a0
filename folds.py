"""Cross-validate, for `fine_tune.py --folds N`: train on the complement of each of N parts.

Each fold is a run folder like any other, in one folder together:

    outputs/demo-folds-20261125-180000/
        fold-1/ ... fold-5/       runs; each has answered the fifth that it did not train on
        out_of_fold.jsonl, .csv   these answers together: one to every training row
        suspects.csv              labels that a fold contradicts although it is sure
        report.html, folds.json   cross-validated scores with their intervals
        ensemble-f1_sum-.../      the test file, answered by all folds and voted on
        soup/                     with --soup: one adapter, the mean of the folds'
"""

import argparse
import gc
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import ensemble
import inference
from dandap.cli import chosen_options
from dandap.data.rows import Answers
from dandap.data.text import bare
from dandap.errors import InputError, Stopped
from dandap.files import (
    make_folder,
    new_folder,
    read_json,
    read_json_lines,
    write_json,
    write_json_lines,
)
from dandap.model.distributed import refuse_several
from dandap.recipe import Recipe
from dandap.runs.folder import RunFolder, find_path
from dandap.runs.predictions import own_answers, write_predictions
from dandap.training.start import kept_recipe
from tasks import get_task
from tasks.submission import write_review

Train = Callable[[argparse.Namespace], None]  # fine_tune.fine_tune
SURE = 0.9  # the geometric mean of an answer's token probabilities from which a fold counts as sure
WRONG = 0.2  # the character F1 to which an answer contradicts its label


def train_folds(arguments: argparse.Namespace, train: Train) -> None:
    """Train, validate and answer with every fold; what was done before is not done again."""
    refuse_several("fine_tune.py --folds")
    parent = choose_parent(arguments)
    for number in range(1, arguments.folds + 1):
        run = RunFolder(parent / f"fold-{number}")
        own = of_fold(arguments, run, number)
        if run.report_file.is_file():
            kept_recipe(run, own, chosen_options(own))
            print(f"fold {number} of {arguments.folds} is done: {run.path}")
            continue
        print(f"fold {number} of {arguments.folds}")
        try:
            train(own)
        except InputError:
            # A mistyped start would be what a bare --resume finds: it leaves nothing.
            if [path.name for path in parent.iterdir()] == ["folds.json"]:
                shutil.rmtree(parent)
            raise
        except Stopped as stopped:
            told = str(stopped).split(" Continue")[0]
            how = f"python fine_tune.py --folds {arguments.folds} --resume {parent}"
            raise Stopped(f"fold {number}: {told} Continue with {how}", stopped.code) from None
        gc.collect()  # a trainer holds its model in circles, and the next one needs the memory
    runs = [RunFolder(parent / f"fold-{number}") for number in range(1, arguments.folds + 1)]
    result = {"folds": str(parent), **score_out_of_fold(parent, runs)}
    result["submission"] = answer_together(arguments, parent, runs)
    print(json.dumps(result, ensure_ascii=False))


def choose_parent(arguments: argparse.Namespace) -> Path:
    """Return the folder of the folds: a new one, or with --resume the one to go on in."""
    if arguments.folds < 2:
        raise InputError(f"--folds: got {arguments.folds}, expected at least 2.")
    options = chosen_options(arguments)
    if "fold" in options:
        raise InputError("got --fold and --folds; give one of them.")
    output_dir = options.get("output_dir", Recipe.model_fields["output_dir"].default)
    noted = {"folds": arguments.folds, "recipe": arguments.recipe, "options": options}
    if arguments.resume is None:
        name = options.get("run_name") or f"{Path(arguments.recipe or 'default').stem}-folds"
        parent = new_folder(output_dir, name)
        write_json(parent / "folds.json", noted)
        return parent
    parent = find_path(arguments.resume, output_dir) if arguments.resume else newest_of(output_dir)
    if parent is None or not (parent / "folds.json").is_file():
        raise InputError(f"got --folds and --resume {arguments.resume}; there are no folds there.")
    before = read_json(parent / "folds.json")
    if before.get("folds") != arguments.folds:
        raise InputError(f"{parent} has {before.get('folds')} folds, not {arguments.folds}.")
    # The options of the start hold; what the command adds goes over them, and is checked by each
    # fold against its own recipe.
    arguments.recipe = arguments.recipe or before["recipe"]
    for option, value in before["options"].items():
        if not hasattr(arguments, option):
            setattr(arguments, option, value)
    return parent


def newest_of(output_dir: str) -> Path | None:
    """Return the folder of folds that was begun last; its name ends in the time."""
    found = [file.parent for file in Path(output_dir).glob("*/folds.json")]
    return max(found, key=lambda folder: folder.stat().st_mtime_ns, default=None)


def of_fold(arguments: argparse.Namespace, run: RunFolder, number: int) -> argparse.Namespace:
    """Return the command line of one fold: a new run, or the one that was cut off."""
    begun = run.path.is_dir() and not run.is_new
    own = {"fold": f"{number}/{arguments.folds}", "run_name": run.path.name}
    own |= {"output_dir": str(run.path.parent), "resume": str(run.path) if begun else None}
    return argparse.Namespace(**(vars(arguments) | own))


def score_out_of_fold(parent: Path, runs: list[RunFolder]) -> dict:
    """Score all folds' answers together, report them, and list the suspects."""
    recipe = runs[0].load_recipe()
    task = get_task(recipe.task)
    found = {
        record["id"]: record for run in runs for record in read_json_lines(run.validation_record)
    }
    rows = [row for row in task.read_train(recipe).rows if row.id in found]
    answered = Answers(rows, [found[row.id] for row in rows])
    scores = task.final_scores(recipe, answered)
    write_json_lines(parent / "out_of_fold.jsonl", answered.records)
    write_predictions(parent / "out_of_fold.csv", answered.records)
    suspects = find_suspects(answered.records)
    write_review(parent / "suspects.csv", suspects)
    task.tell("out of fold", scores)
    if suspects:
        print(f"{len(suspects)} labels are contradicted by a sure fold: {parent / 'suspects.csv'}")
    environment = runs[0].environment()
    title = f"{parent.name}: {len(runs)} folds"
    task.report(parent, title, recipe, answered, scores, environment=environment, suspects=suspects)
    return {name: round(scores[name], 4) for name in task.headline} | {"suspects": len(suspects)}


def find_suspects(records: list[dict]) -> list[dict]:
    """Return records whose answer is sure and has nearly nothing of the label, the surest first.

    A sentence that holds the label contradicts nothing: the model has not learned to be short yet.
    """
    least = math.log(SURE)
    sure = [
        record
        for record in records
        if record["log_probability"] >= least
        and record["char_f1"] <= WRONG
        and not any(bare(gold) in bare(record["prediction"]) for gold in record["gold"])
    ]
    return sorted(sure, key=lambda record: -record["log_probability"])


def answer_together(
    arguments: argparse.Namespace, parent: Path, runs: list[RunFolder]
) -> str | None:
    """Answer the test file by every fold and vote, or by the mean of their adapters (--soup)."""
    recipe = runs[0].load_recipe()
    if not Path(recipe.test_file).is_file():
        print(f"no submission: there is no file at {recipe.test_file}")
        return None
    task = get_task(recipe.task)
    test = task.read_test(recipe, Path(recipe.test_file)).sha256
    members = []
    for run in [make_soup(parent, runs)] if arguments.soup else runs:
        if not find_answers(run, test):
            inference.main(["--run", str(run.path), "--output_dir", str(parent)])
        members.append(find_answers(run, test))
    if arguments.soup:
        return str(members[0] / task.submission)
    return ensemble.main([*map(str, members), "--output_dir", str(parent)])["submission"]


def find_answers(run: RunFolder, test: str) -> Path | None:
    """Return the folder of the run's newest own answers to the file of this SHA-256, or None."""
    found = [folder for folder, noted in own_answers(run) if test in noted["data"].values()]
    return found[-1] if found else None


def make_soup(parent: Path, runs: list[RunFolder]) -> RunFolder:
    """Return a run whose adapter is the mean of the folds', made once."""
    from dandap.model.adapter import average_adapters  # with torch, which --help need not wait for

    whole = RunFolder(parent / "soup")
    if whole.path.is_dir():
        return whole
    # Cut off while it is written it must not look whole.
    soup = RunFolder(parent / ".soup")
    shutil.rmtree(soup.path, ignore_errors=True)
    make_folder(soup.path)
    recipe = runs[0].load_recipe()
    average_adapters(recipe, [run.adapter for run in runs], soup.adapter)
    write_json(
        soup.environment_file, runs[0].environment() | {"soup_of": [r.path.name for r in runs]}
    )
    # The parts that the folds held out are trained on by the others: nothing is held out any more.
    settings = {"fold": None, "validation_fraction": 0.0, "run_name": "soup"}
    soup.save_recipe(recipe.model_copy(update=settings), runs[0].load_template()[1])
    soup.path.rename(whole.path)
    print(f"soup: the mean of {len(runs)} adapters in {whole.adapter}")
    return whole
