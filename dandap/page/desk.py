"""Answer what a page asks: hold the open models, bound what is asked, and make sheets of answers.

How a model is opened and rows are encoded comes in as functions: both are inference.py's.
"""

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from threading import Lock

from dandap.answering.answer import place
from dandap.data.encode import Example
from dandap.data.rows import Row
from dandap.errors import InputError, short_list
from dandap.language import t
from dandap.page.cards import Said, Sheet, message, render

MOST_OPEN = 2  # models in memory: the two that stand side by side
MOST_CHARACTERS, MOST_QUESTIONS, LONGEST_QUESTION = 30_000, 50, 1000
BASE = ":base"  # beside a run: its base alone; no folder that we make is called so


@dataclass
class Desk:
    """Answers with any of the runs, one request at a time.

    `tasks` map each run's name to its task, the first one's first. `open_model(run, adapted)`
    loads a run, or its base alone, and returns (recipe, model); `encode(recipe, model, rows)`
    returns the rows as examples.
    """

    tasks: dict
    open_model: Callable
    encode: Callable[..., list[Example]]
    models: dict = field(default_factory=dict)  # by (run, adapted); the one used last stands last
    lock: Lock = field(default_factory=Lock)

    @property
    def first(self) -> str:
        """Return the run that answers where none is named."""
        return next(iter(self.tasks))

    def answer(
        self, run: str, typed: dict[str, str], adapted: bool = True
    ) -> list[tuple[Example, dict]]:
        """Return the questions that were typed, in order, with their records of predictions.jsonl.

        Without `adapted` the base of the run answers alone.
        """
        task = self.tasks[run]
        rows = self.rows(task, typed)
        with self.lock:
            recipe, model = self.model(run, adapted)
            examples = self.encode(recipe, model, rows)
            model.check(examples)
            records = {
                example.row.id: task.record(example, said)
                for example, said in model.answerer.answers(examples)
            }
        return [(example, records[example.row.id]) for example in examples]

    def rows(self, task, typed: dict[str, str]) -> list[Row]:
        """Return the rows that were typed; refuse more than a page should ask."""
        for name, text in typed.items():
            if len(text or "") > MOST_CHARACTERS:
                label = next(t(box.label) for box in task.boxes if box.name == name)
                raise InputError(
                    f"'{label}' holds {len(text)} characters; at most {MOST_CHARACTERS} can be "
                    "read."
                )
        rows = task.ask({name: text or "" for name, text in typed.items()})
        if not rows:
            raise InputError("there is no question. Write one a line.")
        if len(rows) > MOST_QUESTIONS:
            raise InputError(
                f"got {len(rows)} questions; at most {MOST_QUESTIONS} can be asked at once."
            )
        for number, row in enumerate(rows, 1):
            if len(row.question) > LONGEST_QUESTION:
                raise InputError(
                    f"question {number} has {len(row.question)} characters; at most "
                    f"{LONGEST_QUESTION} can be asked."
                )
        return rows

    def model(self, run: str, adapted: bool) -> tuple:
        """Return (recipe, model), opened now if it is not open; older ones make room for it."""
        key = (run, adapted)
        if key not in self.models:
            self.close(keep=MOST_OPEN - 1)
            try:
                self.models[key] = self.open_model(run, adapted)
            except InputError:
                # On a GPU the others may hold the memory that this one needs.
                if not self.models:
                    raise
                self.close(keep=0)
                self.models[key] = self.open_model(run, adapted)
        self.models[key] = self.models.pop(key)
        return self.models[key]

    def close(self, keep: int) -> None:
        """Drop the models that were used longest ago, and give their memory back."""
        import torch  # 3 s, which --help need not take

        while len(self.models) > keep:
            del self.models[next(iter(self.models))]
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def show(desk: Desk, run: str, beside: str, typed: dict[str, str]) -> str:
    """Return as HTML what a run answers, and beside it another one or the run's base."""
    speakers = {run: (run, True)}
    if beside == BASE:
        speakers[t("the base, before training")] = (run, False)
    elif beside:
        speakers[beside] = (beside, True)
    try:
        answered = {
            name: desk.answer(chosen, typed, adapted)
            for name, (chosen, adapted) in speakers.items()
        }
    except InputError as error:
        return message(str(error))
    return render(make_sheet(desk.tasks[run], answered))


