"""Cache expensive results on disk: encoded questions, near-duplicate groups.

An entry is a file <HF_HOME>/dandap/<key>.arrow: the SHA-256 of the rest (32 bytes), then an Arrow
stream. The key is a hash of everything the result depends on, including this code. The folder is
readable by the user only, because entries contain texts of private files.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
from filelock import FileLock
from huggingface_hub.constants import HF_HOME

import prompts
from dandap.errors import first_line

FOLDER = Path(HF_HOME) / "dandap"
UNUSED_SECONDS = 30 * 24 * 3600  # entries unread for this long are removed
DIGEST = hashlib.sha256().digest_size
PACKAGES = ("transformers", "tokenizers", "datasketch")


def load_cached(
    parts: Iterable[str], schema: pa.Schema, build: Callable[[], Iterable[pa.RecordBatch]]
) -> Iterable[pa.RecordBatch]:
    """Return the batches of `build`, from disk if they are cached.

    `parts` are all texts that the batches depend on. One process builds them; others wait.
    """
    digest = hashlib.sha256()
    code = [*sorted(Path(__file__).parent.glob("*.py")), Path(prompts.__file__)]
    versions = [*map(version, PACKAGES), *(file.read_text("utf-8") for file in code)]
    for part in chain(versions, parts):
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    file = FOLDER / f"{digest.hexdigest()[:32]}.arrow"
    try:
        FOLDER.mkdir(parents=True, exist_ok=True)
        FOLDER.chmod(0o700)
        with FileLock(f"{file}.lock"):
            stream = _open(file)
            if stream is None:
                _write(file, schema, build())
                stream = _open(file)
        if stream is not None:
            return pa.ipc.open_stream(stream)
    except OSError as error:
        print(f"Cannot use the cache: {first_line(error)}")
    return build()


def _open(file: Path) -> BinaryIO | None:
    """Open an entry at its Arrow stream; return None if it is missing or damaged."""
    try:
        if not stat.S_ISREG(file.lstat().st_mode):  # opening a fifo would wait for a writer
            raise ValueError("not a regular file")
        stream = file.open("rb")
        digest = stream.read(DIGEST)
        if hashlib.file_digest(stream, "sha256").digest() != digest:
            raise ValueError("its SHA-256 differs")
        stream.seek(DIGEST)
        os.utime(file)
        return stream
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        print(f"Rebuilding the damaged cache entry {file} ({first_line(error)})")
        return None


def _write(file: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Remove unused entries, then write an entry to a temporary file and rename it."""
    for entry in FOLDER.iterdir():
        with suppress(OSError):  # a folder, or removed by another process
            if time.time() - entry.lstat().st_mtime > UNUSED_SECONDS:
                entry.unlink()
    unfinished = file.with_suffix(".unfinished")
    unfinished.unlink(missing_ok=True)
    try:
        with unfinished.open("w+b") as stream:
            stream.write(bytes(DIGEST))
            with pa.ipc.new_stream(stream, schema) as writer:
                for batch in batches:
                    writer.write(batch)
            stream.seek(DIGEST)
            digest = hashlib.file_digest(stream, "sha256").digest()
            stream.seek(0)
            stream.write(digest)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
