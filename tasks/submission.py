"""Write submissions in the form that the organiser's sample asks for, and review.csv.

Submissions are written whole, read back and checked.
"""

import codecs
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dandap.data.rows import match_ids
from dandap.data.tables import read_table
from dandap.errors import InputError, short_list
from dandap.files import write_table, write_text

SUBMISSION_COLUMNS = ("id", "answer")  # where the organiser's sample is not there
REVIEW_COLUMNS = ("id", "question", "prediction", "gold", "char_f1", "log_probability", "ended")
# A spreadsheet takes a cell that begins so for a formula (OWASP, CSV injection).
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_review(path: Path, records: list[dict]) -> None:
    """Write review.csv, in which a person compares answers with a spreadsheet.

    What would run as a formula has an apostrophe before it.
    """
    rows = []
    for record in records:
        rows.append({name: inert(record[name]) for name in REVIEW_COLUMNS})
    write_table(path, rows, REVIEW_COLUMNS)


def _runs(text: str) -> bool:
    """Say whether a text would run as a formula if it had no apostrophes before it."""
    # Apostrophes of the text's own do not count, so that `active` gives '-10도 back as it was.
    return text.lstrip("'").startswith(FORMULA)


def active(text: str) -> str:
    """Undo what `inert` made of a text."""
    return text[1:] if text.startswith("'") and _runs(text) else text


def inert(value):
    """Return a value with an apostrophe before it if a spreadsheet would run it as a formula.

    Of a list of texts it returns one text.
    """
    text = " | ".join(value) if isinstance(value, list) else value
    return f"'{text}" if isinstance(text, str) and _runs(text) else text


@dataclass(frozen=True)
class SubmissionForm:
    """Describes what a submission looks like.

    `note` tells people what of the organiser's sample was used, and why not all of it.
    """

    columns: tuple[str, str] = SUBMISSION_COLUMNS
    encoding: str = "utf-8-sig"
    # The test file's ids in the sample's order; empty for the test file's own.
    order: tuple[str, ...] = ()
    note: str | None = None


def submission_form(test_file: Path, ids: Sequence[str]) -> SubmissionForm:
    """Read sample_submission.csv beside the test file, before anything is answered.

    Without a sample, or where its ids or columns are not the test file's, the form is ours. A
    sample that cannot be read, or whose header is no header, raises an InputError: found after
    hours of answering it would cost them.
    """
    # A folder's files, or several with commas between them, are no path that exists.
    if not test_file.exists():
        test_file = Path(str(test_file).split(",")[0])
    sample = test_file.with_name("sample_submission.csv")
    if not sample.is_file():
        return _form_without_sample(test_file)
    sheet = read_table(sample)
    encoding = sheet.encoding
    if len(sheet.header) == 2 and len({name.strip() for name in sheet.header} - {""}) < 2:
        raise InputError(
            f"{sample} has the header {sheet.header}; expected two different names. "
            "Correct it, or remove it."
        )
    found = [cells.get(sheet.header[0], "") for _, cells in sheet.rows] if sheet.header else []
    find = match_ids(ids, found)
    places = {name: place for place, name in enumerate(found)}
    matched = {name: places[other] for name in ids if (other := find(name)) is not None}
    # All numbers are equal only if the sample has each id of the test file once, and no other.
    if len(sheet.header) != 2 or not len(matched) == len(ids) == len(found) == len(places):
        return SubmissionForm(
            note=f"WARNING: {sample} is not of this test file (its ids or columns differ), and the "
            f"organiser may refuse what follows; the columns are {', '.join(SUBMISSION_COLUMNS)}. "
            "If another column holds the ids: --columns id=NAME"
        )
    has_mark = encoding != "utf-8" or sample.read_bytes().startswith(codecs.BOM_UTF8)
    notes = []
    if encoding != "utf-8":
        notes.append(f"{sample} is {encoding}; the submission is written as UTF-8")
    if sheet.separator != ",":
        notes.append(f"{sample} is not separated by commas; the submission is")
    order = tuple(sorted(ids, key=matched.__getitem__))
    if order != tuple(ids):
        notes.append(
            f"the submission's rows stand in the order of {sample}, which is not the test file's"
        )
    if any(name not in places for name in ids):
        notes.append(
            f"{sample} writes some ids in another way; "
            "the submission has them as the test file does"
        )
    columns = (sheet.header[0], sheet.header[1])
    written_as = "utf-8-sig" if has_mark else "utf-8"
    return SubmissionForm(columns, written_as, order, "; ".join(notes) or None)


