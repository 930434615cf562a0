"""Read answers that were written before.

They are found by run or file, and where several are compared, checked to be on the same questions.
"""

import argparse
import csv
import io
import json
import math
from pathlib import Path

from dandap.data.files import decode
from dandap.data.text import clean, writable
from dandap.errors import InputError, first_line
from dandap.files import read_json, write_table
from dandap.runs.folder import RunFolder, find_run, named
from dandap.runs.journal import RECORD
from tasks.submission import REVIEW_COLUMNS, active


def _in_a_cell(value):
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return " | ".join(map(str, value)) if isinstance(value, list) else value


def write_predictions(path: Path, records: list[dict]) -> None:
    """Write predictions.csv: the records, a row each.

    Their lists (gold answers, samples, token ids) are joined with " | ", choices are JSON.
    """
    rows = []
    for record in records:
        rows.append({name: _in_a_cell(value) for name, value in record.items()})
    write_table(path, rows)


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where `find_predictions` looks for the answers of runs."""
    parser.add_argument(
        "--split", choices=["validation"], help="of runs, the answers on their validation questions"
    )
    parser.add_argument(
        "--output_dir",
        metavar="DIR",
        default="outputs",
        help="where runs are and the result goes (default: outputs)",
    )


def find_predictions(name: str, output_dir: str, split: str | None = None) -> Path:
    """Find the file of answers of a run, of a folder of answers, or one named itself.

    Of a run these are its newest whole answers to a test file, or with split "validation" those to
    its validation questions. A file named itself is a .jsonl or .csv file.
    """
    path = named(name, output_dir)
    if path is None:
        find_run(name, output_dir)  # refuses the name and says which runs there are
    if path.is_file() or (path / RECORD).is_file():
        return path if path.is_file() else path / RECORD
    run = RunFolder(path)
    # What training answered counts before what `--split validation` answered later.
    if split and run.validation_record.is_file():
        return run.validation_record
    whole = [file for file in run.answers.glob("*/scores.json") if _is_of(file, split)]
    if not whole:
        how = " --split validation" if split else ""
        raise InputError(
            f"{path} holds no answers{how and ' to its validation questions'}: "
            f"python inference.py --run {path}{how}"
        )
    # Names begin with the test file's, so that they alone would not tell the newest.
    return max(
        whole, key=lambda file: (str(read_json(file).get("started", "")), file.parent.name)
    ).with_name(RECORD)


def run_of(path: Path) -> RunFolder | None:
    """Return the run that a file of answers lies in, or None."""
    return next(
        (
            RunFolder(folder)
            for folder in path.resolve().parents
            if RunFolder(folder).recipe_file.is_file()
        ),
        None,
    )


def _is_of(scores_file: Path, split: str | None) -> bool:
    """Say whether a finished inference answered all of a test file, or of the split."""
    try:
        scores = read_json(scores_file)
    except InputError as error:
        print(f"{scores_file.parent} is passed over: {error}")
        return False
    # With --limit only some questions are answered.
    return scores.get("split") == split and scores.get("limit") is None


def own_answers(run: RunFolder) -> list[tuple[Path, dict]]:
    """Return the finished answers to whole test files that are the run's own, oldest first.

    Each is its folder and what its scores.json notes. Answers in another way (samples, another
    wording) they would not be the run's own.
    """
    trained = run.load_recipe().model_dump()
    whole = [file for file in run.answers.glob("*/scores.json") if _is_of(file, None)]
    noted = [(file.parent, read_json(file)) for file in whole]
    own = [(folder, scores) for folder, scores in noted if scores.get("recipe") == trained]
    return sorted(own, key=lambda answer: (str(answer[1].get("started", "")), answer[0].name))


def load_predictions(path: Path) -> list[dict]:
    """Read records with at least "id" and "prediction", in the file's order.

    A .jsonl is as inference writes it; a .csv has the columns id and prediction (predictions.csv),
    or id and an answer (a submission).
    """
    text, _ = decode(path.read_bytes(), path)
    records = _from_csv(text, path) if path.suffix.lower() == ".csv" else _from_jsonl(text, path)
    ids = [record["id"] for record in records]
    if not ids or len(set(ids)) < len(ids):
        raise InputError(
            f"{path} holds {len(ids)} answers to {len(set(ids))} ids; "
            "expected at least one, each id once."
        )
    return records


def _from_jsonl(text: str, path: Path) -> list[dict]:
    records = []
    # splitlines would also split at U+2028 and its like, which JSON may hold within a text.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            records.append(_checked(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number}: expected a JSON object with the texts id and prediction, "
                f"as inference.py writes it ({first_line(error)})."
            ) from error
    return records


def _checked(record: dict) -> dict:
    """Return the record, cleaned; raise ValueError if a field is not of inference's kind."""
    texts = [
        record["id"],
        record["prediction"],
        record.get("article", ""),
        record.get("question", ""),
        *(record.get("gold") or []),
    ]
    numbers = [record.get("log_probability", 0.0), *(record.get("choices") or {}).values()]
    if not all(isinstance(text, str) for text in texts) or not all(
        isinstance(n, int | float) for n in numbers
    ):
        raise ValueError("a text or a number is something else")
    gold = {"gold": [clean(text) for text in record["gold"]]} if record.get("gold") else {}
    return {
        **record,
        **gold,
        "id": writable(record["id"]),
        "prediction": clean(record["prediction"]),
    }


