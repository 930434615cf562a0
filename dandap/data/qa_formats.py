"""Records are read from every form in which JSON holds questions.

These are flat records, SQuAD and its relatives, and pandas' columns; answers come in any form.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from dandap.data.json_files import AS_WRITTEN, Lines, parse_json
from dandap.data.tables import column_key
from dandap.errors import InputError, nearest, short_list

COLUMNS = ("id", "context", "question", "answer", "answers", "is_impossible")
REQUIRED = ("context", "question")
ALSO_IDS = ("guid", "question_id", "qid")  # KLUE-MRC, AI Hub
Required = tuple[str, ...]
Record = tuple[str, dict[str, Any]]  # (its place, for messages; our names -> what the file holds)


def column_names(
    found: Iterable[str], columns: dict[str, str], path: Path, required: Required
) -> dict[str, str]:
    """Return the file's names by our names, for those that the file has.

    Case, spaces, invisible characters and decomposed Hangul do not count. InputError names the
    required or mapped columns that are missing, and one of ours that stands there twice.
    """
    found = list(found)
    by_key: dict[str, list[str]] = {}
    for name in found:
        by_key.setdefault(column_key(name), []).append(name)

    def find(wanted: str) -> str | None:
        same = by_key.get(column_key(wanted), [])
        # Of "Answer" and "answer" the one that is written as wanted is meant, if there is just one.
        if len(same) > 1 and same.count(wanted) != 1:
            raise InputError(
                f"{path} has the column {same[0]!r} more than once. Rename or remove one."
            )
        return wanted if wanted in same else next(iter(same), None)

    names = {ours: find(columns.get(ours, ours)) for ours in COLUMNS}
    if names["id"] is None and "id" not in columns:
        names["id"] = next((name for name in map(find, ALSO_IDS) if name), None)
    if names["answers"]:
        required = tuple(name for name in required if name != "answer")
    missing = [
        ours
        for ours, theirs in names.items()
        if theirs is None and (ours in required or ours in columns)
    ]
    if missing:
        wanted = [columns.get(ours, ours) for ours in missing]
        hint = nearest(wanted[0], found[:1000]) if len(wanted) == 1 else ""
        raise InputError(
            f"{path} has no column {short_list(wanted)}; it has {short_list(found)}.{hint} "
            f"Rename what it has, or name it: --columns "
            f"{','.join(f'{ours}=NAME' for ours in missing)}."
        )
    return {ours: theirs for ours, theirs in names.items() if theirs is not None}


def json_records(
    content: Any, path: Path, columns: dict[str, str], required: Required
) -> Iterator[Record]:
    """Yield the records of JSON in the forms that people have.

    These are lines or a list of flat records; pandas' columns of cells; SQuAD 1 and 2 and their
    relatives (KorQuAD 1, KLUE-MRC, AI Hub), documents -> paragraphs -> qas, in `data` or as a
    list; and KorQuAD 2, whose documents have qas of their own, and HTML. InputError names the
    place of what is none of them.
    """
    for place, value in _entries(content, path, columns):
        if isinstance(value, dict) and ("paragraphs" in value or "qas" in value):
            yield from _squad_records(value, path, place)
        elif isinstance(value, dict) and not (
            isinstance(value.get("data"), list | dict) and "question" not in value
        ):
            names = column_names(value, columns, path, required)
            yield place, {ours: value[theirs] for ours, theirs in names.items()}
        else:
            raise InputError(
                f"{path}, {place}: got "
                f"{short_list(value) if isinstance(value, dict) else str(value)[:60]}; expected "
                "an object with context, question and answer or answers, or SQuAD's data -> "
                "paragraphs -> qas."
            )


def _entries(content: Any, path: Path, columns: dict[str, str]) -> list[tuple[str, Any]]:
    """Return place and value of each record or document that JSON holds, however it is wrapped."""
    if isinstance(content, Lines):
        return _line_entries(content, path, columns)
    if isinstance(content, list):
        return [(f"entry {number}", _unrowed(value)) for number, value in enumerate(content, 1)]
    if (within := _wrapped(content)) is not None:
        return within
    if not isinstance(content, dict) or not content or content.keys() & {"paragraphs", "qas"}:
        return [("its beginning", content)]
    values = list(content.values())
    named = _has_our_names(content, columns)
    if all(isinstance(cells, dict) for cells in values):
        return (
            _from_columns(content)
            if named
            else [(f"entry {name}", value) for name, value in content.items()]
        )
    lists = [name for name, value in content.items() if isinstance(value, list)]
    of_records = [
        name
        for name in lists
        if content[name] and all(isinstance(each, dict) for each in content[name])
    ]
    # datasets' to_dict: a list of cells for each column, all of one length.
    if len(lists) == len(values) and not of_records and len(set(map(len, values))) == 1:
        rows = zip(*values, strict=True)
        return [
            (f"index {number}", dict(zip(content, cells, strict=True)))
            for number, cells in enumerate(rows)
        ]
    if named:
        return [("its beginning", content)]  # one record
    if len(of_records) > 1 and "rows" in of_records:
        of_records = ["rows"]  # the hub's viewer, which tells the features beside them
    if len(of_records) > 1:
        raise InputError(
            f"{path} holds several lists, {short_list(of_records)}. Save the one that is meant as "
            "a file of its own."
        )
    for name in of_records or lists[:1]:
        return [
            (f"{name}, entry {number}", _unrowed(value))
            for number, value in enumerate(content[name], 1)
        ]
    return [("its beginning", content)]


def _line_entries(lines: Lines, path: Path, columns: dict[str, str]) -> list[tuple[str, Any]]:
    """Return the entries of JSON lines.

    A line is a record, or a document, or all that a .json would hold, if it is the only one.
    """
    # With `text`, because to_dict on one line has our names too, over lists of cells.
    if (
        len(lines) == 1
        and isinstance(lines[0][1], dict)
        and not _has_our_names(lines[0][1], columns, text=True)
    ):
        return _entries(lines[0][1], path, columns)
    entries = []
    for number, value in lines:
        within = _wrapped(value)
        entries += [(f"line {number}", _unrowed(value))] if within is None else within
    return entries


def _has_our_names(record: dict[str, Any], columns: dict[str, str], text: bool = False) -> bool:
    """Say whether an object has a context and a question under the names that are looked for.

    With `text` both must be texts.
    """
    by_key = {column_key(name): value for name, value in record.items()}
    values = [by_key.get(column_key(columns.get(name, name))) for name in REQUIRED]
    return all(isinstance(value, str) if text else value is not None for value in values)


def _unrowed(value: Any) -> Any:
    """Return a record that the hub's viewer has put into {"row": ...}, or the value as it is."""
    return value["row"] if isinstance(value, dict) and isinstance(value.get("row"), dict) else value


