"""What took long to work out of large data is kept in files, for the next start.

key -> kept -> the value, read from <HF_HOME>/dandap/<hash> where it was worked out before

A key says all that a value depends on; this package's code and the versions of the libraries that
tokenize and compare are part of every hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from huggingface_hub.constants import HF_HOME

from dandap.errors import first_line

Value = TypeVar("Value")
UNUSED = 30 * 24 * 3600  # seconds after which a file that nobody read is deleted
LIBRARIES = ("transformers", "tokenizers", "datasketch")
FAULTS = (OSError, ValueError, LookupError)  # of a torn file; pyarrow's are ValueErrors or OSErrors


def kept(
    key: str,
    what: str,
    make: Callable[[], Value],
    read: Callable[[Path], Value],
    write: Callable[[Path, Value], None],
) -> Value:
    """Return `make()`, or what `read` finds in the file that an earlier start wrote of it.

    Of several processes the first that comes makes it, and the others read what it has written.
    Where no file can be written, which is told of `what`, nothing is kept.
    """
    file = folder() / key
    with _one_process(file):
        try:
            return _used(file, read)
        except FileNotFoundError:
            pass
        except FAULTS as error:
            print(f"{file} cannot be read ({first_line(error)}): {what} are worked out again")
        value = make()
        beside = file.with_name(f"{key}.{os.getpid()}")
        try:
            _forget_unused()
            write(beside, value)
            os.replace(beside, file)
        except OSError as error:
            print(f"{what} are not kept for the next start: {first_line(error)}")
            return value
        finally:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
    # Read back, so that a first start goes on with what a second one will, and without what making
    # it left in memory.
    del value
    return read(file)


def _used(file: Path, read: Callable[[Path], Value]) -> Value:
    """Return what a file holds, and note that it was read, which _forget_unused asks for."""
    value = read(file)
    modified = file.stat().st_mtime
    with suppress(PermissionError):  # somebody else's file can be read all the same
        os.utime(file, (time.time(), modified))
    return value


def folder() -> Path:
    """Return where the files lie, beside what the hub's library keeps."""
    return Path(HF_HOME) / "dandap"


def key_of(parts: Iterable[str | bytes]) -> str:
    """Return a hash of all that a value depends on, this package's code included."""
    said = hashlib.sha256(_code())
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        said.update(len(data).to_bytes(8))  # or "ab", "c" would be "a", "bc"
        said.update(data)
    return said.hexdigest()[:32]


@cache
def _code() -> bytes:
    files = sorted(Path(__file__).parent.glob("*.py"))
    libraries = json.dumps([version(name) for name in LIBRARIES]).encode()
    return libraries + b"".join(file.read_bytes() for file in files)


@contextmanager
def _one_process(file: Path) -> Iterator[None]:
    """Let one process at a time look for the file and make it, where its folder can be used."""
    from filelock import FileLock

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


def _forget_unused() -> None:
    """Delete the files that nobody has read for long."""
    for file in folder().glob("*"):
        if time.time() - file.stat().st_atime > UNUSED:
            file.unlink(missing_ok=True)
