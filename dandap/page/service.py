"""Answer what the page and the endpoint /answer ask: within bounds, one request at a time."""

from collections.abc import Mapping
from threading import Lock
from typing import Any

from dandap.answering.run import OpenModel, Source, find_source, open_model
from dandap.data.encode import Example
from dandap.errors import InputError, short_list
from dandap.language import t
from dandap.model.device import free_memory
from dandap.page.cards import render, render_message
from dandap.runs.folder import RunFolder, find_run, list_runs
from dandap.runs.predictions import confidence
from tasks import get_task

MAX_MODELS = 2  # in memory: the two that are compared
MAX_CHARACTERS, MAX_QUESTIONS = 30_000, 50
BASE = ":base"  # compares a run with its untuned base; no run of ours has this name


def find_runs(name: str | None, output_dir: str) -> dict[str, RunFolder]:
    """Return the finished runs by name, the chosen one first, then the newest."""
    first = find_run(name, output_dir)
    runs = {first.path.resolve().name: first}
    for run in reversed(list_runs(output_dir)):
        if run.finished:
            runs.setdefault(run.path.name, run)
    return runs


class AnswerService:
    """Answers with any of the runs; `options` are over their recipes."""

    def __init__(self, runs: Mapping[str, RunFolder], options: Mapping[str, Any]):
        self.runs, self.options = runs, options
        self.tasks = {name: get_task(run.load_recipe().task) for name, run in runs.items()}
        self.models: dict[tuple[str, bool], OpenModel] = {}  # the least recently used first
        self.lock = Lock()

    def answer(
        self, run: str, typed: Mapping[str, str], adapted: bool = True
    ) -> list[tuple[Example, dict[str, Any]]]:
        """Return the typed questions in order, with their records of predictions.jsonl.

        Without `adapted` the run's untuned base answers.
        """
        if (count := sum(map(len, typed.values()))) > MAX_CHARACTERS:
            error = "got {count} characters; expected at most {most}."
            raise InputError(t(error, count=count, most=MAX_CHARACTERS))
        rows = self.tasks[run].page.to_rows(typed)
        if not 1 <= len(rows) <= MAX_QUESTIONS:
            error = "got {count} questions; expected 1 to {most}, one a line."
            raise InputError(t(error, count=len(rows), most=MAX_QUESTIONS))
        with self.lock:
            model = self.open(run, adapted)
            examples = model.encode(rows)
            return list(zip(examples, model.predict_all(examples).records, strict=True))

    def open(self, run: str, adapted: bool = True) -> OpenModel:
        """Return a model, loaded if it is not open; the least recently used makes room for it."""
        model = self.models.pop((run, adapted), None)
        while model is None:
            if len(self.models) == MAX_MODELS:
                self._close_one()
            try:
                model = self.load(run, adapted)
            except InputError:  # on a GPU another model may have the memory that this one needs
                if not self.models:
                    raise
                self._close_one()
        self.models[run, adapted] = model
        return model

    def load(self, run: str, adapted: bool) -> OpenModel:
        """Load a run's model as inference.py does; its base gets the run's template."""
        source = find_source(str(self.runs[run].path), options=self.options)
        return open_model(source if adapted else Source(None, source.recipe, source.template))

    def _close_one(self) -> None:
        del self.models[next(iter(self.models))]
        free_memory()

    def show(self, run: str, compared: str, typed: Mapping[str, str]) -> str:
        """Return a run's answers as HTML, next to another run's or its base's ("" for none)."""
        try:
            answers = {run: self.answer(run, typed)}
            if compared == BASE:
                answers[t("the untuned base model")] = self.answer(run, typed, adapted=False)
            elif compared:
                answers[compared] = self.answer(compared, typed)
        except InputError as error:
            return render_message(str(error))
        return render(self.tasks[run].page, answers)

    def answer_request(self, article: Any, questions: Any, run: Any) -> list[dict[str, Any]]:
        """Return what /answer sends; the types are checked here, because Gradio does not."""
        lines = questions if isinstance(questions, list) else [None]
        is_valid = all(isinstance(line, str) and "\n" not in line for line in lines)
        if not (is_valid and isinstance(article, str)):
            raise InputError("expected an article, and a list of questions without line breaks.")
        typed = {"article": article, "questions": "\n".join(questions)}
        boxes = {name: [box.name for box in self.tasks[name].page.boxes] for name in self.tasks}
        runs = [name for name in boxes if typed.keys() >= set(boxes[name])]
        run = run or next(iter(runs), "")
        if run not in runs:
            raise InputError(
                f"got run {str(run)[:100]!r}; of these runs /answer asks {short_list(runs)}."
            )
        return [
            {
                "question": record["question"],
                "answer": record["prediction"],
                "probability": round(confidence(record), 4),
                "span": record["span"],
                "trimmed_characters": record["trimmed_characters"],
            }
            for _, record in self.answer(run, {name: typed[name] for name in boxes[run]})
        ]
