"""The files that people have are found here, and decoded in the encodings of Korea.

What is no data file, or no text, is refused by name.
"""

import codecs
import hashlib
import re
from pathlib import Path

from dandap import ROOT
from dandap.errors import InputError, short_list

TABLES = (".csv", ".tsv", ".txt", ".xlsx", ".parquet", ".arrow")
JSONS = (".json", ".jsonl", ".ndjson")
READABLE = "a .csv, .tsv, .xlsx, .parquet, .arrow, .jsonl or .json file, or a folder of them"
# What lies in folders of data and holds none: a description, the organiser's sample, the hub's and
# datasets' notes, and the caches that datasets' map leaves beside what save_to_disk wrote.
NO_DATA = re.compile(
    r"(?:readme|licen[cs]e)(?:\.\w+)?$|sample_?submission\.\w+$"
    r"|(?:dataset_infos?|dataset_dict|state|config)\.json$|cache-\w+\.arrow$",
    re.IGNORECASE,
)
# UTF-32's little-endian mark begins with UTF-16's, so it is looked for first.
BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
ISO_2022_KR = b"\x1b$)C"


def find_files(path: Path, expected: str = READABLE) -> list[Path]:
    """Return the path, or the files of a folder that can be read; InputError if there are none."""
    if path.is_dir():
        inside = sorted(
            p for p in path.iterdir() if not p.name.startswith(".") and not NO_DATA.match(p.name)
        )
        found = [p for p in inside if p.suffix.lower() in TABLES + JSONS and p.is_file()]
        if not found:
            parts = [p.name for p in inside if p.is_dir()]
            hint = f" It holds the folders {short_list(parts)}; name one of them." if parts else ""
            raise InputError(
                f"the folder {path} holds no file that can be read. Expected {expected}.{hint}"
            )
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
    """Return the SHA-256 of a file's bytes; InputError if the file is not there."""
    find_files(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_bytes(path: Path) -> tuple[bytes, str]:
    """Return a file's bytes and their SHA-256; InputError if the file is not there."""
    find_files(path)
    data = path.read_bytes()
    return data, hashlib.sha256(data).hexdigest()


def decode(data: bytes, path: Path) -> tuple[str, str]:
    """Return a file's text and its encoding: what a byte-order mark says, else UTF-8, else cp949.

    UTF-8 is strict. No detector is asked, because detectors take short cp949 for Big5. The
    InputError names the first wrong byte and its line.
    """
    name = next((name for mark, name in BOMS if data.startswith(mark)), None)
    if ISO_2022_KR in data[:4096]:
        name = "iso2022_kr"  # old mail: only bytes below 0x80, so that it would pass for UTF-8
    failures = {}
    for encoding in [name] if name else ["utf-8", "cp949"]:
        try:
            # A mark that is left, UTF-8's or a second one, would stand in the first column's name.
            return data.decode(encoding).lstrip("\ufeff"), encoding
        except UnicodeDecodeError as error:
            failures[encoding] = error.start
    # UTF-16 has a zero byte in every digit, comma and line end; texts in UTF-8 have hardly any.
    if data.count(b"\0") > len(data) / 10:
        raise InputError(
            f"{path} is no text, or UTF-16 without a byte-order mark. Save it as CSV UTF-8."
        )
    # The encoding that went on furthest is the file's: the other one failed at its first Hangul
    # letter.
    encoding, start = max(failures.items(), key=lambda failure: failure[1])
    line = data.count(b"\n", 0, start) + 1
    raise InputError(
        f"{path}, line {line}: the byte 0x{data[start]:02x} at {start} is wrong; up to there the "
        f"file can be read as {encoding} (neither UTF-8 nor cp949 holds to its end). Correct that "
        "place, or export the file again as UTF-8."
    )


def encoding_notes(path: Path, encoding: str) -> list[str]:
    """Return a line for people where a file is not UTF-8."""
    return [] if encoding == "utf-8" else [f"{path.name} is not UTF-8; it was read as {encoding}"]


def refuse_unreadable(data: bytes, path: Path) -> None:
    """Refuse by name the kinds of file that people have and that are not read."""
    # By their first bytes, whatever the ending: a gzip file named .csv is not a wrong encoding.
    kinds = {
        b"\xd0\xcf\x11\xe0": "an old Excel workbook (.xls); save it as .xlsx or as CSV UTF-8",
        b"\x1f\x8b": "compressed with gzip; unpack it",
        b"PK\x03\x04": "a zip file; unpack it",
        b"%PDF": "a PDF; export the table as CSV UTF-8",
        b"Rar!": "a RAR file; unpack it",
    }
    for beginning, what in kinds.items():
        if data.startswith(beginning):
            raise InputError(f"{path} is {what}. Expected {READABLE}.")
    if path.suffix.lower() not in TABLES + JSONS:
        raise InputError(f"{path} ends in {path.suffix!r}; expected {READABLE}.")


def refuse_other_text(text: str, path: Path) -> None:
    """Refuse by name the texts that downloads leave under the name of a data file."""
    beginning = text.lstrip()[:200]
    if beginning.startswith("version https://git-lfs"):
        raise InputError(
            f"{path} is a pointer of Git LFS, not the file itself. Fetch it: git lfs pull."
        )
    if re.match(r"<(?:!doctype html|html)\b", beginning, re.IGNORECASE):
        raise InputError(
            f"{path} is a web page (of a login, or of an error), not the data. Download it again, "
            f"signed in. Expected {READABLE}."
        )
    # One bracket is not JSON yet: the first cell of a table may begin so, as in [단독].
    if re.match(r'\{\s*"|\[\s*[\[{]', beginning) and path.suffix.lower() in TABLES:
        raise InputError(
            f"{path} holds JSON under the name of a table. Rename it to .json, or .jsonl if every "
            "line is an object."
        )
