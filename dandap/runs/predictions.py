"""Write, resume, find, read and align predictions; predictions.jsonl grows answer by answer."""

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
from tasks.submission import REVIEW_COLUMNS, unescape_formula

PREDICTIONS = "predictions.jsonl"
# Settings in the names of folders of answers, if they differ from the run's. PROMINENT ones are
# also shown if they differ from the default.
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
    """The answers of one inference, one line each.

    A line's key is a hash of `settings` (a hash of recipe, template, adapter, data and versions),
    of the question's id and of its prompt. Every process writes its own file; rank 0 merges them.
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
        """Merge the files of all processes, and return the answered ids.

        Incomplete lines and other keys are dropped.
        """
        journals = sorted(self.folder.glob("predictions*.jsonl"))
        for file in journals:
            for record in files.read_json_lines(file):
                key, name = record.pop("key", None), record.get("id")
                is_complete = isinstance(record.get("prediction"), str) and "gold" in record
                if isinstance(name, str) and is_complete and key and key == self.keys.get(name):
                    self.records[record["id"]] = record
        # Always, because the last line may be incomplete.
        self._write()
        for file in journals:
            if file != self.file:
                file.unlink()
        return set(self.records)

    def add(self, record: dict) -> None:
        """Append an answer to the file."""
        files.append_json(self.file, {**record, "key": self.keys[record["id"]]})
        self.records[record["id"]] = record

    def finish(self, ids: Sequence[str]) -> list[dict]:
        """Return the records of all processes in the order of `ids`, and rewrite the file."""
        if missing := set(ids) - self.read():
            raise InputError(
                f"{self.folder} lacks {len(missing)} answers of other processes: it is not shared "
                "by all machines. Run the command again with a shared folder."
            )
        # Batches finish in a different order than the test file's.
        self.records = {name: self.records[name] for name in ids}
        self._write()
        return list(self.records.values())

    def _write(self) -> None:
        records = self.records.items()
        files.write_json_lines(
            self.file, ({**record, "key": self.keys[name]} for name, record in records)
        )


def hash_settings(settings: dict[str, Any], adapter: Path | None) -> str:
    """Return a hash of everything that answers depend on, including the adapter."""
    everything = {**settings, "adapter": files.folder_hash(adapter) if adapter else None}
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def answers_name(of: str, recipe: Recipe, of_run: Recipe, limit: int | None) -> str:
    """Return the name of a folder of answers without its time, e.g. test-grounded-s8-t0.7.

    `of` is the name of the test file or split; `of_run` is the run's recipe.
    """
    default, parts = Recipe(), [of] if limit is None else [of, f"first{limit}"]
    for name, shown in SHOWN.items():
        value = getattr(recipe, name)
        is_shown = name in PROMINENT and value != getattr(default, name)
        if is_shown or value != getattr(of_run, name):
            is_number = type(value) in (int, float)  # not bool
            parts.append(shown.format(value) if value or is_number else f"no-{name}")
    return "-".join(parts)


def answers_folder(parent: Path, name: str, settings: str) -> Path:
    """Return the newest unfinished folder with these settings, or a new one."""
    found = sorted(parent.glob("*/settings.json"), key=lambda path: path.stat().st_mtime)
    for file in reversed(found):
        same = settings in file.read_text(encoding="utf-8", errors="replace")
        if same and not file.with_name("scores.json").exists():  # written after all answers
            return file.parent
    folder = files.new_folder(parent, name)
    files.write_json(folder / "settings.json", {"settings": settings})
    return folder


def confidence(record: Mapping[str, Any]) -> float:
    """Return the geometric mean of token probabilities, or the probability of a choice."""
    choices = record.get("choices")
    if not choices or record["prediction"] not in choices:
        return math.exp(record["log_probability"])
    return choice_probabilities(choices)[record["prediction"]]


def choice_probabilities(choices: Mapping[str, float]) -> dict[str, float]:
    """Return the softmax of the log-probabilities of choices."""
    highest = max(choices.values())  # avoids underflow
    exponentials = {name: math.exp(value - highest) for name, value in choices.items()}
    total = sum(exponentials.values())
    return {name: value / total for name, value in exponentials.items()}


def find_predictions(name: str, output_dir: str, split: str | None = None) -> Path:
    """Return the predictions in a file or folder, or a run's newest for a test file or split."""
    # find_run raises and lists the runs.
    path = find_path(name, output_dir) or find_run(name, output_dir).path
    if path.is_file():
        return path
    if (path / PREDICTIONS).is_file():
        return path / PREDICTIONS
    run = RunFolder(path)
    # Prefer the validation answers of training.
    if split and run.validation_record.is_file():
        return run.validation_record
    if answers := _complete_answers(run, split):
        return answers[-1][0] / PREDICTIONS
    how = f" --split {split}" if split else ""
    raise InputError(
        f"{path} has no {split or 'test'} answers. Run: python inference.py --run {path}{how}"
    )


