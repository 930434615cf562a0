"""Write report.html with scores, errors and data problems, and plots as PNG files."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes

import metrics
from dandap.data.checks import FINDINGS
from dandap.data.korean import NEAR_MISSES, near_miss
from dandap.data.rows import Answers
from dandap.language import t
from dandap.recipe import Recipe
from dandap.runs.html import BLUE, GRAY, ORANGE, bars, draw, write_page
from dandap.runs.predictions import confidence
from tasks.task import Task, label

WORST, LISTED = 30, 20  # number of worst answers, and of lines in lists
Groups = dict[str, list[dict]]  # records by label


def write_report(
    folder: Path,
    title: str,
    task: Task,
    recipe: Recipe,
    answers: Answers,
    scores: dict[str, Any],
    environment: dict[str, Any],
    history: Sequence[dict] = (),  # the lines of metrics.jsonl
    findings: dict[str, list[dict]] | None = None,
    suspects: Sequence[dict] = (),  # records with a label that a fold contradicts
) -> Path:
    """Write report.html and plots/*.png for scored answers, and return the page's path."""
    rows, records = answers
    contexts = {row.id: row.context for row in rows}
    is_choice = all(record.get("choices") for record in records)
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    score = t(label(task.headline[0]))

    named = score[0].upper() + score[1:]
    kinds = Counter(record["kind"] for record in records)
    by_kind = {kind: [r for r in records if r["kind"] == kind] for kind, _ in kinds.most_common()}
    groups = {"kinds": (t("{score} by kind of question", score=named), by_kind)}
    if not is_choice:  # choices are letters
        lengths = {record["id"]: len(record["gold"][0]) for record in records}
        heading = t("{score} by length of the gold answer, in characters", score=named)
        groups["answer_length"] = (heading, by_length(records, lengths))
    if any(contexts.values()):
        of, lengths = t(task.nouns[1]), {name: len(text) for name, text in contexts.items()}
        heading = t("{score} by length of {articles}, in characters", score=named, articles=of)
        groups["article_length"] = (heading, by_length(records, lengths))
    charts = []
    for name, (heading, grouped) in groups.items():
        if len(grouped) > 1:
            path, height = plots / f"{name}.png", 1.1 + 0.6 * len(grouped)
            # Markup, because these elements are trusted.
            charts.append(Markup(draw(path, heading, partial(draw_groups, grouped), height)))
    evaluations = {line["step"]: line["evaluation"] for line in history if "evaluation" in line}
    selected = next((line["kept"] for line in reversed(history) if "kept" in line), None)
    training = ""
    if losses := [(line["step"], line["loss"]) for line in history if "loss" in line]:
        points = [
            (step, scored[task.headline[0]], *scored[f"{task.headline[0]}_interval"])
            for step, scored in evaluations.items()
        ]
        curves = partial(draw_training, losses, points, score)
        training = draw(plots / "training.png", t("Loss and score by step"), curves, 3.8)
    confident = partial(draw_confidence, records)
    heading = t("Score by confidence")
    charts.append(Markup(draw(plots / "confidence.png", heading, confident, 3.8)))

    worst = worst_records(records)
    page = write_page(
        folder,
        Path(__file__).with_name("report.html.jinja"),
        title,
        scores=scores,
        task=task,
        label=label,
        remarks=task.summarize(scores),
        table=task.table(scores),
        training=Markup(training),
        evaluations=evaluations,
        selected=selected,
        charts=charts,
        is_choice=is_choice,
        misses=[] if is_choice else near_misses(records),
        means=NEAR_MISSES,
        worst=worst,
        pieces={r["id"]: mark(r, contexts[r["id"]]) for r in worst},
        questions={row.id: row.fields.get("details", row.question) for row in rows},
        confidence=confidence,
        suspects=suspects,
        findings=findings,
        descriptions=FINDINGS,
        listed=LISTED,
        settings=recipe.differences(),
        environment=environment,
    )
    print(f"report: {page}")
    return page


def by_length(records: Sequence[dict], lengths: Mapping[str, int]) -> Groups:
    """Split records into four groups of equal size by `lengths` in characters, by id."""
    ordered = sorted(records, key=lambda record: lengths[record["id"]])
    size = math.ceil(len(ordered) / 4)
    groups: Groups = {}
    for start in range(0, len(ordered), size):
        part = ordered[start : start + size]
        low, high = (lengths[record["id"]] for record in (part[0], part[-1]))
        # Groups with equal edges are merged.
        groups.setdefault(f"{low:,}-{high:,}", []).extend(part)
    return groups


def draw_groups(groups: Groups, axes: Axes) -> None:
    """Draw the mean score of each group with its interval."""
    scores = [[record["char_f1"] for record in group] for group in groups.values()]
    articles = [[record["article"] for record in group] for group in groups.values()]
    intervals = list(map(metrics.bootstrap_interval, scores, articles))
    bars(axes, list(groups), list(map(fmean, scores)), intervals, list(map(len, scores)))
    axes.set_xlabel(t("mean and 95% interval"))


def draw_training(
    losses: Sequence[tuple[int, float]],
    points: Sequence[tuple[int, float, float, float]],
    score: str,
    axes: Axes,
) -> None:
    """Draw (step, loss) with a running mean, and (step, score, low, high) on a second axis."""
    steps, values = zip(*losses, strict=True)
    axes.plot(steps, values, color=BLUE, alpha=0.3, linewidth=0.8)
    mean = pd.Series(values).rolling(max(1, len(values) // 10), min_periods=1).mean()
    axes.plot(steps, mean, color=BLUE, label=t("loss (running mean)"))
    axes.set_xlabel(t("step"))
    axes.set_ylabel(t("loss per answer token"), color=BLUE)
    axes.set_ylim(bottom=0)
    if points:
        at, scores, low, high = zip(*points, strict=True)
        right = axes.twinx()
        right.spines["right"].set_visible(True)
        right.grid(visible=False)
        right.set_ylabel(t("{score}, 95% interval", score=score), color=ORANGE)
        right.set_ylim(0, 1.03)
        right.fill_between(at, low, high, color=ORANGE, alpha=0.15)
        right.plot(at, scores, color=ORANGE, marker="o", label=score)
    # Below the axes.
    axes.figure.legend(loc="outside lower center", ncols=3, frameon=False)


def draw_confidence(records: Sequence[dict], axes: Axes) -> None:
    """Draw the mean score of ten equal groups of questions, sorted by confidence."""
    points = sorted((confidence(record), record["char_f1"]) for record in records)
    means = [part.mean(axis=0) for part in np.array_split(points, min(10, len(points)))]
    axes.plot([0, 1], [0, 1], color=GRAY, linestyle=":", linewidth=1)
    axes.plot(*zip(*means, strict=True), color=BLUE, marker="o")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.04), xlabel=t("confidence"), ylabel=t("score"))


def near_misses(records: Sequence[dict]) -> list[tuple[str, float, list[dict]]]:
    """Return (kind, lost mean F1, records) of near misses, largest loss first."""
    found = defaultdict(list)
    for record in sorted(records, key=lambda record: record["char_f1"]):
        gold = closest_gold(record)
        if kind := near_miss(record["prediction"], gold):
            found[kind].append({**record, "gold_text": gold})
    misses = [
        (kind, sum(1 - member["char_f1"] for member in members) / len(records), members)
        for kind, members in found.items()
    ]
    return sorted(misses, key=lambda miss: (-miss[1], -len(miss[2])))


def closest_gold(record: dict) -> str:
    """Return the gold answer with the highest F1, preferring an equal one."""
    prediction = record["prediction"]
    return max(
        record["gold"], key=lambda gold: (gold == prediction, metrics.char_f1(prediction, gold))
    )


def worst_records(records: Sequence[dict]) -> list[dict]:
    """Return the WORST records with the lowest F1, most confident first among ties."""
    wrong = [record for record in records if record["char_f1"] < 1]
    return sorted(wrong, key=lambda record: (record["char_f1"], -confidence(record)))[:WORST]


def mark(record: dict, context: str) -> list[tuple[str, str]]:
    """Split the article into (text, kind), where kind is "gold", "prediction" or ""."""
    kinds = {record["prediction"]: "prediction"} | dict.fromkeys(record["gold"], "gold")
    kinds = {} if record.get("choices") else kinds  # choices are letters
    # Prefer the longest match.
    longest_first = sorted(filter(None, kinds), key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest_first)) or "(?!)"  # never matches
    pieces = re.split(f"({pattern})", context)
    return [(piece, kinds.get(piece, "")) for piece in pieces if piece]
