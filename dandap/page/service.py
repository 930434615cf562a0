"""Answer requests of the page and of the endpoint /answer, one at a time and with limits.

The template of the cards escapes all texts.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any

from jinja2 import Environment

from dandap.answering.answer import find_span
from dandap.answering.run import OpenModel, Source, find_source, open_model
from dandap.data.encode import Example
from dandap.errors import InputError, short_list
from dandap.language import t
from dandap.model.device import free_memory
from dandap.runs.folder import find_run, list_runs
from dandap.runs.predictions import confidence
from tasks import get_task
from tasks.task import PageForm

MAX_MODELS = 2  # in memory, for comparisons
MAX_CHARACTERS, MAX_QUESTIONS = 30_000, 50
BASE = ":base"  # the untuned base; not a valid run name
CARDS = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    Path(__file__).with_name("cards.html.jinja").read_text(encoding="utf-8"), globals={"t": t}
)

Answered = list[tuple[Example, dict[str, Any]]]  # (example, record of predictions.jsonl)


class AnswerService:
    """Answers with any finished run; `run` is listed first, `options` override recipes."""

    def __init__(self, run: str | None, output_dir: str, options: Mapping[str, Any]):
        first = find_run(run, output_dir)
        self.runs = {first.path.resolve().name: first}
        for other in reversed(list_runs(output_dir)):
            if other.finished:
                self.runs.setdefault(other.path.name, other)
        self.tasks = {name: get_task(run.load_recipe().task) for name, run in self.runs.items()}
        self.options = options
        self.models: dict[tuple[str, bool], OpenModel] = {}  # the least recently used first
        self.lock = Lock()

    def answer(self, run: str, typed: Mapping[str, str], adapted: bool = True) -> Answered:
        """Answer the typed questions in order, with the run or its untuned base."""
        if (count := sum(map(len, typed.values()))) > MAX_CHARACTERS:
            error = "got {count} characters, expected at most {most}."
            raise InputError(t(error, count=count, most=MAX_CHARACTERS))
        rows = self.tasks[run].page.to_rows(typed)
        if not 1 <= len(rows) <= MAX_QUESTIONS:
            error = "got {count} questions, expected 1 to {most}, one per line."
            raise InputError(t(error, count=len(rows), most=MAX_QUESTIONS))
        with self.lock:
            model = self.open(run, adapted)
            examples = model.encode(rows)
            return list(zip(examples, model.predict_all(examples).records, strict=True))

    def open(self, run: str, adapted: bool = True) -> OpenModel:
        """Return a loaded model; unload the least recently used one if needed."""
        model = self.models.pop((run, adapted), None)
        while model is None:
            if len(self.models) < MAX_MODELS:
                try:
                    model = self.load(run, adapted)
                    break
                except InputError:  # another model may use the GPU's memory
                    if not self.models:
                        raise
            del self.models[next(iter(self.models))]
            free_memory()
        self.models[run, adapted] = model
        return model

    def load(self, run: str, adapted: bool) -> OpenModel:
        """Load a run, or its base with the run's template."""
        source = find_source(str(self.runs[run].path), options=self.options)
        return open_model(source if adapted else Source(None, source.recipe, source.template))

    def show(self, run: str, compared: str, typed: Mapping[str, str]) -> str:
        """Return answers as HTML, with those of another run or the base if `compared` is not ""."""
        try:
            answers = {run: self.answer(run, typed)}
            if compared == BASE:
                answers[t("the untuned base model")] = self.answer(run, typed, adapted=False)
            elif compared:
                answers[compared] = self.answer(compared, typed)
        except InputError as error:
            return CARDS.render(message=str(error))
        return render(self.tasks[run].page, answers)

    def answer_request(self, article: Any, questions: Any, run: Any) -> list[dict[str, Any]]:
        """Return the response of /answer; check types, because Gradio does not."""
        texts = [article, *(questions if isinstance(questions, list) else [None])]
        if not all(isinstance(text, str) for text in texts) or "\n" in "".join(texts[1:]):
            raise InputError("expected an article and a list of questions without line breaks.")
        typed = {"article": article, "questions": "\n".join(questions)}
        pages = {name: task.page for name, task in self.tasks.items()}
        runs = [name for name in pages if {box.name for box in pages[name].boxes} <= typed.keys()]
        run = run or next(iter(runs), "")
        if run not in runs:
            raise InputError(f"got run {str(run)[:100]!r}, expected one of {short_list(runs)}.")
        return [
            {
                "question": record["question"],
                "answer": record["prediction"],
                "probability": round(confidence(record), 4),
                "span": record["span"],
                "trimmed_characters": record["trimmed_characters"],
            }
            for _, record in self.answer(run, typed)
        ]


def render(form: PageForm, answers: Mapping[str, Answered]) -> str:
    """Return HTML: a card per question with all answers, and the article with marked answers."""
    first = next(iter(answers.values()))
    article, cards, marks = first[0][0].context, [], []
    for number, (asked, _) in enumerate(first):
        card = []
        for model, (name, answered) in enumerate(answers.items(), 1):
            row, record = asked.row, answered[number][1]
            text, note = record["prediction"], ""
            # Choices are letters.
            span = None if row.choices else find_span(text, article)
            if span:
                marks.append((*span, number + 1, model))
            if record["ended"] == "cut":
                note = "The answer was too long and was cut."
            elif article and text and not (span or row.choices):
                note = "This answer is not literally in the text."
            percent = min(int(confidence(record) * 100), 99)  # never 100%
            card.append((name, form.show_answer(row, text), note, percent))
        cards.append((form.show_question(asked.row), card))
    # Marks may overlap: split the text at every start and end into (text, models that answer with
    # it, questions whose answer ends here).
    pieces, cuts = [], {0, len(article), *(cut for mark in marks for cut in mark[:2])}
    for start, end in pairwise(sorted(cuts)):
        here = [mark for mark in marks if mark[0] <= start and end <= mark[1]]
        models = sorted({model for *_, model in here})
        ending = sorted({question for _, its_end, question, _ in here if its_end == end})
        pieces.append((article[start:end], models, ending))
    return CARDS.render(cards=cards, trimmed=first[0][0].trimmed, pieces=pieces)
