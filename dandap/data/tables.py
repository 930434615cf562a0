"""Tables are read as rows of cells: CSV of any separator, Excel, Parquet and Arrow.

What is not certain is refused by name.
"""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from dandap.data.files import TABLES, decode, encoding_notes, refuse_other_text, refuse_unreadable
from dandap.data.text import INVISIBLE, trim
from dandap.errors import InputError, first_line, short_list

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")
Place = str  # where a record stands, for messages: "line 12"


@dataclass
class Sheet:
    """Holds a table: every row is a dict of its cells by column name.

    Cells are texts, or what Parquet and Arrow hold.
    """

    header: list[str]
    rows: list[tuple[Place, dict[str, Any]]]
    notes: list[str] = field(default_factory=list)  # what was decided, in sentences for people
    separator: str = ","
    # Cells whose text is not certain, by row and column, and why.
    unclear: dict[tuple[Place, str], str] = field(default_factory=dict)

    def refuse_unclear(self, columns: Collection[str]) -> None:
        """Refuse by name the first cell of these columns whose text is not certain."""
        for (_, column), why in self.unclear.items():
            if column in columns:
                raise InputError(why)


def column_key(name: str) -> str:
    """Return what column names are compared by.

    It is composed, in one case, without invisible characters, and without quotation marks and
    white space around it.
    """
    return (
        unicodedata.normalize("NFC", re.sub(f"[{INVISIBLE}\u00a0]", "", name))
        .strip()
        .strip('"')
        .strip()
        .casefold()
    )


def is_excel(data: bytes, path: Path) -> bool:
    """Say whether bytes are an Excel workbook: a zip file under the name of a table, be it .csv."""
    return data.startswith(b"PK\x03\x04") and path.suffix.lower() in TABLES


def read_table(path: Path, data: bytes) -> Sheet:
    """Read a table by what its bytes are, then by its ending."""
    if is_excel(data, path):
        return _read_excel(path, data)
    if data.startswith(b"PAR1"):
        return _read_parquet(path, data)
    if path.suffix.lower() == ".arrow":
        return _read_arrow(path, data)
    refuse_unreadable(data, path)
    text, encoding = decode(data, path)
    sheet = read_cells(text, path)
    sheet.notes = encoding_notes(path, encoding) + sheet.notes
    return sheet


def read_cells(text: str, path: Path) -> Sheet:
    """Read a CSV text; its `sep=` line or its header shows the separator."""
    refuse_other_text(text, path)
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than a long article
    text = text.replace("\0", "")
    declared = re.match(r'"?sep=(.)"?[ \t]*\r?\n', text)
    if declared:
        text = text[declared.end() :]
    separator = declared[1] if declared else _separator(text)
    spaced = _has_spaces(text, separator)
    reader = csv.reader(_lines(text), strict=True, delimiter=separator, skipinitialspace=spaced)
    first = 1 if declared else 0  # lines before the reader's
    try:
        header = next((cells for cells in reader if any(map(trim, cells))), None)
        if header is None:
            raise InputError(f"{path} is empty. Expected a header and a row per question.")
        while header and not header[-1].strip():
            header.pop()  # Excel saves `id,context,,` where cells to the right were once touched
        header_line = reader.line_num + first
        lines = [(reader.line_num + first, cells) for cells in _sharing(reader)]
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num + first}: {error}. A quotation mark is not closed, or "
            'stands unescaped inside a cell; write it as "" inside a quoted cell.'
        ) from error
    notes = (
        []
        if separator == ","
        else [
            f"{path.name}: the cells are separated by {SEPARATORS.get(separator, repr(separator))}"
        ]
    )
    if spaced:
        notes.append(f"{path.name}: the spaces after its separators do not belong to the cells")
    _refuse_title(path, header, header_line, lines)
    swallowed = []
    for line, cells in lines:
        if any(_holds_row(cell, len(header), separator) for cell in cells):
            swallowed.append(line)
    if swallowed:
        notes.append(
            f"WARNING: {path.name}, line {swallowed[0]} ends a cell that holds what looks like "
            f"rows ({len(swallowed)} such): is a quotation mark open there? Within a cell it is "
            "written twice"
        )
    return Sheet(header, list(_rows(path, header, lines, notes)), notes, separator)


def _lines(text: str) -> Iterator[str]:
    """Yield the lines of a text with their ends, without a copy of the text, as io makes one."""
    return (match[0] for match in LINE.finditer(text))


def _sharing(rows: Iterable[list[str]]) -> Iterator[list[str]]:
    """Yield rows whose cells are the row's before where they are equal.

    Questions of an article follow one another, and a file holds its text once for each.
    """
    before: list[str] = []
    for cells in rows:
        for column, (cell, above) in enumerate(zip(cells, before, strict=False)):
            if cell == above:
                cells[column] = above
        yield cells
        before = cells


