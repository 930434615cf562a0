"""Question-answering files are read as rows.

Their columns or JSON forms are understood, and their texts checked and cleaned.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from dandap.data.files import JSONS, find_files, hash_file, read_bytes
from dandap.data.json_files import read_json
from dandap.data.qa_formats import (
    COLUMNS,
    LISTED,
    REQUIRED,
    Record,
    answer_texts,
    column_names,
    is_true,
    json_records,
    structured,
)
from dandap.data.rows import Row, Table, join, refuse_duplicate_ids
from dandap.data.tables import read_table
from dandap.data.text import clean, html_text, looks_like_html, trim, writable
from dandap.errors import InputError, nearest, short_list

NONE, IMPOSSIBLE = {}, {"impossible": "true"}  # fields, which rows share: nothing changes them
LONGEST_ID = 1000  # characters; ids are printed and name lines of files
EXCEL_CELL = 32_767  # characters, the most that a cell of Excel holds
# What a decoder put for bytes it could not read; what shifts the code in old mail; and UTF-8 Hangul
# (three bytes from 0xEA to 0xED) read as Latin-1.
GARBLED = re.compile(
    "[\ufffd\x0e\x0f\x1b]"
    "|(?:[\u00ea-\u00ed][\u0080-\u00bf\u0152-\u2122][\u0080-\u00bf\u0152-\u2122]){2}"
)
ENTITY = re.compile("&(?:amp|lt|gt|quot|nbsp|#\\d{2,5});")


def read(
    paths: str | Path | list[Path],
    columns: dict[str, str] | None = None,
    need_answers: bool = False,
) -> Table:
    """Read data files, or folders of them, by what they hold.

    `columns` maps our names to the file's ("context" -> "본문"). With `need_answers` (training)
    every row needs all its texts; without (a test file) every row is kept, and an empty text is
    told. Raises InputError for anything that cannot be used.
    """
    for name in columns or {}:
        if name not in COLUMNS:
            raise InputError(
                f"columns: {name!r} is none of {', '.join(COLUMNS)}.{nearest(name, COLUMNS)} "
                "Write our name first, then the file's, as context=본문."
            )
    paths = [Path(path) for path in (paths if isinstance(paths, list) else [paths])]
    files = [file for path in paths for file in find_files(path)]
    tables = [_read_one(file, columns or {}, need_answers, len(files) > 1) for file in files]
    return tables[0] if len(tables) == 1 else join(tables)


def typed_rows(article: str, questions: list[str]) -> list[Row]:
    """Return the rows of an article and questions that somebody typed, cleaned as a file's are.

    They are numbered from 1.
    """
    records = [
        (f"question {number}", {"id": str(number), "context": article, "question": question})
        for number, question in enumerate(questions, 1)
    ]
    return _Cleaner(Path("typed"), False, []).rows(records)


def _read_one(path: Path, columns: dict[str, str], need_answers: bool, several: bool) -> Table:
    digest = hash_file(path)
    settings = (columns, need_answers, several)
    rows, notes = _rows_of(path, digest, *settings)
    return Table(path, rows, digest, notes)


def _rows_of(
    path: Path, digest: str, columns: dict[str, str], need_answers: bool, several: bool
) -> tuple[list[Row], list[str]]:
    """Return a file's rows, and what was decided or left out, in sentences for people."""
    required = (*REQUIRED, "answer") if need_answers else REQUIRED
    records, notes = _records(path, digest, columns, required)
    if not records:
        raise InputError(
            f"{path} holds no questions (only a header, or nothing). Expected at least one row."
        )
    # With the file's ending, or a.csv and a.jsonl of one folder would both have a row a-1.
    _number_rows(records, f"{path.name}-" if several else "", path, notes)
    rows = _Cleaner(path, need_answers, notes).rows(records)
    refuse_duplicate_ids(rows, path)
    return rows, notes


def _records(
    path: Path, digest: str, columns: dict[str, str], required: Sequence[str]
) -> tuple[list[Record], list[str]]:
    # The bytes and the table end here: of a file of gigabytes they would take as much again.
    data, found = read_bytes(path)
    if found != digest:
        raise InputError(f"{path} changed while it was read. Start again.")
    if path.suffix.lower() in JSONS:
        content, notes = read_json(path, data)
        return list(json_records(content, path, columns, required)), notes
    sheet = read_table(path, data)
    names = column_names(sheet.header, columns, path, required)
    # Of the columns in use alone: beside them a workbook may hold dates and formulas.
    sheet.refuse_unclear(names.values())
    records = [
        (place, _named(path, place, cells, names, sheet.header)) for place, cells in sheet.rows
    ]
    return records, sheet.notes


