"""Write files and folders safely.

They are written whole or not at all, under a name that is free, and never through somebody's link.
"""

import csv
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

from dandap.console import shown
from dandap.errors import InputError


@contextmanager
def locked(folder: Path):
    """Let one process at a time work on a folder; the lock of a dead process is free."""
    file, note = folder / ".lock", folder / ".lock.owner"
    # FileLock would open, or make, what the link points to.
    if file.is_symlink():
        raise InputError(f"{file} is a link; expected a file of the folder's own. Remove the link.")
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = note.read_text(encoding="utf-8") if note.is_file() else "another process"
        raise InputError(
            f"{folder} is in use by {shown(owner[:100])}. Wait until it ends, or stop it."
        ) from None
    try:
        # Without the host's name, which is nobody's business where the folder is published.
        write_text(note, f"process {os.getpid()}")
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


LONGEST_NAME = 180  # bytes of a folder's name; file systems take 255, and a time and -2 follow it


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    It is written beside its place under a name of its own and then renamed. A link at `path` is
    replaced, and what it points to stays; so does a file of the user's that ends in .partial.
    """
    # The name is cut, because with what is put around it one of 255 bytes would be too long.
    handle, partial = tempfile.mkstemp(
        prefix=f".{path.name[:40]}.", suffix=".partial", dir=path.parent
    )
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            # Else a machine that loses its power may keep the new name and lose the bytes.
            os.fsync(file.fileno())
        Path(partial).chmod(_usual_mode())
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _usual_mode(most: int = 0o666) -> int:
    """Return the mode that a new file gets here, or a new folder with all bits as `most`.

    mkstemp's files are for their owner alone.
    """
    # The mask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return most & ~mask


def let_read(folder: Path) -> None:
    """Give a folder's files and folders the modes that new ones get here.

    safetensors (0.8) writes files, and mkdtemp makes folders, that only their owner may read: a
    colleague or a server that runs as another user would not see the weights.
    """
    for path in (folder, *folder.rglob("*")):
        path.chmod(_usual_mode(0o777 if path.is_dir() else 0o666))


@contextmanager
def whole_folder(folder: Path):
    """Give a folder to write into that takes its place when all went well, and else is removed.

    It is made beside its place, with a hidden name. InputError is raised where the place is taken.
    """
    make_folder(folder.parent)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name[:40]}.", dir=folder.parent))
    try:
        yield partial
        let_read(partial)
        # To rename onto a folder that holds something fails, onto a link it would replace the link.
        if folder.exists() or folder.is_symlink():
            raise InputError(f"{folder} was made by something else meanwhile. Remove it.")
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str, encoding: str = "utf-8") -> None:
    """Write a text whole or not at all, line ends as they are."""
    write_bytes(path, text.encode(encoding))


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_json_lines(path: Path, records: Iterable[dict]) -> None:
    """Write records, a line each, into a file that is written whole or not at all."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def write_table(path: Path, records: list[dict], columns: Sequence[str] | None = None) -> None:
    """Write records as a CSV for people, each text in quotation marks.

    It is UTF-8 with a byte-order mark, by which spreadsheets know it.
    """
    import pandas as pd  # 0.4 s, which no script should take before it is needed

    text = pd.DataFrame(records, columns=columns).to_csv(
        index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC
    )
    write_text(path, text, encoding="utf-8-sig")


def append_json(path: Path, record: dict) -> None:
    """Add a line to a .jsonl file, which must be no link."""
    # Opening writes through a link, which replacing a file, as the other writers do, does not.
    if path.is_symlink():
        raise InputError(f"{path} is a link; expected a file of the run's own. Remove the link.")
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_json_lines(path: Path) -> Iterator[dict]:
    """Yield the objects of a .jsonl file that this project wrote, or none where there is no file.

    Lines that a kill has torn are passed over.
    """
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


