"""Read questions from JSON in common formats, and answers in their various forms."""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

from dandap.data.tables import cell_text, column_key
from dandap.data.text import encoding_notes, open_text, trim
from dandap.errors import InputError, did_you_mean, first_line, short_list

COLUMNS = ("id", "context", "question", "answer", "answers", "is_impossible")
ALSO_IDS = ("guid", "question_id", "qid")  # KLUE-MRC, AI Hub
Record = tuple[str, dict[str, Any]]  # (position for messages, our names -> the file's values)
# Numbers stay strings (36.70), because answers are compared as strings; NaN is None.
AS_WRITTEN: dict[str, Any] = {"parse_int": str, "parse_float": str, "parse_constant": {}.get}
# A list or SQuAD's dict saved as text; other strings with a bracket ("[단독] 보도") are answers.
LISTED = re.compile(
    r"""\[\s*\]$|\[\s*['"{].*['"}]\s*\]$|\{\s*['"](?:text|answer_start)['"]\s*:.*\}$""", re.DOTALL
)
ARRAY = re.compile(r"array(?=\(\[)|, dtype=[\w'<>]+(?=\))")  # numpy's repr around the list


def parse_json(text: str, where: str, **options: Any) -> Any:
    """Parse JSON; raise InputError if it is invalid, too deep, or has an overlong number."""
    try:
        return json.loads(text, **options)
    except (ValueError, RecursionError) as error:
        message = f"{where}: not valid JSON ({first_line(error)}). Correct it or export it again."
        raise InputError(message) from error


def column_names(
    found: Iterable[str], columns: dict[str, str], path: Path, required: tuple[str, ...]
) -> dict[str, str]:
    """Map our column names to those that the file has.

    Raise InputError for missing required or mapped columns, and for ambiguous ones.
    """
    found = list(found)
    by_key = {column_key(name): name for name in found}
    counts = Counter(map(column_key, found))
    names = {}
    for ours in COLUMNS:
        wanted = columns.get(ours, ours)
        keys = map(column_key, (wanted, *(ALSO_IDS if wanted == "id" else ())))
        key = next((key for key in keys if key in by_key), None)
        if key and counts[key] > 1:
            raise InputError(f"{path} has the column {key!r} more than once. Rename or remove one.")
        if key:
            names[ours] = by_key[key]
    needed = {*required, *columns} - ({"answer"} - set(columns) if "answers" in names else set())
    missing = [name for name in COLUMNS if name in needed and name not in names]
    if missing:
        theirs = [columns.get(name, name) for name in missing]
        hint = did_you_mean(theirs[0], found[:1000]) if len(theirs) == 1 else ""
        raise InputError(
            f"{path} has no column {short_list(theirs)}; it has {short_list(found)}.{hint} Rename "
            f"a column, or use --columns {','.join(f'{name}=NAME' for name in missing)}."
        )
    return names


def json_records(
    path: Path, columns: dict[str, str], required: tuple[str, ...], notes: list[str]
) -> Iterator[Record]:
    """Yield the records of a JSON or JSON lines file, and append to the notes.

    A value is a record, a SQuAD-like document (KorQuAD 1 and 2, KLUE-MRC, AI Hub), a list of these,
    or an object with such a list (`data`, or `rows` as in the hub's viewer).
    """
    names: dict[tuple[str, ...], dict[str, str]] = {}
    for where, value in _values(path, notes):
        for name in ("data", "rows"):
            if isinstance(value, dict) and isinstance(value.get(name), list):
                value, where = value[name], f"{where}, {name}"
        numbered = enumerate(value, 1) if isinstance(value, list) else [(0, value)]
        for number, entry in numbered:
            place = f"{where}, entry {number}" if number else where
            if isinstance(entry, dict) and isinstance(entry.get("row"), dict):
                entry = entry["row"]
            if not isinstance(entry, dict):
                wanted = "an object with context, question and answer, or a document of SQuAD"
                raise InputError(f"{path}, {place}: got {str(entry)[:60]}; expected {wanted}.")
            if entry.keys() & {"paragraphs", "qas"}:
                yield from _squad_records(entry, path, place)
                continue
            keys = tuple(entry)
            if keys not in names:
                names[keys] = column_names(keys, columns, path, required)
            yield place, {ours: entry[theirs] for ours, theirs in names[keys].items()}


def _values(path: Path, notes: list[str]) -> Iterator[tuple[str, Any]]:
    with open_text(path) as file:
        notes += encoding_notes(path, file.encoding)
        lines = ((number, line) for number, line in enumerate(file, 1) if trim(line))
        number, line = next(lines, (0, ""))
        if not line:
            raise InputError(f"{path} is empty. Expected JSON.")
        try:
            value = json.loads(line.lstrip("\ufeff"), **AS_WRITTEN)
        except (ValueError, RecursionError):  # a value that spans lines
            file.seek(0)
            yield "its beginning", parse_json(file.read().lstrip("\ufeff"), str(path), **AS_WRITTEN)
            return
        yield f"line {number}", value
        for number, line in lines:
            yield f"line {number}", parse_json(line, f"{path}, line {number}", **AS_WRITTEN)


def _squad_records(document: dict, path: Path, place: str) -> Iterator[Record]:
    where = f"{path}, {place}"
    try:
        for paragraph in document.get("paragraphs", [document]):  # KorQuAD 2 has only qas
            for qa in paragraph["qas"]:
                ids = (qa[name] for name in ("id", *ALSO_IDS) if qa.get(name) is not None)
                record = {
                    "id": next(ids, None),
                    "context": paragraph["context"],
                    "question": qa["question"],
                    "answers": answer_texts(qa.get("answers", qa.get("answer")), where),
                    "is_impossible": qa.get("is_impossible"),
                }
                yield f"{place}, question {record['id']}", record
    except (KeyError, TypeError, AttributeError) as error:
        message = f"{where}: not SQuAD-format JSON ({error!r}). Expected paragraphs with qas."
        raise InputError(message) from error


def answer_texts(value: Any, where: str) -> list[str]:
    """Return the answers in None, a string, a number, {"text": ...}, or a list of these."""
    if value is None or value != value:  # pandas' NaN for a missing cell
        return []
    if isinstance(value, dict) and "text" in value:
        return answer_texts(value["text"], where)
    if isinstance(value, list):
        return [text for each in value for text in answer_texts(each, where)]
    if isinstance(value, str | int | float | Decimal) and not isinstance(value, bool):
        return [cell_text(value)]
    raise InputError(f"{where}: an answer is {str(value)[:100]!r}; expected a string or a list.")


def parsed(value: Any, where: str) -> Any:
    """Return a cell's value: parsed if it is the text of a list or dict (JSON's or pandas')."""
    if not isinstance(value, str) or not LISTED.match(value.strip()):
        return value
    text = value.strip()
    with suppress(ValueError, RecursionError):
        return json.loads(text, **AS_WRITTEN)
    try:
        # numpy writes ['전주' '서울'], which Python would join into one string.
        if re.search(r"""['"]\s+['"]""", text):
            raise ValueError("no comma between two strings")
        return ast.literal_eval(ARRAY.sub("", text))  # parses literals, evaluates nothing
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        message = f"{where}: {text[:60]} is not a valid list ({first_line(error)}). Write JSON."
        raise InputError(message) from error
