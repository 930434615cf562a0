"""The validation questions, answered as inference will answer them, while training and after it."""

from dataclasses import dataclass
from functools import partial

from dandap.answering.answer import make_record
from dandap.console import track
from dandap.data.encode import Example
from dandap.data.rows import Answers
from dandap.files import append_json, read_json, read_json_lines, write_json_lines
from dandap.model.distributed import from_all, from_first, leave_together, share_of
from dandap.runs.folder import RunFolder
from dandap.runs.predictions import write_predictions
from dandap.runs.report import write_report
from dandap.training.evaluate import Evaluation, KeepBest, some_of, steps_between
from tasks.scoring import answerable, compute_scores, print_scores


@dataclass(frozen=True)
class Validation:
    """Answers the validation questions with the model that is being trained.

    `task` is one of tasks/, `answerer` an Answerer.
    """

    task: object
    answerer: object
    examples: list[Example]

    def answered(self, examples: list[Example], doing: str | None = None) -> Answers:
        """Return the questions with the records of their answers; `doing` names a bar, if given.

        Each of several processes answers its share, and all return everything.
        """
        shown = self.answerer.answers(examples)
        if doing:
            shown = track(shown, doing, "questions", total=share_of(len(examples)))
        mine = {
            example.row.id: make_record(self.task, example, answers) for example, answers in shown
        }
        records: dict[str, dict] = {}
        for share in from_all(mine):
            records |= share
        return Answers(
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

    def _evaluation(self, answered: Answers) -> Evaluation:
        rows, predictions = answerable(answered)
        each = self.task.score_each(rows, predictions)
        return Evaluation(compute_scores(self.task, answered), each, [row.article for row in rows])

    def finish(self, run: RunFolder) -> None:
        """Answer all questions; score, print, keep and report them.

        All processes answer; the first one does the rest, and is alone afterwards.
        """
        answered = self.answered(self.examples, "validating")
        leave_together()
        if not self.examples:
            return
        recipe = self.answerer.recipe
        scores = compute_scores(self.task, answered, recipe)
        write_json_lines(run.validation_record, answered.records)
        write_predictions(run.validation_file, answered.records)
        append_json(run.metrics_file, {"validation": scores})
        print_scores(self.task, "validation", scores)
        more = {
            "history": list(read_json_lines(run.metrics_file)),
            "findings": read_json(run.findings_file),
        }
        title = f"{run.path.name}: validation"
        write_report(
            run.path, title, self.task, recipe, answered, scores, run.environment(), **more
        )