def _holds_row(cell: str, width: int, separator: str) -> bool:
    """Say whether a line within a cell looks like a row of the table.

    Such a line has an id that ends in a digit, and as many separators as between the columns.
    """
    # With two columns any line with a number and one comma would look so.
    if width < 3 or "\n" not in cell:
        return False
    # The first and the last line are the cell's own, at least in part.
    inner = cell.split("\n")[1:-1]
    return any(
        line.count(separator) >= width - 1 and re.match(r"[\w-]*\d" + re.escape(separator), line)
        for line in inner
    )


def _separator(text: str) -> str:
    """Return the separator that makes the most cells of the header, else a comma.

    Where the header has one cell, as a title has, the line below it counts.
    """

    def cells(separator: str) -> int:
        try:
            rows = csv.reader(_lines(text), delimiter=separator)
            filled = (row for row in rows if any(map(trim, row)))
            header, below = next(filled, []), next(filled, [])
        except csv.Error:
            return 0
        # Any header of two cells counts for more than the line below one of a single cell.
        return 1000 * len(header) if len(header) > 1 else len(below)

    return max(SEPARATORS, key=cells)


def _has_spaces(text: str, separator: str) -> bool:
    """Say whether the header has a space after every separator, as in `id, context`.

    The reader then has to skip it: a quotation mark counts only at the start of a cell.
    """
    rows = csv.reader(_lines(text), delimiter=separator)
    try:
        header = next((row for row in rows if any(map(trim, row))), [])
    except csv.Error:
        return False
    return len(header) > 1 and all(name.startswith(" ") for name in header[1:])


def _refuse_title(
    path: Path, header: list[str], line: int, lines: list[tuple[int, list[str]]]
) -> None:
    """Refuse a title or a comment above the header, which would make every row too long."""
    filled = sum(bool(trim(name)) for name in header)
    counts = [sum(bool(trim(cell)) for cell in cells) for _, cells in lines[:5]]
    below = max(counts, default=0)
    first = next(filter(trim, header))
    if (filled == 1 < below) or (first.lstrip().startswith("#") and filled < below):
        raise InputError(
            f"{path}, line {line}: got {first[:60]!r}, expected the columns' names. Delete what "
            "stands above them (a title, a comment) or name every column; if this is the only "
            "column, a text with commas needs quotation marks."
        )


def _rows(
    path: Path, header: list[str], lines: list[tuple[int, list[str]]], notes: list[str]
) -> Iterator[tuple[Place, dict[str, str]]]:
    """Yield the rows that are not blank, with their lines.

    A header in the middle, where files were glued together, is left out with a note. InputError
    names a header whose columns are others, and a row with more cells than the header.
    """
    width = len(header)
    names = [column_key(name) for name in header]
    # An article is no column's name, and need not be made comparable: a third of the time.
    longest = 2 * max(map(len, header)) + 200
    for line, cells in lines:
        if not any(map(trim, cells)):
            continue
        keys = [column_key(cell) if len(cell) <= longest else cell for cell in cells]
        if keys[:width] == names and not any(keys[width:]):
            notes.append(
                f"{path.name}, line {line} is the header again (glued files); it was left out"
            )
            continue
        same = set(keys) & set(names) - {""}
        # A first cell "id" under "id", and no cell as long as a text.
        other_names = names[0] != "" and keys[0] == names[0] and all(len(key) <= 20 for key in keys)
        if other_names or (len(same) > 1 and 2 * len(same) >= len(set(keys) | set(names))):
            raise InputError(
                f"{path}, line {line}: a second header, {short_list(cells)}, whose columns are not "
                "those of the first. Keep the files apart, in one folder or named with commas "
                "between them."
            )
        if any(map(str.strip, cells[width:])):
            raise InputError(
                f"{path}, line {line}: got {len(cells)} cells, the header has {width}. "
                "A comma or quotation mark in a text needs the cell in quotation marks."
            )
        # Cells may be missing at a row's end; who needs them, names them (questions._named).
        yield f"line {line}", dict(zip(header, cells, strict=False))


# What openpyxl raises for a torn zip or XML (SyntaxError), and for workbooks whose styles or names
# it does not expect.
EXCEL_FAULTS = (
    BadZipFile,
    LookupError,
    ValueError,
    OSError,
    SyntaxError,
    TypeError,
    AttributeError,
)


