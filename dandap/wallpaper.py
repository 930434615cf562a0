"""The wallpaper-defect files: two questions and five answers a row to train on, one question a row to answer."""

from pathlib import Path

from dandap.dataset import Row, Table, clean, join, read_table, refuse_duplicate_ids
from dandap.errors import InputError

QUESTIONS = ("질문_1", "질문_2")
ANSWERS = tuple(f"답변_{number}" for number in range(1, 6))


def read(paths: list[Path], need_answers: bool) -> Table:
    """One row per question. Those of one row of the file share its answers and stay together (`group`)."""
    tables = [_read_one(path, need_answers) for path in paths]
    return tables[0] if len(tables) == 1 else join(tables)


def _read_one(path: Path, need_answers: bool) -> Table:
    header, lines, (digest, notes) = read_table(path)
    if "accept" in header:
        raise InputError(f"{path} is a review: python -m tools.augment accept {path} OUT writes the rows to train on.")
    to_answer = ("id", "질문", *(ANSWERS[:1] if need_answers else ()))
    needed = ("id", *QUESTIONS, *ANSWERS) if set(QUESTIONS) <= set(header) else to_answer
    missing = [name for name in needed if name not in header]
    if missing:
        raise InputError(
            f"{path} has no column {missing[0]!r}; it has {', '.join(map(repr, header))}. Expected id, 질문_1, 질문_2, category, "
            "답변_1 to 답변_5 to train on, or id, 질문 to answer."
        )
    rows = [row for where, cells in lines for row in _rows(f"{path}, {where}", cells)]
    refuse_duplicate_ids(rows, path)
    return Table(path, rows, digest, notes)


def _rows(where: str, cells: dict[str, str]) -> list[Row]:
    answers = tuple(clean(cells[name]).strip() for name in ANSWERS if cells.get(name, "").strip())
    names = [name for name in (*QUESTIONS, "질문") if name in cells]
    fields = {known: clean(cells.get(known, "")).strip() for known in ("category", "generated", "sources")}
    if any(not cells[name].strip() for name in ("id", *names)) or ("답변_1" in cells and not answers):
        raise InputError(f"{where}: the id, a question or every answer is empty. Fill it in or delete the row.")
    name = cells["id"].strip()
    return [
        Row(
            f"{name}-{number}" if len(names) > 1 else name,
            "",
            clean(cells[column]).strip(),
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
