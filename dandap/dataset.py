"""Question-answering files -> Rows: CSV, JSON lines and SQuAD-format JSON, checked and cleaned, grouped by article."""

import csv
import hashlib
import io
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from dandap.errors import InputError, nearest

COLUMNS = ("id", "context", "question", "answer", "answers")
REQUIRED = ("id", "context", "question")
Required = tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One question. `answers` are the gold ones, the first is trained on; empty in a test file."""

    id: str
    context: str
    question: str
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()  # the answers to choose from; none: any text
    fields: Mapping[str, str] = field(default_factory=dict, hash=False)  # what a task's templates may use besides
    group: str = ""  # what belongs together where there is no article

    @cached_property
    def article(self) -> str:
        """Names the article by its text: rows with the same text share it, whatever file or order they come in."""
        return hashlib.sha256((self.group or self.context.strip()).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Table:
    """A file's rows and what reading it found out."""

    path: Path
    rows: list[Row]
    sha256: str  # of the file's bytes
    notes: list[str]  # what was dropped or decided, in sentences for people


def read(paths: str | Path | list[Path], columns: dict[str, str] | None = None, need_answers: bool = False) -> Table:
    """Read data files by their endings: .csv, .jsonl or .json (SQuAD format).

    `columns` maps our names to the file's ("context" -> "본문"). Raises InputError for anything that cannot be used.
    """
    tables = [_read_one(Path(path), columns or {}, need_answers) for path in (paths if isinstance(paths, list) else [paths])]
    return tables[0] if len(tables) == 1 else join(tables)


def join(tables: list[Table]) -> Table:
    """One table of several files."""
    rows, path = [row for table in tables for row in table.rows], Path(",".join(str(table.path) for table in tables))
    refuse_duplicate_ids(rows, path)
    together = hashlib.sha256("".join(table.sha256 for table in tables).encode()).hexdigest()
    return Table(path, rows, together, [note for table in tables for note in table.notes])


def _read_one(path: Path, columns: dict[str, str], need_answers: bool) -> Table:
    if not path.is_file():
        raise InputError(f"no file at {path}. Expected a .csv, .jsonl or .json file; check the path.")
    data = path.read_bytes()
    text, encoding = decode(data, path)
    notes = encoding_notes(path, encoding)
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".json": _read_squad}
    if path.suffix.lower() not in readers:
        raise InputError(f"{path} ends in {path.suffix!r}; expected .csv, .jsonl or .json.")
    required = (*REQUIRED, "answer") if need_answers else REQUIRED
    records = list(readers[path.suffix.lower()](text, path, columns, notes, required))
    if not records:
        raise InputError(f"{path} holds no questions (only a header, or nothing). Expected at least one row.")
    rows = [_row(where, record, path, need_answers) for where, record in records]
    refuse_duplicate_ids(rows, path)
    return Table(path, rows, hashlib.sha256(data).hexdigest(), notes)


def decode(data: bytes, path: Path) -> tuple[str, str]:
    """Strict UTF-8 (with or without BOM), then cp949; detectors take short cp949 for Big5."""
    position = None
    for encoding in ("utf-8-sig", "cp949"):
        try:
            return data.decode(encoding), encoding
        except UnicodeDecodeError as error:
            position = error.start if position is None else position  # where UTF-8 failed
    raise InputError(
        f"{path} is neither UTF-8 nor cp949 (undecodable byte 0x{data[position]:02x} at {position}). Save it as UTF-8."
    )


def encoding_notes(path: Path, encoding: str) -> list[str]:
    """A line where a file is not UTF-8."""
    return [] if encoding == "utf-8-sig" else [f"{path.name} is not UTF-8; it was read as {encoding}"]


def _read_csv(text: str, path: Path, columns: dict[str, str], notes: list[str], required: Required) -> Iterator[tuple[str, dict]]:
    header, lines = _cells(text, path, f"Expected a header with {', '.join(COLUMNS[:4])} and a row per question.")
    names = _column_names(header, columns, path, required)
    for where, cell in lines:
        yield where, {name: cell[column] for name, column in names.items()}


