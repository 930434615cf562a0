"""Files of answers: how they are written, found by run or path, read and aligned."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dandap.data.text import clean, decode, writable
from dandap.errors import InputError, first_line
from dandap.files import read_json, write_table
from dandap.runs.folder import RunFolder, find_path, find_run
from dandap.runs.journal import PREDICTIONS
from tasks.submission import REVIEW_COLUMNS, active


def confidence(record: Mapping[str, Any]) -> float:
    """Return the confidence of an answer, in [0, 1].

    It is the geometric mean of its tokens' probabilities; for a choice, its softmax over all
    choices.
    """
    choices = record.get("choices")
    if not choices or record["prediction"] not in choices:
        return math.exp(record["log_probability"])
    return choice_probabilities(choices)[record["prediction"]]


def choice_probabilities(choices: Mapping[str, float]) -> dict[str, float]:
    """Return the softmax of the log-probabilities of choices."""
    highest = max(choices.values())  # subtracted, or very unlikely choices would all become 0
    exponentials = {name: math.exp(value - highest) for name, value in choices.items()}
    total = sum(exponentials.values())
    return {name: value / total for name, value in exponentials.items()}


def write_predictions(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write predictions.csv: a row per record, lists joined with " | ", choices as JSON."""

    def cell(value: Any) -> Any:
        if isinstance(value, dict):
            return json.dumps(value, ensure_ascii=False)
        return " | ".join(map(str, value)) if isinstance(value, list) else value

    write_table(path, [{name: cell(value) for name, value in r.items()} for r in records])


def find_predictions(name: str, output_dir: str, split: str | None = None) -> Path:
    """Return the file of answers of a run or a folder of answers, or the file itself.

    For a run these are its newest complete answers to a test file, or with split "validation" those
    to its validation questions.
    """
    # Without such a path find_run raises, and lists the runs.
    path = find_path(name, output_dir) or find_run(name, output_dir).path
    if path.is_file():
        return path
    if (path / PREDICTIONS).is_file():
        return path / PREDICTIONS
    run = RunFolder(path)
    # The answers of training come before those of a later `--split validation`.
    if split and run.validation_record.is_file():
        return run.validation_record
    answers = _complete_answers(run, split)
    if not answers:
        how = " --split validation" if split else ""
        raise InputError(
            f"{path} has no {'validation ' if split else ''}answers: "
            f"python inference.py --run {path}{how}"
        )
    return answers[-1][0] / PREDICTIONS


def _complete_answers(run: RunFolder, split: str | None) -> list[tuple[Path, dict]]:
    """Return (folder, scores.json) of finished answers to a whole file or split, oldest first."""
    found = []
    for file in run.answers.glob("*/scores.json"):
        try:
            scores = read_json(file)
        except InputError as error:
            print(f"{file.parent} is skipped: {error}")
            continue
        if scores.get("split") == split and scores.get("limit") is None:
            found.append((file.parent, scores))
    # By time: names begin with the test file's.
    return sorted(found, key=lambda answer: (str(answer[1].get("started", "")), answer[0].name))


def own_answers(run: RunFolder) -> list[tuple[Path, dict]]:
    """Return (folder, scores.json) of the complete answers with the run's own recipe, oldest first.

    Answers with other options (samples, another template) are not among them.
    """
    recipe = run.load_recipe().model_dump()
    return [found for found in _complete_answers(run, None) if found[1].get("recipe") == recipe]


def run_of(path: Path) -> RunFolder | None:
    """Return the run that a file of answers belongs to, or None."""
    runs = map(RunFolder, path.resolve().parents)
    return next((run for run in runs if run.recipe_file.is_file()), None)


def load_predictions(path: Path) -> list[dict]:
    """Read records with at least "id" and "prediction", in the file's order.

    A .jsonl file is predictions.jsonl; a .csv file is predictions.csv, review.csv or a submission
    of two columns.
    """
    text, _ = decode(path.read_bytes(), path)
    records = _from_csv(text, path) if path.suffix.lower() == ".csv" else _from_jsonl(text, path)
    ids = {record["id"] for record in records}
    if not ids or len(ids) < len(records):
        raise InputError(
            f"{path} has {len(records)} answers to {len(ids)} ids; "
            "expected at least one, each id once."
        )
    return records


def _from_jsonl(text: str, path: Path) -> list[dict]:
    records = []
    # splitlines would also split at U+2028, which JSON may contain within a text.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            gold, choices = record.get("gold") or [], record.get("choices") or {}
            texts = [record["id"], record["prediction"], *gold]
            texts += [record.get(name, "") for name in ("article", "question")]
            numbers = [record.get("log_probability", 0.0), *choices.values()]
            kinds = [(str, texts), (int | float, numbers)]
            if not all(isinstance(value, kind) for kind, values in kinds for value in values):
                raise TypeError("a text or a number is something else")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number}: expected a JSON object with the texts id and prediction, "
                f"as inference.py writes it ({first_line(error)})."
            ) from error
        if gold:
            record["gold"] = list(map(clean, gold))
        record |= {"id": writable(record["id"]), "prediction": clean(record["prediction"])}
        records.append(record)
    return records


def _from_csv(text: str, path: Path) -> list[dict]:
    csv.field_size_limit(2**31 - 1)  # the default is 131,072 characters; Windows takes no more
    try:
        rows = [cells for cells in csv.reader(io.StringIO(text, newline=""), strict=True) if cells]
    except csv.Error as error:
        raise InputError(f"{path} is not a CSV file that can be read ({error}).") from error
    header = rows[0] if rows else []
    if {"id", "prediction"} <= set(header):
        names = ("id", "prediction")
    else:
        names = (header[0], header[-1]) if len(header) == 2 else ("", "")
    is_table = len(set(header)) == len(header) and all(len(row) == len(header) for row in rows)
    if not all(names) or not is_table:
        raise InputError(
            f"{path} has the columns {header[:20]}; expected id and prediction, or the two columns "
            "of a submission, and as many cells in every row."
        )
    # In review.csv an apostrophe precedes what a spreadsheet would run as a formula.
    text_of = active if tuple(header) == REVIEW_COLUMNS else str
    row_id, answer = map(header.index, names)
    return [{"id": text_of(row[row_id]), "prediction": text_of(row[answer])} for row in rows[1:]]


def same_questions(members: Mapping[str, list[dict]]) -> list[list[dict]]:
    """Return the records of every file in the first one's order.

    Raise InputError, with the files and an id, if their questions differ.
    """
    first, mine = next(iter(members.items()))
    aligned = []
    for name, theirs in members.items():
        by_id = {record["id"]: record for record in theirs}
        odd = by_id.keys() ^ {record["id"] for record in mine}
        if odd:
            raise InputError(
                f"{first} and {name} answer different questions: {len(odd)} are in one only, as "
                f"{min(odd)}. For a run its newest answers are used; name RUN/answers/FOLDER."
            )
        aligned.append([by_id[record["id"]] for record in mine])
        for one, other in zip(mine, aligned[-1], strict=True):
            # With choices the articles may differ: a dialogue may be cleaned for one member.
            for what in (
                ("question", "gold") if one.get("choices") else ("question", "gold", "article")
            ):
                if one.get(what) and other.get(what) and one[what] != other[what]:
                    raise InputError(
                        f"{first} and {name} answer different questions: {what} of {one['id']} "
                        "is not the same in both. Name answers to the same file."
                    )
    return aligned