def _named(
    path: Path, place: str, cells: dict[str, Any], names: dict[str, str], header: list[str]
) -> dict[str, Any]:
    """Return a row's cells by our names; InputError if one of ours is missing at its end.

    A flag may be missing: without one a question can be answered.
    """
    missing = [ours for ours, theirs in names.items() if theirs not in cells]
    if set(missing) - {"is_impossible"}:
        raise InputError(
            f"{path}, {place}: got {len(cells)} cells, the header has {len(header)}. "
            "A comma or quotation mark in a text needs the cell in quotation marks."
        )
    return {ours: cells.get(theirs) for ours, theirs in names.items()}


def _number_rows(records: list[Record], prefix: str, path: Path, notes: list[str]) -> None:
    """Give the rows of a file without ids their numbers as ids, and note it."""
    if any(record.get("id") is not None for _, record in records):
        return
    for number, (_, record) in enumerate(records, 1):
        record["id"] = f"{prefix}{number}"
    notes.append(
        f"{path.name} has no column 'id'; its rows are called {prefix}1 to {prefix}{len(records)} "
        "(--columns id=NAME takes another column's)"
    )


# An article's questions follow one another, so a few articles are enough to look at each once.
_page_text = lru_cache(maxsize=8)(html_text)
_is_page = lru_cache(maxsize=8)(looks_like_html)


@lru_cache(maxsize=64)
def _cleaned(text: str) -> tuple[str, bool]:
    """Return the text cleaned, and whether Hangul was composed in it."""
    cleaned = clean(text)
    return cleaned, cleaned != writable(text)


@lru_cache(maxsize=8)
def _is_garbled(context: str) -> bool:
    return GARBLED.search(context) is not None


@lru_cache(maxsize=8)
def _has_entity(context: str) -> bool:
    return ENTITY.search(context) is not None


