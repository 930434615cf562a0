"""Encoded questions are kept in a file, so that a second start need not encode them again.

rows -> encode_kept -> examples, from a file of dandap/data/kept.py where they were encoded before

The file's name is a hash of all that the token ids depend on: the tokenizer, what the template
makes of every row, and the limits.
"""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path

import pyarrow as pa

from dandap.data.encode import Encoder, Example
from dandap.data.kept import kept, key_of
from dandap.data.rows import Row

FEW = 5_000  # questions; fewer are encoded within seconds and not kept
ROWS_AT_ONCE = 10_000  # of a file, in memory
SCHEMA = pa.schema(
    {
        "prompt_ids": pa.list_(pa.int32()),
        "answer_ids": pa.list_(pa.int32()),
        "trimmed": pa.int32(),
        "context": pa.string(),  # null: the row's own
    }
)


def encode_kept(
    encoder: Encoder, rows: list[Row], prompt_limit: int, answers: bool, on_overflow: str
) -> list[Example]:
    """Return `encoder.encode_rows` of these, read from a file where they were encoded before."""
    settings = (prompt_limit, answers, on_overflow)
    make = partial(encoder.encode_rows, rows, *settings)
    if len(rows) < FEW or not encoder.tokenizer.is_fast:
        return make()
    name = f"{key_of(_parts(encoder, rows, settings))}.arrow"
    return kept(name, "the encoded questions", make, partial(_read, rows=rows), _write)


def _parts(encoder: Encoder, rows: list[Row], settings: tuple[int, bool, str]) -> Iterator[str]:
    """Yield all that the examples depend on."""
    tokenizer = encoder.tokenizer
    yield tokenizer.backend_tokenizer.to_str()
    yield json.dumps([tokenizer.chat_template, tokenizer.special_tokens_map, settings])
    before = None
    for row in rows:
        # What the template makes of a row, not its wording: its code may have been edited, too.
        # An article is hashed once: a hash stands for it where the row before has it as well.
        context = row.context if row.article != before else _name(row.context)
        before = row.article
        for answer in ("", *row.answers[:1]):
            yield f"{_name(row.context)}\0{row.article}\0{row.question}\0{answer}"
            yield repr(encoder.render(context, row, answer))


# An article's questions follow one another, so a few texts are enough to hash each once.
@lru_cache(maxsize=64)
def _name(context: str) -> str:
    return hashlib.sha256(context.encode("utf-8", "surrogatepass")).hexdigest()


def _write(file: Path, examples: list[Example]) -> None:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for first in range(0, len(examples), ROWS_AT_ONCE):
            writer.write(_batch(examples[first : first + ROWS_AT_ONCE]))


def _batch(examples: list[Example]) -> pa.RecordBatch:
    columns = {
        "prompt_ids": _lists(example.prompt_ids for example in examples),
        "answer_ids": _lists(example.answer_ids for example in examples),
        "trimmed": [example.trimmed for example in examples],
        "context": [
            None if example.context == example.row.context else example.context
            for example in examples
        ],
    }
    return pa.RecordBatch.from_pydict(columns, schema=SCHEMA)


def _lists(lists: Iterable[array]) -> pa.ListArray:
    """Return arrays of ids as a column, without a Python integer for each."""
    offsets, ids = array("i", [0]), array("i")
    for each in lists:
        ids.extend(each)
        offsets.append(len(ids))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(ids, pa.int32()))


def _read(file: Path, rows: list[Row]) -> list[Example]:
    examples: list[Example] = []
    with pa.OSFile(str(file)) as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            prompts, answers = (_arrays(batch[name]) for name in ("prompt_ids", "answer_ids"))
            trimmed, contexts = batch["trimmed"].to_pylist(), batch["context"].to_pylist()
            these = rows[len(examples) : len(examples) + len(batch)]
            for row, *parts, context in zip(
                these, prompts, answers, trimmed, contexts, strict=True
            ):
                examples.append(Example(row, *parts, row.context if context is None else context))
    return examples


def _arrays(column: pa.ListArray) -> list[array]:
    ids, offsets = column.values.to_numpy(), column.offsets.to_pylist()
    return [array("i", ids[start:end].tobytes()) for start, end in pairwise(offsets)]
