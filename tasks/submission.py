"""Write submissions in the form of the organizer's sample, and review.csv for spreadsheets."""

import codecs
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dandap.data.rows import match_ids
from dandap.data.tables import read_table
from dandap.files import write_table, write_text

REVIEW_COLUMNS = ("id", "question", "prediction", "gold", "char_f1", "log_probability", "ended")
# Spreadsheets run cells that begin with these as formulas (OWASP, CSV injection).
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _runs(text: str) -> bool:
    # Leading apostrophes are ignored, so that `active` returns '-10도 unchanged.
    return text.lstrip("'").startswith(FORMULA)


def escape_formula(value):
    """Return a value with an apostrophe before it if a spreadsheet would run it as a formula.

    A list of texts becomes one text.
    """
    text = " | ".join(value) if isinstance(value, list) else value
    return f"'{text}" if isinstance(text, str) and _runs(text) else text


def active(text: str) -> str:
    """Undo `escape_formula`."""
    return text[1:] if text.startswith("'") and _runs(text) else text


def write_review(path: Path, records: list[dict]) -> None:
    """Write review.csv, for comparing answers in a spreadsheet; formulas are escaped."""
    rows = [{name: escape_formula(record[name]) for name in REVIEW_COLUMNS} for record in records]
    write_table(path, rows, REVIEW_COLUMNS)


@dataclass(frozen=True)
class SubmissionForm:
    """The columns, encoding and order of a submission; `note` explains them to people."""

    columns: tuple[str, str] = ("id", "answer")
    encoding: str = "utf-8-sig"
    order: tuple[str, ...] = ()  # of the ids; empty: the order of the test file
    note: str | None = None


def read_form(path: Path, ids: Sequence[str]) -> SubmissionForm | None:
    """Return the form of a CSV file of ids and answers; None unless it has two columns.

    `order` is empty if the file's ids are not `ids`.
    """
    table = read_table(path)
    if len(table.header) != 2:
        return None
    name, answer = table.header
    note = None
    found = [cells.get(name, "") for _, cells in table.rows]
    matched = list(map(match_ids(ids, found), ids))
    order: tuple[str, ...] = ()
    # The file has each id once, and no other; white space and composition may differ.
    if len(ids) == len(found) and set(matched) == set(found):
        spelled = dict(zip(matched, ids, strict=True))
        order = tuple(spelled[row_id] for row_id in found)
        if order != tuple(ids):
            note = f"the submission is in the order of {path}, not of the test file"
    has_mark = table.encoding != "utf-8" or path.read_bytes().startswith(codecs.BOM_UTF8)
    encoding = "utf-8-sig" if has_mark else "utf-8"
    return SubmissionForm((name, answer), encoding, order, note)


def submission_form(test_file: Path, ids: Sequence[str]) -> SubmissionForm:
    """Return the form of sample_submission.csv next to the test file, or the default form."""
    sample = test_file.with_name("sample_submission.csv")
    if not sample.is_file():
        return SubmissionForm()
    form = read_form(sample, ids)
    if form and form.order:
        return form
    return SubmissionForm(
        note=f"WARNING: {sample} is not of this test file (its ids or columns differ), so the "
        "columns are id, answer. If another column has the ids: --columns id=NAME"
    )


def submission_like(member: Path, ids: Sequence[str]) -> SubmissionForm:
    """Return the form of an ensemble member's submission, or the default form.

    `member` is a file of answers; a submission.csv next to it comes first.
    """
    for path in (member.with_name("submission.csv"), member):
        if path.suffix.lower() == ".csv" and path.is_file() and (form := read_form(path, ids)):
            return form
    return SubmissionForm()


def write_submission(
    path: Path, form: SubmissionForm, ids: Sequence[str], answers: Sequence[str]
) -> None:
    """Write a submission in the form's order; RuntimeError if pandas reads it back differently."""
    answer_of = dict(zip(ids, answers, strict=True))
    ids = list(form.order or ids)
    # Organizers may read with pandas 2, which ends a cell at NUL.
    answers = [answer_of[name].replace("\0", "") for name in ids]
    text = io.StringIO()
    # Minimal quoting leaves a bare carriage return unquoted, and readers would see two rows.
    has_return = any("\r" in cell for cell in (*ids, *answers))
    writer = csv.writer(
        text, lineterminator="\n", quoting=csv.QUOTE_ALL if has_return else csv.QUOTE_MINIMAL
    )
    writer.writerow(form.columns)
    writer.writerows(zip(ids, answers, strict=True))
    write_text(path, text.getvalue(), encoding=form.encoding)

    import pandas as pd  # 0.4 s

    # Without keep_default_na=False the answers "NA" and "None" would be missing values.
    table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    found = [tuple(table.columns), *table.itertuples(index=False, name=None)]
    has_mark = path.read_bytes().startswith(codecs.BOM_UTF8)
    is_same = found == [form.columns, *zip(ids, answers, strict=True)]
    if not is_same or has_mark != (form.encoding == "utf-8-sig"):
        raise RuntimeError(f"{path} reads back differently from what was written")
