"""Encoded questions are kept in a file, so that a second start need not encode them again.

rows -> encode_kept -> examples, from <HF_HOME>/dandap/<hash>.arrow where they were encoded before

The hash is of all that the token ids depend on: the tokenizer, what the template makes of every
row, the limits, this package's code and the versions of the libraries that tokenize.
"""

import hashlib
import json
import os
import time
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
from filelock import FileLock
from huggingface_hub.constants import HF_HOME

from dandap.data.encoding import Encoder, Example
from dandap.data.rows import Row
from dandap.errors import first_line

FOLDER = Path(HF_HOME) / "dandap"
FEW = 5_000  # questions; fewer are encoded within seconds and not kept
UNUSED = 30 * 24 * 3600  # seconds after which a file that nobody read is deleted
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
    """Return `encoder.encode_rows` of these, read from a file where they were encoded before.

    Of several processes the first that comes encodes, and the others read what it has written.
    Where no file can be written, which is told, nothing is kept.
    """
    settings = (prompt_limit, answers, on_overflow)
    if len(rows) < FEW or not encoder.tokenizer.is_fast:
        return encoder.encode_rows(rows, *settings)
    file = FOLDER / f"{_hash(encoder, rows, settings)}.arrow"
    with _one_process(file):
        try:
            return _read(file, rows)
        except FileNotFoundError:
            pass
        except (OSError, pa.ArrowException) as error:
            print(f"{file} cannot be read ({first_line(error)}): the questions are encoded again")
        examples = encoder.encode_rows(rows, *settings)
        try:
            _forget_unused()
            _write(file, examples)
        except OSError as error:
            print(f"the encoded questions are not kept for the next start: {first_line(error)}")
        return examples


@contextmanager
def _one_process(file: Path) -> Iterator[None]:
    """Let one process at a time look for the file and make it, where its folder can be used."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{file}.lock")
        lock.acquire()
    except OSError:  # what is written there then fails, too, and is told
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _hash(encoder: Encoder, rows: list[Row], settings: tuple[int, bool, str]) -> str:
    """Return a hash of all that the examples depend on."""
    tokenizer = encoder.tokenizer
    said = hashlib.sha256(_code())
    said.update(tokenizer.backend_tokenizer.to_str().encode())
    said.update(json.dumps([tokenizer.chat_template, tokenizer.special_tokens_map]).encode())
    said.update(json.dumps(settings).encode())
    for row in rows:
        # What the template makes of a row, not its wording: its code may have been edited, too.
        answer = row.answers[:1]
        parts = [encoder.render(row.context, row, text) for text in ("", *answer)]
        said.update(json.dumps([row.article, row.question, answer, parts]).encode())
    return said.hexdigest()[:32]


@cache
def _code() -> bytes:
    """Return what ids may change with besides: this package's source, and the libraries."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    libraries = f"{version('transformers')} {version('tokenizers')}".encode()
    return libraries + b"".join(file.read_bytes() for file in files)


def _write(file: Path, examples: list[Example]) -> None:
    beside = file.with_suffix(f".{os.getpid()}")
    try:
        with pa.OSFile(str(beside), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
            for first in range(0, len(examples), ROWS_AT_ONCE):
                writer.write(_batch(examples[first : first + ROWS_AT_ONCE]))
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)


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
    modified = file.stat().st_mtime
    with suppress(PermissionError):  # somebody else's file can be read all the same
        os.utime(file, (time.time(), modified))  # read now, which _forget_unused asks for
    examples: list[Example] = []
    with pa.memory_map(str(file)) as source:
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


def _forget_unused() -> None:
    """Delete the files that nobody has read for long."""
    for file in FOLDER.glob("*.arrow*"):
        if time.time() - file.stat().st_atime > UNUSED:
            file.unlink(missing_ok=True)
