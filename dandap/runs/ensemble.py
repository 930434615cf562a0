"""Combine several files of answers to the same questions: combine(["run-1", "run-2"])."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import metrics
from dandap.errors import InputError, short_list
from dandap.files import (
    check_writable,
    copy_whole,
    new_folder,
    read_json,
    refuse_output,
    write_json,
    write_json_lines,
)
from dandap.recipe import make_recipe
from dandap.runs.journal import PREDICTIONS
from dandap.runs.predictions import (
    choice_probabilities,
    find_predictions,
    load_predictions,
    run_of,
    same_questions,
    write_predictions,
)
from tasks import get_task
from tasks.task import Task, label

METHODS = ("f1_sum", "vote", "vote_f1", "hard")
# Members must agree in these recipe fields: a vote of free texts with 예 and 아니오 means nothing.
SAME_FIELDS = (
    *("task", "samples", "temperature", "grounded", "choices", "choices_by", "beams"),
    "repetition_penalty",
)


class Combined(NamedTuple):
    """The combined answers, their folder, the scores by member, and the submission."""

    folder: Path
    records: list[dict]
    scores: dict[str, dict[str, Any]] | None
    submission: Path | None


def combine(
    members: Sequence[str | Path],
    *,
    method: str = "f1_sum",
    output_dir: str | Path = "outputs",
    split: str | None = None,
    output: str | None = None,
    overwrite: bool = False,
) -> Combined:
    """Combine the answers of runs, folders or files by one of METHODS.

    With split "validation" the validation answers of runs are combined, without a submission.
    """
    refuse_output(output, overwrite)
    check_writable(Path(output_dir), "Name another --output_dir.")
    paths = [find_predictions(str(name), str(output_dir), split) for name in members]
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise InputError(
            f"got {short_list(paths)}; an ensemble needs at least two members, each once."
        )
    answers = same_questions({str(path): load_predictions(path) for path in paths})
    recipes = list(map(_recipe, paths))
    _check_recipes(paths, recipes)
    # Without a recorded recipe the default task is assumed, economic QA.
    recipe = make_recipe(recipes[0], str(paths[0]))
    questions = list(zip(*answers, strict=True))
    selected = [select(records, method) for records in questions]
    records = list(map(_merge, questions, selected))
    # Character F1 is symmetric, so either of two members gains the same from the other.
    if method == "f1_sum" and len(paths) == 2:
        print(f"f1_sum of two members selects the first unless it is empty: {paths[0]}")
    agreement = count_agreement(questions)
    print("agreement: " + ", ".join(f"{name} {count:,}" for name, count in agreement.items()))
    scores = _score(get_task(recipe.task), paths, answers, records)

    folder = new_folder(output_dir, f"ensemble-{method}-of-{len(paths)}")
    write_json_lines(folder / PREDICTIONS, records)
    write_predictions(folder / "predictions.csv", records)
    submission = note = None
    if not split:
        submission, note = get_task(recipe.task).submit_combined(recipe, folder, paths[0], records)
    description = {
        "method": method,
        "members": list(map(str, paths)),
        "taken": [selected.count(index) for index in range(len(paths))],
        "agreement": agreement,
        "scores": scores,
    }
    write_json(folder / "ensemble.json", description)
    if note:
        print(note)
    if submission:
        print(f"submission: {submission} ({len(records):,} rows, read back and checked)")
        if output:
            copy_whole(submission, Path(output))
    return Combined(folder, records, scores, submission)


def select(records: Sequence[dict], method: str) -> int:
    """Return the member whose answer to a question is selected; the first one of equals."""
    answers = [record["prediction"] for record in records]
    if method == "f1_sum":
        return metrics.consensus(answers)
    groups = _equal_answers(records)
    largest = [group[0] for group in groups if len(group) == max(map(len, groups))]
    if method == "vote":
        return largest[0]
    if method == "vote_f1":
        gains = [sum(metrics.char_f1(answer, other) for other in answers) for answer in answers]
    elif all(record.get("choices") for record in records):
        probabilities = [choice_probabilities(record["choices"]) for record in records]
        gains = [sum(each.get(answer, 0.0) for each in probabilities) for answer in answers]
    else:
        raise InputError(
            "hard votes over choices, and a member's answers have none. Answer with --choices, or "
            "use --method vote."
        )
    return max(largest, key=lambda index: (gains[index], -index))


def _equal_answers(records: Sequence[dict]) -> list[list[int]]:
    """Return the members with equal answers, in the order of each group's first."""
    groups: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        # Without spaces, which character F1 does not count.
        answer = metrics.normalize(record["prediction"]).replace(" ", "")
        groups.setdefault(answer, []).append(index)
    return list(groups.values())


