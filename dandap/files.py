"""Write files and folders whole or not at all, under free names, and never through a link."""

import csv
import glob
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dandap.console import printable
from dandap.errors import InputError

LOCK = ".lock"
LONGEST_NAME = 180  # bytes of a folder's name; file systems take 255, and a time and -2 follow it


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time work on a folder; a dead process holds no lock."""
    file, note = folder / LOCK, folder / ".lock.owner"
    if file.is_symlink():  # FileLock would open, or create, its target
        raise InputError(f"{file} is a link; expected a file. Remove the link.")
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = note.read_text(encoding="utf-8") if note.is_file() else "another process"
        raise InputError(
            f"{folder} is in use by {printable(owner[:100])}. Wait until it ends, or stop it."
        ) from None
    try:
        write_text(note, f"process {os.getpid()}")
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: under a temporary name that is then renamed.

    A link at `path` is replaced, and its target stays.
    """
    # The name is cut: one of 255 bytes would be too long with its prefix and suffix.
    handle, partial = tempfile.mkstemp(
        prefix=f".{path.name[:40]}.", suffix=".partial", dir=path.parent
    )
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # or a power failure may save the new name without its bytes
        Path(partial).chmod(_default_mode(0o666))
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _default_mode(most: int) -> int:
    """Return the mode of a new file (0o666) or folder (0o777) under the process's umask."""
    mask = os.umask(0)  # it can only be read by setting it
    os.umask(mask)
    return most & ~mask


def let_read(folder: Path) -> None:
    """Give a folder and its contents the default modes; safetensors lets only the owner read."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(_default_mode(0o777 if path.is_dir() else 0o666))


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder that is renamed to `folder` in the end, or removed after an error.

    Those that a killed process left are removed first.
    """
    make_folder(folder.parent)
    prefix, suffix = f".{folder.name[:40]}.", ".partial"
    for old in folder.parent.glob(f"{glob.escape(prefix)}*{suffix}"):
        lock = old / LOCK
        if lock.is_file() and not lock.is_symlink() and not old.is_symlink():
            try:
                with FileLock(lock, timeout=0):
                    shutil.rmtree(old, ignore_errors=True)
            except Timeout:
                pass  # another process is writing to it
    partial = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=folder.parent))
    try:
        with FileLock(partial / LOCK):
            content = partial / "content"
            content.mkdir()
            yield content
            let_read(content)
            # Renaming would replace a link.
            if folder.exists() or folder.is_symlink():
                raise InputError(f"{folder} was made by something else meanwhile. Remove it.")
            os.replace(content, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str, encoding: str = "utf-8") -> None:
    """Write a text whole or not at all, with its line ends as they are."""
    write_bytes(path, text.encode(encoding))


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_json_lines(path: Path, records: Iterable[dict]) -> None:
    """Write records as JSON, one per line."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def write_table(path: Path, records: list[dict], columns: Sequence[str] | None = None) -> None:
    """Write records as CSV with quoted texts and a byte-order mark, for spreadsheets."""
    import pandas as pd  # takes 0.4 s

    text = pd.DataFrame(records, columns=columns).to_csv(
        index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC
    )
    write_text(path, text, encoding="utf-8-sig")


def append_json(path: Path, record: dict) -> None:
    """Append a record to a .jsonl file, which must be no link."""
    if path.is_symlink():
        raise InputError(f"{path} is a link; expected a file. Remove the link.")
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_json_lines(path: Path) -> Iterator[dict]:
    """Yield the records of a .jsonl file, if it exists; skip lines that a kill has torn."""
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


def read_json(path: Path) -> dict:
    """Return the JSON object in a file of ours, or raise an InputError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path} is missing. Restore it from a copy, or make the folder again."
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged ({str(error)[:80]}). Restore it from a copy, or make the folder "
            "again."
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: expected a JSON object. Restore it from a copy.")
    return value


def safe_name(name: str) -> str:
    """Return a folder name without separators and other special characters."""
    # A leading dot would hide the folder; . and .. are the folder itself and its parent.
    cleaned = re.sub(r"[^\w.+-]+", "-", name).strip("-.")
    if not cleaned:
        raise InputError(f"got the name {name[:100]!r}; expected letters, digits, '-', '_' or '.'.")
    return cleaned


def checked_name(name: str) -> str:
    """Return the safe form of a folder name that the user chose, or raise if it is too long."""
    cleaned = safe_name(name)
    if len(cleaned.encode()) > LONGEST_NAME:
        raise InputError(
            f"the name {cleaned[:20]!r}... has {len(cleaned.encode())} bytes; expected at most "
            f"{LONGEST_NAME} (a Hangul syllable has three)."
        )
    return cleaned


def shortened(name: str, most: int = 100) -> str:
    """Return a name cut to at most `most` bytes, between characters."""
    return name.encode()[:most].decode(errors="ignore")


def timestamp() -> str:
    """Return the local time for folder names, to the second."""
    return time.strftime("%Y%m%d-%H%M%S")


def new_folder(parent: str | Path, name: str) -> Path:
    """Make the new folder <parent>/<name>-<time> and return it."""
    return free_folder(Path(parent) / safe_name(f"{shortened(name)}-{timestamp()}"))


def free_folder(base: Path) -> Path:
    """Make the folder `base`, or base-2, base-3, ... if it exists, and return it."""
    make_folder(base.parent)
    folder, number = base, 2
    while True:
        try:  # checking first would race with other processes
            folder.mkdir()
            return folder
        except FileExistsError:
            folder, number = base.with_name(f"{base.name}-{number}"), number + 1


def make_folder(folder: Path) -> None:
    """Make a folder and its parents if they do not exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"{folder} cannot be a folder: {error.filename} is a file or a broken link."
        ) from error


def existing_parent(path: Path) -> Path:
    """Return the path itself, or its nearest parent that exists."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists() or each.is_symlink())


def check_writable(folder: Path, way_out: str) -> None:
    """Raise an InputError, with `way_out`, if a folder cannot be made or written to."""
    parent = existing_parent(folder)
    if not parent.is_dir():
        kind = "a link that leads nowhere" if parent.is_symlink() else "a file"
        raise InputError(f"{folder} cannot be a folder: {parent} is {kind}. {way_out}")
    try:  # modes do not show whether the file system is read-only
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise InputError(f"{folder} cannot be written to ({error.strerror}). {way_out}") from error


def refuse_output(output: str | None, overwrite: bool) -> None:
    """Raise an InputError if --output cannot be written, before hours of answering."""
    if output:
        refuse_existing(
            Path(output), overwrite, "--output", "Choose another name, or add --overwrite."
        )


def refuse_existing(target: Path, overwrite: bool, name: str, way_out: str) -> None:
    """Raise an InputError if a file cannot be written; `name` is the option, as in messages."""
    folder = target.absolute().parent
    if len(target.name.encode()) > 255:
        raise InputError(f"{name}: the name {target.name[:20]!r}... has more than the 255 bytes.")
    if not folder.is_dir():
        raise InputError(f"{name} {target}: there is no folder {target.parent}. Make it first.")
    if target.is_symlink():
        raise InputError(f"{name} {target} is a link; expected a file's name.")
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "a device or a pipe"
        raise InputError(f"{name} {target} is {kind}; expected a file's name.")
    if target.exists() and not overwrite:
        raise InputError(f"{name} {target} exists already. {way_out}")
    check_writable(folder, "Name a file in another folder.")


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file whole or not at all."""
    write_bytes(target, source.read_bytes())
    print(f"copied to {target}")