def _from_csv(text: str, path: Path) -> list[dict]:
    # Cells end at 131,072 characters otherwise. A C long of Windows takes no more than this.
    csv.field_size_limit(2**31 - 1)
    try:
        table = [cells for cells in csv.reader(io.StringIO(text, newline=""), strict=True) if cells]
    except csv.Error as error:
        raise InputError(
            f"{path} is not a CSV file that can be read ({error}). "
            "Name the one that inference.py wrote."
        ) from error
    header = table[0] if table else []
    name, answer = _columns(header)
    if answer is None or any(len(cells) != len(header) for cells in table):
        raise InputError(
            f"{path} has the columns {header}; "
            "expected id and prediction, or id and answer, and as many cells in every row."
        )
    # A review's texts have an apostrophe before what a spreadsheet would run as a formula.
    text_of = active if tuple(header) == REVIEW_COLUMNS else str
    return [
        {"id": text_of(cells[name]), "prediction": text_of(cells[answer])} for cells in table[1:]
    ]


def _columns(header: list[str]) -> tuple[int, int | None]:
    """Return where the id and the answer stand; of two columns with other names the id is first."""
    # A name that stands twice, or an empty one, does not say which column is meant.
    if len(set(header)) < len(header) or not all(header):
        return 0, None
    answer = next(
        (header.index(known) for known in ("prediction", "answer") if known in header), None
    )
    if answer is None or "id" not in header:
        return 0, 1 if len(header) == 2 and answer != 0 else None
    return header.index("id"), answer


def confidence(record: dict) -> float:
    """Return the geometric mean of an answer's token probabilities, or of a choice its share."""
    if "choices" not in record:
        return math.exp(record["log_probability"])
    # The likeliest is the answer; the others are weighed against it, so that no sum is 0.
    scores = record["choices"].values()
    return 1 / sum(math.exp(score - max(scores)) for score in scores)


def same_questions(members: dict[str, list[dict]]) -> list[list[dict]]:
    """Return the members' records in the first one's order.

    Raise InputError if their questions differ; it names the files and an id of either.
    """
    first, *others = members
    order = [record["id"] for record in members[first]]
    known = set(order)
    aligned = [members[first]]
    for name in others:
        by_id = {record["id"]: record for record in members[name]}
        missing, more = [i for i in order if i not in by_id], [i for i in by_id if i not in known]
        if missing or more:
            told = [
                f"{len(ids)} are only in {where}, as {ids[0]}"
                for ids, where in ((missing, first), (more, name))
                if ids
            ]
            raise InputError(
                f"{first} and {name} answer different questions: {'; '.join(told)}. Of a run its "
                "newest answers are taken. Name answers to the same file: RUN/answers/FOLDER."
            )
        aligned.append([by_id[i] for i in order])
        for mine, other in zip(members[first], aligned[-1], strict=True):
            # Articles may differ where answers are chosen: a dialogue may have been cleaned for
            # one member and not for another.
            for what in (
                ("question", "gold") if mine.get("choices") else ("question", "article", "gold")
            ):
                if mine.get(what) and other.get(what) and mine[what] != other[what]:
                    raise InputError(
                        f"{first} and {name} answer different questions: "
                        f"{what} of {mine['id']} is not the same in both. "
                        "Name answers to the same file."
                    )
    return aligned
