"""JSON and JSON lines -> values, numbers as they are written."""

import json
from pathlib import Path
from typing import Any

from dandap.data.files import decode, encoding_notes, refuse_other_text, refuse_unreadable
from dandap.errors import InputError, first_line


def parse_json(text: str, where: str, **options) -> Any:
    """Parse JSON; InputError for what is none, or nests too deeply, or has a number of thousands of digits."""
    try:
        return json.loads(text, **options)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where}: not valid JSON ({first_line(error)}). Correct it or export the file again."
        ) from error


# Numbers are kept as they are written (36.70 stays 36.70), and what is none is nothing.
AS_WRITTEN = {"parse_int": str, "parse_float": str, "parse_constant": {}.get}


def read_json(path: Path, data: bytes) -> tuple[Any, list[str]]:
    """Return (what a JSON file holds, notes): one value, or the list of the values of its lines, whatever its ending."""
    refuse_unreadable(data, path)
    text, encoding = decode(data, path)
    refuse_other_text(text, path)
    notes, content = encoding_notes(path, encoding), text.strip()
    if not content:
        raise InputError(f"{path} is empty. Expected JSON.")
    by_line = path.suffix.lower() != ".json" and not content.startswith("[")
    if not by_line:
        try:
            return json.loads(content, **AS_WRITTEN), notes
        except json.JSONDecodeError as error:
            by_line = "Extra data" in error.msg and not content.startswith(
                "["
            )  # lines, named .json
        except (ValueError, RecursionError):
            pass  # said below
    if not by_line:
        return parse_json(content, str(path), **AS_WRITTEN), notes
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return Lines(
        [
            (number, parse_json(line, f"{path}, line {number}", **AS_WRITTEN))
            for number, line in lines
        ]
    ), notes


class Lines(list):
    """(line number, value) of a file of JSON lines."""
