"""The wallpaper-defect files: two questions and five answers a row to train on, one question a row to answer."""

from pathlib import Path

from dandap.dataset import Row, Table, join, refuse_duplicate_ids
from dandap.errors import InputError
from dandap.files import column_key, find_files, read_bytes, read_table
from dandap.texts import clean, short_list, trim

QUESTIONS = ("질문_1", "질문_2")
ANSWERS = tuple(f"답변_{number}" for number in range(1, 6))


def read(paths: list[Path], need_answers: bool) -> Table:
    """One row per question. Those of one row of the file share its answers and stay together (`group`)."""
    tables = [_read_one(path, need_answers) for path in paths]
    return tables[0] if len(tables) == 1 else join(tables)


def _read_one(path: Path, need_answers: bool) -> Table:
    (path,) = find_files(path, "a table with the wallpaper questions")
    data, digest = read_bytes(path)
    sheet = read_table(path, data)
    known = {
        column_key(name): name for name in ("id", "질문", "category", "generated", "sources", "accept", *QUESTIONS, *ANSWERS)
    }
    names = {theirs: known.get(column_key(theirs), theirs) for theirs in sheet.header}
    sheet.refuse_unclear([theirs for theirs, ours in names.items() if ours in known.values()])
    header = list(names.values())
    lines = [
        (where, {names[theirs]: _text(cell) for theirs, cell in cells.items() if theirs in names}) for where, cells in sheet.rows
    ]
    if "accept" in header:
        raise InputError(f"{path} is a review: python -m tools.augment accept {path} OUT writes the rows to train on.")
    to_answer = ("id", "질문", *(ANSWERS[:1] if need_answers else ()))
    needed = ("id", *QUESTIONS, *ANSWERS) if set(QUESTIONS) <= set(header) else to_answer
    missing = [name for name in needed if name not in header]
    if missing:
        raise InputError(
            f"{path} has no column {missing[0]!r}; it has {short_list(header)}. Expected id, 질문_1, 질문_2, category, "
            "답변_1 to 답변_5 to train on, or id, 질문 to answer."
        )
    if not lines:
        raise InputError(f"{path} holds no questions (only a header). Expected at least one row.")
    rows = [row for where, cells in lines for row in _rows(f"{path}, {where}", cells, need_answers)]
    refuse_duplicate_ids(rows, path)
    return Table(path, rows, digest, sheet.notes)


def _text(cell) -> str:
    """Return a cell as text; Parquet holds numbers, and None for an empty one."""
    return "" if cell is None else str(cell)


def _rows(where: str, cells: dict[str, str], need_answers: bool) -> list[Row]:
    answers = tuple(trim(clean(cells[name])) for name in ANSWERS if trim(cells.get(name, "")))
    names = [name for name in (*QUESTIONS, "질문") if name in cells]
    fields = {known: trim(clean(cells.get(known, ""))) for known in ("category", "generated", "sources")}
    needed = ("id", *names) if need_answers else ("id",)  # a test row is answered as well as can be
    if any(not trim(cells.get(name, "")) for name in needed) or (need_answers and "답변_1" in cells and not answers):
        raise InputError(f"{where}: the id, a question or every answer is empty. Fill it in or delete the row.")
    name = cells["id"]
    return [
        Row(
            f"{name}-{number}" if len(names) > 1 else name,
            "",
            trim(clean(cells.get(column, ""))),
            answers,
            fields=fields,
            group=name.split("#")[0],
        )
        for number, column in enumerate(names, 1)
    ]


def one_per_answer(rows: list[Row]) -> list[Row]:
    """A row for each answer of each question, to train on: 2 questions x 5 answers are 10 pairs."""
    return [
        Row(f"{row.id}#{number}", row.context, row.question, (answer,), fields=row.fields, group=row.group)
        for row in rows
        for number, answer in enumerate(row.answers, 1)
    ]
