"""Answer and score the validation questions, during training and after it."""

from functools import partial
from typing import Any

from transformers import TrainerCallback, TrainerState

from dandap.answering.run import OpenModel
from dandap.data.encode import Example
from dandap.data.rows import by_article
from dandap.files import append_json, read_json, read_json_lines, write_json_lines
from dandap.model.distributed import end_other_processes, from_main, is_main_process
from dandap.recipe import Recipe
from dandap.runs.folder import RunFolder
from dandap.runs.report import write_report
from dandap.training.callbacks import Tracker
from dandap.training.checkpoints import best_step, evaluations
from tasks import get_task
from tasks.submission import write_review
from tasks.task import answerable, compute_scores, format_evaluation, label, print_scores


def sample_examples(examples: list[Example], most: int) -> list[Example]:
    """Return at most `most` questions, if possible of whole articles, independent of row order."""
    # `Row.article` is a hash.
    articles = sorted(
        by_article(example.row.article for example in examples),
        key=lambda article: examples[article[0]].row.article,
    )
    chosen: list[int] = []
    for article in articles:
        if len(chosen) + len(article) <= most:
            chosen += article
    # The first article may have more questions than `most`.
    return [examples[index] for index in sorted(chosen or articles[0][:most])]


def steps_between(recipe: Recipe, questions: int) -> int | None:
    """Return the number of optimizer steps between evaluations, or None."""
    if recipe.evaluate_every is None:
        return None
    number, unit = recipe.evaluate_every.split()
    epoch = recipe.steps_per_epoch(questions)
    return int(number) if unit == "steps" else max(1, round(float(number) * epoch))


class Evaluate(TrainerCallback):
    """Scores validation questions every `every` steps and after the last step.

    Saves a new best adapter. Stops after `patience` evaluations without a higher score.
    """

    def __init__(self, model: OpenModel, examples: list[Example], every: int, run: RunFolder):
        self.model, self.every, self.run = model, every, run
        self.examples = sample_examples(examples, model.recipe.evaluate_questions)
        self.task, self.patience = get_task(model.recipe.task), model.recipe.patience
        self.trackers: list[Tracker] = []  # of the main process
        model.answerer.check(examples)  # fail before training

    def on_train_begin(self, args, state, control, **kwargs):
        """Evaluate the last step of an interrupted run."""
        done = {record["step"] for record in evaluations(state)}
        if state.global_step and self._is_due(state) and state.global_step not in done:
            self._evaluate(args, state, control)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Evaluate a step when it is logged, before it is saved."""
        # A run that is stopping evaluates after it is resumed.
        stopping = control.should_training_stop and state.global_step < state.max_steps
        if "loss" in (logs or {}) and self._is_due(state) and not stopping:
            self._evaluate(args, state, control, f"loss {logs['loss']:.4f}  ")

    def _is_due(self, state: TrainerState) -> bool:
        # Not within half an interval of the last step, which is evaluated anyway.
        left = state.max_steps - state.global_step
        return left == 0 or (state.global_step % self.every == 0 and left >= self.every / 2)

    def _evaluate(self, args, state: TrainerState, control, loss: str = "") -> None:
        answers = self.model.predict_all(self.examples)
        # All processes must make the same decision to stop.
        scores, record = from_main(partial(self._score, answers))
        state.log_history.append({"step": state.global_step, **record})
        if is_main_process():
            line = {"step": state.global_step, "epoch": round(state.epoch or 0, 4)}
            append_json(self.run.metrics_file, line | {"evaluation": scores})
            print(
                f"step {state.global_step:>6}/{state.max_steps}  {loss}"
                f"{format_evaluation(self.task, scores)}"
            )
            kinds = (int, float)  # compared by type, because True is an int
            numbers = {f"eval_{name}": n for name, n in scores.items() if type(n) in kinds}
            for tracker in self.trackers:
                tracker.on_log(args, state, control, logs=numbers)
        if best_step(state) == state.global_step:
            control.should_save = True
        if self.patience_exceeded(state):
            print(
                f"Stopping: no higher {label(self.task.headline[0])} in {self.patience} "
                "evaluations (patience)."
            )
            control.should_save = control.should_training_stop = True

    def _score(self, answers) -> tuple[dict[str, Any], dict[str, Any]]:
        scores = compute_scores(self.task, answers)
        assert scores  # validation rows have gold answers
        rows, predictions = answerable(answers)
        return scores, {
            "evaluation": scores[self.task.headline[0]],
            "each": self.task.score_each(rows, predictions),
            "articles": [row.article for row in rows],
        }

    def patience_exceeded(self, state: TrainerState) -> bool:
        """Return whether the last `patience` evaluations had no higher score."""
        scores = [record["evaluation"] for record in evaluations(state)]
        if not self.patience or not scores:
            return False
        return len(scores) - 1 - scores.index(max(scores)) >= self.patience


def validate(model: OpenModel, examples: list[Example], run: RunFolder) -> None:
    """Answer, score, print, save and report all validation questions.

    All processes answer; then all but the main process exit.
    """
    answers = model.predict_all(examples, "validating")
    end_other_processes()
    if not examples:
        return
    recipe, task = model.recipe, get_task(model.recipe.task)
    scores = compute_scores(task, answers, recipe)
    assert scores  # validation rows have gold answers
    write_json_lines(run.validation_record, answers.records)
    write_review(run.validation_file, answers.records)
    # A validation that was interrupted before its report is repeated: replace its line.
    lines = [line for line in read_json_lines(run.metrics_file) if "validation" not in line]
    write_json_lines(run.metrics_file, [*lines, {"validation": scores}])
    print_scores(task, "validation", scores)
    write_report(
        run.path,
        f"{run.path.name}: validation",
        task,
        recipe,
        answers,
        scores,
        run.environment(),
        history=list(read_json_lines(run.metrics_file)),
        findings=read_json(run.findings_file),
    )
