"""Keep answers in predictions.jsonl as they come.

An inference that was killed goes on where it was.
"""

import hashlib
import json
from pathlib import Path

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

RECORD = "predictions.jsonl"  # in every folder of answers
PARTS = "predictions-*.jsonl"  # those of processes 1, 2, ...; the first one puts them into RECORD


class Journal:
    """Holds the answers of one inference, a line each, under a key of all that they depend on.

    `settings` is a hash of the recipe, template, adapter, data and versions; an answer's key is a
    hash of it, of the question's id and of its prompt. Every `process` has a file of its own;
    only the first one reads and finishes.
    """

    def __init__(self, folder: Path, settings: str, examples: list[Example], process: int = 0):
        self.file = folder / (PARTS.replace("*", str(process)) if process else RECORD)
        self.keys = {example.row.id: _key(settings, example) for example in examples}
        self.records: dict[str, dict] = {}

    def read(self) -> set[str]:
        """Take over what earlier processes left, and return the ids whose answers were kept.

        There may have been more of them, or fewer. Torn lines, and answers under another key, are
        left out.
        """
        self._take_over(self.file)
        self._take_over_parts()
        return set(self.records)

    def add(self, record: dict) -> None:
        """Keep an answer in the file, where a kill does not lose it."""
        append_json(self.file, self._line(record))
        self.records[record["id"]] = record

    def finish(self, ids: list[str]) -> list[dict]:
        """Return all records in the order of `ids`, and put the file's lines in it.

        The other processes have written theirs by then.
        """
        self._take_over_parts()
        if missing := set(ids) - self.records.keys():
            raise InputError(
                f"{self.file.parent} lacks {len(missing)} answers that other processes wrote: the "
                "folder is not the same on all machines. Start again in one that is; it goes on."
            )
        # Answers come as batches finish, in another order than the test file's.
        self.records = {name: self.records[name] for name in ids}
        self._write()
        return list(self.records.values())

    def _take_over(self, file: Path) -> None:
        for record in read_json_lines(file):
            key = record.pop("key", None)
            if key and key == self.keys.get(record.get("id")):
                self.records[record["id"]] = record

    def _take_over_parts(self) -> None:
        parts = sorted(self.file.parent.glob(PARTS))
        for part in parts:
            self._take_over(part)
        # Without what was left out: the next answer would be appended to a torn line.
        self._write()
        for part in parts:  # only now that the record holds what was in them
            part.unlink()

    def _write(self) -> None:
        write_json_lines(self.file, map(self._line, self.records.values()))

    def _line(self, record: dict) -> dict:
        return {**record, "key": self.keys[record["id"]]}


def _key(settings: str, example: Example) -> str:
    text = f"{settings} {example.row.id} {list(example.prompt_ids)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_settings(settings: dict, adapter: Path | None) -> str:
    """Return a hash of what all answers of an inference depend on.

    The adapter's files, its tokenizer's among them, are part of it.
    """
    text = json.dumps(
        {**settings, "adapter": folder_hash(adapter) if adapter else None},
        sort_keys=True,
        ensure_ascii=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()


# Ways of answering, as the name of a folder has them. The first ones are told wherever they are not
# the default, the others where they are not those of the run.
TOLD = {
    "grounded": "grounded",
    "choices": "choices",
    "samples": "s{}",
    "temperature": "t{}",
    "beams": "beams{}",
}
TOLD_IF_CHANGED = {
    "template": "{}",
    "choices_by": "{}",
    "repetition_penalty": "rp{}",
    "max_new_tokens": "new{}",
    "max_length": "len{}",
    "on_overflow": "{}",
    "seed": "seed{}",
}


def answers_name(of: str, recipe: Recipe, of_run: Recipe, limit: int | None) -> str:
    """Return what a folder of answers is called but for its time: test-grounded-s8-t0.7.

    `of` is the test file's name or the split's; `of_run` is the recipe that the run was made with.
    """
    usual, parts = Recipe(), [of] if limit is None else [of, f"first{limit}"]
    for name, told in (TOLD | TOLD_IF_CHANGED).items():
        value, before = getattr(recipe, name), getattr(of_run, name)
        if value != before or (name in TOLD and value != getattr(usual, name)):
            # What was switched off: the run's own recipe had it.
            parts.append(told.format(value) if value else f"no-{name}")
    return "-".join(parts)


def answers_folder(parent: Path, name: str, settings: str) -> Path:
    """Return the newest folder of an unfinished inference with the same settings, or a new one.

    The new one's name begins with `name`.
    """
    # An unfinished one has settings.json and no scores.json, which is written after all answers.
    for file in sorted(
        parent.glob("*/settings.json"), key=lambda path: path.stat().st_mtime, reverse=True
    ):
        try:
            same = read_json(file).get("settings") == settings
        except (InputError, OSError) as error:
            print(f"{file.parent} is passed over: {error}")
            continue
        if same and not (file.parent / "scores.json").exists():
            return file.parent
    folder = new_folder(parent, name)
    write_json(folder / "settings.json", {"settings": settings})
    return folder
