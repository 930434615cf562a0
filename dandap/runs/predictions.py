"""Files of answers: how they are written, resumed, found by run or path, read and aligned.

predictions.jsonl, in every folder of answers, grows as the answers come.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dandap import files
from dandap.data.encode import Example
from dandap.data.tables import read_table
from dandap.data.text import clean, decode, replace_surrogates
from dandap.errors import InputError, first_line, short_list
from dandap.recipe import Recipe
from dandap.runs.folder import RunFolder, find_path, find_run
from tasks.submission import REVIEW_COLUMNS, active

PREDICTIONS = "predictions.jsonl"
# How names of folders of answers show a setting that differs from the run's. Those of PROMINENT
# appear also where they differ from the default.
SHOWN = {
    "grounded": "grounded",
    "choices": "choices",
    "samples": "s{}",
    "temperature": "t{}",
    "beams": "beams{}",
    "template": "{}",
    "choices_by": "{}",
    "repetition_penalty": "rp{}",
    "max_new_tokens": "new{}",
    "max_length": "len{}",
    "on_overflow": "{}",
    "seed": "seed{}",
}
PROMINENT = ("grounded", "choices", "samples", "temperature", "beams")


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
        self.keys: dict[str, str] = {}
        for example in examples:
            text = f"{settings} {example.row.id} {list(example.prompt_ids)}"
            self.keys[example.row.id] = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.records: dict[str, dict] = {}

    def read(self) -> set[str]:
        """Return the ids that have an answer, of all processes, and merge their files into one.

        Torn lines and answers with another key are dropped.
        """
        journals = sorted(self.folder.glob("predictions*.jsonl"))
        for file in journals:
            for record in files.read_json_lines(file):
                key = record.pop("key", None)
                if key and key == self.keys.get(record.get("id", "")):
                    self.records[record["id"]] = record
        # Also without other files: the next answer would be appended to a torn line.
        self._write()
        for file in journals:
            if file != self.file:
                file.unlink()
        return set(self.records)

    def add(self, record: dict) -> None:
        """Append an answer to the file, so that a kill does not lose it."""
        files.append_json(self.file, {**record, "key": self.keys[record["id"]]})
        self.records[record["id"]] = record

    def finish(self, ids: Sequence[str]) -> list[dict]:
        """Return the records of all processes in the order of `ids`, and rewrite the file so."""
        if missing := set(ids) - self.read():
            raise InputError(
                f"{self.folder} lacks {len(missing)} answers that other processes wrote: it is not "
                "the same folder on all machines. Run the command again on a shared folder."
            )
        # Answers come as batches finish, in another order than the test file's.
        self.records = {name: self.records[name] for name in ids}
        self._write()
        return list(self.records.values())

    def _write(self) -> None:
        records = self.records.items()
        files.write_json_lines(
            self.file, ({**record, "key": self.keys[name]} for name, record in records)
        )


def hash_settings(settings: dict[str, Any], adapter: Path | None) -> str:
    """Return a hash of what all answers of an inference depend on, the adapter's files included."""
    everything = {**settings, "adapter": files.folder_hash(adapter) if adapter else None}
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def answers_name(of: str, recipe: Recipe, of_run: Recipe, limit: int | None) -> str:
    """Return the name of a folder of answers without its time: test-grounded-s8-t0.7.

    `of` is the test file's name or the split's; `of_run` is the recipe of the run.
    """
    default, parts = Recipe(), [of] if limit is None else [of, f"first{limit}"]
    for name, shown in SHOWN.items():
        value = getattr(recipe, name)
        is_shown = name in PROMINENT and value != getattr(default, name)
        if is_shown or value != getattr(of_run, name):
            is_number = type(value) in (int, float)  # seed 0 is one, False is not
            parts.append(shown.format(value) if value or is_number else f"no-{name}")
    return "-".join(parts)


def answers_folder(parent: Path, name: str, settings: str) -> Path:
    """Return the newest folder of an unfinished inference with these settings, or a new one."""
    found = sorted(parent.glob("*/settings.json"), key=lambda path: path.stat().st_mtime)
    for file in reversed(found):
        same = settings in file.read_text(encoding="utf-8", errors="replace")
        if same and not file.with_name("scores.json").exists():  # written after all answers
            return file.parent
    folder = files.new_folder(parent, name)
    files.write_json(folder / "settings.json", {"settings": settings})
    return folder


