"""Define what a task is: all that is asked about a kind of question.

Reading, training, answering, scoring and reporting ask it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import metrics
import prompts
from dandap.answering.answer import Answer
from dandap.data.encode import Example
from dandap.data.read import read_answers, typed_rows
from dandap.data.rows import Answered, Row, Table, match_ids, template_fields
from dandap.errors import InputError
from dandap.recipe import Recipe
from tasks.submission import SubmissionForm, submission_like, write_submission


class Chart(NamedTuple):
    """Describes a picture for tools.explore: counts by name, or the distribution of numbers."""

    name: str
    title: str
    values: dict[str, int] | list[int]
    label: str


class Box(NamedTuple):
    """Describes what app.py's page has to type into, or to choose from where there are choices."""

    name: str
    label: str
    lines: int = 1
    choices: tuple[str, ...] = ()


@dataclass
class Description:
    """Holds what tools.explore shows of a file that is more than questions on articles."""

    rows: list[Row]
    tables: dict[str, list[tuple]]  # title -> rows of cells; what stands above the sizes
    more_tables: dict[str, list[tuple]]  # and what stands below them
    sizes: dict[str, list[int]]  # what is measured -> its values
    charts: list[Chart]
    lists: dict[str, list[dict]]  # a CSV's name -> its rows
    shared: list[tuple[str, list[str]]]  # a text that is read once, and what is read after it
    texts: list[str] = field(default_factory=list)  # whose words are counted


