"""Write files and folders atomically, never through a link, and verify them.

A folder's manifest has the size and SHA-256 of each file, and the id of its run.
"""

import csv
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dandap.console import printable
from dandap.errors import InputError, first_line

LOCK, MANIFEST = ".lock", "manifest.json"
LONGEST_NAME = 180  # bytes of a folder's name: file systems allow 255, a suffix is added
KINDS = (".json", ".safetensors", ".model", ".jinja", ".txt", ".py")  # files of a model
# `folder_hash` samples files above WHOLE bytes: PIECES evenly spaced pieces of PIECE bytes.
WHOLE, PIECES, PIECE = 2**28, 256, 2**16


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder for this process; the lock of a dead process is released."""
    file, note = folder / LOCK, folder / ".lock.owner"
    if file.is_symlink():  # FileLock would open or create its target
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
    """Write a file atomically; a link at `path` is replaced."""
    # Cut the name: with prefix and suffix it may have at most 255 bytes.
    handle, partial = tempfile.mkstemp(
        prefix=f".{path.name[:40]}.", suffix=".partial", dir=path.parent
    )
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a power failure may leave an empty file
        reset_modes(Path(partial))
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def reset_modes(path: Path) -> None:
    """Reset file modes to the umask's default; temporary files are readable by their owner only."""
    mask = os.umask(0)  # os has no getter
    os.umask(mask)
    for each in (path, *path.rglob("*")):
        each.chmod((0o777 if each.is_dir() else 0o666) & ~mask)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder; rename it to `folder` at the end, or delete it after an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix, suffix = f".{folder.name[:40]}.", ".partial"
    # Delete the leftovers of killed processes.
    for old in folder.parent.glob(f"{glob.escape(prefix)}*{suffix}"):
        lock = old / LOCK
        if lock.is_file() and not lock.is_symlink() and not old.is_symlink():
            # Timeout: another process is writing to it.
            with suppress(Timeout), FileLock(lock, timeout=0):
                shutil.rmtree(old, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=folder.parent))
    try:
        with FileLock(partial / LOCK):
            content = partial / "content"
            content.mkdir()
            yield content
            reset_modes(content)
            if folder.exists() or folder.is_symlink():  # renaming would replace a link
                raise InputError(f"{folder} was created by another process. Remove it.")
            os.replace(content, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str, encoding: str = "utf-8") -> None:
    """Write a text atomically, without changing its line ends."""
    write_bytes(path, text.encode(encoding))


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_json_lines(path: Path, records: Iterable[dict]) -> None:
    """Write records as JSON lines, atomically."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def write_table(path: Path, records: list[dict], columns: Sequence[str] | None = None) -> None:
    """Write records as CSV for spreadsheets, with quoted strings and a byte-order mark."""
    import pandas as pd  # takes 0.4 s

    text = pd.DataFrame(records, columns=columns).to_csv(
        index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC
    )
    write_text(path, text, encoding="utf-8-sig")


def copy_file(source: Path, target: Path) -> None:
    """Copy a file atomically and print the target."""
    write_bytes(target, source.read_bytes())
    print(f"copied to {target}")


def append_json(path: Path, record: dict) -> None:
    """Append a record to a .jsonl file; reject a link."""
    if path.is_symlink():
        raise InputError(f"{path} is a link; expected a file. Remove the link.")
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_json_lines(path: Path) -> Iterator[dict]:
    """Yield the records of a .jsonl file, if it exists; skip incomplete lines."""
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


def read_json(path: Path) -> dict:
    """Return the JSON object in a file; raise InputError if it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise TypeError("expected a JSON object")
    except (FileNotFoundError, ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} is missing or damaged ({first_line(error)}). Restore it from a copy, or "
            "create the folder again."
        ) from error
    return value