def write_predictions(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write predictions.csv: a row per record, lists joined with " | ", choices as JSON."""

    def cell(value: Any) -> Any:
        if isinstance(value, dict):
            return json.dumps(value, ensure_ascii=False)
        return " | ".join(map(str, value)) if isinstance(value, list) else value

    files.write_table(path, [{name: cell(value) for name, value in r.items()} for r in records])


def confidence(record: Mapping[str, Any]) -> float:
    """Return the geometric mean of an answer's token probabilities; a choice's share of all."""
    choices = record.get("choices")
    if not choices or record["prediction"] not in choices:
        return math.exp(record["log_probability"])
    return choice_probabilities(choices)[record["prediction"]]


def choice_probabilities(choices: Mapping[str, float]) -> dict[str, float]:
    """Return the softmax of the log-probabilities of choices."""
    highest = max(choices.values())  # subtracted, or very unlikely choices would all become 0
    exponentials = {name: math.exp(value - highest) for name, value in choices.items()}
    total = sum(exponentials.values())
    return {name: value / total for name, value in exponentials.items()}


def find_predictions(name: str, output_dir: str, split: str | None = None) -> Path:
    """Return a file of answers, that of a folder, or a run's newest to a test file or `split`."""
    # Without such a path find_run raises, and lists the runs.
    path = find_path(name, output_dir) or find_run(name, output_dir).path
    if path.is_file():
        return path
    if (path / PREDICTIONS).is_file():
        return path / PREDICTIONS
    run = RunFolder(path)
    # The answers of training come before those of a later `--split validation`.
    if split and run.validation_record.is_file():
        return run.validation_record
    if answers := _complete_answers(run, split):
        return answers[-1][0] / PREDICTIONS
    how = f" --split {split}" if split else ""
    raise InputError(
        f"{path} has no {split or 'test'} answers. Run: python inference.py --run {path}{how}"
    )


def _complete_answers(run: RunFolder, split: str | None) -> list[tuple[Path, dict]]:
    """Return (folder, scores.json) of finished answers to a whole file or split, oldest first."""
    answered = [(file.parent, files.read_json(file)) for file in run.answers.glob("*/scores.json")]
    found = [a for a in answered if a[1].get("split") == split and a[1].get("limit") is None]
    # By time: names begin with the test file's.
    return sorted(found, key=lambda answer: (str(answer[1].get("started", "")), answer[0].name))


def own_answers(run: RunFolder) -> list[tuple[Path, dict]]:
    """Return the `_complete_answers` with the run's own recipe, without other options."""
    recipe = run.load_recipe().model_dump()
    return [found for found in _complete_answers(run, None) if found[1].get("recipe") == recipe]


def run_of(path: Path) -> RunFolder | None:
    """Return the run that a file of answers belongs to, or None."""
    runs = map(RunFolder, path.resolve().parents)
    return next((run for run in runs if run.recipe_file.is_file()), None)


def recipe_of(path: Path) -> dict[str, Any]:
    """Return the recipe that a file's answers were made with; {} if it is unknown."""
    if (scores := path.with_name("scores.json")).is_file():
        return files.read_json(scores).get("recipe") or {}
    run = run_of(path)
    return run.load_recipe().model_dump() if run else {}


def load_members(
    names: Sequence[str | Path], output_dir: str | Path, split: str | None = None
) -> dict[Path, list[dict]]:
    """Return the answers of two or more runs, folders or files to the same questions, by file.

    Question, gold answer and article come from any file that has them.
    """
    paths = [find_predictions(str(name), str(output_dir), split) for name in names]
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise InputError(f"got {short_list(paths)}; expected two or more files, each once.")
    members = {path: {record["id"]: record for record in load_predictions(path)} for path in paths}
    first = members[paths[0]]
    for path, member in members.items():
        if odd := member.keys() ^ first.keys():
            raise InputError(
                f"{paths[0]} and {path} answer different questions: {len(odd)} are in one only, "
                f"as {min(odd)}. For a run its newest answers are used; name RUN/answers/FOLDER."
            )
    for name, record in first.items():
        same = [member[name] for member in members.values()]
        for field in ("question", "gold", "article"):
            known = [each[field] for each in same if each.get(field)]
            # With choices the articles may differ: a dialogue may be cleaned for one member.
            is_free = field == "article" and record.get("choices")
            if not is_free and any(value != known[0] for value in known):
                raise InputError(
                    f"{short_list(paths)} answer different questions: the {field} of {name} is not "
                    "the same in all. Name answers to the same file."
                )
            for each in same if known else []:
                each[field] = each.get(field) or known[0]
    return {path: [member[name] for name in first] for path, member in members.items()}


def load_predictions(path: Path) -> list[dict]:
    """Read the records of predictions.jsonl, predictions.csv, review.csv or a submission."""
    records = _from_csv(path) if path.suffix.lower() == ".csv" else _from_jsonl(path)
    ids = {record["id"] for record in records}
    if not ids or len(ids) < len(records):
        raise InputError(
            f"{path} has {len(records)} answers to {len(ids)} ids; "
            "expected at least one, each id once."
        )
    return records


def _from_jsonl(path: Path) -> list[dict]:
    records = []
    # splitlines would also split at U+2028, which JSON may contain within a text.
    for number, line in enumerate(decode(path.read_bytes(), path)[0].split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            gold = record.get("gold") or []
            texts = (record["id"], record["prediction"], *gold)
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("a text is something else")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number}: expected a JSON object with the texts id and prediction, "
                f"as inference.py writes it ({first_line(error)})."
            ) from error
        if gold:
            record["gold"] = list(map(clean, gold))
        record |= {
            "id": replace_surrogates(record["id"]),
            "prediction": clean(record["prediction"]),
        }
        records.append(record)
    return records


def _from_csv(path: Path) -> list[dict]:
    sheet = read_table(path)
    is_record = {"id", "prediction"} <= set(sheet.header)
    names = ["id", "prediction"] if is_record else sheet.header
    if len(names) != 2 or len(set(names)) != 2:
        raise InputError(
            f"{path} has the columns {short_list(sheet.header)}; expected id and prediction, or "
            "the two columns of a submission."
        )
    # In review.csv an apostrophe precedes what a spreadsheet would run as a formula.
    text_of = active if tuple(sheet.header) == REVIEW_COLUMNS else str
    pairs = ([text_of(cells[name]) for name in names] for _, cells in sheet.rows)
    return [{"id": row_id, "prediction": answer} for row_id, answer in pairs]
