"""Find data files."""

import hashlib
import re
from pathlib import Path

from dandap import ROOT
from dandap.errors import InputError, short_list

TABLES = (".csv", ".tsv", ".txt", ".xlsx", ".parquet", ".arrow")
JSONS = (".json", ".jsonl", ".ndjson")
READABLE = "a .csv, .tsv, .xlsx, .parquet, .arrow, .jsonl or .json file, or a folder of them"
# Skipped in folders: descriptions, the organizer's sample, metadata of the hub and of datasets,
# and the caches that datasets' map writes next to save_to_disk's files.
NO_DATA = re.compile(
    r"(?:readme|licen[cs]e)(?:\.\w+)?$|sample_?submission\.\w+$"
    r"|(?:dataset_infos?|dataset_dict|state|config)\.json$|cache-\w+\.arrow$",
    re.IGNORECASE,
)


def find_files(path: Path, expected: str = READABLE) -> list[Path]:
    """Return the path, or the data files of a folder; InputError if there are none."""
    if path.is_dir():
        inside = sorted(
            p for p in path.iterdir() if not p.name.startswith(".") and not NO_DATA.match(p.name)
        )
        found = [p for p in inside if p.suffix.lower() in TABLES + JSONS and p.is_file()]
        if not found:
            parts = [p.name for p in inside if p.is_dir()]
            hint = f" It has the folders {short_list(parts)}; name one of them." if parts else ""
            raise InputError(f"the folder {path} has no data file. Expected {expected}.{hint}")
        return found
    if not path.is_file():
        there = (
            f" There is one in {ROOT}: start the script in that folder."
            if (ROOT / path).is_file()
            else ""
        )
        raise InputError(f"no file at {path}. Expected {expected}; check the path.{there}")
    return [path]


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes; InputError if the file does not exist."""
    find_files(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_bytes(path: Path) -> tuple[bytes, str]:
    """Return a file's bytes and their SHA-256; InputError if the file does not exist."""
    find_files(path)
    data = path.read_bytes()
    return data, hashlib.sha256(data).hexdigest()