class Task:
    """Describes one kind of question.

    A new one is a file of tasks/ that ends in TASK = ..., and a template in prompts.py. What every
    task must say stands first; the methods below have an answer that suits short answers on
    articles.
    """

    name: str
    sample: Row
    # The fields without which a template makes no sense; "one|other": it has one of them at least.
    needs: tuple[str, ...]
    # The scores that count; the first, by question in `each`, decides which adapter is kept.
    headline: tuple[str, ...] = ("char_f1", "exact_match")
    # What people call its questions, and what several of them stand on.
    nouns: tuple[str, str] = ("questions", "articles")
    cleans = False  # whether tools.refine cleans its files
    title: str = "Articles"  # of its tab on app.py's page, and the boxes there
    boxes: tuple[Box, ...] = (
        Box("article", "Article", 12),
        Box("questions", "Questions (one a line)", 4),
    )
    sample_file = ""  # whose rows the page offers to try, beside `sample`
    submission = "submission.csv"  # the name of the file that is submitted
    models: tuple[str, ...] = ()  # fields of the recipe that name models which scoring needs, too

    def recognises(self, path: Path) -> bool:
        """Return whether a file is one of this task's, by its fields; the file can be read."""
        raise NotImplementedError

    def read(self, paths: list[Path], columns: dict[str, str], need_answers: bool) -> Table:
        """Read files; `columns` maps names of fields to the file's names.

        With `need_answers`, which is for training, refuse rows without an answer.
        """
        raise NotImplementedError

    def sample_fields(self) -> dict[str, str]:
        """Return the fields of the sample row, which are those that templates may use."""
        return template_fields(self.sample, self.sample.context, self.sample.answers[0])

    def check_template(self, template: prompts.Template, name: str) -> None:
        """Reject a template that cannot be filled from this task's rows."""
        prompts.check_template(template, name, self.sample_fields(), self.needs)

    def kind(self, row: Row) -> str:
        """Return what a question asks for, by which reports group."""
        raise NotImplementedError

    def asked(self, row: Row) -> str:
        """Return what a question asks, as a reader of a report must know it."""
        return row.question

    def expand(self, rows: list[Row]) -> list[Row]:
        """Return the rows to train on."""
        return rows

    def join(self, texts: Sequence[str]) -> int:
        """Return the index of the answer that is taken of several: the one most like the others."""
        return metrics.consensus(texts)

    def score(self, rows: Sequence[Row], predictions: Sequence[str]) -> dict:
        """Return scores of answers whose gold answers are known.

        Each of `headline` has an interval beside it, named <score>_interval.
        """
        # Intervals are over articles, because the answers to one article hang together.
        return metrics.score(
            predictions, [row.answers for row in rows], [row.article for row in rows]
        )

    def each(self, rows: Sequence[Row], predictions: Sequence[str]) -> list[float]:
        """Return the first headline score of every question, to compare adapters in pairs."""
        pairs = zip(predictions, rows, strict=True)
        return [metrics.char_f1(prediction, row.answers) for prediction, row in pairs]

    def compare(
        self, ours: Sequence[float], theirs: Sequence[float], articles: Sequence[str]
    ) -> dict:
        """Return the mean difference of two lists of `each`, and its interval over articles."""
        return metrics.compare(ours, theirs, articles)

    def final_score(self, recipe: Recipe, rows: Sequence[Row], predictions: Sequence[str]) -> dict:
        """Return what is scored once, at the end, because it needs another model."""
        return {}

    def form(self, test_file: Path, rows: Sequence[Row]) -> SubmissionForm:
        """Return what the submission must look like, read before anything is answered."""
        return SubmissionForm()

    def submit(
        self,
        recipe: Recipe,
        folder: Path,
        test_file: Path,
        answered: Answered,
        form: SubmissionForm,
    ) -> tuple[Path, str | None]:
        """Write the submission, read it back, and return (its path, a note for people)."""
        path = folder / self.submission
        write_submission(path, form, [row.id for row in answered.rows], answered.predictions)
        return path, None

    def submit_joined(
        self, recipe: Recipe, folder: Path, member: Path, records: list[dict]
    ) -> tuple[Path, str | None]:
        """Write the submission of an ensemble in the way of its first member, a file of answers."""
        # A submission needs ids and answers alone, so that articles and questions may be empty.
        rows = [Row(record["id"], "", "") for record in records]
        return self.submit(recipe, folder, member, Answered(rows, records), SubmissionForm())

    def submit_csv(
        self, folder: Path, member: Path, records: list[dict]
    ) -> tuple[Path, str | None]:
        """Write an ensemble's ids and answers as a CSV in the form of its first member's."""
        ids = [record["id"] for record in records]
        form = submission_like(member, ids)
        path = folder / "submission.csv"
        write_submission(path, form, ids, [record["prediction"] for record in records])
        return path, form.note

    def label(self, score: str) -> str:
        """Return a score's name as people read it."""
        named = {"char_f1": "char F1", "exact_match": "exact match"}
        return named.get(score, score.replace("_", " "))

    def remarks(self, scores: dict) -> list[str]:
        """Return lines on scored answers, for the terminal and the report."""
        length, stopped, spans, repeating = (
            f"{scores['mean_length']:.1f}",
            *(f"{scores[name]:.1%}" for name in ("stopped", "spans", "repeating")),
        )
        if "context" not in self.needs:
            return [
                f"{length} characters an answer, {stopped} stopped, {repeating} repeat themselves"
            ]
        return [
            f"{length} characters an answer, {stopped} stopped, {spans} stand in their article, "
            f"{repeating} repeat themselves"
        ]

    def table(self, scores: dict) -> list[Sequence]:
        """Return a table for the report, its header first; empty for none."""
        return []

    def evaluation(self, scores: dict) -> str:
        """Return the scores of one evaluation while training, and what answers look like.

        It is the end of a line.
        """
        return (
            f"{self.with_interval(self.headline[0], scores)}  exact match "
            f"{scores['exact_match']:.4f}  "
            f"length {scores['mean_length']:.1f}  stopped {scores['stopped']:.0%}  "
            f"spans {scores['spans']:.0%}  repeating {scores['repeating']:.0%}"
        )

    def with_interval(self, score: str, scores: dict, share: str = "") -> str:
        """Return a score with its interval, as people read it."""
        low, high = scores[f"{score}_interval"]
        return f"{self.label(score)} {scores[score]:.4f} ({share}{low:.4f} to {high:.4f})"

    def describe(self, path: Path, clean) -> Description | None:
        """Return what tools.explore shows of a file besides its questions, or None.

        `clean` is tools.refine's, or None.
        """
        return None

    def ask(self, typed: Mapping[str, str]) -> list[Row]:
        """Return the rows of what a person typed into `boxes`, cleaned as a test file's are.

        There is a question a line; InputError says what is missing.
        """
        questions = [line for line in typed["questions"].split("\n") if line.strip()]
        rows = typed_rows(typed.get("article", ""), questions) if questions else []
        return [replace(row, choices=self.sample.choices) for row in rows]

    def typed(self, rows: Sequence[Row]) -> dict[str, str]:
        """Return what a person would type into `boxes` to ask rows of one article."""
        questions = "\n".join(row.question.replace("\n", " ") for row in rows)
        given = {"article": rows[0].context, "questions": questions}
        return {box.name: given[box.name] for box in self.boxes}

    def question(self, row: Row) -> str:
        """Return a question as a person reads it on the page."""
        return row.question

    def spoken(self, row: Row, answer: str) -> str:
        """Return an answer as a person reads it on the page."""
        return answer

    # What follows is the same for all tasks.

    def read_train(self, recipe: Recipe) -> Table:
        """Read the training file, or several with commas between them; each row needs an answer."""
        # A comma may also stand in the name of a file.
        names = (
            [recipe.train_file]
            if Path(recipe.train_file).exists()
            else recipe.train_file.split(",")
        )
        return self.read([Path(name.strip()) for name in names], recipe.columns, True)

    def read_test(self, recipe: Recipe, test_file: Path) -> Table:
        """Read a test file, with gold answers if it or <name>_answers.csv beside it has them."""
        # A mapping for the answer column is for the training file: a test file rarely has one.
        columns = {
            ours: theirs
            for ours, theirs in recipe.columns.items()
            if ours not in ("answer", "answers")
        }
        table = self.read([test_file], columns, False)
        answers_file = test_file.with_name(f"{test_file.stem}_answers.csv")
        return with_answers(table, answers_file) if answers_file.is_file() else table

    def record(self, example: Example, answers: list[Answer]) -> dict:
        """Return the line of predictions.jsonl for a question's answer.

        Of several samples it tells the one that `join` takes, and the texts of all.
        """
        texts = [answer.text for answer in answers]
        answer, row = answers[self.join(texts)], example.row
        record = {
            "id": row.id,
            "question": row.question,
            "prediction": answer.text,
            "gold": list(row.answers),
            "char_f1": metrics.char_f1(answer.text, row.answers) if row.answers else None,
            "exact_match": metrics.exact_match(answer.text, row.answers) if row.answers else None,
            "log_probability": round(answer.log_probability, 4),
            "span": answer.span and list(answer.span),
            "token_ids": answer.token_ids,
            "ended": "stopped" if answer.stopped else "cut",
            "trimmed_characters": example.trimmed,
            "article": row.article,
            "kind": self.kind(row),
        }
        if answer.choices:
            record["choices"] = answer.choices
        if len(texts) > 1:
            record["samples"] = texts
        return record

    def scores_of(self, answered: Answered) -> dict | None:
        """Return scores and what the answers look like, or None if a row lacks a gold answer.

        Questions marked is_impossible are not scored.
        """
        rows, predictions = self.answerable(answered)
        if not rows or not all(row.answers for row in rows):
            return None
        return self.score(rows, predictions) | answer_shape(answered.records)

    def answerable(self, answered: Answered) -> tuple[list[Row], list[str]]:
        """Return the questions that have an answer in their article, with what was said."""
        pairs = zip(answered.rows, answered.predictions, strict=True)
        kept = [(row, said) for row, said in pairs if not row.fields.get("impossible")]
        return [row for row, _ in kept], [said for _, said in kept]

    def final_scores(self, recipe: Recipe, answered: Answered) -> dict | None:
        """Return what `scores_of` does, and what is scored only at the end."""
        scores = self.scores_of(answered)
        return scores and scores | self.final_score(recipe, answered.rows, answered.predictions)

    def report(
        self, folder: Path, title: str, recipe: Recipe, answered: Answered, scores: dict, **more
    ) -> None:
        """Write report.html of scored answers.

        `more` are the environment, and of a training its history and findings.
        """
        from dandap.runs.report import Report, write_report  # with matplotlib: 1 s

        report = Report(
            title=title,
            records=list(answered.records),
            contexts={row.id: row.context for row in answered.rows},
            scores=scores,
            headline=self.headline,
            nouns=self.nouns,
            asked={row.id: self.asked(row) for row in answered.rows},
            settings=recipe.differences(),
            interval=metrics.bootstrap_interval,
            likeness=metrics.char_f1,
            label=self.label,
            remarks=self.remarks(scores),
            table=self.table(scores),
            **more,
        )
        print(f"report: {write_report(folder, report)}")

    def tell(self, name: str, scores: dict) -> None:
        """Print the scores of the answers called `name`."""
        for line in self.remarks(scores):
            print(f"{name}: {line}")
        # A task without a table of its own has an empty header and no rows.
        header, *rows = self.table(scores) or [()]
        names = [name.removeprefix("said ") for name in header[1:]]
        for right, *said in rows:
            counts = [f"{what} {count}" for what, count in zip(names, said, strict=True)]
            print(f"{name}: where {right} is right it said {', '.join(counts)}")
        said = [
            self.with_interval(score, scores, "" if number else "95% ")
            for number, score in enumerate(self.headline)
        ]
        print(
            f"{name}: {'  '.join(said)}  {scores['questions']} {self.nouns[0]}, "
            f"{scores['articles']} {self.nouns[1]}, {scores['metric']}"
        )