def _form_without_sample(test_file: Path) -> SubmissionForm:
    """Return our own form, with a note if a file beside the test file may be meant as a sample."""
    others = []
    for path in test_file.parent.glob("*.[cC][sS][vV]"):
        if "sample" in path.name.lower():
            others.append(path.name)
    hint = (
        f"{short_list(others)} beside {test_file} is not read; "
        "name it sample_submission.csv if it is the organiser's"
    )
    return SubmissionForm(note=hint if others else None)


def form_of(submission: Path) -> SubmissionForm | None:
    """Return the form of a CSV of two columns, as a submission is, and the order of its ids.

    For a file with other columns return None.
    """
    sheet = read_table(submission)
    if len(sheet.header) != 2 or len({name.strip() for name in sheet.header} - {""}) != 2:
        return None
    data = submission.read_bytes()
    has_mark = data.startswith(codecs.BOM_UTF8) or sheet.encoding != "utf-8"
    order = tuple(cells.get(sheet.header[0], "") for _, cells in sheet.rows)
    return SubmissionForm(
        (sheet.header[0], sheet.header[1]), "utf-8-sig" if has_mark else "utf-8", order
    )


def write_submission(
    path: Path, form: SubmissionForm, ids: Sequence[str], answers: Sequence[str]
) -> None:
    """Write the submission in the form's order, whole; read it back and check it."""
    answer_of = dict(zip(ids, answers, strict=True))
    ids = list(form.order or ids)
    # pandas 2, with which organisers may read, ends a cell at NUL: what follows would be lost.
    answers = [answer_of[name].replace("\0", "") for name in ids]
    text = io.StringIO()
    # Minimal quoting leaves a bare carriage return unquoted, and a reader would see two rows.
    quoting = csv.QUOTE_ALL if any("\r" in cell for cell in (*ids, *answers)) else csv.QUOTE_MINIMAL
    writer = csv.writer(text, lineterminator="\n", quoting=quoting)
    writer.writerow(form.columns)
    writer.writerows(zip(ids, answers, strict=True))
    write_text(path, text.getvalue(), encoding=form.encoding)
    check_submission(path, form, ids, answers)


def check_submission(
    path: Path, form: SubmissionForm, ids: Sequence[str], answers: Sequence[str]
) -> None:
    """Read a written submission as the organiser would.

    Raise RuntimeError if it is not what was meant.
    """
    import pandas as pd  # what organisers read with; 0.4 s

    # Without keep_default_na=False the answers "NA" and "None" would read as nothing.
    table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    has_bom = path.read_bytes().startswith(codecs.BOM_UTF8)
    meant = (list(form.columns), list(ids), list(answers), form.encoding == "utf-8-sig")
    if (
        list(table.columns),
        table.iloc[:, 0].tolist(),
        table.iloc[:, 1].tolist(),
        has_bom,
    ) != meant:
        raise RuntimeError(
            f"{path} reads back differently from what was written ({len(table)} rows, "
            f"{list(table.columns)})"
        )


def submission_like(member: Path, ids: Sequence[str]) -> SubmissionForm:
    """Return the columns, byte-order mark and order of a member's submission.

    Without one, return the main task's columns. A member is a file of answers of an ensemble.
    """
    for path in (member.with_name("submission.csv"), member):
        if path.suffix.lower() != ".csv" or not path.is_file() or not (form := form_of(path)):
            continue
        # Of other ids it still tells the columns and the mark, but no order.
        if sorted(form.order) != sorted(ids):
            return replace(form, order=())
        told = (
            f"the submission's rows stand in the order of {path}"
            if list(form.order) != list(ids)
            else None
        )
        return replace(form, note=told)
    return SubmissionForm()
