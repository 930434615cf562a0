"""predictions.jsonl: answers are appended as they come, and an interrupted inference resumes."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dandap.data.encode import Example
from dandap.errors import InputError
from dandap.files import (
    append_json,
    new_folder,
    read_json,
    read_json_lines,
    write_json,
    write_json_lines,
)
from dandap.manifest import folder_hash
from dandap.recipe import Recipe

PREDICTIONS = "predictions.jsonl"  # in every folder of answers


class Journal:
    """The answers of one inference, a line each.

    Each line has a key: a hash of `settings` (which is a hash of recipe, template, adapter, data
    and versions), of the question's id and of its prompt. Every process writes its own file; only
    process 0 reads, and merges them in the end.
    """

    def __init__(
        self, folder: Path, settings: str, examples: Sequence[Example], process: int = 0
    ) -> None:
        self.folder = folder
        self.file = folder / (f"predictions-{process}.jsonl" if process else PREDICTIONS)
        self.keys = {example.row.id: _key(settings, example) for example in examples}
        self.records: dict[str, dict] = {}

    def read(self) -> set[str]:
        """Return the ids that have an answer, from however many earlier processes.

        Torn lines and answers with another key are dropped.
        """
        self._merge([self.file])
        return set(self.records)

    def add(self, record: dict) -> None:
        """Append an answer to the file, so that a kill does not lose it."""
        append_json(self.file, self._line(record))
        self.records[record["id"]] = record

    def finish(self, ids: Sequence[str]) -> list[dict]:
        """Return the records of all processes in the order of `ids`, and rewrite the file so."""
        self._merge([])
        if missing := set(ids) - self.records.keys():
            raise InputError(
                f"{self.folder} lacks {len(missing)} answers that other processes wrote: it is not "
                "the same folder on all machines. Run the command again on a shared folder."
            )
        # Answers come as batches finish, in another order than the test file's.
        self.records = {name: self.records[name] for name in ids}
        self._write()
        return list(self.records.values())

    def _merge(self, files: list[Path]) -> None:
        """Read files and those of the other processes, and write all records into one."""
        parts = sorted(self.folder.glob("predictions-*.jsonl"))
        for file in [*files, *parts]:
            for record in read_json_lines(file):
                key = record.pop("key", None)
                if key and key == self.keys.get(record.get("id", "")):
                    self.records[record["id"]] = record
        # Also without parts: the next answer would be appended to a torn line.
        self._write()
        for part in parts:
            part.unlink()

    def _write(self) -> None:
        write_json_lines(self.file, map(self._line, self.records.values()))

    def _line(self, record: dict) -> dict:
        return {**record, "key": self.keys[record["id"]]}


def _key(settings: str, example: Example) -> str:
    text = f"{settings} {example.row.id} {list(example.prompt_ids)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_settings(settings: dict[str, Any], adapter: Path | None) -> str:
    """Return a hash of what all answers of an inference depend on, the adapter's files included."""
    everything = {**settings, "adapter": folder_hash(adapter) if adapter else None}
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


# How folder names show the settings. The first ones appear where they differ from the default or
# from the run's, the others only where they differ from the run's.
SHOWN = {
    "grounded": "grounded",
    "choices": "choices",
    "samples": "s{}",
    "temperature": "t{}",
    "beams": "beams{}",
}
SHOWN_IF_CHANGED = {
    "template": "{}",
    "choices_by": "{}",
    "repetition_penalty": "rp{}",
    "max_new_tokens": "new{}",
    "max_length": "len{}",
    "on_overflow": "{}",
    "seed": "seed{}",
}


def answers_name(of: str, recipe: Recipe, of_run: Recipe, limit: int | None) -> str:
    """Return the name of a folder of answers without its time: test-grounded-s8-t0.7.

    `of` is the test file's name or the split's; `of_run` is the recipe of the run.
    """
    default, parts = Recipe(), [of] if limit is None else [of, f"first{limit}"]
    for name, shown in (SHOWN | SHOWN_IF_CHANGED).items():
        value, before = getattr(recipe, name), getattr(of_run, name)
        if value != before or (name in SHOWN and value != getattr(default, name)):
            parts.append(shown.format(value) if value else f"no-{name}")
    return "-".join(parts)


def answers_folder(parent: Path, name: str, settings: str) -> Path:
    """Return the newest folder of an unfinished inference with these settings, or a new one."""
    files = sorted(parent.glob("*/settings.json"), key=lambda path: path.stat().st_mtime)
    for file in reversed(files):
        try:
            same = read_json(file).get("settings") == settings
        except (InputError, OSError) as error:
            print(f"{file.parent} is skipped: {error}")
            continue
        # scores.json is written after all answers.
        if same and not file.with_name("scores.json").exists():
            return file.parent
    folder = new_folder(parent, name)
    write_json(folder / "settings.json", {"settings": settings})
    return folder
