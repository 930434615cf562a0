"""Read questions from data files: map columns, clean texts, report mistakes."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from dandap.data.qa_formats import COLUMNS, Record, answer_texts, column_names, json_records, parsed
from dandap.data.rows import Row, Table, join, reject_duplicate_ids
from dandap.data.tables import Sheet, read_table
from dandap.data.text import (
    JSONS,
    clean,
    find_files,
    hash_file,
    html_text,
    is_html,
    replace_surrogates,
    trim,
)
from dandap.errors import InputError, did_you_mean, short_list

FIELDS: dict[bool, dict[str, str]] = {False: {}, True: {"impossible": "true"}}  # shared by rows
FLAGS = dict.fromkeys(("true", "t", "1", "1.0", "yes", "y"), True)  # of is_impossible
FLAGS |= dict.fromkeys(("false", "f", "0", "0.0", "no", "n", "none", ""), False)
LONGEST_ID = 1000  # characters
# The replacement character, or UTF-8 Hangul decoded as Latin-1 (lead bytes 0xEA to 0xED).
GARBLED = re.compile("\ufffd|(?:[\u00ea-\u00ed][\u0080-\u00bf\u0152-\u2122]{2}){2}")
NOTES = {
    "composed": "rows had decomposed Hangul, which was composed (NFC)",
    "blank": "questions have no article or text; they are answered anyway",
    "garbled": "rows seem to have a wrong encoding (\ufffd, or Latin letters for Hangul)",
    "pages": "articles are HTML and were converted to text",
}


def read_questions(
    paths: str | Path | list[Path],
    columns: dict[str, str] | None = None,
    need_answers: bool = False,
) -> Table:
    """Read data files, or folders of them.

    `columns` maps our names to the file's ("context" -> "본문"). With `need_answers` (training)
    empty texts raise InputError; otherwise they are noted.
    """
    columns = columns or {}
    if unknown := [name for name in columns if name not in COLUMNS]:
        known = f"{', '.join(COLUMNS)}.{did_you_mean(unknown[0], COLUMNS)}"
        raise InputError(f"columns: got {unknown[0]!r}, expected one of {known} Try context=본문.")
    several = paths if isinstance(paths, list) else [paths]
    files = [file for path in several for file in find_files(Path(path))]
    required = ("context", "question", *(["answer"] if need_answers else []))
    tables = []
    for path in files:
        digest = hash_file(path)
        notes: list[str] = []
        if path.suffix.lower() in JSONS:
            records = json_records(path, columns, required, notes)
        else:
            sheet = read_table(path)
            records, notes = _sheet_records(path, sheet, columns, required), sheet.notes
        # With the suffix: a.csv and a.jsonl in one folder need different ids.
        prefix = f"{path.name}-" if len(files) > 1 else ""
        rows, found = _make_rows(records, path, need_answers, prefix)
        reject_duplicate_ids(rows, path)
        tables.append(Table(path, rows, digest, notes + found))
    return tables[0] if len(tables) == 1 else join(tables)


def typed_rows(article: str, questions: list[str]) -> list[Row]:
    """Return the rows of a typed article and its questions, numbered from 1."""
    records = [("typed", {"context": article, "question": question}) for question in questions]
    return _make_rows(records, Path("typed"), need_answers=False)[0]


def read_answers(path: Path) -> dict[str, tuple[str, ...]]:
    """Read gold answers by id from a table with columns id and answer (or answers)."""
    golds: dict[str, tuple[str, ...]] = {}
    for place, record in _sheet_records(path, read_table(path), {}, ("id", "answer")):
        name, where = record["id"], f"{path}, {place}"
        if name in golds:
            raise InputError(f"{where}: duplicate id {name}. Delete one of the rows.")
        golds[name] = _answers(where, record)[0]
        if not golds[name]:
            raise InputError(f"{where}: no answer for {name}. Add it or remove the file.")
    return golds


def _sheet_records(
    path: Path, sheet: Sheet, columns: dict[str, str], required: tuple[str, ...]
) -> Iterator[Record]:
    names = column_names(sheet.header, columns, path, required)
    # Unused columns may have dates and formulas.
    sheet.reject_unclear(names.values())
    for place, cells in sheet.rows:
        yield place, {ours: cells[theirs] for ours, theirs in names.items()}


def _answers(where: str, record: dict[str, Any]) -> tuple[tuple[str, ...], bool]:
    """Return a record's answers, and whether they are a list.

    An empty list marks an impossible question; an empty cell is a mistake.
    """
    value = parsed(record.get("answers"), f"{where}: answers")
    is_list = "answers" in record and not isinstance(value, str)
    if not any(map(trim, answer_texts(value, where))):
        value = parsed(record.get("answer", value), f"{where}: answer")
    return tuple(filter(None, (trim(clean(text)) for text in answer_texts(value, where)))), is_list


@lru_cache(maxsize=8)  # an article's questions follow one another
def _article(text: str) -> tuple[str, set[str]]:
    is_page = is_html(text)
    text = html_text(text) if is_page else text
    # Keep white space, which is the article's layout.
    article = clean(text).strip("\ufeff\u200b\u200c\u200d\u2060") if trim(text) else ""
    return article, _signs(text) | ({"pages"} if is_page else set())


def _signs(text: str) -> set[str]:
    is_composed = clean(text) != replace_surrogates(text)
    found = {"composed": is_composed, "garbled": GARBLED.search(text), "blank": not trim(text)}
    return {key for key, value in found.items() if value}


def _make_rows(
    records: Iterable[Record], path: Path, need_answers: bool, prefix: str = ""
) -> tuple[list[Row], list[str]]:
    """Return the rows of a file's records, and notes; number rows that have no id."""
    rows: list[Row] = []
    found: dict[str, list[str]] = defaultdict(list)  # key of NOTES -> ids
    contexts: dict[str, str] = {}  # shares the text of repeated articles
    numbered, count, unanswerable = False, 0, 0
    for count, (place, record) in enumerate(records, 1):
        where, name = f"{path}, {place}", record.get("id")
        numbered = name is None if count == 1 else numbered
        if numbered and name is not None:
            raise InputError(
                f"{where}: got an id, but the first row has none. Give every row one, or none."
            )
        if numbered:
            name = f"{prefix}{count}"
        elif isinstance(name, int | float) and not isinstance(name, bool):
            # Parquet ids; pandas writes 3.0 for 3 if another id is missing.
            name = str(int(name)) if name == name // 1 else None
        if not isinstance(name, str) or not trim(name) or len(name) > LONGEST_ID:
            wanted = f"at most {LONGEST_ID:,} characters in every row, or no ids at all"
            raise InputError(f"{where}: got the id {str(name)[:100]!r}; expected {wanted}.")
        name = replace_surrogates(name)
        context, question = record.get("context") or "", record.get("question") or ""
        context, signs = _article(context) if isinstance(context, str) else (context, set())
        for part, text in (("context", context), ("question", question)):
            if not isinstance(text, str) or (need_answers and not trim(text)):
                got = f"{part} is empty or not a string (got {str(text)[:100]!r})"
                raise InputError(f"{where}: {got}. Fill it in or delete the row.")
        answers, is_list = _answers(where, record)
        if "pages" in signs:
            # Keep an answer that is only a tag, such as <br>.
            answers = tuple(html_text(answer) or answer for answer in answers)
        # Ignore the plausible answers that SQuAD 2 has for impossible questions.
        flag = str(record.get("is_impossible")).strip().lower()
        if flag not in FLAGS:
            raise InputError(f"{where}: is_impossible is {flag[:100]!r}, expected true or false.")
        impossible = FLAGS[flag] or (is_list and not answers)
        if need_answers and impossible:
            unanswerable += 1
            continue
        if need_answers and not answers:
            raise InputError(f"{where} (id {name}): no answer. Fill it in or delete the row.")
        for key in signs.union(*map(_signs, (question, *answers))):
            found[key].append(name)
        context, question = contexts.setdefault(context, context), trim(clean(question))
        answers = () if impossible else answers
        rows.append(Row(name, context, question, answers, fields=FIELDS[impossible]))
    if not rows:
        raise InputError(f"{path} has no questions (got {count} rows). Expected at least one.")
    names = f"its rows are numbered {prefix}1 to {prefix}{count}"
    notes = [f"{path.name} has no column 'id'; {names}"] if numbered else []
    for key in filter(found.get, NOTES):
        ids = short_list(found[key], 3, quoted=False)
        notes.append(f"{len(found[key]):,} {NOTES[key]} ({ids})")
    if unanswerable:
        notes.append(f"{unanswerable} questions without an answer were skipped")
    return rows, notes
