"""Validation that decides: answers are scored while training, and say which adapter is kept."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import TrainerCallback, TrainerState

from dandap.data.encode import Example
from dandap.data.rows import by_article
from dandap.files import append_json
from dandap.model.distributed import is_first
from dandap.recipe import Recipe
from dandap.training.trackers import track_scores
from tasks.scoring import format_evaluation, label


def some_of(examples: list[Example], most: int) -> list[Example]:
    """Return at most so many questions, of whole articles where possible.

    They are the same for every run on the same data.
    """
    # By the articles themselves, so that another order of rows chooses the same.
    articles = sorted(
        by_article(e.row.article for e in examples),
        key=lambda article: examples[article[0]].row.article,
    )
    chosen: list[int] = []
    for article in articles:
        if len(chosen) + len(article) <= most:
            chosen += article
    # Every article may have more questions than are wanted: then a part of one is taken.
    return [examples[index] for index in sorted(chosen or articles[0][:most])]


def steps_between(recipe: Recipe, questions: int) -> int | None:
    """Return the optimizer steps between evaluations, or None if there are to be none."""
    if recipe.evaluate_every is None:
        return None
    number, unit = recipe.evaluate_every.split()
    steps_per_epoch = math.ceil(questions / recipe.questions_per_step)
    return int(number) if unit == "steps" else max(1, round(float(number) * steps_per_epoch))


def best_step(state: TrainerState) -> int | None:
    """Return the step whose answers had the highest score, of equals the last.

    None is returned before the first evaluation.
    """
    evaluated = _evaluations(state)
    if not evaluated:
        return None
    return max(evaluated, key=lambda record: (record["evaluation"], record["step"]))["step"]


def step_to_keep(state: TrainerState, compare: Callable[..., dict]) -> int | None:
    """Return the step whose adapter is kept; None before the first evaluation.

    It is the best evaluation's where that is better than the last one's by more than the questions'
    choice can explain (paired, whole articles resampled), else the last one's. The highest of
    several means is an accident more often than not: on 32 questions it chose the adapter of a
    quarter of an epoch, which lost 0.006 F1 on 265 others. `compare` is the task's.
    """
    best = best_step(state)
    if best is None:
        return None
    evaluated = {record["step"]: record for record in _evaluations(state)}
    last = max(evaluated)
    ours, theirs = evaluated[best], evaluated[last]
    # Other questions, or a run that was begun before scores were noted by question, are no pairs.
    if "each" not in theirs or ours.get("articles") != theirs["articles"]:
        return best
    gain = compare(ours["each"], theirs["each"], theirs["articles"])
    return best if gain["interval"][0] > 0 else last


def evaluated_steps(state: TrainerState) -> set[int]:
    """Return the steps whose evaluations the state knows."""
    return {record["step"] for record in _evaluations(state)}


def _evaluations(state: TrainerState) -> list[dict]:
    """Return what was evaluated; the trainer's state keeps it, so that a resumed run knows it."""
    return [record for record in state.log_history if "evaluation" in record]


@dataclass(frozen=True)
class Evaluation:
    """Holds the scores of an evaluation, and its questions' own, each with its article."""

    scores: dict
    each: list[float]
    articles: list[str]


class KeepBest(TrainerCallback):
    """Evaluates every so many steps and after the last one, and has a new best adapter saved.

    It stops training when there has been no better one for long. `evaluate` returns the task's
    scores, the same in all processes, of which the first of its headline counts; `patience` is the
    number of evaluations without a higher one, None for no end. `step_to_keep` decides between the
    best and the last.
    """

    def __init__(
        self,
        evaluate: Callable[[], Evaluation],
        every: int,
        patience: int | None,
        metrics_file: Path,
        task,
    ):
        self.evaluate, self.every, self.patience = evaluate, every, patience
        self.metrics_file, self.task, self.metric = metrics_file, task, task.headline[0]
        self.trackers: list[TrainerCallback] = []  # of the first process

    def on_train_begin(self, args, state, control, **kwargs):
        """Make up for the evaluation of a run's last step, which a run told to stop leaves out."""
        if (
            state.global_step
            and self._is_due(state)
            and state.global_step not in evaluated_steps(state)
        ):
            self._evaluate(args, state, control, loss=None)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Evaluate a step when it is logged, which is before it is saved."""
        # A run that was told to stop must end soon; the evaluation comes when it is resumed.
        stopping = control.should_training_stop and state.global_step < state.max_steps
        if "loss" in (logs or {}) and self._is_due(state) and not stopping:
            self._evaluate(args, state, control, logs["loss"])

    def _is_due(self, state: TrainerState) -> bool:
        # None within half a period of the end: the last step is evaluated anyway.
        left = state.max_steps - state.global_step
        return left == 0 or (state.global_step % self.every == 0 and left >= self.every / 2)

    def _evaluate(self, args, state: TrainerState, control, loss: float | None) -> None:
        found = self.evaluate()
        scores = found.scores
        noted = {"evaluation": scores[self.metric], "each": found.each, "articles": found.articles}
        state.log_history.append({"step": state.global_step, **noted})
        if is_first():
            append_json(
                self.metrics_file,
                {"step": state.global_step, "epoch": round(state.epoch, 4), "evaluation": scores},
            )
            print(evaluation_line(state, format_evaluation(self.task, scores), loss))
            track_scores(self.trackers, args, state, control, scores)
        if best_step(state) == state.global_step:
            control.should_save = True
        if self.has_ended(state):
            print(
                f"no higher {label(self.metric)} in {self.patience} evaluations "
                "(patience): training ends"
            )
            control.should_save = control.should_training_stop = True

    def has_ended(self, state: TrainerState) -> bool:
        """Say whether there has been no gain for as long as patience allows."""
        scores = [record["evaluation"] for record in _evaluations(state)]
        return (
            bool(self.patience and scores)
            and len(scores) - 1 - scores.index(max(scores)) >= self.patience
        )


def evaluation_line(state: TrainerState, told: str, loss: float | None) -> str:
    """Return one row of the table of evaluations; `told` is what the task says of them."""
    loss_said = "" if loss is None else f"loss {loss:.4f}  "
    return f"step {state.global_step:>6}/{state.max_steps}  {loss_said}{told}"