def _read_excel(path: Path, data: bytes) -> Sheet:
    """Read a workbook's first sheet.

    A number that is shown as something else (36.7%, a date) is named, not guessed.
    """
    try:
        from openpyxl import load_workbook  # an extra
    except ImportError as error:
        raise InputError(
            f"{path} is an Excel workbook: save it as CSV UTF-8, or install openpyxl (pip install "
            "-r requirements-extra.txt)."
        ) from error
    try:
        book = load_workbook(io.BytesIO(data), read_only=True, data_only=True)
        first = book.worksheets[0]
        # Some programs write A1:A1 for every sheet, and only that would be read.
        first.reset_dimensions()
        lines = [(number, list(cells)) for number, cells in enumerate(first.iter_rows(), 1)]
    except EXCEL_FAULTS as error:
        raise InputError(
            f"{path} is an Excel workbook that cannot be read ({first_line(error)}). Save it again."
        ) from error
    lines = [
        (number, cells) for number, cells in lines if any(trim(_excel_text(cell)) for cell in cells)
    ]
    if not lines:
        raise InputError(
            f"{path} is empty. Expected a header and a row per question in its first sheet."
        )
    others = [sheet.title for sheet in book.worksheets[1:]]
    notes = (
        [f"{path.name}: the sheet {first.title!r} was read, not {short_list(others)}"]
        if others
        else []
    )
    header = list(map(_excel_text, lines[0][1]))
    while header and not header[-1].strip():
        header.pop()
    rows = [(number, list(map(_excel_text, cells))) for number, cells in lines[1:]]
    _refuse_title(path, header, lines[0][0], rows)
    unclear = {}
    for number, cells in lines[1:]:
        for name, cell in zip(header, cells, strict=False):
            if why := _unclear(path, cell):
                unclear[f"line {number}", name] = why
    return Sheet(header, list(_rows(path, header, rows, notes)), notes, unclear=unclear)


def _excel_text(cell) -> str:
    """Return a cell's text; a plain number stands as it was typed."""
    value = cell.value
    if isinstance(value, bool):
        return str(value).upper()  # as it is shown
    return "" if value is None else str(value)


def _unclear(path: Path, cell) -> str | None:
    """Return why the text of a cell is not certain, or None.

    It holds an error, or a number that is shown as something else.
    """
    value = cell.value
    if cell.data_type == "e":
        return (
            f"{path}, cell {cell.coordinate}: it holds the error {value}. Correct the formula, or "
            "type the text."
        )
    if value is None or isinstance(value, str | bool):
        return None
    if cell.is_date or cell.number_format not in ("General", "0", "@"):
        return (
            f"{path}, cell {cell.coordinate}: it holds {value!r}, shown as "
            f"{cell.number_format!r}; which text is meant is not certain. Format the column as "
            "text, or save the sheet as CSV UTF-8, which keeps what is shown."
        )
    return None


def _read_parquet(path: Path, data: bytes) -> Sheet:
    """Read a Parquet file by pyarrow, which comes with datasets."""
    import pyarrow  # 0.3 s
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"{path} is a Parquet file that cannot be read ({first_line(error)}). Export it again."
        ) from error
    return _from_arrow(table)


def _read_arrow(path: Path, data: bytes) -> Sheet:
    """Read Arrow's stream format, which datasets' save_to_disk writes, or its file format."""
    import pyarrow

    opened = pyarrow.ipc.open_file if data.startswith(b"ARROW1") else pyarrow.ipc.open_stream
    try:
        return _from_arrow(opened(pyarrow.BufferReader(data)).read_all())
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"{path} is an Arrow file that cannot be read ({first_line(error)}). Export it again."
        ) from error


def _from_arrow(table) -> Sheet:
    """Return the rows of an Arrow table, labels by their names.

    32-bit numbers are given as they were written.
    """
    import numpy as np
    import pyarrow

    labels = _label_names(table.schema.metadata or {})
    rows = table.to_pylist()
    for name in table.column_names:
        # As a Python number, of 64 bits, 36.7 would be 36.70000076293945.
        is_narrow = table.schema.field(name).type == pyarrow.float32()
        for row in rows:
            if name in labels and row[name] is not None:
                row[name] = labels[name][row[name]]
            elif is_narrow and row[name] is not None:
                row[name] = float(str(np.float32(row[name])))
    return Sheet(table.column_names, [(f"row {number}", row) for number, row in enumerate(rows, 1)])


def _label_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Return the names of the classes of each ClassLabel column.

    datasets keeps them in the schema's metadata, and their numbers in the column.
    """
    # Other programs write metadata of other forms; without the names the numbers are read.
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {
        name: of["names"]
        for name, of in features.items()
        if isinstance(of, dict) and of.get("_type") == "ClassLabel"
    }