def _wrapped(content: Any) -> list[tuple[str, Any]] | None:
    """Return the entries of {"data": [...]}, SQuAD's or pandas' with "columns"; else None."""
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("data"), list)
        or "question" in content
    ):
        return None
    data = content["data"]
    if isinstance(content.get("columns"), list) and all(isinstance(row, list) for row in data):
        # pandas' orient="split".
        data = [dict(zip(content["columns"], row, strict=False)) for row in data]
    return [(f"data, entry {number}", value) for number, value in enumerate(data, 1)]


def _from_columns(content: dict) -> list[tuple[str, Any]]:
    """Return pandas' own JSON, {column: {index: cell}}, as records."""
    # A dict and not a set: rows stay in the file's order.
    index = dict.fromkeys(key for cells in content.values() for key in cells)
    return [
        (f"index {key}", {name: cells.get(key) for name, cells in content.items()}) for key in index
    ]


def _squad_records(document: dict, path: Path, place: str) -> Iterator[Record]:
    """Yield the questions of one document of SQuAD or a relative."""
    try:
        # KorQuAD 2's document is its own paragraph.
        for paragraph in document.get("paragraphs", [document]):
            context = paragraph["context"]
            for qa in paragraph["qas"]:
                answers = answer_texts(qa.get("answers", qa.get("answer")), f"{path}, {place}")
                ids = (qa[name] for name in ("id", *ALSO_IDS) if qa.get(name) is not None)
                record = {
                    "id": next(ids, None),
                    "context": context,
                    "question": qa["question"],
                    "answers": answers,
                    "is_impossible": qa.get("is_impossible"),
                }
                yield f"{place}, question {record['id']}", record
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}, {place}: it is not SQuAD-format JSON ({error!r}). Expected data -> "
            "paragraphs -> (context, qas -> (id, question, answers)), or one object with context, "
            "question and answers for each question."
        ) from error


def answer_texts(value: Any, where: str) -> list[str]:
    """Return the answers in any form that people's files have; an empty list where there is none.

    The forms are a text, a number, {"text": one or several} (SQuAD, Hugging Face, AI Hub), and a
    list of these. InputError says what else was found at `where`.
    """
    # NaN, which pandas puts for a missing cell, is unlike itself.
    if value is None or value != value:
        return []
    if isinstance(value, dict) and "text" in value:
        return answer_texts(value["text"], where)
    if isinstance(value, list | tuple):
        return [text for each in value for text in answer_texts(each, where)]
    if isinstance(value, str) or (
        isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    ):
        return [str(value)]
    raise InputError(
        f"{where}: an answer is {str(value)[:100]!r}; expected a text, {{'text': ...}}, or a list "
        "of these."
    )


# What a list, or {"text": ...}, looks like that was saved as its text. Other texts that begin with
# a bracket, as "[단독] 보도", are answers as they stand.
LISTED = re.compile(r"""\[\s*['"].*['"]\s*\]$|\{\s*['"]text['"]\s*:.*\}$""", re.DOTALL)
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")


def structured(text: str, where: str) -> Any:
    """Return what a cell of `answers` holds, numbers as they are written.

    That is JSON, or the Python text that pandas writes for lists, dicts and arrays, or else one
    plain text. InputError names at `where` what looks like a list and cannot be parsed.
    """
    if not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return parse_json(text, where, **AS_WRITTEN)
    except InputError as error:
        # Parsed and never evaluated, because the file may come from anybody.
        try:
            return _python_value(ast.parse(text.strip(), mode="eval").body, text.strip())
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            if not LISTED.match(text.strip()):
                return text
            raise error from None


def _python_value(node: ast.AST, source: str) -> Any:
    """Return the value of a literal; numpy's `array([...], dtype=...)` is the list in it."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "array":
        return _python_value(node.args[0], source)
    if (
        isinstance(node, ast.Constant)
        and len(_QUOTED.findall(ast.get_source_segment(source, node) or "")) > 1
    ):
        # numpy writes ['전주' '서울'], which Python joins to one text.
        raise ValueError("a list without commas")
    if isinstance(node, ast.Dict):
        return {
            _python_value(k, source): _python_value(v, source)
            for k, v in zip(node.keys, node.values, strict=True)
        }
    if isinstance(node, ast.List | ast.Tuple):
        return [_python_value(each, source) for each in node.elts]
    value = ast.literal_eval(node)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return ast.get_source_segment(source, node) if is_number else value  # 36.70 stays 36.70


def is_true(value: Any) -> bool:
    """Say whether a flag is set, as JSON or as text has it: "false" is no True."""
    return value is True or str(value).strip().lower() in ("true", "t", "1", "1.0", "yes", "y")
