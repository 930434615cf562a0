"""Read tables: CSV with any common separator, Excel, Parquet and Arrow.

All cells of CSV and Excel are strings, as written. CSV is streamed through the standard library's
parser, not pandas': it is as fast, knows the line of each row, and rejects what pandas repairs
silently (rows that are too short, stray quotation marks).
"""

import csv
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np

from dandap.data.text import READABLE, TABLES, encoding_notes, find_files, open_text, trim
from dandap.errors import InputError, first_line, short_list

SEPARATORS = ",;\t|"


@dataclass
class Sheet:
    """A table. Its rows can be iterated once."""

    header: list[str]
    rows: Iterable[tuple[str, dict[str, Any]]]  # (position as "line 12", cells by column)
    notes: list[str] = field(default_factory=list)  # sentences about guesses
    encoding: str = "utf-8"
    separator: str = ","
    # Excel columns with an ambiguous cell -> the error message.
    unclear: dict[str, str] = field(default_factory=dict)

    def reject_unclear(self, columns: Collection[str]) -> None:
        """Raise InputError if one of these columns has an ambiguous cell."""
        for column, why in self.unclear.items():
            if column in columns:
                raise InputError(why)


@lru_cache(maxsize=4096)  # every record of JSON lines repeats its names
def column_key(name: str) -> str:
    """Return a normalized column name: NFC, casefolded, without surrounding quotes and spaces."""
    return unicodedata.normalize("NFC", trim(trim(name).strip('"'))).casefold()


def read_table(path: Path) -> Sheet:
    """Read a table; its first bytes, then its suffix, determine the format."""
    find_files(path)
    if path.suffix.lower() not in TABLES:
        raise InputError(f"{path} ends in {path.suffix!r}. Expected {READABLE}.")
    with path.open("rb") as file:
        start = file.read(8)
    # An Excel workbook, possibly renamed to .csv.
    if start.startswith(b"PK\x03\x04"):
        return _read_excel(path)
    if start.startswith(b"\x1f\x8b"):
        raise InputError(f"{path} is gzip-compressed. Decompress it first.")
    if start.startswith(b"\xd0\xcf\x11\xe0"):
        raise InputError(f"{path} is an .xls file or has a password. Save it as .xlsx without one.")
    if start.startswith(b"PAR1") or path.suffix.lower() == ".arrow":
        return _read_arrow(path, start.startswith(b"PAR1"))
    return _read_csv(path)


def _read_csv(path: Path) -> Sheet:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than a long article
    with open_text(path) as file:
        encoding = file.encoding
        first = next((line for line in file if line.strip("\ufeff ,;|\t\r\n")), "").lstrip("\ufeff")
    declared = re.fullmatch(r'"?sep=(.)"?\s*', first)
    separator = declared[1] if declared else max(SEPARATORS, key=first.count)
    # In `id, context` the space belongs to the separator.
    spaced = 0 < first.count(separator) == first.count(f"{separator} ")

    def lines() -> Iterator[tuple[int, list[str]]]:
        with path.open(encoding=encoding, newline="") as file:
            marked = chain([next(file, "").lstrip("\ufeff")], file)
            texts = (text.replace("\0", "") for text in marked)
            reader = csv.reader(texts, strict=True, delimiter=separator, skipinitialspace=spaced)
            try:
                for cells in reader:
                    if any(map(trim, cells)):
                        yield reader.line_num, cells
            except csv.Error as error:
                where = f"{path}, line {reader.line_num}"
                hint = 'Close each quotation mark, and write one inside a quoted cell as "".'
                raise InputError(f"{where}: {error}. {hint}") from error

    rows = lines()
    if declared:
        next(rows)
    header, records = _with_header(path, rows)
    notes = encoding_notes(path, encoding)
    if separator != ",":
        notes.append(f"{path.name}: the separator is {separator!r}")
    return Sheet(header, records, notes, encoding, separator)


def _with_header(
    path: Path, lines: Iterator[tuple[int, list[str]]]
) -> tuple[list[str], Iterator[tuple[str, dict[str, str]]]]:
    header = next(lines, (0, []))[1]
    while header and not header[-1].strip():
        header.pop()  # Excel saves `id,context,,` after edits to the right
    if not header:
        raise InputError(f"{path} is empty. Expected a header and a row per question.")
    width, first = len(header), trim(header[0])

    def rows() -> Iterator[tuple[str, dict[str, str]]]:
        for line, cells in lines:
            if first and trim(cells[0]) == first:
                raise InputError(f"{path}, line {line}: a second header. Delete that line.")
            if len(cells) < width or any(map(trim, cells[width:])):
                raise InputError(
                    f"{path}, line {line}: got {len(cells)} cells, expected {width} as in the "
                    "header. Quote cells that contain a separator or quotation mark."
                )
            yield f"line {line}", dict(zip(header, cells, strict=False))

    return header, rows()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        message = f"{path} cannot be read ({first_line(error)}). Save or export it again."
        raise InputError(message) from error


