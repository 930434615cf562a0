"""What a task is: the prompt's fields, the scores, the submission's columns."""

import codecs
import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

import metrics
from dandap.answering import Prediction
from dandap.dataset import Row, Table, decode, read, read_answers
from dandap.encoding import Example
from dandap.errors import InputError, nearest
from dandap.recipe import Recipe
from dandap.run_folder import write_text


@dataclass(frozen=True)
class Task:
    """One kind of question. A new task is one entry of TASKS and a template in prompts.py."""

    name: str
    fields: Callable[[str, str], dict[str, str]]  # (context, question) -> what templates may use
    score: Callable[[Sequence[str], Sequence[Sequence[str]], Sequence[str]], dict]  # (predictions, golds, articles)
    submission_columns: tuple[str, str]  # id, answer; used when the organiser's sample is not there


TASKS = {
    "economic_qa": Task(
        name="economic_qa",
        fields=lambda context, question: {"context": context, "question": question},
        score=metrics.score,
        submission_columns=("id", "answer"),
    ),
}


def get_task(name: str) -> Task:
    """The task of this name; InputError names the nearest known one."""
    if name not in TASKS:
        raise InputError(f"got task {name!r}; expected one of {', '.join(TASKS)}.{nearest(name, TASKS)}")
    return TASKS[name]


def read_train(recipe: Recipe) -> Table:
    """The training file; every row needs an answer."""
    return read(recipe.train_file, recipe.columns, need_answers=True)


def read_test(recipe: Recipe, test_file: Path) -> Table:
    """A test file, with gold answers if it or <name>_answers.csv beside it has them."""
    # A mapping for the answer column is for the training file: a test file rarely has one.
    columns = {ours: theirs for ours, theirs in recipe.columns.items() if ours not in ("answer", "answers")}
    table = read(test_file, columns)
    answers_file = test_file.with_name(f"{test_file.stem}_answers.csv")
    if not answers_file.is_file():
        return table
    golds = read_answers(answers_file)
    missing = [row.id for row in table.rows if row.id not in golds]
    if missing:
        raise InputError(
            f"{answers_file} has no answer for {len(missing)} ids of {test_file}, first {missing[0]}. Correct or remove it."
        )
    rows = [Row(row.id, row.context, row.question, golds[row.id]) for row in table.rows]
    return Table(table.path, rows, table.sha256, [*table.notes, f"gold answers come from {answers_file}"])


def answer_shape(records: Sequence[dict]) -> dict:
    """What answers look like whatever their score: {"mean_length" in characters, "stopped", "spans", "repeating" as shares}."""
    return {
        "mean_length": sum(len(record["prediction"]) for record in records) / len(records),
        "stopped": sum(record["ended"] == "stopped" for record in records) / len(records),
        "spans": sum(record["span"] is not None for record in records) / len(records),
        "repeating": sum(metrics.repeats(record["prediction"]) for record in records) / len(records),
    }


def score_rows(task: Task, rows: list[Row], predictions: Sequence[str]) -> dict | None:
    """The task's scores, or None when not every row has a gold answer."""
    if not all(row.answers for row in rows):
        return None
    return task.score(predictions, [row.answers for row in rows], [row.article for row in rows])


def prediction_record(example: Example, prediction: Prediction) -> dict:
    """One line of predictions.jsonl and one row of predictions.csv."""
    row, text = example.row, prediction.text
    record = {
        "id": row.id,
        "question": row.question,
        "prediction": text,
        "gold": list(row.answers),
        "char_f1": metrics.char_f1(text, row.answers) if row.answers else None,
        "exact_match": metrics.exact_match(text, row.answers) if row.answers else None,
        "log_probability": round(prediction.log_probability, 4),
        "span": prediction.span and list(prediction.span),
        "token_ids": prediction.token_ids,
        "ended": "stopped" if prediction.stopped else "cut",
        "trimmed_characters": example.trimmed,
        "article": row.article,
    }
    return record | ({"choices": prediction.choices} if prediction.choices else {})


