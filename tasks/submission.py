"""Write submissions in the format of sample_submission.csv, and review.csv for spreadsheets."""

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
# Spreadsheets run cells with these prefixes as formulas (OWASP, CSV injection).
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _is_formula(text: str) -> bool:
    # Ignore leading apostrophes, so that `unescape_formula` can undo escaping.
    return text.lstrip("'").startswith(FORMULA)


def escape_formula(value):
    """Prefix a value with an apostrophe if it is a formula; join lists into one string."""
    text = " | ".join(value) if isinstance(value, list) else value
    return f"'{text}" if isinstance(text, str) and _is_formula(text) else text


def unescape_formula(text: str) -> str:
    """Undo `escape_formula`."""
    return text[1:] if text.startswith("'") and _is_formula(text) else text


def write_review(path: Path, records: list[dict]) -> None:
    """Write answers for a spreadsheet, with escaped formulas."""
    rows = [
        {name: escape_formula(record.get(name)) for name in REVIEW_COLUMNS} for record in records
    ]
    write_table(path, rows, REVIEW_COLUMNS)


@dataclass(frozen=True)
class SubmissionForm:
    """The columns, encoding and order of a submission, and a note to print."""

    columns: tuple[str, str] = ("id", "answer")
    encoding: str = "utf-8-sig"
    order: tuple[str, ...] = ()  # of ids; empty: the test file's order
    note: str | None = None


def read_form(path: Path, ids: Sequence[str]) -> SubmissionForm | None:
    """Return the format of a CSV file with two columns, or None.

    `order` is empty if the file's ids differ from `ids`.
    """
    table = read_table(path)
    if len(table.header) != 2:
        return None
    name, answer = table.header
    note = None
    found = [cells.get(name, "") for _, cells in table.rows]
    matched = list(map(match_ids(ids, found), ids))
    order: tuple[str, ...] = ()
    # Exactly these ids, up to white space and Unicode composition.
    if len(ids) == len(found) and set(matched) == set(found):
        spelled = dict(zip(matched, ids, strict=True))
        order = tuple(spelled[row_id] for row_id in found)
        if order != tuple(ids):
            note = f"the submission follows the order of {path}"
    has_mark = table.encoding != "utf-8" or path.read_bytes().startswith(codecs.BOM_UTF8)
    encoding = "utf-8-sig" if has_mark else "utf-8"
    return SubmissionForm((name, answer), encoding, order, note)


def submission_form(test_file: Path, ids: Sequence[str]) -> SubmissionForm:
    """Return the format of sample_submission.csv next to the test file, or the default."""
    sample = test_file.with_name("sample_submission.csv")
    if not sample.is_file():
        return SubmissionForm()
    form = read_form(sample, ids)
    if form and form.order:
        return form
    return SubmissionForm(
        note=f"WARNING: {sample} does not match the test file (ids or columns differ). Using the "
        "columns id, answer; if another column has the ids, add --columns id=NAME"
    )


def submission_like(member: Path, ids: Sequence[str]) -> SubmissionForm:
    """Return the format of submission.csv next to a file of answers, or of the file itself."""
    for path in (member.with_name("submission.csv"), member):
        if path.suffix.lower() == ".csv" and path.is_file() and (form := read_form(path, ids)):
            return form
    return SubmissionForm()


def write_submission(
    path: Path, form: SubmissionForm, ids: Sequence[str], answers: Sequence[str]
) -> None:
    """Write a submission, and read it back with pandas; raise RuntimeError if it differs."""
    answer_of = dict(zip(ids, answers, strict=True))
    ids = list(form.order or ids)
    # pandas 2 truncates cells at NUL.
    answers = [answer_of[name].replace("\0", "") for name in ids]
    text = io.StringIO()
    # Minimal quoting does not quote a bare carriage return.
    has_return = any("\r" in cell for cell in (*ids, *answers))
    writer = csv.writer(
        text, lineterminator="\n", quoting=csv.QUOTE_ALL if has_return else csv.QUOTE_MINIMAL
    )
    writer.writerow(form.columns)
    writer.writerows(zip(ids, answers, strict=True))
    write_text(path, text.getvalue(), encoding=form.encoding)

    import pandas as pd  # 0.4 s

    # By default pandas reads the answers "NA" and "None" as missing.
    table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    found = [tuple(table.columns), *table.itertuples(index=False, name=None)]
    has_mark = path.read_bytes().startswith(codecs.BOM_UTF8)
    is_same = found == [form.columns, *zip(ids, answers, strict=True)]
    if not is_same or has_mark != (form.encoding == "utf-8-sig"):
        raise RuntimeError(f"{path} differs from what was written")
