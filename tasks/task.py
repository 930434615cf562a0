"""Base class of tasks: read files, score answers, write submissions.

A new task is a module in tasks/ that defines `TASK`, and a template in prompts.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import metrics
import prompts
from dandap.data.read import read_answers, typed_rows
from dandap.data.rows import Answers, Row, Table, match_ids, template_fields
from dandap.errors import InputError
from dandap.recipe import Recipe
from tasks.submission import SubmissionForm, submission_like, write_submission


class Box(NamedTuple):
    """An input on the page: a text box, or a dropdown if it has choices."""

    name: str
    label: str
    lines: int = 1
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class PageForm:
    """A task's inputs on the page: an article and its questions, one per line."""

    title: str = "Articles"
    boxes: tuple[Box, ...] = (
        Box("article", "Article", 12),
        Box("questions", "Questions (one per line)", 4),
    )
    sample_file: str = ""  # for examples

    def to_rows(self, typed: Mapping[str, str]) -> list[Row]:
        """Return the typed questions as rows; raise InputError if something is missing."""
        questions = [line for line in typed["questions"].split("\n") if line.strip()]
        rows = typed_rows(typed.get("article", ""), questions) if questions else []
        # Rows without an article share no prefix.
        return [row if row.context else replace(row, group=row.id) for row in rows]

    def to_text(self, rows: Sequence[Row]) -> dict[str, str]:
        """Return the inputs for the rows of one article."""
        questions = "\n".join(row.question.replace("\n", " ") for row in rows)
        texts = {"article": rows[0].context, "questions": questions}
        return {box.name: texts[box.name] for box in self.boxes}

    def show_question(self, row: Row) -> str:
        """Return the text of a question for display."""
        return row.fields.get("question", row.question)

    def show_answer(self, row: Row, answer: str) -> str:
        """Return the text of an answer for display; a choice has its letter and option."""
        option = row.fields.get(f"option_{answer}")
        return f"{answer}. {option}" if option else answer


class Task:
    """A kind of question; the defaults suit short answers about articles."""

    name: str
    sample: Row
    # Required template fields; "one|other": at least one of them.
    needs: tuple[str, ...]
    # The main scores; the first one selects the adapter.
    headline: tuple[str, ...] = ("char_f1", "exact_match")
    nouns: tuple[str, str] = ("questions", "articles")
    submission = "submission.csv"
    models: tuple[str, ...] = ()  # recipe fields of models for scoring
    page = PageForm()

    def recognizes(self, path: Path) -> bool:
        """Return whether a file belongs to this task (default task: economic_qa)."""
        return False

    def read(self, paths: list[Path], columns: dict[str, str], need_answers: bool) -> Table:
        """Read files; `columns` maps our names to the files' columns.

        With `need_answers` (training), a row without an answer raises InputError.
        """
        raise NotImplementedError

    def kind(self, row: Row) -> str:
        """Return the kind of a question, for grouping in reports."""
        raise NotImplementedError

    def expand(self, rows: list[Row]) -> list[Row]:
        """Return the training rows that these rows expand to."""
        return rows

    def score(self, rows: Sequence[Row], predictions: Sequence[str]) -> dict[str, Any]:
        """Return the scores; each score in `headline` also has a 95% interval, <score>_interval."""
        return metrics.score(
            predictions, [row.answers for row in rows], [row.article for row in rows]
        )

    def score_each(self, rows: Sequence[Row], predictions: Sequence[str]) -> list[float]:
        """Return the first headline score of every question."""
        pairs = zip(predictions, rows, strict=True)
        return [metrics.char_f1(prediction, row.answers) for prediction, row in pairs]

    def score_extra(
        self, recipe: Recipe, rows: Sequence[Row], predictions: Sequence[str]
    ) -> dict[str, Any]:
        """Return scores that need another model, for the final evaluation."""
        return {}

    def summarize(self, scores: dict[str, Any]) -> list[str]:
        """Return lines about the answers, for the terminal and the report."""
        line = f"answers of {scores['mean_length']:.1f} characters on average, "
        line += f"{scores['stopped']:.1%} finished, {scores['repeating']:.1%} repetitive"
        spans = f", {scores['spans']:.1%} literal spans of the article"
        return [line + spans * ("context" in self.needs)]

    def table(self, scores: dict[str, Any]) -> list[Sequence[Any]]:
        """Return a table for the report, header first, or an empty list."""
        return []

    def submission_form(self, test_file: Path, rows: Sequence[Row]) -> SubmissionForm:
        """Return the format of the submission, before answering."""
        return SubmissionForm()

    def submit(
        self, recipe: Recipe, folder: Path, test_file: Path, answers: Answers, form: SubmissionForm
    ) -> tuple[Path, str | None]:
        """Write and verify the submission; return its path and a note to print."""
        path = folder / self.submission
        write_submission(path, form, [row.id for row in answers.rows], answers.predictions)
        return path, None

    def submit_combined(
        self, recipe: Recipe, folder: Path, member: Path, records: list[dict]
    ) -> tuple[Path, str | None]:
        """Write an ensemble's submission in the format of its first member."""
        rows = [Row(record["id"], "", "") for record in records]
        form = submission_like(member, [row.id for row in rows])
        path, note = self.submit(recipe, folder, member, Answers(rows, records), form)
        return path, note or form.note

    def sample_fields(self) -> dict[str, str]:
        """Return the template fields of the sample row."""
        return template_fields(self.sample, self.sample.context, self.sample.answers[0])

    def check_template(self, template: prompts.Template, name: str) -> None:
        """Reject a template that does not fit this task's rows."""
        prompts.check_template(template, name, list(self.sample_fields()), self.needs)