def write_predictions(path: Path, records: list[dict]) -> None:
    """predictions.csv: the records, their lists (gold answers, samples, token ids) joined with " | "."""
    table = pd.DataFrame(
        [{k: " | ".join(map(str, v)) if isinstance(v, list) else v for k, v in record.items()} for record in records]
    )
    write_text(path, table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC), encoding="utf-8-sig")


FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for one (OWASP, CSV injection)


def write_review(path: Path, records: list[dict]) -> None:
    """review.csv, for a spreadsheet: what a person compares, with an apostrophe before what would run as a formula."""
    columns = ("id", "question", "prediction", "gold", "char_f1", "log_probability", "ended")
    table = [{name: _inert(record[name]) for name in columns} for record in records]
    text = pd.DataFrame(table, columns=columns).to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    write_text(path, text, encoding="utf-8-sig")


def _inert(value):
    text = " | ".join(value) if isinstance(value, list) else value
    return f"'{text}" if isinstance(text, str) and text.startswith(FORMULA) else text


@dataclass(frozen=True)
class SubmissionForm:
    """Columns and encoding of a submission; `note` says why the organiser's sample was not used."""

    columns: tuple[str, str]
    encoding: str
    note: str | None = None


def submission_form(task: Task, test_file: Path, ids: list[str]) -> SubmissionForm:
    """The form of sample_submission.csv beside the test file when it has the same ids, else the task's with a BOM."""
    sample = test_file.with_name("sample_submission.csv")
    if not sample.is_file():
        return SubmissionForm(task.submission_columns, "utf-8-sig")
    data = sample.read_bytes()
    table = [cells for cells in csv.reader(io.StringIO(decode(data, sample)[0], newline="")) if cells]
    if not table or len(table[0]) != 2 or sorted(cells[0] for cells in table[1:]) != sorted(ids):
        note = (
            f"{sample} is not of this test file (its ids or columns differ); the columns are {', '.join(task.submission_columns)}"
        )
        return SubmissionForm(task.submission_columns, "utf-8-sig", note)
    return form_of(sample)


def form_of(submission: Path) -> SubmissionForm | None:
    """The form of a CSV of two columns, as a submission is; None for another."""
    data = submission.read_bytes()
    header = next(csv.reader(io.StringIO(decode(data, submission)[0], newline="")), [])
    if len(header) != 2:
        return None
    return SubmissionForm(tuple(header), "utf-8-sig" if data.startswith(codecs.BOM_UTF8) else "utf-8")


def write_submission(path: Path, form: SubmissionForm, ids: Sequence[str], answers: Sequence[str]) -> None:
    """The submission in the test file's order, written whole, read back and checked."""
    text = io.StringIO()
    # Minimal quoting leaves a bare carriage return unquoted, and a reader would see two rows.
    quoting = csv.QUOTE_ALL if any("\r" in answer for answer in answers) else csv.QUOTE_MINIMAL
    writer = csv.writer(text, lineterminator="\n", quoting=quoting)
    writer.writerow(form.columns)
    writer.writerows(zip(ids, answers, strict=True))
    write_text(path, text.getvalue(), encoding=form.encoding)
    check_submission(path, form, ids, answers)


def check_submission(path: Path, form: SubmissionForm, ids: Sequence[str], answers: Sequence[str]) -> None:
    """Read a written submission as the organiser would; RuntimeError if it is not what was meant."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    has_bom = path.read_bytes().startswith(codecs.BOM_UTF8)
    meant = (list(form.columns), list(ids), list(answers), form.encoding == "utf-8-sig")
    if (list(table.columns), table.iloc[:, 0].tolist(), table.iloc[:, 1].tolist(), has_bom) != meant:
        raise RuntimeError(f"{path} reads back differently from what was written ({len(table)} rows, {list(table.columns)})")