def read_json(path: Path) -> dict:
    """Read a JSON object that this project wrote.

    Raise InputError if the file is missing, torn or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path} is missing. Put it back from a copy of the folder, or make the folder again."
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged ({str(error)[:80]}). "
            "Put it back from a copy, or make the folder again."
        ) from error
    if not isinstance(value, dict):
        raise InputError(
            f"{path} holds {type(value).__name__}; expected a JSON object. Put it back from a copy."
        )
    return value


def safe_name(name: str) -> str:
    """Return a name for one folder, without what leaves its parent or a file system refuses."""
    # A dot in front would hide the folder, and . and .. are the folder itself and its parent.
    cleaned = re.sub(r"[^\w.+-]+", "-", name).strip("-.")
    if not cleaned:
        raise InputError(f"got the name {name[:100]!r}; expected letters, digits, '-', '_' or '.'.")
    return cleaned


def checked_name(name: str) -> str:
    """Return a folder name that a person chose; refuse one that is too long for a file system."""
    cleaned = safe_name(name)
    if len(cleaned.encode()) > LONGEST_NAME:
        raise InputError(
            f"the name {cleaned[:20]!r}... has {len(cleaned.encode())} bytes; expected at most "
            f"{LONGEST_NAME} (a Hangul syllable takes three)."
        )
    return cleaned


def shortened(name: str, most: int = 100) -> str:
    """Cut a name to at most so many bytes, between characters."""
    # The bytes of a character that was cut in two are left out.
    return name.encode()[:most].decode(errors="ignore")


def timestamp() -> str:
    """Return the local time for folder names, to the second."""
    return time.strftime("%Y%m%d-%H%M%S")


def new_folder(parent: str | Path, name: str) -> Path:
    """Make <parent>/<name>-<time>/, never one that exists, and return it."""
    return free_folder(Path(parent) / safe_name(f"{shortened(name)}-{timestamp()}"))


def free_folder(base: Path) -> Path:
    """Make the folder, or one named with -2, -3, ... if two start in one second, and return it."""
    make_folder(base.parent)
    folder, number = base, 2
    while True:
        # To look first would not do: another process may take the name in between.
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            folder, number = base.with_name(f"{base.name}-{number}"), number + 1


def make_folder(folder: Path) -> None:
    """Make a folder where there is none.

    Raise InputError if something else has its name, or its path leads nowhere.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"{folder} cannot be a folder: {error.filename} is a file, "
            "or a link that leads nowhere."
        ) from error


def check_writable(folder: Path, way_out: str) -> None:
    """Refuse a folder that cannot be made or written to, before work whose result it would lose.

    Nothing is made. `way_out` tells people what to do.
    """
    # What does not exist yet would be made in the nearest folder above that does.
    existing = folder.absolute()
    while not existing.exists():
        if existing.is_symlink():
            raise InputError(
                f"{folder} cannot be a folder: {existing} is a link that leads nowhere. {way_out}"
            )
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"{folder} cannot be a folder: {existing} is a file. {way_out}")
    # Modes do not tell everything: on a file system that is mounted to be read they allow writing.
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(f"{folder} cannot be written to ({error.strerror}). {way_out}") from error


def refuse_output(output: str | None, overwrite: bool) -> None:
    """Refuse an --output that cannot be written under its name, before the hours of answering."""
    if output:
        refuse_existing(
            Path(output), overwrite, "--output", "Choose another name, or add --overwrite."
        )


def refuse_existing(target: Path, overwrite: bool, name: str, way_out: str) -> None:
    """Refuse a place where a file cannot be written.

    `name` is what the user calls it, and `way_out` says what to do if it exists.
    """
    if len(target.name.encode()) > 255:
        raise InputError(
            f"{name}: the name {target.name[:20]!r}... "
            "has more than the 255 bytes that file systems take."
        )
    if not target.absolute().parent.is_dir():
        raise InputError(
            f"{name} {target}: there is no folder {target.parent}. Make it, or name another."
        )
    if target.is_symlink():
        raise InputError(
            f"{name} {target} is a link; expected a file's name. Name what it points to."
        )
    if target.is_dir():
        raise InputError(f"{name} {target} is a folder; expected a file's name.")
    if target.exists() and not target.is_file():
        raise InputError(f"{name} {target} is a device or a pipe; expected a file's name.")
    if target.exists() and not overwrite:
        raise InputError(f"{name} {target} exists already. {way_out}")
    check_writable(target.absolute().parent, "Name a file in another folder.")


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file so that the target is never half of it."""
    write_bytes(target, source.read_bytes())
    print(f"copied to {target}")


def remove(path: Path) -> None:
    """Remove a file, a folder with what is in it, or a link but not what it points to.

    Where there is none of these, do nothing.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