def train_files(recipe: Recipe) -> list[Path]:
    """Return the recipe's training files."""
    whole = Path(recipe.train_file)  # a file name may contain a comma
    names = [recipe.train_file] if whole.exists() else recipe.train_file.split(",")
    return [Path(name.strip()) for name in names]


def read_train(task: Task, recipe: Recipe) -> Table:
    """Read the recipe's training files."""
    return task.read(train_files(recipe), recipe.columns, True)


def read_test(task: Task, recipe: Recipe, test_file: Path) -> Table:
    """Read a test file, with gold answers from it or from <name>_answers.csv."""
    # A test file need not have answers.
    columns = {ours: theirs for ours, theirs in recipe.columns.items() if "answer" not in ours}
    table = task.read([test_file], columns, False)
    answers_file = test_file.with_name(f"{test_file.stem}_answers.csv")
    if not answers_file.is_file():
        return table
    given = read_answers(answers_file)
    find = match_ids([row.id for row in table.rows], given)
    rows = []
    for row in table.rows:
        name = find(row.id)
        golds = given[name] if name is not None else ()
        if not golds or (row.choices and not set(golds) <= set(row.choices)):
            expected = f"one of {', '.join(row.choices)}" if row.choices else "an answer"
            raise InputError(
                f"{answers_file}: got {', '.join(golds) or 'no answer'} for {row.id}, expected "
                f"{expected}. Correct or remove it."
            )
        rows.append(replace(row, answers=golds))
    return replace(table, rows=rows, notes=[*table.notes, f"gold answers: {answers_file}"])


def reject_columns(columns: dict[str, str]) -> None:
    """Raise InputError if columns are mapped, for tasks with fixed columns."""
    if columns:
        raise InputError(f"columns: got {columns}, but this task has fixed columns. Remove it.")


def label(score: str) -> str:
    """Return the display name of a score."""
    names = {"char_f1": "char F1", "exact_match": "exact match", "rouge_l": "ROUGE-L"}
    return names.get(score, score.replace("_", " "))


def answerable(answers: Answers) -> tuple[list[Row], list[str]]:
    """Return rows and predictions without impossible questions (SQuAD 2)."""
    possible = [n for n, row in enumerate(answers.rows) if not row.fields.get("impossible")]
    predictions = [answers.records[n]["prediction"] for n in possible]
    return [answers.rows[n] for n in possible], predictions


def compute_scores(
    task: Task, answers: Answers, recipe: Recipe | None = None
) -> dict[str, Any] | None:
    """Return the scores and statistics of answers, or None if a gold answer is missing.

    With a recipe, include scores that need another model.
    """
    rows, predictions = answerable(answers)
    if not rows or not all(row.answers for row in rows):
        return None
    records, count = answers.records, len(answers.records)
    shape = {
        "mean_length": sum(len(record["prediction"]) for record in records) / count,
        "stopped": sum(record["ended"] == "stopped" for record in records) / count,
        "spans": sum(record["span"] is not None for record in records) / count,
        "repeating": sum(metrics.repeats(record["prediction"]) for record in records) / count,
    }
    extra = task.score_extra(recipe, rows, predictions) if recipe else {}
    return task.score(rows, predictions) | shape | extra


def format_score(score: str, scores: dict[str, Any], interval: str = "") -> str:
    """Return a score with its interval, like char F1 0.9706 (95% 0.9522 to 0.9872)."""
    low, high = scores[f"{score}_interval"]
    return f"{label(score)} {scores[score]:.4f} ({interval}{low:.4f} to {high:.4f})"


def format_evaluation(task: Task, scores: dict[str, Any]) -> str:
    """Return the scores of one evaluation, for a line of the training log."""
    line = format_score(task.headline[0], scores)
    if "exact_match" in task.headline:
        line += f"  exact match {scores['exact_match']:.4f}"
    return line


def print_scores(task: Task, name: str, scores: dict[str, Any]) -> None:
    """Print the scores of the answers called `name`."""
    for line in task.summarize(scores):
        print(f"{name}: {line}")
    header, *rows = task.table(scores) or [()]
    for row in rows:
        cells = (f"{column} {cell}" for column, cell in zip(header, row, strict=True))
        print(f"{name}: {', '.join(cells)}")
    first, *others = task.headline
    parts = [format_score(first, scores, "95% "), *(format_score(s, scores) for s in others)]
    print(
        f"{name}: {'  '.join(parts)}  {scores['questions']} {task.nouns[0]}, {scores['articles']} "
        f"{task.nouns[1]}"
    )