def read_table(path: Path) -> tuple[list[str], list[tuple[str, dict[str, str]]], tuple[str, list[str]]]:
    """(header, (place, column -> cell) of every row, (SHA-256, notes)) of a CSV file of any columns."""
    if not path.is_file():
        raise InputError(f"no file at {path}. Expected a .csv file; check the path.")
    data = path.read_bytes()
    text, encoding = decode(data, path)
    header, lines = _cells(text, path, "Expected a header and a row per question.")
    rows = list(lines)
    if not rows:
        raise InputError(f"{path} holds no questions (only a header). Expected at least one row.")
    return header, rows, (hashlib.sha256(data).hexdigest(), encoding_notes(path, encoding))


def _cells(text: str, path: Path, expected: str) -> tuple[list[str], Iterator[tuple[str, dict[str, str]]]]:
    """(header, (place, column -> cell) of every row that is not blank) of a CSV text."""
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than a long article
    reader = csv.reader(io.StringIO(text.replace("\0", ""), newline=""), strict=True)
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise _broken(path, reader.line_num, error) from error
    if header is None:
        raise InputError(f"{path} is empty. {expected}")

    def lines() -> Iterator[tuple[str, dict[str, str]]]:
        try:
            for cells in reader:
                if not any(cells):
                    continue
                if len(cells) != len(header):
                    raise InputError(
                        f"{path}, line {reader.line_num}: got {len(cells)} cells, the header has {len(header)}. "
                        "A comma or quotation mark in a text needs the cell in quotation marks."
                    )
                yield f"line {reader.line_num}", dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise _broken(path, reader.line_num, error) from error

    return header, lines()


def _broken(path: Path, line: int, error: csv.Error) -> InputError:
    return InputError(
        f"{path}, line {line}: {error}. A quotation mark is not closed, or stands unescaped inside a cell; "
        'write it as "" inside a quoted cell.'
    )


def _column_names(found: Iterable[str], columns: dict[str, str], path: Path, required: Required) -> dict[str, str]:
    """Our names -> the file's names, for those that the file has."""
    found = list(found)
    repeated = [name for name, count in Counter(found).items() if count > 1]
    if repeated:
        raise InputError(f"{path} has the column {repeated[0]!r} more than once. Rename or remove one.")
    names = {ours: columns.get(ours, ours) for ours in COLUMNS}
    if names["answers"] in found:
        required = tuple(name for name in required if name != "answer")
    for ours, theirs in names.items():
        if (ours in required or ours in columns) and theirs not in found:
            raise InputError(
                f"{path} has no column {theirs!r}; it has {', '.join(map(repr, found))}.{nearest(theirs, found)} "
                f"Rename the column, or map it with columns: {{{ours}: NAME}} (--columns {ours}=NAME)."
            )
    return {ours: theirs for ours, theirs in names.items() if theirs in found}


def _read_jsonl(
    text: str, path: Path, columns: dict[str, str], notes: list[str], required: Required
) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        record = _parse_json(line, f"{path}, line {number}")
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {number}: got {type(record).__name__}; expected one JSON object a line.")
        names = _column_names(record, columns, path, required)
        yield f"line {number}", {name: record[key] for name, key in names.items()}


def _read_squad(
    text: str, path: Path, columns: dict[str, str], notes: list[str], required: Required
) -> Iterator[tuple[str, dict]]:
    """SQuAD 1 and 2, KorQuAD, KLUE-MRC: data -> paragraphs -> qas; unanswerable questions are dropped and counted."""
    content, impossible = _parse_json(text, str(path)), 0
    try:
        for document in content["data"]:
            for paragraph in document["paragraphs"]:
                for qa in paragraph["qas"]:
                    if qa.get("is_impossible"):
                        impossible += 1
                        continue
                    answers = [answer["text"] for answer in qa.get("answers", [])]
                    record = {"id": qa.get("id", qa.get("guid")), "context": paragraph["context"]}
                    yield f"question {record['id']}", record | {"question": qa["question"], "answers": answers}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not SQuAD-format JSON ({error!r}). Expected data -> paragraphs -> (context, qas -> (id, question, "
            "answers)); for one object a line use the ending .jsonl."
        ) from error
    if impossible:
        notes.append(f"{impossible} questions marked is_impossible were left out")


def _parse_json(text: str, where: str):
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error}). Correct it or export the file again.") from error


