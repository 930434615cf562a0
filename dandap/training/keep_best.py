"""Validation that decides: answers are scored while training goes on, and the best adapter is the one that is kept."""

import math
from collections.abc import Callable
from pathlib import Path

from transformers import TrainerCallback, TrainerState

from dandap.base.processes import from_first, is_first
from dandap.data.encoding import Example
from dandap.data.rows import by_article
from dandap.recipe import Recipe
from dandap.runs.files import append_json


def some_of(examples: list[Example], most: int) -> list[Example]:
    """At most so many questions, of whole articles where possible; the same for every run on the same data."""
    articles = sorted(
        by_article(e.row.article for e in examples),
        key=lambda article: examples[article[0]].row.article,
    )
    chosen: list[int] = []
    for article in articles:
        if len(chosen) + len(article) <= most:
            chosen += article
    return [examples[index] for index in sorted(chosen or articles[0][:most])]


def steps_between(recipe: Recipe, questions: int) -> int | None:
    """Optimizer steps between evaluations; None for none."""
    if recipe.evaluate_every is None:
        return None
    number, unit = recipe.evaluate_every.split()
    steps_per_epoch = math.ceil(questions / recipe.questions_per_step)
    return int(number) if unit == "steps" else max(1, round(float(number) * steps_per_epoch))


def best_step(state: TrainerState) -> int | None:
    """The step whose answers had the highest score, of equals the last; None before the first evaluation."""
    evaluated = _evaluations(state)
    return (
        max(evaluated, key=lambda record: (record["evaluation"], record["step"]))["step"]
        if evaluated
        else None
    )


def evaluated_steps(state: TrainerState) -> set[int]:
    """The steps whose evaluations the state knows."""
    return {record["step"] for record in _evaluations(state)}


def _evaluations(state: TrainerState) -> list[dict]:
    """What was evaluated, kept in the trainer's state so that a resumed run knows it."""
    return [record for record in state.log_history if "evaluation" in record]


class KeepBest(TrainerCallback):
    """Evaluates every so many steps and after the last one; has a new best one saved; stops when there has been none for long.

    `evaluate` returns the task's scores, the first of its headline decides; `patience` is the number of evaluations without
    a higher one, None for no end.
    """

    def __init__(
        self,
        evaluate: Callable[[], dict],
        every: int,
        patience: int | None,
        metrics_file: Path,
        task,
    ):
        self.evaluate, self.every, self.patience = evaluate, every, patience
        self.metrics_file, self.task, self.metric = metrics_file, task, task.headline[0]

    def on_train_begin(self, args, state, control, **kwargs):
        """A run that was told to stop did not wait for the evaluation of its last step."""
        if (
            state.global_step
            and self._is_due(state)
            and state.global_step not in evaluated_steps(state)
        ):
            self._evaluate(state, control, loss=None)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Before the step is saved."""
        stopping = control.should_training_stop and state.global_step < state.max_steps
        if "loss" in (logs or {}) and self._is_due(state) and not stopping:
            self._evaluate(state, control, logs["loss"])

    def _is_due(self, state: TrainerState) -> bool:
        left = state.max_steps - state.global_step
        return left == 0 or (state.global_step % self.every == 0 and left >= self.every / 2)

    def _evaluate(self, state: TrainerState, control, loss: float | None) -> None:
        scores = from_first(self.evaluate)
        state.log_history.append({"step": state.global_step, "evaluation": scores[self.metric]})
        if is_first():
            append_json(
                self.metrics_file,
                {"step": state.global_step, "epoch": round(state.epoch, 4), "evaluation": scores},
            )
            print(evaluation_line(state, self.task.evaluation(scores), scores, loss))
        if best_step(state) == state.global_step:
            control.should_save = True
        if self.has_ended(state):
            print(
                f"no higher {self.task.label(self.metric)} in {self.patience} evaluations (patience): training ends"
            )
            control.should_save = control.should_training_stop = True

    def has_ended(self, state: TrainerState) -> bool:
        """Whether there has been no gain for as long as patience allows."""
        scores = [record["evaluation"] for record in _evaluations(state)]
        return (
            bool(self.patience and scores)
            and len(scores) - 1 - scores.index(max(scores)) >= self.patience
        )


def evaluation_line(state: TrainerState, told: str, scores: dict, loss: float | None) -> str:
    """Return one row of the table of evaluations; `told` are the scores as the task has them."""
    return (
        f"step {state.global_step:>6}/{state.max_steps}  {'' if loss is None else f'loss {loss:.4f}  '}{told}  "
        f"length {scores['mean_length']:.1f}  stopped {scores['stopped']:.0%}  spans {scores['spans']:.0%}  "
        f"repeating {scores['repeating']:.0%}"
    )
