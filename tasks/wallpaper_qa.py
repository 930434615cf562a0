"""Ask questions on wallpaper defects (Hansol Deco), which are answered in a sentence or two.

Answers are submitted as sentence embeddings. The files have two questions and five answers a row
to train on, and one question a row to answer.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from statistics import fmean

import metrics
from dandap.data.files import TABLES, find_files, hash_file
from dandap.data.rows import Row, Table, join, refuse_duplicate_ids
from dandap.data.tables import column_key, read_table
from dandap.data.text import clean, trim
from dandap.errors import InputError, first_line, short_list
from dandap.files import write_text
from tasks.submission import SubmissionForm, write_submission
from tasks.task import Box, Task, refuse_columns

QUESTIONS = ("질문_1", "질문_2")
ANSWERS = tuple(f"답변_{number}" for number in range(1, 6))
KNOWN = ("id", "질문", "category", "generated", "sources", "source", "accept", *QUESTIONS, *ANSWERS)
MOST_PAIRS = len(QUESTIONS) * len(ANSWERS)  # tools.augment makes as many of a row


def read(paths: list[Path], need_answers: bool) -> Table:
    """Read one row per question; those of one row of the file share its answers.

    They stay together on one side of the validation split (`group`).
    """
    tables = [_read_one(path, need_answers) for path in paths]
    return tables[0] if len(tables) == 1 else join(tables)


def read_lines(path: Path) -> tuple[list[str], list[tuple[str, dict[str, str]]], Table]:
    """Return (names of columns, rows as (place, cells), an empty Table) of a file.

    Known columns are under the names that they have here, however the file writes them.
    """
    (path,) = find_files(path, "a table of wallpaper-QA rows")
    sheet = read_table(path)
    known = {column_key(name): name for name in KNOWN}
    names = {theirs: known.get(column_key(theirs), theirs) for theirs in sheet.header}
    sheet.refuse_unclear([theirs for theirs, ours in names.items() if ours in KNOWN])
    # A row may end before its last columns, the id among them.
    lines = [
        (place, {ours: _text(cells.get(theirs)) for theirs, ours in names.items()})
        for place, cells in sheet.rows
    ]
    if not lines:
        raise InputError(f"{path} holds no questions (only a header). Expected at least one row.")
    return list(names.values()), lines, Table(path, [], hash_file(path), sheet.notes)


def _read_one(path: Path, need_answers: bool) -> Table:
    header, lines, table = read_lines(path)
    if "accept" in header:
        raise InputError(
            f"{path} is a review: python -m tools.augment accept {path} OUT writes the rows to "
            "train on."
        )
    # Only files to train on have both questions in a row.
    to_answer = ("id", "질문", *(ANSWERS[:1] if need_answers else ()))
    needed = ("id", *QUESTIONS, *ANSWERS) if set(QUESTIONS) <= set(header) else to_answer
    missing = [name for name in needed if name not in header]
    if missing:
        raise InputError(
            f"{path} has no column {missing[0]!r}; it has {short_list(header)}. "
            "Expected id, 질문_1, 질문_2, category, "
            "답변_1 to 답변_5 to train on, or id, 질문 to answer."
        )
    made_of = Counter(cells["id"].split("#")[0] for _, cells in lines)
    rows = []
    for where, cells in lines:
        # tools.augment numbers the up to ten pairs of a row (T1#3); ids with more numbers are the
        # file's own.
        source = cells["id"].split("#")[0]
        group = source if made_of[source] <= MOST_PAIRS else cells["id"]
        rows += _rows(f"{path}, {where}", cells, need_answers, group)
    refuse_duplicate_ids(rows, path)
    return replace(table, rows=rows)


def _text(cell) -> str:
    """Return a cell as text; Parquet files hold numbers, and None for an empty one."""
    return "" if cell is None else str(cell)


def _rows(where: str, cells: dict[str, str], need_answers: bool, group: str) -> list[Row]:
    answers = tuple(trim(clean(cells[name])) for name in ANSWERS if trim(cells.get(name, "")))
    names = [name for name in (*QUESTIONS, "질문") if name in cells]
    fields = {
        known: trim(clean(cells.get(known, ""))) for known in ("category", "generated", "sources")
    }
    # A test row without a question is answered as well as can be, since a submission has all rows.
    needed = ("id", *names) if need_answers else ("id",)
    if any(not trim(cells.get(name, "")) for name in needed) or (
        need_answers and "답변_1" in cells and not answers
    ):
        raise InputError(
            f"{where}: the id, a question or every answer is empty. Fill it in or delete the row."
        )
    name = cells["id"]
    return [
        Row(
            f"{name}-{number}" if len(names) > 1 else name,
            "",
            trim(clean(cells.get(column, ""))),
            answers,
            fields=fields,
            group=group,
        )
        for number, column in enumerate(names, 1)
    ]


def one_per_answer(rows: list[Row]) -> list[Row]:
    """Return a row for each answer of each question: 2 questions x 5 answers are 10 to train on."""
    return [
        Row(
            f"{row.id}#{number}",
            row.context,
            row.question,
            (answer,),
            fields=row.fields,
            group=row.group,
        )
        for row in rows
        for number, answer in enumerate(row.answers, 1)
    ]


MISSING = "sentence-transformers is not installed: pip install -r requirements-extra.txt"


def load_encoder(model: str):
    """Return the embedding model; raise InputError if it, or the library, is not there."""
    loaded = _load_once(model)
    if isinstance(loaded, InputError):
        raise loaded
    return loaded


@cache
def _load_once(model: str):
    """Return the model, or the InputError that says why it cannot be had.

    The error is returned, and so cached: a hub that is out of reach is tried for half a minute,
    once.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        # If a library is missing that it needs itself, to install it again would not help.
        if error.name != "sentence_transformers":
            raise
        return InputError(MISSING)
    try:
        return SentenceTransformer(model)
    except (OSError, ValueError) as error:
        return InputError(
            f"the embedding model {model!r} cannot be loaded ({first_line(error)}); "
            "name a folder or a hub id."
        )


