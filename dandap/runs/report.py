"""Write report.html, which shows a run on one page and needs no network.

Its plots are inside it, and as PNGs beside it.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.axes import Axes

from dandap.data.checks import FINDINGS
from dandap.data.korean import NEAR_MISSES, near_miss
from dandap.data.sentences import nearest_first, split_sentences
from dandap.language import t
from dandap.runs.html import write_page
from dandap.runs.plots import BLUE, GREY, ORANGE, bars, draw

PAGE = Path(__file__).with_name("report.html.jinja")
WORST, LISTED = 30, 20  # most answers that are shown, and most lines of a list
MOST_POINTS = 1000  # of single questions in a plot; 100,000 would be a page of 10 MB
# (values, their articles) -> the 95% interval of the mean.
Interval = Callable[[Sequence[float], Sequence[str]], tuple[float, float]]


@dataclass(frozen=True)
class Report:
    """Holds what a report is made of.

    `records` are scored predictions; `contexts` are their articles' texts by the questions' ids.
    """

    title: str
    records: list[dict]
    contexts: dict[str, str]
    scores: dict
    headline: tuple[str, ...]  # the scores on top, which have an interval each
    nouns: tuple[str, str]  # what its questions are called, and what they stand on
    settings: dict  # name -> value, those that differ from the defaults
    environment: dict
    interval: Interval
    likeness: Callable[[str, str], float]  # (prediction, gold) -> F1
    label: Callable[[str], str]  # a score's name -> as people read it
    remarks: list[str]  # on the answers, in sentences
    table: list[Sequence]  # of the task's own, its header first; empty for none
    asked: dict[str, str]  # questions' ids -> what was asked, where the question says it not all
    history: list[dict] = field(default_factory=list)  # lines of metrics.jsonl
    suspects: list[dict] = field(default_factory=list)  # records whose label a fold contradicts
    findings: dict[str, list[dict]] | None = None  # of check_data

    @property
    def chosen(self) -> bool:
        """Return whether the answers were chosen of several that were given."""
        return all(record.get("choices") for record in self.records)


class Bar(NamedTuple):
    """Holds the score of a group of questions."""

    label: str
    mean: float
    interval: tuple[float, float]
    count: int


def write_report(folder: Path, report: Report) -> Path:
    """Write report.html and plots/*.png into a folder, and return the page's path."""
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    charts = score_charts(report)
    for name, (title, rows) in charts.items():
        if not all_perfect(rows):
            draw(plots / f"{name}.png", title, partial(group_bars, rows=rows), bars_height(rows))
    drawn = {}
    if any("loss" in line for line in report.history):
        first = report.headline[0]
        label = t(report.label(first))
        curves = partial(training_curves, history=report.history, score=first, label=label)
        drawn["training"] = draw(plots / "training.png", t("Loss and score by step"), curves, 3.8)
    confident = partial(confidence_curve, records=report.records)
    drawn["confidence"] = draw(plots / "confidence.png", t("Score by confidence"), confident, 3.8)
    evaluations = [line for line in report.history if "evaluation" in line]
    return write_page(
        folder,
        PAGE,
        report.title,
        report=report,
        images={name: Markup(svg) for name, svg in drawn.items()},  # made by us, not by a file
        charts=charts,
        all_perfect=all_perfect,
        evaluations=[{**line["evaluation"], "step": line["step"]} for line in evaluations],
        best=kept_step(report.history),
        # A letter that was chosen is right or wrong.
        misses=[] if report.chosen else near_misses(report.records, report.likeness),
        worst=[
            worst_answer(record, report.contexts[record["id"]], report.likeness)
            for record in worst_records(report.records)
        ],
        confidence=confidence,
        articles=any(report.contexts.values()),
        told=FINDINGS,
        listed=LISTED,
    )


def kept_step(history: list[dict]) -> int | None:
    """Return the step whose adapter was kept, as training noted it, or None."""
    return next((line["kept"] for line in reversed(history) if "kept" in line), None)


Groups = dict[str, list[dict]]


def score_charts(report: Report) -> dict[str, tuple[str, list[Bar]]]:
    """Return the charts of scores by group, each as (title, its bars), by name.

    A chart of one bar tells nothing and is left out.
    """
    score, on = t(report.label(report.headline[0])), t(report.nouns[1])
    score = score[0].upper() + score[1:]
    groups = {
        "kinds": (t("{score} by kind of question", score=score), by_kind(report.records)),
        "answer_length": (
            t("{score} by length of the gold answer, in characters", score=score),
            # The letter of a choice has no length.
            {} if report.chosen else by_answer_length(report.records),
        ),
        "article_length": (
            t("{score} by length of {articles}, in characters", score=score, articles=on),
            # Questions without articles, as those of wallpaper_qa, have no lengths to group by.
            by_article_length(report.records, report.contexts)
            if any(report.contexts.values())
            else {},
        ),
    }
    return {
        name: (title, score_groups(grouped, report.interval))
        for name, (title, grouped) in groups.items()
        if len(grouped) > 1
    }


def score_groups(groups: Groups, interval: Interval) -> list[Bar]:
    """Return each group's mean score with its interval."""
    rows = []
    for label, group in groups.items():
        values = [record["char_f1"] for record in group]
        # The bootstrap draws whole articles, because scores on one article hang together.
        around = interval(values, [record["article"] for record in group])
        rows.append(Bar(label, sum(values) / len(values), around, len(values)))
    return rows


def all_perfect(rows: list[Bar]) -> bool:
    """Return whether all bars are full, so that the numbers alone tell as much."""
    return all(row.mean >= 0.9995 for row in rows)  # which reads 1.000


def by_kind(records: list[dict]) -> Groups:
    """Group records by what their questions ask for, the largest group first."""
    groups = defaultdict(list)
    for record in records:
        groups[record["kind"]].append(record)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def by_answer_length(records: list[dict]) -> Groups:
    """Group records by characters of the first gold answer; leave empty groups out."""
    edges = [(1, 2), (3, 4), (5, 8), (9, 16), (17, math.inf)]

    def group(low: float, high: float) -> list[dict]:
        return [record for record in records if low <= len(record["gold"][0]) <= high]

    named = {
        f"{low}-{high}" if high < math.inf else f"{low} or more": group(low, high)
        for low, high in edges
    }
    return {name: members for name, members in named.items() if members}


def by_article_length(records: list[dict], contexts: dict[str, str]) -> Groups:
    """Group records into four of equally many, by characters of the article."""
    ordered = sorted(records, key=lambda record: len(contexts[record["id"]]))
    size = math.ceil(len(ordered) / 4)
    groups = {}
    for start in range(0, len(ordered), size):
        part = ordered[start : start + size]
        low, high = (len(contexts[part[i]["id"]]) for i in (0, -1))
        # Where many articles are equally long, two groups have the same edges and become one.
        groups.setdefault(f"{low:,}-{high:,}", []).extend(part)
    return groups


def bars_height(rows: list[Bar]) -> float:
    """Return the inches that a plot of bars takes."""
    return 1.1 + 0.6 * len(rows)


def group_bars(axes: Axes, rows: list[Bar]) -> None:
    """Draw a bar for each group, with its interval."""
    bars(axes, *map(list, zip(*rows, strict=True)))
    axes.set_xlabel(t("mean and 95% interval"))


def training_curves(axes: Axes, history: list[dict], score: str, label: str) -> None:
    """Draw the loss of each step and its running mean, and the score of each evaluation.

    The score has its interval, and an axis of its own on the right; people call it `label`.
    """
    steps, losses = zip(
        *((line["step"], line["loss"]) for line in history if "loss" in line), strict=True
    )
    axes.plot(steps, losses, color=BLUE, alpha=0.3, linewidth=0.8)
    axes.plot(steps, _smooth(losses), color=BLUE, label=t("loss (running mean)"))
    axes.set_xlabel(t("step"))
    axes.set_ylabel(t("loss of an answer token"), color=BLUE)
    axes.set_ylim(bottom=0)
    evaluations = [line for line in history if "evaluation" in line]
    if evaluations:
        right = axes.twinx()
        right.spines["right"].set_visible(True)
        right.grid(visible=False)
        right.set_ylabel(t("{score}, 95% interval", score=label), color=ORANGE)
        right.set_ylim(0, 1.03)
        each = {line["step"]: line["evaluation"] for line in evaluations}
        points = [(step, told[score], *told[f"{score}_interval"]) for step, told in each.items()]
        evaluation_curve(right, points, kept_step(history), label)
    # Below the axes, where it covers no curve.
    axes.figure.legend(loc="outside lower center", ncols=3, frameon=False)


def evaluation_curve(
    axes: Axes, points: list[tuple[int, float, float, float]], best: int | None, label: str
) -> None:
    """Draw (step, score, low, high) of each evaluation, and a star at the step that was kept."""
    at, scores, low, high = zip(*points, strict=True)
    axes.fill_between(at, low, high, color=ORANGE, alpha=0.15)
    axes.plot(at, scores, color=ORANGE, marker="o", label=label)
    # It is None as long as no adapter was kept.
    if best in at:
        star = {"marker": "*", "markersize": 16, "color": ORANGE, "linestyle": "none"}
        axes.plot([best], [scores[at.index(best)]], label=t("kept"), **star)


def _smooth(values: Sequence[float], share: float = 0.1) -> list[float]:
    """Return the mean of each value and those before it, over a tenth of the run."""
    width = max(1, round(len(values) * share))
    sums = [0.0, *accumulate(values)]
    means = []
    for end in range(1, len(values) + 1):
        start = max(0, end - width)
        means.append((sums[end] - sums[start]) / (end - start))
    return means


def confidence(record: dict) -> float:
    """Return how sure an answer was, in [0, 1].

    It is the geometric mean of its tokens' probabilities; of a choice, its share of the
    probability of all choices.
    """
    choices = record.get("choices")
    if not choices or record["prediction"] not in choices:
        return math.exp(record["log_probability"])
    # The highest is taken off before exp, or very unlikely choices would all become 0.
    highest = max(choices.values())
    chances = {name: math.exp(value - highest) for name, value in choices.items()}
    return chances[record["prediction"]] / sum(chances.values())


def confidence_curve(axes: Axes, records: list[dict]) -> None:
    """Draw the mean score of ten groups of equally many questions by their confidence."""
    points = sorted((confidence(record), record["char_f1"]) for record in records)
    size = math.ceil(len(points) / 10)
    sure, f1 = [], []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        sure.append(sum(point for point, _ in part) / len(part))
        f1.append(sum(score for _, score in part) / len(part))
    # The dotted line is where confidence and score are the same.
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    axes.plot(sure, f1, color=BLUE, marker="o")
    some = points[:: math.ceil(len(points) / MOST_POINTS)]
    axes.scatter(*zip(*some, strict=True), s=8, color=BLUE, alpha=0.2)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.04)
    axes.set_xlabel(t("confidence"))
    axes.set_ylabel(t("score"))


def near_misses(records: list[dict], likeness: Callable[[str, str], float]) -> list[dict]:
    """Return the kinds of near-misses, the costliest first.

    Each is {"kind", "means", "count", "lost", "examples"}; what is lost is F1 over all questions.
    """
    found = defaultdict(list)
    for record in records:
        gold = closest_gold(record, likeness)
        kind = near_miss(record["prediction"], gold)
        if kind:
            found[kind].append({**record, "gold_text": gold})
    rows = []
    for kind, members in found.items():
        row = {
            "kind": kind,
            "means": NEAR_MISSES[kind],
            "count": len(members),
            "lost": sum(1 - member["char_f1"] for member in members) / len(records),
            "examples": sorted(members, key=lambda member: member["char_f1"])[:3],
        }
        rows.append(row)
    return sorted(rows, key=lambda row: (-row["lost"], -row["count"]))


def closest_gold(record: dict, likeness: Callable[[str, str], float]) -> str:
    """Return a gold answer that equals the prediction, else the one by which it is scored."""
    prediction, golds = record["prediction"], record["gold"]
    if len(golds) == 1:
        return golds[0]
    return max(golds, key=lambda gold: (gold == prediction, likeness(prediction, gold)))


def worst_records(records: list[dict]) -> list[dict]:
    """Return the records below an F1 of 1, worst first, WORST of them at most.

    Of equals the surest comes first, because it misleads most.
    """
    wrong = [record for record in records if record["char_f1"] < 1]
    return sorted(wrong, key=lambda record: (record["char_f1"], -confidence(record)))[:WORST]


def worst_answer(record: dict, context: str, likeness: Callable[[str, str], float]) -> dict:
    """Return a record with its article in pieces, as `mark` makes them, and its nearest gold."""
    # The letter of a choice stands for a text and is not looked for.
    pieces = (
        [(context, "")]
        if record.get("choices")
        else mark(context, record["gold"], record["prediction"], record["question"])
    )
    nearest = closest_gold(record, likeness)
    others = [gold for gold in record["gold"] if gold != nearest]
    return {**record, "pieces": pieces, "gold_text": nearest, "others": others}


def mark(context: str, golds: list[str], prediction: str, question: str) -> list[tuple[str, str]]:
    """Return the article in pieces: (text, "gold", "prediction", "evidence" or "").

    Gold answers and the prediction are marked where they stand, and as evidence the sentence that
    the answer is likely in. It is the one nearest to question and gold answer, of those that hold a
    gold answer if any does.
    """
    sentences = split_sentences(context)
    order = nearest_first(sentences, [f"{question} {golds[0]}"])
    evidence = next(
        (i for i in order if any(gold in sentences[i] for gold in golds)),
        order[0] if order else None,
    )
    # A kind for each character: what is marked later wins, a gold answer over all else.
    kinds = [""] * len(context)
    if evidence is not None:
        start = sum(map(len, sentences[:evidence]))
        kinds[start : start + len(sentences[evidence])] = ["evidence"] * len(sentences[evidence])
    for kind, texts in (("prediction", [prediction]), ("gold", golds)):
        for text in filter(None, texts):
            start = context.find(text)
            while start >= 0:
                kinds[start : start + len(text)] = [kind] * len(text)
                start = context.find(text, start + len(text))
    # A piece begins at the first of neighbours of one kind, and ends where the next begins.
    starts = (next(group) for _, group in groupby(range(len(context)), key=kinds.__getitem__))
    return [(context[start:end], kinds[start]) for start, end in pairwise([*starts, len(context)])]
