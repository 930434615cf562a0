"""The rows of a large file are kept as Arrow has them, which is read in a seventh of the time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from dandap.data.kept import kept, key_of
from dandap.data.rows import Row

if TYPE_CHECKING:  # for annotations alone: 0.3 s, which a small file need not wait for
    import pyarrow as pa

LARGE = 10_000_000  # bytes of a file; a smaller one is read within a second and not kept
ROWS_AT_ONCE = 10_000
NOTES = b"notes"

Found = tuple[list[Row], list[str]]  # rows, and what reading them found out


def rows_kept(path: Path, digest: str, settings: tuple, make: Callable[[], Found]) -> Found:
    """Return `make()`, or what an earlier start kept of it.

    It depends on the file's name, on `digest`, the hash of its bytes, and on `settings`.
    """
    if path.stat().st_size < LARGE:
        return make()
    name = f"{key_of([path.name, digest, json.dumps(settings)])}.arrow"
    return kept(name, f"the rows of {path.name}", make, _read, _write)


def _schema(notes: list[str]) -> pa.Schema:
    import pyarrow as pa

    columns = {
        "id": pa.string(),
        "context": pa.string(),  # null: that of the row `same_as`
        "same_as": pa.int32(),
        "question": pa.string(),
        "answers": pa.list_(pa.string()),
        "fields": pa.string(),  # as JSON
    }
    return pa.schema(columns, metadata={NOTES: json.dumps(notes).encode()})


def _write(file: Path, found: Found) -> None:
    import pyarrow as pa

    rows, notes = found
    schema = _schema(notes)
    first: dict[str, int] = {}  # an article's text -> its first row
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            lines = list(_lines(rows[start : start + ROWS_AT_ONCE], start, first))
            columns = dict(zip(schema.names, zip(*lines, strict=True), strict=True))
            writer.write(pa.RecordBatch.from_pydict(columns, schema=schema))


def _lines(rows: list[Row], start: int, first: dict[str, int]) -> Iterator[tuple]:
    for number, row in enumerate(rows, start):
        same = first.setdefault(row.context, number)
        context = row.context if same == number else None
        yield row.id, context, same, row.question, row.answers, json.dumps(dict(row.fields))


def _read(file: Path) -> Found:
    import pyarrow as pa

    rows: list[Row] = []
    with pa.OSFile(str(file)) as source:
        reader = pa.ipc.open_file(source)
        notes = json.loads(reader.schema.metadata[NOTES])
        for number in range(reader.num_record_batches):
            columns = reader.get_batch(number).to_pydict().values()
            for name, context, same_as, question, answers, fields in zip(*columns, strict=True):
                text = rows[same_as].context if context is None else context
                rows.append(Row(name, text, question, tuple(answers), fields=_fields(fields)))
    return rows, notes


@lru_cache(maxsize=64)
def _fields(text: str) -> dict[str, str]:
    """Return what a row's fields are; rows with the same share them, as they do when read."""
    return json.loads(text)
