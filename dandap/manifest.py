"""Verify folders of files by a manifest: the size and SHA-256 of each file, and whose they are."""

import hashlib
import json
import os
from pathlib import Path

from dandap.files import let_read

MANIFEST = "manifest.json"
KINDS = (".json", ".safetensors", ".model", ".jinja", ".txt", ".py")  # files of a model
WHOLE = 2**28  # bytes; `folder_hash` reads larger files in part:
PIECES, PIECE = 256, 2**16  # evenly spaced pieces of so many bytes


def seal(folder: Path, run: str | None = None) -> None:
    """Write the manifest of a folder, signed by `run`, and flush all files to the disk."""
    let_read(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in files
    }
    # The manifest comes last: a folder whose writing was interrupted has none.
    for path in files:
        flush(path)
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump({"files": manifest, "run": run}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    flush(folder)


def fault(folder: Path, run: str | None = None, weights: bool = True) -> str | None:
    """Return why a sealed folder cannot be used, or None.

    It must be that of `run`, if given, and have a .safetensors file, unless `weights` is False.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        # Manifests of earlier versions have no run.
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
        return "it has no manifest: its writing was interrupted"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read ({type(error).__name__})"
    if weights and not any(name.endswith(".safetensors") for name in files):
        return "its manifest names no weights"
    return None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk."""
    try:
        # Windows flushes only handles that can write.
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:
        if path.is_dir():  # Windows opens no folder, and flushes entries itself
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def folder_hash(folder: Path) -> str:
    """Return a hash of the names and contents of a model's or adapter's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in KINDS and path.name != MANIFEST:
            digest.update(f"{path.name} {path.stat().st_size} {_file_hash(path)}\n".encode())
    return digest.hexdigest()


def _file_hash(path: Path) -> str:
    size = path.stat().st_size
    if size <= WHOLE:
        return sha256(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for number in range(PIECES):
            file.seek((size - PIECE) * number // (PIECES - 1))
            digest.update(file.read(PIECE))
    return digest.hexdigest()
