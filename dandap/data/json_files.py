"""JSON and JSON lines are read as values; numbers stay as they are written."""

import json
from pathlib import Path
from typing import Any

from dandap.data.files import decode, encoding_notes, refuse_other_text, refuse_unreadable
from dandap.errors import InputError, first_line


def parse_json(text: str, where: str, **options) -> Any:
    """Parse JSON; InputError for what is none, nests too deeply or has numbers that are too long.

    Python converts whole numbers of up to 4,300 digits. `options` go to json.loads.
    """
    try:
        return json.loads(text, **options)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where}: not valid JSON ({first_line(error)}). Correct it or export the file again."
        ) from error


# Numbers are kept as they are written (36.70 stays 36.70), because answers are compared as texts;
# NaN and Infinity are None.
AS_WRITTEN = {"parse_int": str, "parse_float": str, "parse_constant": {}.get}


def read_json(path: Path, data: bytes) -> tuple[Any, list[str]]:
    """Return what a JSON file holds, and notes for people.

    It holds one value, or the values of its lines (Lines), whatever its ending.
    """
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
            # More data after a whole value: the file holds lines, and is named .json.
            by_line = "Extra data" in error.msg and not content.startswith("[")
        except (ValueError, RecursionError):
            pass  # parse_json meets it again below, and says it
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
    """Holds (line number, value) for each line of a file of JSON lines that is not blank."""
