"""Render answers as HTML: a card for each question, and the article with the answers marked.

Texts of people and models are escaped by the template, and nowhere else.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment

from dandap.answering.answer import find_span
from dandap.data.encode import Example
from dandap.language import t
from dandap.runs.predictions import confidence
from tasks.task import PageForm

TEMPLATE = Path(__file__).with_name("cards.html.jinja")
# The lowest confidence for each of these.
LEVELS = {"very sure": 0.95, "fairly sure": 0.8, "unsure": 0.5, "little more than a guess": 0.0}


def render(form: PageForm, answers: Mapping[str, list[tuple[Example, dict[str, Any]]]]) -> str:
    """Return the answers of each model (by its name) to the same questions.

    The article is shown as the first model read it.
    """
    first = next(iter(answers.values()))
    article, cards, marks = first[0][0].context, [], []
    for number, (asked, _) in enumerate(first):
        card = []
        for model, (name, answered) in enumerate(answers.items(), 1):
            row, record = asked.row, answered[number][1]
            # A choice's letter is no piece of the text, wherever it is found in it.
            span = None if row.choices else find_span(record["prediction"], article)
            if span:
                marks.append((*span, number + 1, model))
            is_own = bool(article and record["prediction"]) and not (span or row.choices)
            shown = form.show_answer(row, record["prediction"])
            card.append((name, shown, record["ended"] == "cut", is_own, *grade(confidence(record))))
        cards.append((form.show_question(asked.row), card))
    pieces = mark_article(article, marks)
    return _fill(cards=cards, trimmed=first[0][0].trimmed, pieces=pieces)


def render_message(text: str) -> str:
    """Return an error's sentence in place of answers."""
    return _fill(message=text)


def _fill(**values: Any) -> str:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals["t"] = t
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(values)


def grade(confidence: float) -> tuple[str, int]:
    """Return a confidence in words and in percent, rounded down: 99.7% is not certain."""
    level = next(level for level, least in LEVELS.items() if confidence >= least)
    return level, min(int(confidence * 100), 99)


def mark_article(article: str, marks: list[tuple]) -> list[tuple[str, list[int], list[int]]]:
    """Return the article in pieces: (text, models that answer with it, questions that end here).

    A mark is (start, end, question, model). Marks may overlap, so the text is cut wherever one
    starts or ends.
    """
    pieces = []
    cuts = {0, len(article), *(cut for mark in marks for cut in mark[:2])}
    for start, end in pairwise(sorted(cuts)):
        here = [mark for mark in marks if mark[0] <= start and end <= mark[1]]
        models = sorted({model for *_, model in here})
        ending = sorted({question for _, its_end, question, _ in here if its_end == end})
        pieces.append((article[start:end], models, ending))
    return pieces
