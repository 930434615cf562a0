"""Write report.html, which shows a run on one page and needs no network.

Its plots are inside it, and as PNGs beside it.
"""

import base64
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path

from jinja2 import Environment
from matplotlib.axes import Axes

from dandap.data.checks import TOLD
from dandap.data.korean import NEAR_MISSES, near_miss
from dandap.data.sentences import nearest_first, split_sentences
from dandap.runs.files import write_text
from dandap.runs.plots import BLUE, GREY, ORANGE, bars, draw

PAGE = Path(__file__).with_name("report.html.jinja")
WORST, LISTED = 30, 20  # most answers that are shown, and most lines of a list
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
    settings: dict  # name -> value, those that differ from the defaults
    environment: dict
    interval: Interval
    likeness: Callable[[str, str], float]  # (prediction, gold) -> F1
    label: Callable[[str], str]  # a score's name -> as people read it
    remarks: list[str]  # on the answers, in sentences
    table: list[Sequence]  # of the task's own, its header first; empty for none
    history: list[dict] = field(default_factory=list)  # lines of metrics.jsonl
    suspects: list[dict] = field(default_factory=list)  # records whose label a fold contradicts
    findings: dict[str, list[dict]] | None = None  # of check_data


def write_report(folder: Path, report: Report) -> Path:
    """Write report.html and plots/*.png into a folder, and return the page's path."""
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    drawn = {
        name: draw(plots / f"{name}.png", fill, height=height)
        for name, fill, height in _plots(report)
    }
    evaluations = [line for line in report.history if "evaluation" in line]
    return write_page(
        folder,
        PAGE,
        drawn,
        report=report,
        evaluations=[{**line["evaluation"], "step": line["step"]} for line in evaluations],
        best=kept_step(report.history),
        misses=near_misses(report.records, report.likeness),
        worst=[
            worst_answer(record, report.contexts[record["id"]])
            for record in worst_records(report.records)
        ],
        label=report.label,
        told=TOLD,
        listed=LISTED,
    )


def write_page(folder: Path, template: Path, pictures: dict[str, Path], **values) -> Path:
    """Write report.html from a Jinja template and return its path.

    The template finds the PNGs as `images`, in base64, by their names.
    """
    # autoescape: an article's <script> must stay a text.
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        template.read_text(encoding="utf-8")
    )
    images = {name: base64.b64encode(path.read_bytes()).decode() for name, path in pictures.items()}
    write_text(folder / "report.html", page.render(images=images, **values))
    return folder / "report.html"


def kept_step(history: list[dict]) -> int | None:
    """Return the step whose adapter was kept, as training noted it, or None."""
    return next((line["kept"] for line in reversed(history) if "kept" in line), None)


def _plots(report: Report) -> Iterable[tuple[str, Callable[[Axes], None], float]]:
    """Yield each plot as (name, what fills its axes, height in inches)."""
    if any("loss" in line for line in report.history):
        yield "training", partial(training_curves, history=report.history), 3.6
    groups = {
        "kinds": by_kind(report.records),
        "answer_length": by_answer_length(report.records),
        "article_length": by_article_length(report.records, report.contexts),
    }
    labels = {
        "kinds": "score by kind of question",
        "answer_length": "score by length of the gold answer (characters)",
        "article_length": "score by length of the article (characters)",
    }
    # Questions without articles, as those of wallpaper_qa, have no lengths to group by.
    if not any(report.contexts.values()):
        del groups["article_length"]
    for name, grouped in groups.items():
        fill = partial(group_bars, groups=grouped, label=labels[name], interval=report.interval)
        yield name, fill, 1.1 + 0.42 * len(grouped)
    yield "confidence", partial(confidence_curve, records=report.records), 3.6


Groups = dict[str, list[dict]]


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


