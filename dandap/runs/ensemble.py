"""Combine the answers of several runs or files: combine(["run-1", "run-2"])."""

from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import metrics
from dandap import files
from dandap.errors import InputError
from dandap.recipe import make_recipe
from dandap.runs.predictions import PREDICTIONS, choice_probabilities, load_members, recipe_of
from tasks import get_task
from tasks.submission import write_review
from tasks.task import Task, label

METHODS = ("f1_sum", "vote", "vote_f1", "hard")
# Members must agree in these recipe fields.
SAME_FIELDS = (
    "task samples temperature grounded choices choices_by beams repetition_penalty".split()
)


class Combined(NamedTuple):
    """Combined answers with their folder, the scores of all members, and the submission."""

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
    """Combine the answers of runs, folders or files; skip the submission for a `split`."""
    files.check_output(output, overwrite)
    files.check_writable(Path(output_dir), "Choose another --output_dir.")
    answers = load_members(members, output_dir, split)
    paths = list(answers)
    recipes = {path: recipe_of(path) for path in paths}
    known = [path for path in paths if recipes[path]]
    for path, name in product(known, SAME_FIELDS):
        one, other = (recipes[each].get(name) for each in (known[0], path))
        if one != other:
            raise InputError(
                f"{known[0]} and {path} have different settings: {name} {one!r} and {other!r}. "
                "Choose folders of answers (RUN/answers/...) with equal settings."
            )
    # Without a recipe, the default task.
    recipe = make_recipe(recipes[paths[0]], str(paths[0]))
    task = get_task(recipe.task)
    questions = list(zip(*answers.values(), strict=True))
    selected = [select(records, method) for records in questions]
    records = list(map(_merge, questions, selected))
    agreement = count_agreement(questions)
    print("agreement: " + ", ".join(f"{name} {count:,}" for name, count in agreement.items()))
    scores = _score(task, answers, records)

    folder = files.new_folder(output_dir, f"ensemble-{method}-of-{len(paths)}")
    files.write_json_lines(folder / PREDICTIONS, records)
    write_review(folder / "review.csv", records)
    submission = note = None
    if not split:
        submission, note = task.submit_combined(recipe, folder, paths[0], records)
    description = {
        "method": method,
        "members": list(map(str, paths)),
        "taken": [selected.count(index) for index in range(len(paths))],
        "agreement": agreement,
        "scores": scores,
    }
    files.write_json(folder / "ensemble.json", description)
    if note:
        print(note)
    if submission:
        print(f"submission: {submission} ({len(records):,} rows, read back and checked)")
        if output:
            files.copy_file(submission, Path(output))
    return Combined(folder, records, scores, submission)


def select(records: Sequence[dict], method: str) -> int:
    """Return the index of the member with the selected answer; ties go to the first."""
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
            "--method hard needs choices, which a member's answers lack. Answer with --choices, or "
            "use --method vote."
        )
    return max(largest, key=lambda index: (gains[index], -index))


def _equal_answers(records: Sequence[dict]) -> list[list[int]]:
    """Group members with equal answers, in order of first occurrence."""
    groups: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        # Without spaces, which character F1 ignores.
        answer = metrics.normalize(record["prediction"]).replace(" ", "")
        groups.setdefault(answer, []).append(index)
    return list(groups.values())


def count_agreement(questions: Sequence[Sequence[dict]]) -> dict[str, int]:
    """Count agreement patterns: {"3:0": all three agree, "2:1": two, "1:1:1": none}."""
    patterns: Counter[tuple[int, ...]] = Counter()
    for records in questions:
        sizes = sorted(map(len, _equal_answers(records)), reverse=True)
        patterns[tuple(sizes) if len(sizes) > 1 else (*sizes, 0)] += 1
    return {":".join(map(str, sizes)): patterns[sizes] for sizes in sorted(patterns, reverse=True)}


def _merge(records: Sequence[dict], index: int) -> dict:
    """Return the selected record with all members' answers and the member's number (from 1)."""
    own = ("key", "samples")
    merged = {name: value for name, value in records[index].items() if name not in own}
    # A dialogue may be cleaned for some members: use the first one's.
    merged |= {name: records[0][name] for name in ("gold", "article") if name in records[0]}
    merged |= {"members": [record["prediction"] for record in records], "member": index + 1}
    if merged.get("gold"):
        merged["char_f1"] = metrics.char_f1(merged["prediction"], merged["gold"])
        merged["exact_match"] = metrics.exact_match(merged["prediction"], merged["gold"])
    return merged


def _score(
    task: Task, answers: dict[Path, list[dict]], records: list[dict]
) -> dict[str, dict[str, Any]] | None:
    """Print and return the scores of members and ensemble, or None without gold answers."""
    if not all(record.get("gold") and record.get("article") for record in records):
        print("no score: some questions have no gold answer")
        return None
    golds, articles = [r["gold"] for r in records], [r["article"] for r in records]
    is_choice = all(record.get("choices") for record in records)
    named = "accuracy" if is_choice and "char_f1" in task.headline else label(task.headline[0])
    scores = {}
    members = {str(path): member for path, member in answers.items()} | {"ensemble": records}
    for name, member in members.items():
        score = metrics.score([record["prediction"] for record in member], golds, articles)
        low, high = score["char_f1_interval"]
        exact = "" if is_choice else f"exact match {score['exact_match']:.4f}  "
        print(f"  {named} {score['char_f1']:.4f} (95% {low:.4f} to {high:.4f})  {exact}{name}")
        scores[name] = score
    return scores
