"""report.html: what a run scored and where it lost, on one page, with plots as PNGs next to it."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes

import metrics
from dandap.data.checks import FINDINGS
from dandap.data.korean import NEAR_MISSES, near_miss, nearest_first, split_sentences
from dandap.data.rows import Answers
from dandap.language import t
from dandap.recipe import Recipe
from dandap.runs.html import write_page
from dandap.runs.plots import BLUE, GREY, ORANGE, bars, draw
from dandap.runs.predictions import confidence
from tasks.task import Task, label

PAGE = Path(__file__).with_name("report.html.jinja")
WORST, LISTED = 30, 20  # answers that are shown, and lines of a list
MAX_POINTS = 1000  # single questions in a plot; 100,000 would make a page of 10 MB
Groups = dict[str, list[dict]]  # records by label


class Bar(NamedTuple):
    """The mean score of a group of questions, with its interval."""

    label: str
    mean: float
    interval: tuple[float, float]
    questions: int


def write_report(
    folder: Path,
    title: str,
    task: Task,
    recipe: Recipe,
    answers: Answers,
    scores: dict[str, Any],
    environment: dict[str, Any],
    history: Sequence[dict] = (),
    findings: dict[str, list[dict]] | None = None,
    suspects: Sequence[dict] = (),
) -> Path:
    """Write report.html and plots/*.png about scored answers, and return the page's path.

    `history` are the lines of metrics.jsonl, `findings` those of check_data, and `suspects` the
    records whose label a fold contradicts.
    """
    rows, records = answers
    contexts = {row.id: row.context for row in rows}
    has_articles = any(contexts.values())
    is_choice = all(record.get("choices") for record in records)
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    score = t(label(task.headline[0]))

    named = score[0].upper() + score[1:]
    of = t(task.nouns[1])
    groups = {"kinds": (t("{score} by kind of question", score=named), by_kind(records))}
    if not is_choice:  # a letter has no length
        heading = t("{score} by length of the gold answer, in characters", score=named)
        groups["answer_length"] = (heading, by_answer_length(records))
    if has_articles:
        heading = t("{score} by length of {articles}, in characters", score=named, articles=of)
        groups["article_length"] = (heading, by_article_length(records, contexts))
    charts = []
    for name, (heading, grouped) in groups.items():
        chart = [mean_score(*group) for group in grouped.items()]
        is_drawn = any(bar.mean < 0.9995 for bar in chart)  # else the numbers, 1.000, say it all
        if len(chart) > 1:
            charts.append((heading, chart, is_drawn))
            if is_drawn:
                height = 1.1 + 0.6 * len(chart)
                draw(plots / f"{name}.png", heading, partial(draw_bars, chart), height)

    evaluations = {line["step"]: line["evaluation"] for line in history if "evaluation" in line}
    selected = next((line["kept"] for line in reversed(history) if "kept" in line), None)
    images = {}
    if losses := [(line["step"], line["loss"]) for line in history if "loss" in line]:
        points = [
            (step, scored[task.headline[0]], *scored[f"{task.headline[0]}_interval"])
            for step, scored in evaluations.items()
        ]
        curves = partial(draw_training, losses, points, selected, score)
        images["training"] = draw(plots / "training.png", t("Loss and score by step"), curves, 3.8)
    confident = partial(draw_confidence, records)
    images["confidence"] = draw(plots / "confidence.png", t("Score by confidence"), confident, 3.8)

    path = write_page(
        folder,
        PAGE,
        title,
        scores=scores,
        headline=task.headline,
        nouns=task.nouns,
        label=label,
        remarks=remarks(task, scores),
        table=task.table(scores),
        images={name: Markup(svg) for name, svg in images.items()},  # ours, not from a file
        evaluations=evaluations,
        selected=selected,
        charts=charts,
        is_choice=is_choice,
        has_articles=has_articles,
        misses=[] if is_choice else near_misses(records),
        worst=[with_article(record, contexts[record["id"]]) for record in worst_records(records)],
        questions={row.id: row.fields.get("details", row.question) for row in rows},
        confidence=confidence,
        suspects=suspects,
        findings=findings,
        descriptions=FINDINGS,
        listed=LISTED,
        settings=recipe.differences(),
        environment=environment,
    )
    print(f"report: {path}")
    return path


def remarks(task: Task, scores: dict[str, Any]) -> list[str]:
    """Return the task's lines about the answers, the general one in the page's language."""
    shares = {
        "stopped": "{share} ended by themselves",
        "spans": "{share} are spans of their article",
        "repeating": "{share} repeat themselves",
    }
    parts = [t("{length} characters an answer", length=f"{scores['mean_length']:.1f}")]
    for name, text in shares.items():
        if name != "spans" or "context" in task.needs:
            parts.append(t(text, share=f"{scores[name]:.1%}"))
    general = Task.summarize(task, scores)
    return [", ".join(parts) if line in general else line for line in task.summarize(scores)]


def mean_score(name: str, records: list[dict]) -> Bar:
    """Return the mean score of a group of records."""
    values = [record["char_f1"] for record in records]
    interval = metrics.bootstrap_interval(values, [record["article"] for record in records])
    return Bar(name, sum(values) / len(values), interval, len(values))


def by_kind(records: Sequence[dict]) -> Groups:
    """Group records by what their questions ask for, the largest group first."""
    groups = defaultdict(list)
    for record in records:
        groups[record["kind"]].append(record)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def by_answer_length(records: Sequence[dict]) -> Groups:
    """Group records by the characters of the first gold answer, without empty groups."""
    groups = {}
    for low, high in ((1, 2), (3, 4), (5, 8), (9, 16), (17, math.inf)):
        name = f"{low}-{high}" if high < math.inf else f"{low} or more"
        groups[name] = [record for record in records if low <= len(record["gold"][0]) <= high]
    return {name: members for name, members in groups.items() if members}


def by_article_length(records: Sequence[dict], contexts: Mapping[str, str]) -> Groups:
    """Group records into four groups of equal size by the characters of the article."""
    ordered = sorted(records, key=lambda record: len(contexts[record["id"]]))
    size = math.ceil(len(ordered) / 4)
    groups: Groups = {}
    for start in range(0, len(ordered), size):
        part = ordered[start : start + size]
        low, high = (len(contexts[record["id"]]) for record in (part[0], part[-1]))
        # Where many articles are equally long, two groups have the same edges and are merged.
        groups.setdefault(f"{low:,}-{high:,}", []).extend(part)
    return groups


def draw_bars(chart: Sequence[Bar], axes: Axes) -> None:
    """Draw a bar for each group, with its interval."""
    bars(axes, *zip(*chart, strict=True))
    axes.set_xlabel(t("mean and 95% interval"))


def draw_training(
    losses: Sequence[tuple[int, float]],
    points: Sequence[tuple[int, float, float, float]],
    selected: int | None,
    score: str,
    axes: Axes,
) -> None:
    """Draw (step, loss), its running mean, and (step, score, low, high) on an axis of its own.

    A star marks the selected step.
    """
    steps, values = zip(*losses, strict=True)
    axes.plot(steps, values, color=BLUE, alpha=0.3, linewidth=0.8)
    mean = pd.Series(values).rolling(max(1, len(values) // 10), min_periods=1).mean()
    axes.plot(steps, mean, color=BLUE, label=t("loss (running mean)"))
    axes.set_xlabel(t("step"))
    axes.set_ylabel(t("loss of an answer token"), color=BLUE)
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
        if selected is not None and selected in at:
            best = scores[at.index(selected)]
            right.plot(selected, best, "*", markersize=16, color=ORANGE, label=t("selected"))
    # Below the axes, where it hides no curve.
    axes.figure.legend(loc="outside lower center", ncols=3, frameon=False)


def draw_confidence(records: Sequence[dict], axes: Axes) -> None:
    """Draw the mean score of ten groups of questions, of equal size, by their confidence."""
    points = sorted((confidence(record), record["char_f1"]) for record in records)
    size = math.ceil(len(points) / 10)
    tenths = [points[start : start + size] for start in range(0, len(points), size)]
    means = [[sum(values) / len(part) for values in zip(*part, strict=True)] for part in tenths]
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    axes.plot(*zip(*means, strict=True), color=BLUE, marker="o")
    x, y = zip(*points[:: math.ceil(len(points) / MAX_POINTS)], strict=True)
    axes.scatter(x, y, s=8, color=BLUE, alpha=0.2)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.04)
    axes.set_xlabel(t("confidence"))
    axes.set_ylabel(t("score"))


def near_misses(records: Sequence[dict]) -> list[dict]:
    """Return {"kind", "means", "count", "lost", "examples"} of each kind, the costliest first.

    "lost" is the mean F1 over all questions that the kind costs.
    """
    found = defaultdict(list)
    for record in records:
        gold = closest_gold(record)
        if kind := near_miss(record["prediction"], gold):
            found[kind].append({**record, "gold_text": gold})
    misses: list[dict] = [
        {
            "kind": kind,
            "means": NEAR_MISSES[kind],
            "count": len(members),
            "lost": sum(1 - member["char_f1"] for member in members) / len(records),
            "examples": sorted(members, key=lambda member: member["char_f1"])[:3],
        }
        for kind, members in found.items()
    ]
    return sorted(misses, key=lambda miss: (-miss["lost"], -miss["count"]))


def closest_gold(record: dict) -> str:
    """Return the gold answer that equals the prediction, else the one it is scored by."""
    prediction = record["prediction"]
    return max(
        record["gold"], key=lambda gold: (gold == prediction, metrics.char_f1(prediction, gold))
    )


def worst_records(records: Sequence[dict]) -> list[dict]:
    """Return the WORST records with the lowest F1; of equals the most confident comes first."""
    wrong = [record for record in records if record["char_f1"] < 1]
    return sorted(wrong, key=lambda record: (record["char_f1"], -confidence(record)))[:WORST]


def with_article(record: dict, context: str) -> dict:
    """Return a record with its marked article, its closest gold answer and the other ones."""
    gold = closest_gold(record)
    # The letter of a choice is not looked for in the text.
    pieces = (
        [(context, "")]
        if record.get("choices")
        else mark(context, record["gold"], record["prediction"], record["question"])
    )
    others = [other for other in record["gold"] if other != gold]
    return {**record, "pieces": pieces, "gold_text": gold, "others": others}


def mark(
    context: str, golds: Sequence[str], prediction: str, question: str
) -> list[tuple[str, str]]:
    """Return the article in pieces: (text, "gold", "prediction", "evidence" or "").

    The evidence is the sentence most similar to question and gold answer, among those that contain
    a gold answer if any does.
    """
    sentences = split_sentences(context)
    order = nearest_first(sentences, [f"{question} {golds[0]}"])
    with_gold = [i for i in order if any(gold in sentences[i] for gold in golds)]
    # A kind for each character; later ones win.
    kinds = [""] * len(context)
    for evidence in [*with_gold, *order][:1]:
        start, size = sum(map(len, sentences[:evidence])), len(sentences[evidence])
        kinds[start : start + size] = ["evidence"] * size
    for kind, texts in (("prediction", [prediction]), ("gold", golds)):
        for text in filter(None, texts):
            start = context.find(text)
            while start >= 0:
                kinds[start : start + len(text)] = [kind] * len(text)
                start = context.find(text, start + len(text))
    starts = (next(group) for _, group in groupby(range(len(context)), key=kinds.__getitem__))
    return [(context[start:end], kinds[start]) for start, end in pairwise([*starts, len(context)])]