def group_bars(axes: Axes, groups: Groups, label: str, interval: Interval) -> None:
    """Draw a bar for each group, with its interval."""
    means, intervals = [], []
    for group in groups.values():
        values = [record["char_f1"] for record in group]
        means.append(sum(values) / len(values))
        # The bootstrap draws whole articles, because scores on one article hang together.
        intervals.append(interval(values, [record["article"] for record in group]))
    bars(axes, list(groups), means, intervals, list(map(len, groups.values())))
    axes.set_xlabel(f"{label}, 95% interval")


def training_curves(axes: Axes, history: list[dict]) -> None:
    """Draw the loss of each step and its running mean, and the F1 of each evaluation.

    The F1 has its interval, and an axis of its own on the right.
    """
    steps, losses = zip(
        *((line["step"], line["loss"]) for line in history if "loss" in line), strict=True
    )
    axes.plot(steps, losses, color=BLUE, alpha=0.3, linewidth=0.8)
    axes.plot(steps, _smooth(losses), color=BLUE, label="loss (running mean)")
    axes.set_xlabel("step")
    axes.set_ylabel("loss of an answer token", color=BLUE)
    axes.set_ylim(bottom=0)
    evaluations = [line for line in history if "evaluation" in line]
    if not evaluations:
        return
    right = axes.twinx()
    right.spines["right"].set_visible(True)
    right.grid(visible=False)
    at = [line["step"] for line in evaluations]
    f1 = [line["evaluation"]["char_f1"] for line in evaluations]
    low, high = zip(*(line["evaluation"]["char_f1_interval"] for line in evaluations), strict=True)
    right.fill_between(at, low, high, color=ORANGE, alpha=0.15)
    right.plot(at, f1, color=ORANGE, marker="o", label="validation")
    best = kept_step(history)
    # It is None as long as no adapter was kept.
    if best in at:
        right.plot(
            [best],
            [f1[at.index(best)]],
            marker="*",
            markersize=16,
            color=ORANGE,
            linestyle="none",
            label="kept",
        )
    right.set_ylabel("score, 95% interval", color=ORANGE)
    right.set_ylim(0, 1.03)
    right.legend(loc="lower right", frameon=False)


def _smooth(values: Sequence[float], share: float = 0.1) -> list[float]:
    """Return the mean of each value and those before it, over a tenth of the run."""
    width = max(1, round(len(values) * share))
    means = []
    for end in range(1, len(values) + 1):
        window = values[max(0, end - width) : end]
        means.append(sum(window) / len(window))
    return means


def confidence_curve(axes: Axes, records: list[dict]) -> None:
    """Draw the mean F1 of ten groups of equally many questions by their confidence.

    Confidence is the geometric mean of the probabilities of an answer's tokens.
    """
    ordered = sorted(records, key=lambda record: record["log_probability"])
    size = math.ceil(len(ordered) / 10)
    parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    sure, f1 = [], []
    for part in parts:
        sure.append(sum(math.exp(record["log_probability"]) for record in part) / len(part))
        f1.append(sum(record["char_f1"] for record in part) / len(part))
    # The dotted line is where confidence and score are the same.
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    axes.plot(sure, f1, color=BLUE, marker="o")
    axes.scatter(
        [math.exp(r["log_probability"]) for r in records],
        [r["char_f1"] for r in records],
        s=6,
        color=BLUE,
        alpha=0.15,
    )
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.04)
    axes.set_xlabel("confidence (geometric mean of token probabilities)")
    axes.set_ylabel("score")


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
    prediction = record["prediction"]
    return max(record["gold"], key=lambda gold: (gold == prediction, likeness(prediction, gold)))


def worst_records(records: list[dict]) -> list[dict]:
    """Return the records below an F1 of 1, worst first, WORST of them at most.

    Of equals the surest comes first, because it misleads most.
    """
    wrong = [record for record in records if record["char_f1"] < 1]
    return sorted(wrong, key=lambda record: (record["char_f1"], -record["log_probability"]))[:WORST]


def worst_answer(record: dict, context: str) -> dict:
    """Return a record with its article in pieces, as `mark` makes them."""
    return {
        **record,
        "pieces": mark(context, record["gold"], record["prediction"], record["question"]),
    }


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