def embed(texts: Sequence[str], model: str) -> list[list[float]]:
    """Return a vector for each text, as the model gives it."""
    return _embed(tuple(texts), model)


# The same answers are embedded twice, to be scored and to be submitted; the gold answers once.
@lru_cache(maxsize=2)
def _embed(texts: tuple[str, ...], model: str) -> list[list[float]]:
    return (
        load_encoder(model)
        .encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
        .tolist()
    )


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the cosine similarity of two vectors; 0 if either is zero."""
    lengths = (sum(x * x for x in one) * sum(y * y for y in other)) ** 0.5
    return sum(x * y for x, y in zip(one, other, strict=True)) / lengths if lengths else 0.0


class WallpaperQA(Task):
    """Asks questions without an article; each has up to five gold answers, which are longer."""

    name = "wallpaper_qa"
    needs = ("question",)
    sample = Row(
        "sample", "", "벽지에 곰팡이가 생기는 이유는?", ("습기가 벽에 맺히기 때문입니다.",)
    )
    headline = ("char_f1", "rouge_l")
    title = "Wallpaper"
    boxes = (Box("questions", "Questions (one a line)", 6),)
    sample_file = "data/sample/wallpaper_test.csv"
    models = ("embedding_model",)
    nouns = ("questions", "rows")  # a row of the file has up to two

    def recognises(self, path):
        if not path.is_file() or path.suffix.lower() not in TABLES:
            return False
        # A table of articles is another task's, in whatever language its other columns are.
        header = set(read_table(path).header)
        return "context" not in header and "id" in header and bool(header & {"질문", "질문_1"})

    def read(self, paths, columns, need_answers):
        refuse_columns(columns)
        return read(paths, need_answers)

    def kind(self, row):
        return row.fields.get("category") or "(none)"

    def expand(self, rows):
        return one_per_answer(rows)

    def score(self, rows, predictions):
        """Return character F1 and ROUGE-L, each with the gold answer that is nearest."""
        scores = super().score(rows, predictions)
        values = [
            metrics.rouge_l(prediction, row.answers)
            for row, prediction in zip(rows, predictions, strict=True)
        ]
        return scores | {
            "metric": f"{metrics.METRIC_VERSION}, char-rouge-l",
            "rouge_l": sum(values) / len(values),
            "rouge_l_interval": metrics.bootstrap_interval(values, [row.article for row in rows]),
        }

    def final_score(self, recipe, rows, predictions):
        """Return the cosine similarity of sentence embeddings to the gold answers.

        Without the model return nothing, and tell why.
        """
        try:
            said = embed(predictions, recipe.embedding_model)
            golds = embed(
                [answer for row in rows for answer in row.answers], recipe.embedding_model
            )
        except InputError as error:
            print(f"no similarity of sentence embeddings: {error}")
            return {}
        # `golds` is flat: each row takes as many vectors from it as it has answers.
        left = iter(golds)
        each = []
        for row, vector in zip(rows, said, strict=True):
            each.append([cosine(vector, next(left)) for _ in row.answers])
        similarity = {
            "mean": fmean(map(fmean, each)),
            "best": fmean(map(max, each)),
            "model": recipe.embedding_model,
        }
        return {"similarity": similarity}

    def remarks(self, scores):
        lines = super().remarks(scores)
        if similarity := scores.get("similarity"):
            mean, best = (f"{similarity[kind]:.4f}" for kind in ("mean", "best"))
            lines.append(
                f"cosine similarity {mean} (mean), {best} (best), by {similarity['model']}"
            )
        return lines

    def ask(self, typed):
        # As in a file each question stands by itself: rows of one group would share a reading.
        return [replace(row, group=row.id) for row in super().ask(typed)]

    def submit(self, recipe, folder, test_file, answered, form):
        """Write answers.csv, and where the embedding model can be loaded submission.csv.

        The submission holds the sentence embeddings of the answers.
        """
        # The answers come first, because they are all there is if the model cannot be had.
        ids, answers = [row.id for row in answered.rows], folder / "answers.csv"
        write_submission(answers, SubmissionForm(("id", "답변")), ids, answered.predictions)
        try:
            vectors = embed(answered.predictions, recipe.embedding_model)
        except InputError as error:
            return answers, f"no submission of sentence embeddings: {error}"
        return write_vectors(
            folder / "submission.csv", ids, vectors
        ), f"the plain answers: {answers}"


def write_vectors(path: Path, ids: list[str], vectors: list[list[float]]) -> Path:
    """Write id, vec_0, vec_1, ... as the organiser asks, read it back, and return the path."""
    import pandas as pd  # 0.4 s, which `import tasks` need not take

    columns = ["id", *(f"vec_{number}" for number in range(len(vectors[0])))]
    table = pd.DataFrame(
        [[name, *vector] for name, vector in zip(ids, vectors, strict=True)], columns=columns
    )
    write_text(path, table.to_csv(index=False, lineterminator="\n"), encoding="utf-8-sig")
    # Ids are read as texts: 007 would come back as 7.
    dtypes = {"id": str} | dict.fromkeys(columns[1:], float)
    back = pd.read_csv(path, dtype=dtypes, keep_default_na=False, encoding="utf-8-sig")
    same = list(back.columns) == columns and back["id"].tolist() == ids
    if not same or not (back.iloc[:, 1:] - table.iloc[:, 1:]).abs().max().max() < 1e-6:
        raise RuntimeError(f"{path} reads back differently from what was written")
    return path


TASK = WallpaperQA()
