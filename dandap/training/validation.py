"""The validation questions, answered as inference will answer them, while training and after it."""

from dataclasses import dataclass
from functools import partial

from dandap.console import track
from dandap.data.encode import Example
from dandap.data.rows import Answered
from dandap.files import append_json, read_json, read_json_lines, write_json_lines
from dandap.model.distributed import from_all, from_first, leave_together, share_of
from dandap.runs.folder import RunFolder
from dandap.runs.predictions import write_predictions
from dandap.training.evaluate import Evaluation, KeepBest, some_of, steps_between


@dataclass(frozen=True)
class Validation:
    """Answers the validation questions with the model that is being trained.

    `task` is one of tasks/, `answerer` an Answerer.
    """

    task: object
    answerer: object
    examples: list[Example]

    def answered(self, examples: list[Example], doing: str | None = None) -> Answered:
        """Return the questions with the records of their answers; `doing` names a bar, if given.

        Each of several processes answers its share, and all return everything.
        """
        shown = self.answerer.answers(examples)
        if doing:
            shown = track(shown, doing, "questions", total=share_of(len(examples)))
        mine = {example.row.id: self.task.record(example, answers) for example, answers in shown}
        records: dict[str, dict] = {}
        for share in from_all(mine):
            records |= share
        return Answered(
            [example.row for example in examples], [records[example.row.id] for example in examples]
        )

    def callbacks(self, run: RunFolder, questions: int) -> list[KeepBest]:
        """Return what evaluates on some of the questions while `questions` are trained on.

        The list is empty if the recipe wants no evaluation.
        """
        recipe = self.answerer.recipe
        every = steps_between(recipe, questions)
        if not every or not self.examples:
            return []
        self.answerer.check(self.examples)  # now, and not at the first evaluation
        chosen = some_of(self.examples, recipe.evaluate_questions)

        def evaluate() -> Evaluation:
            # One process's scores are everybody's: all must take the same decision to stop.
            return from_first(partial(self._evaluation, self.answered(chosen)))

        return [KeepBest(evaluate, every, recipe.patience, run.metrics_file, self.task)]

    def _evaluation(self, answered: Answered) -> Evaluation:
        rows, predictions = self.task.answerable(answered)
        each = self.task.each(rows, predictions)
        return Evaluation(self.task.scores_of(answered), each, [row.article for row in rows])

    def finish(self, run: RunFolder) -> None:
        """Answer all questions; score, print, keep and report them.

        All processes answer; the first one does the rest, and is alone afterwards.
        """
        answered = self.answered(self.examples, "validating")
        leave_together()
        if not self.examples:
            return
        recipe = self.answerer.recipe
        scores = self.task.final_scores(recipe, answered)
        write_json_lines(run.validation_record, answered.records)
        write_predictions(run.validation_file, answered.records)
        append_json(run.metrics_file, {"validation": scores})
        self.task.tell("validation", scores)
        more = {
            "history": list(read_json_lines(run.metrics_file)),
            "findings": read_json(run.findings_file),
        }
        title = f"{run.path.name}: validation"
        self.task.report(
            run.path, title, recipe, answered, scores, environment=run.environment(), **more
        )
