"""Cross-validate by article. Each fold is a run:

outputs/demo-folds-20261125-180000/
    fold-1/ ... fold-5/       runs, each with answers to its held-out part
    out_of_fold.jsonl, .csv   all held-out answers: one per training row
    suspects.csv              labels that a confident fold contradicts
    report.html, folds.json   scores with intervals; the options
    ensemble-f1_sum-.../      the vote of all folds on the test file
"""

import gc
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from dandap.answering.run import answer, find_source
from dandap.data.rows import Answers
from dandap.data.text import comparable
from dandap.errors import InputError, Stopped
from dandap.files import (
    find_damage,
    folder_hash,
    new_folder,
    read_json_lines,
    write_json,
    write_json_lines,
)
from dandap.model.hub import base_identity
from dandap.recipe import Recipe
from dandap.runs.ensemble import combine
from dandap.runs.folder import RunFolder, find_path
from dandap.runs.predictions import PREDICTIONS, own_answers
from dandap.runs.report import write_report
from dandap.training.resume import check_unchanged, resumed_recipe
from dandap.training.run import train
from tasks import get_task
from tasks.submission import write_review
from tasks.task import compute_scores, print_scores, read_test, read_train

CONFIDENT = 0.9  # minimum geometric mean of an answer's token probabilities
RELIABLE = 0.8  # minimum out-of-fold score; below it, no suspects are listed
WRONG = 0.2  # maximum character F1 of an answer that contradicts its label


class CrossValidation(NamedTuple):
    """The folds' folder, their out-of-fold scores, the suspects and the submission."""

    folder: Path
    scores: dict[str, Any]
    suspects: list[dict]
    submission: Path | None


def cross_validate(
    recipe: Recipe,
    folds: int,
    name: str = "default",
    resume: Path | None = None,
    resume_anyway: bool = False,
    metadata: dict[str, Any] | None = None,
) -> CrossValidation:
    """Train and validate all folds, score them together, and answer the test file.

    `name` is the prefix of the folder's name. `resume` is a folder of folds to continue; finished
    folds are verified, not trained again. `metadata` is saved in folds.json.
    """
    if folds < 2:
        raise InputError(f"--folds: got {folds}, expected at least 2.")
    parent = resume
    if parent is None:
        parent = new_folder(recipe.output_dir, recipe.run_name or f"{name}-folds")
        write_json(parent / "folds.json", {"folds": folds} | (metadata or {}))
    task = get_task(recipe.task)
    runs = [RunFolder(parent / f"fold-{number}") for number in range(1, folds + 1)]
    for number, run in enumerate(runs, 1):
        own = recipe.model_copy(
            update={
                "fold": f"{number}/{folds}",
                "run_name": run.path.name,
                "output_dir": str(parent),
            }
        )
        begun = run.path.is_dir() and not run.is_new
        print(f"fold {number} of {folds}{' (continued)' if begun else ''}")
        if begun:
            own = resumed_recipe(run, own, resume_anyway)
        if run.report_file.is_file():
            table = read_train(task, own)
            check_unchanged(run, own, table, base_identity(own), resume_anyway)
            if reason := find_damage(run.adapter, run.run_id):
                raise InputError(f"{run.adapter} cannot be used: {reason}. Remove {run.path}.")
            continue
        try:
            train(own, resume=run if begun else None, resume_anyway=resume_anyway)
        except InputError:
            # Leave no empty folder after a bad command.
            if resume is None and [path.name for path in parent.iterdir()] == ["folds.json"]:
                shutil.rmtree(parent)
            raise
        except Stopped as stopped:
            reason = str(stopped).split(" Continue")[0]
            command = f"python fine_tune.py --folds {folds} --resume {parent}"
            raise Stopped(
                f"fold {number}: {reason} Continue with {command}", stopped.code
            ) from None
        gc.collect()  # trainers contain reference cycles

    records = {
        record["id"]: record for run in runs for record in read_json_lines(run.validation_record)
    }
    rows = read_train(task, recipe).rows
    if missing := [row.id for row in rows if row.id not in records]:
        raise InputError(
            f"{parent}: {len(missing)} of {len(rows)} questions have no out-of-fold answer, first "
            f"{missing[0]}. Delete report.html in the folds that lack them, then run again with "
            f"--resume {parent}."
        )
    answers = Answers(rows, [records[row.id] for row in rows])
    scores = compute_scores(task, answers, recipe)
    assert scores  # training rows have gold answers
    write_json_lines(parent / "out_of_fold.jsonl", answers.records)
    write_review(parent / "out_of_fold.csv", answers.records)
    is_reliable = scores[task.headline[0]] >= RELIABLE
    suspects = find_suspects(answers.records) if is_reliable else []
    write_review(parent / "suspects.csv", suspects)
    print_scores(task, "out of fold", scores)
    if suspects:
        print(f"{len(suspects)} labels contradict a confident fold: {parent / 'suspects.csv'}")
    elif not is_reliable:
        print(f"no suspects: below a score of {RELIABLE}, most are errors of the model")
    title, environment = f"{parent.name}: {folds} folds", runs[0].environment()
    write_report(parent, title, task, recipe, answers, scores, environment, suspects=suspects)
    submission = answer_test_file(parent, recipe, runs)
    return CrossValidation(parent, scores, suspects, submission)


def find_folds(name: str, output_dir: str) -> Path:
    """Return a folder of folds by name or path; "" selects the one started last."""
    if name:
        parent = find_path(name, output_dir)
    else:
        # By folds.json, which is written at the start only.
        found = sorted(Path(output_dir).glob("*/folds.json"), key=lambda f: f.stat().st_mtime_ns)
        parent = found[-1].parent if found else None
    if parent is None or not (parent / "folds.json").is_file():
        raise InputError(f"--resume: got {name!r}, expected a folder of folds in {output_dir}.")
    return parent


def find_suspects(records: list[dict]) -> list[dict]:
    """Return records whose confident answer contradicts the label, most confident first.

    The answer must be a choice or a span of the article. One that contains the label is too long,
    but does not contradict it.
    """
    suspects = [
        record
        for record in records
        if record["log_probability"] >= math.log(CONFIDENT)
        and record["char_f1"] <= WRONG
        and (record.get("span") or record.get("choices"))
        and not any(comparable(gold) in comparable(record["prediction"]) for gold in record["gold"])
    ]
    return sorted(suspects, key=lambda record: -record["log_probability"])


def answer_test_file(parent: Path, recipe: Recipe, runs: list[RunFolder]) -> Path | None:
    """Answer the test file with every run, combine the answers, and return the submission."""
    test_file = Path(recipe.test_file)
    if not test_file.is_file():
        print(f"no submission: no file at {test_file}")
        return None
    table = read_test(get_task(recipe.task), recipe, test_file)
    ids = {row.id for row in table.rows}
    members = []
    for run in runs:
        adapter = folder_hash(run.adapter)
        # Reuse answers of this adapter to this file.
        found = [
            folder
            for folder, made in own_answers(run)
            if table.sha256 in made.get("data", {}).values()
            and made.get("adapter", adapter) == adapter
            and {record.get("id") for record in read_json_lines(folder / PREDICTIONS)} == ids
        ]
        if found:
            members.append(found[-1])
        else:
            options = {"trust_remote_code": True} if recipe.trust_remote_code else {}
            members.append(answer(find_source(str(run.path), options=options)).folder)
    return combine([str(member) for member in members], output_dir=str(parent)).submission