def count_agreement(questions: Sequence[Sequence[dict]]) -> dict[str, int]:
    """Return how often the members agreed: {"3:0": all three, "2:1": two, "1:1:1": none}."""
    patterns: Counter[tuple[int, ...]] = Counter()
    for records in questions:
        sizes = sorted(map(len, _equal_answers(records)), reverse=True)
        patterns[tuple(sizes) if len(sizes) > 1 else (*sizes, 0)] += 1
    return {":".join(map(str, sizes)): patterns[sizes] for sizes in sorted(patterns, reverse=True)}


def _recipe(path: Path) -> dict[str, Any]:
    """Return the recipe that a file's answers were made with; {} if it is unknown."""
    if (scores := path.with_name("scores.json")).is_file():
        return read_json(scores).get("recipe") or {}
    run = run_of(path)
    if run and path.resolve() == run.validation_record.resolve():
        return run.load_recipe().model_dump()
    return {}


def _check_recipes(paths: Sequence[Path], recipes: Sequence[dict[str, Any]]) -> None:
    """Reject members that were answered in different ways; unknown recipes pass."""
    known = [(path, recipe) for path, recipe in zip(paths, recipes, strict=True) if recipe]
    for path, recipe in known[1:]:
        first, expected = known[0]
        for name in SAME_FIELDS:
            if recipe.get(name) != expected.get(name):
                raise InputError(
                    f"{first} and {path} were answered in different ways: {name} "
                    f"{expected.get(name)!r} and {recipe.get(name)!r}. "
                    "Name folders of answers (RUN/answers/...) with equal settings."
                )


def _merge(records: Sequence[dict], index: int) -> dict:
    """Return the selected record, with all members' answers and the member's number, from 1."""
    merged = {"id": records[0]["id"], **records[index]}
    for name in ("key", "samples"):
        merged.pop(name, None)
    # From the first member that has them: a submission has ids and answers only.
    for name in ("question", "gold", "article"):
        if known := next((record[name] for record in records if record.get(name)), None):
            merged[name] = known
    merged |= {"members": [record["prediction"] for record in records], "member": index + 1}
    if merged.get("gold"):
        merged["char_f1"] = metrics.char_f1(merged["prediction"], merged["gold"])
        merged["exact_match"] = metrics.exact_match(merged["prediction"], merged["gold"])
    return merged


def _score(
    task: Task, paths: Sequence[Path], answers: Sequence[list[dict]], records: list[dict]
) -> dict[str, dict[str, Any]] | None:
    """Print and return the scores of the members and the ensemble; None without gold answers."""
    if not all(record.get("gold") and record.get("article") for record in records):
        print("no score: not every question has a known gold answer")
        return None
    golds, articles = [r["gold"] for r in records], [r["article"] for r in records]
    is_choice = all(record.get("choices") for record in records)
    named = "accuracy" if is_choice and "char_f1" in task.headline else label(task.headline[0])
    scores = {}
    for name, member in zip([*map(str, paths), "ensemble"], [*answers, records], strict=True):
        score = metrics.score([record["prediction"] for record in member], golds, articles)
        low, high = score["char_f1_interval"]
        exact = "" if is_choice else f"exact match {score['exact_match']:.4f}  "
        print(f"  {named} {score['char_f1']:.4f} (95% {low:.4f} to {high:.4f})  {exact}{name}")
        scores[name] = score
    return scores