def make_sheet(task, answered: dict[str, list[tuple[Example, dict]]]) -> Sheet:
    """Return what is shown of every speaker's answers, on the article as the first one read it."""
    examples = [example for example, _ in next(iter(answered.values()))]
    article = examples[0].context
    answers = []
    for of_question in zip(*answered.values(), strict=True):
        pairs = zip(answered, of_question, strict=True)
        answers.append([_said(task, name, *pair, article) for name, pair in pairs])
    questions = [task.question(example.row) for example in examples]
    return Sheet(article, examples[0].trimmed, questions, answers)


def probability(record: dict) -> float:
    """Return how sure an answer is: the geometric mean of its tokens' probabilities.

    Where there were choices it is the answer's share among them.
    """
    if "choices" not in record:
        return math.exp(record["log_probability"])
    # The likeliest is the answer; the others are weighed against it, so that no sum is 0.
    scores = record["choices"].values()
    return 1 / sum(math.exp(score - max(scores)) for score in scores)


def _said(task, speaker: str, example: Example, record: dict, article: str) -> Said:
    text = record["prediction"]
    return Said(
        speaker,
        task.spoken(example.row, text),
        probability(record),
        # A letter of choices is no piece of the text, wherever it may stand in it.
        None if example.row.choices else place(text, article),
        record["ended"] == "cut",
        bool(example.row.choices),
    )


def endpoint(desk: Desk) -> Callable:
    """Return the function behind /answer; Gradio documents it by its signature."""
    from gradio import Error

    def answer(article: str, questions: list[str], run: str = "") -> list[dict]:
        """Answer questions on an article by a run (the first one if none is named).

        Each answer comes with the mean probability of its tokens (its share where there were
        choices), and with its place in the article as it was read, [start, end) in characters, or
        null; trimmed_characters were not read of it.
        """
        try:
            answered = desk.answer(*what_was_sent(desk, article, questions, run))
        except InputError as error:
            raise Error(str(error), print_exception=False) from error
        return [
            {
                "question": record["question"],
                "answer": record["prediction"],
                "probability": round(probability(record), 4),
                "span": record["span"],
                "trimmed_characters": record["trimmed_characters"],
            }
            for _, record in answered
        ]

    return answer


def is_asked_by(desk: Desk, run: str) -> bool:
    """Say whether an article and questions are all that a run asks for."""
    return {box.name for box in desk.tasks[run].boxes} <= {"article", "questions"}


def what_was_sent(desk: Desk, article, questions, run) -> tuple[str, dict[str, str]]:
    """Return (run, what was typed) of a call of /answer; Gradio does not check the types."""
    texts = [article, *questions] if isinstance(questions, list) else [None]
    if not all(isinstance(text, str) for text in texts) or any("\n" in each for each in texts[1:]):
        raise InputError("expected an article, and a list of questions without line breaks.")
    run = run or next(filter(partial(is_asked_by, desk), desk.tasks), desk.first)
    if run not in desk.tasks:
        raise InputError(f"there is no run {str(run)[:100]!r}; there are {short_list(desk.tasks)}.")
    typed = {"article": article, "questions": "\n".join(questions)}
    boxes = [box.name for box in desk.tasks[run].boxes]
    if not is_asked_by(desk, run):
        raise InputError(
            f"{run} was trained for {desk.tasks[run].name}, which /answer does not ask for (it "
            f"needs {', '.join(boxes)}). Name another run."
        )
    return run, {name: typed[name] for name in boxes}