class _Cleaner:
    """Checks and cleans the records of one file, and counts what people should know."""

    def __init__(self, path: Path, need_answers: bool, notes: list[str]):
        self.path, self.need_answers, self.notes = path, need_answers, notes
        # Ids of the rows to tell of, one for each text concerned.
        self.composed: list[str] = []
        self.blank: list[str] = []
        self.numbers: list[str] = []
        self.garbled: list[str] = []
        self.cut: list[str] = []
        self.entities: list[str] = []
        self.pages: list[str] = []
        self.unanswerable = 0
        # Questions of an article share its text, which a file holds once for each.
        self.contexts: dict[str, str] = {}

    def rows(self, records: list[Record]) -> list[Row]:
        """Return the rows; notes say what was changed or left out."""
        rows = [
            row for place, record in records if (row := self._row(f"{self.path}, {place}", record))
        ]
        told = (
            (self.composed, "texts held decomposed Hangul, which was composed"),
            (
                self.blank,
                "questions lack their article or their text, and are answered as well as can be",
            ),
            (self.numbers, "answers are numbers in the file and were read as they stand there"),
            (
                self.garbled,
                "rows hold signs of a wrong encoding (\ufffd, or Latin letters for Hangul): look "
                "at them before you train",
            ),
            (
                self.entities,
                "rows hold HTML entities (&amp; for &), which are read, and learned, as they stand",
            ),
            (self.pages, "articles are HTML, and are read as a reader sees them"),
            (self.cut, "articles have exactly 32,767 characters, where Excel cuts a cell"),
        )
        for ids, what in told:
            if ids:
                self._note(len(ids), what, ids)
        if self.unanswerable and self.need_answers:
            self.notes.append(
                f"{self.unanswerable} questions without an answer were left out (is_impossible, or "
                "none given)"
            )
        if not rows:
            raise InputError(
                f"{self.path}: none of its {len(records)} questions has an answer. Training needs "
                "some."
            )
        return rows

    def _note(self, count: int, what: str, ids: list[str]) -> None:
        self.notes.append(f"{count:,} {what} ({short_list(ids, 3, quoted=False)})")

    def _row(self, where: str, record: dict[str, Any]) -> Row | None:
        name = self._id(where, record.get("id"))
        page = record.get("context")
        is_page = isinstance(page, str) and _is_page(page)
        if is_page:
            self.pages.append(name)
            record = {**record, "context": _page_text(page)}
        context, question = (self._text(where, name, part, record.get(part)) for part in REQUIRED)
        context = self.contexts.setdefault(context, context)
        answers, is_list = self._answers(where, name, record)
        if is_page:
            # An answer that is a tag and nothing else, as <br>, stays what it is.
            answers = tuple(html_text(answer) or answer for answer in answers)
        # SQuAD 2 gives an impossible question a plausible answer, which must not be learned.
        impossible = is_true(record.get("is_impossible")) or (is_list and not answers)
        if self.need_answers and impossible:
            self.unanswerable += 1
            return None
        if self.need_answers and not answers:
            raise InputError(
                f"{where} (id {name}): no answer. Training needs one in every row; fill it in or "
                "delete the row."
            )
        texts = (question, *answers)
        if _is_garbled(context) or any(GARBLED.search(text) for text in texts):
            self.garbled.append(name)
        if _has_entity(context) or any(ENTITY.search(text) for text in texts):
            self.entities.append(name)
        if len(context) == EXCEL_CELL:
            self.cut.append(name)
        fields = IMPOSSIBLE if impossible else NONE
        return Row(name, context, question, () if impossible else answers, fields=fields)

    def _id(self, where: str, value: Any) -> str:
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # pandas makes 3.0 of 3 where another id is missing
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not trim(value):
            raise InputError(
                f"{where}: id is empty or no text (got {value!r}). Fill it in or delete the row."
            )
        if len(value) > LONGEST_ID:
            raise InputError(
                f"{where}: the id has {len(value):,} characters; expected at most {LONGEST_ID:,}."
            )
        return writable(value)

    def _text(self, where: str, name: str, part: str, value: Any) -> str:
        """Return the article or the question, cleaned; a test file's may be empty."""
        value = "" if value is None and not self.need_answers else value
        if isinstance(value, str) and (trim(value) or not self.need_answers):
            text, is_composed = _cleaned(value)
            if is_composed:
                self.composed.append(name)
            if not trim(text):
                self.blank.append(name)
                return ""
            # An article keeps its white space, of which its layout is made.
            return (
                trim(text) if part == "question" else text.strip("\ufeff\u200b\u200c\u200d\u2060")
            )
        raise InputError(
            f"{where}: {part} is empty or no text (got {str(value)[:100]!r}). Fill it in or delete "
            "the row."
        )

    def _answers(
        self, where: str, name: str, record: dict[str, Any]
    ) -> tuple[tuple[str, ...], bool]:
        """Return the gold answers, and whether they came as a list.

        They are those of `answers` if given, else of `answer`. An empty list says that a question
        has no answer; an empty cell is a mistake in a file to train on.
        """
        value = record.get("answers")
        if isinstance(value, str):
            value = structured(value, f"{where}: answers")
        is_list = "answers" in record and not isinstance(value, str)
        if not any(map(trim, answer_texts(value, where))):
            value = record.get("answer", value)
            if isinstance(value, str) and LISTED.match(value.strip()):
                # A list that was saved as its text.
                value = structured(value, f"{where}: answer")
        given = answer_texts(value, where)
        texts = [trim(clean(text)) for text in given]
        self.composed += [name for text in given if clean(text) != writable(text)]
        # Parquet's and Arrow's; JSON's numbers are read as they are written.
        if isinstance(value, int | float | Decimal):
            self.numbers.append(name)
        return tuple(text for text in texts if text), is_list


def read_answers(path: Path) -> dict[str, tuple[str, ...]]:
    """Read gold answers by id from a table of their own with id and answer (or answers)."""
    sheet = read_table(path, read_bytes(path)[0])
    names = column_names(sheet.header, {}, path, required=("id", "answer"))
    sheet.refuse_unclear(names.values())
    golds: dict[str, tuple[str, ...]] = {}
    for place, cells in sheet.rows:
        record = _named(path, place, cells, names, sheet.header)
        name = record["id"]
        if name in golds:
            raise InputError(
                f"{path}, {place}: the id {name} stands there twice. Every question needs one line."
            )
        golds[name] = _Cleaner(path, True, [])._answers(f"{path}, {place}", name, record)[0]
        if not golds[name]:
            raise InputError(
                f"{path}, {place}: no answer for {name}. Fill it in or remove the file."
            )
    return golds