def safe_name(name: str) -> str:
    """Return a folder name without special characters."""
    # No leading dot: it hides a folder, and .. is its parent.
    cleaned = re.sub(r"[^\w.+-]+", "-", name).strip("-.")
    if not cleaned or len(cleaned.encode()) > LONGEST_NAME:
        raise InputError(
            f"got the name {name[:100]!r}; expected letters, digits, '-', '_' or '.', and at most "
            f"{LONGEST_NAME} bytes (a Hangul syllable has three)."
        )
    return cleaned


def timestamp() -> str:
    """Return the local time for folder names, to the second."""
    return time.strftime("%Y%m%d-%H%M%S")


def new_folder(parent: str | Path, name: str) -> Path:
    """Create and return <parent>/<name>-<time>, or ...-2, -3; long names are truncated."""
    short = name.encode()[:100].decode(errors="ignore")
    base = Path(parent) / safe_name(f"{short}-{timestamp()}")
    base.parent.mkdir(parents=True, exist_ok=True)
    folder, number = base, 2
    while True:
        try:  # checking first would be a race
            folder.mkdir()
            return folder
        except FileExistsError:
            folder, number = base.with_name(f"{base.name}-{number}"), number + 1


def existing_parent(path: Path) -> Path:
    """Return the path itself, or its nearest parent that exists."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists() or each.is_symlink())


def check_writable(folder: Path, way_out: str) -> None:
    """Raise InputError, with the advice `way_out`, if a folder is not writable."""
    parent = existing_parent(folder)
    try:  # modes do not reveal a read-only file system
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise InputError(
            f"{folder}: {parent} is not writable ({error.strerror}). {way_out}"
        ) from error


def check_output(output: str | Path | None, overwrite: bool, option: str = "--output") -> None:
    """Raise InputError if an output file cannot be written, before hours of work."""
    if not output:
        return
    target = Path(output)
    if not target.parent.is_dir():
        raise InputError(f"{option} {target}: no folder {target.parent}. Create it first.")
    if target.is_symlink() or (target.exists() and not target.is_file()):
        raise InputError(f"{option} {target} is a folder, link or device; expected a file.")
    if target.exists() and not overwrite:
        way_out = ", or add --overwrite" if option == "--output" else ""
        raise InputError(f"{option} {target} exists already. Choose another name{way_out}.")
    check_writable(target.parent, "Choose another folder.")


def write_manifest(folder: Path, run: str | None = None) -> None:
    """Write a folder's manifest, with the id of `run`, and flush all files to disk."""
    reset_modes(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in files
    }
    for path in files:
        flush(path)
    # The manifest is last: an incomplete folder has none.
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump({"files": manifest, "run": run}, file, indent=2)
    flush(folder / MANIFEST)
    flush(folder)


def find_damage(folder: Path, run: str | None = None) -> str | None:
    """Return why a folder of weights does not match its manifest (or `run`), or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        # Manifests of earlier versions have no run.
        if run and manifest.get("run") not in (run, None):
            return "it belongs to another run"
        for name, expected in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["size"]:
                return f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
            if sha256(path) != expected["sha256"]:
                return f"{name} is damaged (its SHA-256 differs)"
    except FileNotFoundError:
        return "it has no manifest: writing it was interrupted"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read ({type(error).__name__})"
    if not any(name.endswith(".safetensors") for name in files):
        return "its manifest lists no weights"
    return None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as a hexadecimal string."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Flush a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def folder_hash(folder: Path) -> str:
    """Return a hash of the names and contents of a model's or adapter's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in KINDS and path.name != MANIFEST:
            size, content = path.stat().st_size, hashlib.sha256()
            with path.open("rb") as file:
                for number in range(PIECES) if size > WHOLE else ():
                    file.seek((size - PIECE) * number // (PIECES - 1))
                    content.update(file.read(PIECE))
            hashed = content.hexdigest() if size > WHOLE else sha256(path)
            digest.update(f"{path.name} {size} {hashed}\n".encode())
    return digest.hexdigest()
