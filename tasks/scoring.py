"""Scores of answers, and how they are printed."""

from collections.abc import Sequence
from typing import Any

import metrics
from dandap.data.rows import Answers, Row
from dandap.recipe import Recipe
from tasks.task import Task

LABELS = {"char_f1": "char F1", "exact_match": "exact match", "rouge_l": "ROUGE-L"}


def label(score: str) -> str:
    """Return a score's name as people read it."""
    return LABELS.get(score, score.replace("_", " "))


def answerable(answers: Answers) -> tuple[list[Row], list[str]]:
    """Return rows and predictions without the questions marked as impossible (SQuAD 2)."""
    pairs = [
        (row, prediction)
        for row, prediction in zip(answers.rows, answers.predictions, strict=True)
        if not row.fields.get("impossible")
    ]
    return [row for row, _ in pairs], [prediction for _, prediction in pairs]


def compute_scores(
    task: Task, answers: Answers, recipe: Recipe | None = None
) -> dict[str, Any] | None:
    """Return the scores and the shape of the answers; None if a gold answer is missing.

    With a recipe, scores that need another model are included.
    """
    rows, predictions = answerable(answers)
    if not rows or not all(row.answers for row in rows):
        return None
    extra = task.score_extra(recipe, rows, predictions) if recipe else {}
    return task.score(rows, predictions) | answer_shape(answers.records) | extra


def answer_shape(records: Sequence[dict]) -> dict[str, float]:
    """Return the mean length in characters, and shares of answers by how they look."""
    count = len(records)
    return {
        "mean_length": sum(len(record["prediction"]) for record in records) / count,
        "stopped": sum(record["ended"] == "stopped" for record in records) / count,
        "spans": sum(record["span"] is not None for record in records) / count,
        "repeating": sum(metrics.repeats(record["prediction"]) for record in records) / count,
    }


def format_score(score: str, scores: dict[str, Any], interval: str = "") -> str:
    """Return a score with its interval: char F1 0.9706 (95% 0.9522 to 0.9872)."""
    low, high = scores[f"{score}_interval"]
    return f"{label(score)} {scores[score]:.4f} ({interval}{low:.4f} to {high:.4f})"


def format_evaluation(task: Task, scores: dict[str, Any]) -> str:
    """Return the scores of one evaluation, as the end of a training line."""
    line = format_score(task.headline[0], scores)
    if "exact_match" in task.headline:
        line += f"  exact match {scores['exact_match']:.4f}"
    return line


def print_scores(task: Task, name: str, scores: dict[str, Any]) -> None:
    """Print the scores of the answers called `name`."""
    for line in task.summarize(scores):
        print(f"{name}: {line}")
    table = task.table(scores)
    for right, *counts in table[1:]:
        cells = ", ".join(
            f"{what} {count}" for what, count in zip(table[0][1:], counts, strict=True)
        )
        print(f"{name}: {table[0][0]} {right}: {cells}")
    parts = [
        format_score(score, scores, "" if number else "95% ")
        for number, score in enumerate(task.headline)
    ]
    print(
        f"{name}: {'  '.join(parts)}  {scores['questions']} {task.nouns[0]}, {scores['articles']} "
        f"{task.nouns[1]}, {scores['metric']}"
    )