def _row(where: str, record: dict, path: Path, need_answers: bool) -> Row:
    """Check one record and clean its texts: NFC (decomposed Hangul takes nine times the tokens), no lone surrogates."""
    texts = {}
    for name in ("id", "context", "question"):
        value = record.get(name)
        if isinstance(value, int) and name == "id" and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{path}, {where}: {name} is empty or no text (got {value!r}). Fill it in or delete the row.")
        texts[name] = clean(value)
    answers = _answers(record, f"{path}, {where}")
    if need_answers and not answers:
        raise InputError(
            f"{path}, {where} (id {texts['id']}): no answer. Training needs one in every row; fill it in or delete the row."
        )
    return Row(texts["id"].strip(), texts["context"], texts["question"].strip(), answers)


def _answers(record: dict, where: str) -> tuple[str, ...]:
    """Gold answers of a record: `answers` (a list, in CSV as JSON) if given, else `answer`."""
    answers = record.get("answers") or [record.get("answer", "")]
    if isinstance(answers, str):
        answers = _parse_json(answers, f"{where}: answers")
    if isinstance(answers, list) and all(answer is None for answer in answers):
        return ()
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise InputError(f"{where}: answers is {answers!r}; expected texts, several as a JSON list.")
    return tuple(clean(answer).strip() for answer in answers if answer.strip())


def clean(text: str) -> str:
    """NFC, and "?" for lone surrogates, which no tokenizer or file can hold. Nothing else is changed."""
    return unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode() if _has_surrogate(text) else text)


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def refuse_duplicate_ids(rows: list[Row], path: Path) -> None:
    """Answers are told apart by their ids."""
    repeated = [row_id for row_id, count in Counter(row.id for row in rows).items() if count > 1]
    if repeated:
        shown = ", ".join(repeated[:5]) + (" ..." if len(repeated) > 5 else "")
        raise InputError(f"{path} has {len(repeated)} ids more than once: {shown}. Every question needs an id of its own.")


def read_answers(path: Path) -> dict[str, tuple[str, ...]]:
    """Gold answers from a CSV of their own with id and answer (or answers): {id: answers}."""
    text, _ = decode(path.read_bytes(), path)
    golds: dict[str, tuple[str, ...]] = {}
    for where, record in _read_csv(text, path, {}, [], required=("id", "answer")):
        row_id = record["id"].strip()
        if row_id in golds:
            raise InputError(f"{path}, {where}: the id {row_id} stands there twice. Every question needs one line.")
        golds[row_id] = _answers(record, f"{path}, {where}")
        if not golds[row_id]:
            raise InputError(f"{path}, {where}: no answer for {row_id}. Fill it in or remove the file.")
    return golds


def by_article(articles: Iterable[str]) -> list[list[int]]:
    """The places of equal articles together, in the order in which they first come."""
    groups: dict[str, list[int]] = {}
    for index, article in enumerate(articles):
        groups.setdefault(article, []).append(index)
    return list(groups.values())


def split_by_article(rows: list[Row], fraction: float) -> tuple[list[Row], list[Row]]:
    """(train, validation) with no article in both.

    An article is chosen by a hash of its text, so it falls on the same side for every seed, recipe and row order;
    with few articles the one with the smallest hash is taken, so that a fraction above 0 always validates on something.
    """
    if fraction == 0:
        return list(rows), []
    generated = [row for row in rows if row.fields.get("generated")]
    rows = [row for row in rows if not row.fields.get("generated")]
    if not rows:
        raise InputError(
            "every row is marked as generated, and those are never validated on: add real rows, or set validation_fraction 0."
        )
    share = {article: int(article, 16) / 16**16 for article in {row.article for row in rows}}
    chosen = {article for article, value in share.items() if value < fraction} or {min(share, key=share.__getitem__)}
    # Rows that a tool has made are trained on, unless one that they were made of is measured on.
    held_out = {row.group for row in rows if row.article in chosen}
    generated = [row for row in generated if not held_out & set(row.fields.get("sources", "").split())]
    train = [row for row in rows if row.article not in chosen] + generated
    if not train:
        raise InputError(
            f"got {len(share)} article(s) and validation_fraction {fraction}: nothing is left to train on. "
            "Add articles or set validation_fraction: 0."
        )
    return train, [row for row in rows if row.article in chosen]