def _complete_answers(run: RunFolder, split: str | None) -> list[tuple[Path, dict]]:
    """Return (folder, scores.json) of complete answers to a file or split, oldest first."""
    answered = [(file.parent, files.read_json(file)) for file in run.answers.glob("*/scores.json")]
    found = [a for a in answered if a[1].get("split") == split and a[1].get("limit") is None]
    # By time, not by name.
    return sorted(found, key=lambda answer: (str(answer[1].get("started", "")), answer[0].name))


def own_answers(run: RunFolder) -> list[tuple[Path, dict]]:
    """Return the complete answers that used the run's own options."""
    recipe = run.load_recipe().model_dump()
    return [found for found in _complete_answers(run, None) if found[1].get("recipe") == recipe]


def run_of(path: Path) -> RunFolder | None:
    """Return the run that a file of answers belongs to, or None."""
    runs = map(RunFolder, path.resolve().parents)
    return next((run for run in runs if run.recipe_file.is_file()), None)


def recipe_of(path: Path) -> dict[str, Any]:
    """Return the recipe of a file of answers, or {}."""
    if (scores := path.with_name("scores.json")).is_file():
        recipe = files.read_json(scores).get("recipe")
        return recipe if isinstance(recipe, dict) else {}
    run = run_of(path)
    return run.load_recipe().model_dump() if run else {}


def load_members(
    names: Sequence[str | Path], output_dir: str | Path, split: str | None = None
) -> dict[Path, list[dict]]:
    """Return the answers of two or more runs, folders or files to the same questions, by file.

    Missing questions, gold answers and articles are copied from other members.
    """
    paths = [find_predictions(str(name), str(output_dir), split) for name in names]
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise InputError(f"got {short_list(paths)}; expected two or more different files.")
    members = {path: {record["id"]: record for record in load_predictions(path)} for path in paths}
    first = members[paths[0]]
    for path, member in members.items():
        if odd := member.keys() ^ first.keys():
            raise InputError(
                f"{paths[0]} and {path} answer different questions: {len(odd)} ids are in only "
                f"one, like {min(odd)}. Choose answers (RUN/answers/...) to the same file."
            )
    for name, record in first.items():
        same = [member[name] for member in members.values()]
        for field in ("question", "gold", "article"):
            known = [each[field] for each in same if each.get(field)]
            # A dialogue may be cleaned for some members.
            is_free = field == "article" and record.get("choices")
            if not is_free and any(value != known[0] for value in known):
                raise InputError(
                    f"{short_list(paths)} answer different questions: the {field} of {name} "
                    "differs. Choose answers to the same file."
                )
            for each in same if known else []:
                each[field] = each.get(field) or known[0]
    return {path: [member[name] for name in first] for path, member in members.items()}


def load_predictions(path: Path) -> list[dict]:
    """Read the records of predictions.jsonl, review.csv, a submission, or other answers as CSV."""
    records = _from_csv(path) if path.suffix.lower() == ".csv" else _from_jsonl(path)
    ids = {record["id"] for record in records}
    if not ids or len(ids) < len(records):
        raise InputError(
            f"{path}: got {len(records)} answers with {len(ids)} different ids, expected at "
            "least one answer, and each id once."
        )
    return records


def _from_jsonl(path: Path) -> list[dict]:
    records = []
    # splitlines would split at U+2028 within texts.
    for number, line in enumerate(decode(path.read_bytes(), path)[0].split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            gold = record.get("gold") or []
            texts = (record["id"], record["prediction"], *gold)
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("id, prediction and gold must be strings")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number}: expected a JSON object with strings id and prediction, "
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
            f"{path}: got the columns {short_list(sheet.header)}, expected id and prediction, or "
            "the two columns of a submission."
        )
    # review.csv escapes formulas with an apostrophe.
    text_of = unescape_formula if tuple(sheet.header) == REVIEW_COLUMNS else str
    pairs = ([text_of(cells[name]) for name in names] for _, cells in sheet.rows)
    return [{"id": row_id, "prediction": answer} for row_id, answer in pairs]