def with_answers(table: Table, answers_file: Path) -> Table:
    """Return the table with the gold answers of a file of their own.

    Raise InputError if the file lacks one, or has one that is not among a row's choices.
    """
    given = read_answers(answers_file)
    find = match_ids([row.id for row in table.rows], given)
    golds = {row.id: given[name] for row in table.rows if (name := find(row.id)) is not None}
    missing = [row.id for row in table.rows if row.id not in golds]
    if missing:
        raise InputError(
            f"{answers_file} has no answer for {len(missing)} ids of {table.path}, first "
            f"{missing[0]}. Correct or remove it."
        )
    for row in table.rows:
        if row.choices and not set(golds[row.id]) <= set(row.choices):
            raise InputError(
                f"{answers_file}: the answer of {row.id} is {golds[row.id][0]!r}; "
                f"expected one of {', '.join(row.choices)}."
            )
    rows = [replace(row, answers=golds[row.id]) for row in table.rows]
    return Table(
        table.path, rows, table.sha256, [*table.notes, f"gold answers come from {answers_file}"]
    )


def answer_shape(records: Sequence[dict]) -> dict:
    """Return what answers look like, whatever their score.

    It is {"mean_length", "stopped", "spans", "repeating"}: the first in characters, the others as
    shares of the answers.
    """
    return {
        "mean_length": sum(len(record["prediction"]) for record in records) / len(records),
        "stopped": sum(record["ended"] == "stopped" for record in records) / len(records),
        "spans": sum(record["span"] is not None for record in records) / len(records),
        "repeating": sum(metrics.repeats(record["prediction"]) for record in records)
        / len(records),
    }


def refuse_columns(columns: dict[str, str]) -> None:
    """Refuse a mapping of columns for files that have columns of their own."""
    if columns:
        raise InputError(
            "columns maps the columns of economic_qa; this task's files have their own. "
            f"Got {columns}: leave it out."
        )