# Pattern in worksheet XML -> what makes the displayed value differ.
NOT_SHOWN = {
    rb'<mergeCell [^>]*ref="([A-Z]+\d+:[A-Z]+\d+)"': "merged cells",
    rb'<row (?=[^>]*hidden="(?:1|true)")[^>]*r="(\d+)"': "hidden or filtered row",
    rb'<c (?:[^>]*\s)?r="([A-Z]+\d+)"[^>]*><f[^>]*>(?:[^<]*</f>)?(?:<v ?/>|<v></v>)?</c>': (
        "formula without a saved value in cell"
    ),
}


def _read_excel(path: Path) -> Sheet:
    try:
        from openpyxl import load_workbook
        from openpyxl.utils.escape import unescape
    except ImportError as error:
        message = f"{path} is an Excel workbook: save it as CSV UTF-8, or install openpyxl."
        raise InputError(message) from error
    lines: list[tuple[int, list[str]]] = []
    unclear = {}
    with _reading(path), path.open("rb") as file:
        with ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > max(1e8, 50 * path.stat().st_size):
                raise InputError(
                    f"{path} unpacks to {unpacked / 1e6:,.0f} MB, which is unusual for its size. "
                    "Save it as CSV UTF-8."
                )
            sheet, *others = load_workbook(file, read_only=True, data_only=True).worksheets
            if sheet.sheet_state != "visible":
                raise InputError(
                    f"{path}: the first sheet is hidden. Unhide or delete it, or move it last."
                )
            content = archive.read(sheet._worksheet_path.lstrip("/"))
        content = re.sub(rb"<(/?)\w+:", rb"<\1", content)  # some programs write <x:row>
        for pattern, name in NOT_SHOWN.items():
            if found := re.search(pattern, content):
                raise InputError(
                    f"{path}, {name} {found[1].decode()}: expected one visible value per cell. "
                    "Change it in Excel, or save the file as CSV."
                )
        sheet.reset_dimensions()  # some programs write A1:A1
        for number, row in enumerate(sheet.iter_rows(), 1):
            values = ("" if cell.value is None else cell.value for cell in row)
            # Excel writes control characters as _x000D_.
            texts = [unescape(cell_text(value)).replace("\0", "") for value in values]
            if not any(map(trim, texts)):
                continue
            header = lines[0][1] if lines else texts
            lines.append((number, texts + [""] * (len(header) - len(texts))))
            for name, cell in zip(header, row, strict=False):
                is_number = not isinstance(cell.value, str | bool | None)
                is_whole = cell_text(cell.value).lstrip("-").isdecimal()
                formats = ("General", "@", "0") if is_whole else ("General", "@")
                is_plain = cell.number_format in formats and not cell.is_date
                if cell.data_type == "e" or (is_number and not is_plain):
                    unclear[name] = (
                        f"{path}, cell {cell.coordinate}: got {cell.value!r} in the format "
                        f"{cell.number_format!r}. Format the column as text, or save it as CSV."
                    )
    header, rows = _with_header(path, iter(lines))
    names = short_list(other.title for other in others)
    notes = [f"{path.name}: only the first sheet was read, not {names}"] if others else []
    return Sheet(header, rows, notes, unclear=unclear)


def cell_text(value: Any) -> str:
    """Return a cell's value as text, with at most 15 significant digits."""
    if isinstance(value, bool):
        return str(value).upper()
    if not isinstance(value, float):
        return str(value)
    if value.is_integer():
        return str(int(value))
    with np.errstate(over="ignore"):
        short = np.float32(value)
    # Arrow widens float32: 36.7 to 36.70000076293945.
    return str(short) if short == value else f"{value:.15g}"


def _read_arrow(path: Path, is_parquet: bool) -> Sheet:
    """Read Parquet, or the Arrow stream format that save_to_disk writes."""
    import pyarrow.parquet  # 0.3 s

    with _reading(path):
        if is_parquet:
            parquet = pyarrow.parquet.ParquetFile(path)
            names, batches = parquet.schema_arrow.names, parquet.iter_batches(batch_size=1000)
        else:
            batches = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))
            names = batches.schema.names

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        with _reading(path):
            cells = (row for batch in batches for row in batch.to_pylist())
            yield from ((f"row {number}", row) for number, row in enumerate(cells, 1))

    return Sheet(names, rows())
