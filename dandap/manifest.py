"""Seal checkpoints and adapters with a manifest: each file's size and SHA-256, and whose they are.

They count only when what their manifest says holds.
"""

import hashlib
import json
import os
from pathlib import Path

from dandap.files import let_read

MANIFEST = "manifest.json"


def seal(folder: Path, run: str | None = None) -> None:
    """Write the manifest of a folder's files, all flushed to the disk; `run` signs it.

    Others may read the files afterwards, as any new file here.
    """
    let_read(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in files
    }
    # The manifest comes last, so that a folder whose saving was cut off has none.
    for path in files:
        flush(path)
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump({"files": manifest, "run": run}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    flush(folder)


def fault(folder: Path, run: str | None = None) -> str | None:
    """Say why a checkpoint or an adapter cannot be used.

    Return None if its manifest holds and is not another run's. Without `run` it may be anybody's.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        # An unsigned manifest is taken: folders of earlier versions have no name of their run.
        if run and manifest.get("run") not in (run, None):
            return "it is another run's"
        for name, expected in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["size"]:
                return f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
            if sha256(path) != expected["sha256"]:
                return f"{name} is damaged (its SHA-256 differs)"
    except FileNotFoundError:
        return "it has no manifest: it was not written to its end"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read ({type(error).__name__})"
    # A manifest without files would hold for any folder.
    if not any(name.endswith(".safetensors") for name in files):
        return "its manifest names no weights"
    return None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Have the system write a file, or a folder's entries, to the disk.

    Windows opens no folder and flushes no handle that cannot write; it keeps a folder's entries by
    itself.
    """
    try:
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:
        if not path.is_dir():
            raise
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


WHOLE = 2**28  # bytes; files up to this size are hashed whole
PIECES, PIECE = 256, 2**16  # larger ones by so many pieces of so many bytes, from end to end
KINDS = (".json", ".safetensors", ".model", ".jinja", ".txt", ".py")


def folder_hash(folder: Path) -> str:
    """Hash the names and contents of a model's or adapter's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in KINDS and path.name != "manifest.json":
            digest.update(f"{path.name} {path.stat().st_size} {_file_hash(path)}\n".encode())
    return digest.hexdigest()


def _file_hash(path: Path) -> str:
    """Return a file's SHA-256; of one above WHOLE bytes, that of PIECES evenly spaced pieces."""
    size = path.stat().st_size
    if size <= WHOLE:
        return sha256(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for number in range(PIECES):
            file.seek((size - PIECE) * number // (PIECES - 1))
            digest.update(file.read(PIECE))
    return digest.hexdigest()
