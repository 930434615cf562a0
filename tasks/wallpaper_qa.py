"""Wallpaper QA: questions about wallpaper defects, answered in a sentence (Hansol Deco 2024).

A training row has two questions and five answers, a test row one question. The submission has the
sentence embedding of each answer.
"""

from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

import metrics
from dandap.data.rows import Row, Table, join, reject_duplicate_ids
from dandap.data.tables import read_table
from dandap.data.text import TABLES, clean, find_files, hash_file, trim
from dandap.errors import InputError, first_line, short_list
from dandap.files import write_text
from tasks.submission import SubmissionForm, write_submission
from tasks.task import Box, PageForm, Task, reject_columns

QUESTIONS = ("질문_1", "질문_2")
ANSWERS = tuple(f"답변_{number}" for number in range(1, 6))


def read_file(path: Path, need_answers: bool) -> Table:
    """Return one row per question; questions from one row of the file share answers and `group`."""
    sheet = read_table(path)
    is_original = set(QUESTIONS) <= set(sheet.header)
    questions = QUESTIONS if is_original else ("질문",)
    answers = ANSWERS if is_original else ANSWERS[:1] if need_answers else ()
    missing = [name for name in ("id", *questions, *answers) if name not in sheet.header]
    if missing:
        raise InputError(
            f"{path} has no column {missing[0]!r}; it has {short_list(sheet.header)}. Expected id, "
            "질문_1, 질문_2, category, 답변_1 to 답변_5 for training, or id, 질문 for a test file."
        )
    known = ("id", "category", *questions, *ANSWERS)
    sheet.reject_unclear(known)
    rows = []
    for place, cells in sheet.rows:
        # Rows may be shorter than the header, and Parquet has None and numbers.
        texts = {name: str(cells[name]) for name in known if cells.get(name) is not None}
        name = texts.get("id", "")
        texts = {column: trim(clean(text)) for column, text in texts.items()}
        golds = tuple(texts[column] for column in ANSWERS if texts.get(column))
        # A test row may lack its question, but needs an answer.
        is_complete = golds and all(texts.get(column) for column in questions)
        if not texts.get("id") or (need_answers and not is_complete):
            raise InputError(
                f"{path}, {place}: the id, a question or all answers are empty. Fill them in or "
                "delete the row."
            )
        fields = {"category": texts.get("category", "")}
        group = name.split("#")[0]  # pairs of a row may be numbered, T1#1 to T1#10
        for number, column in enumerate(questions, 1):
            row_id = f"{name}-{number}" if is_original else name
            rows.append(Row(row_id, "", texts.get(column, ""), golds, fields=fields, group=group))
    if not rows:
        raise InputError(f"{path} has only a header. Expected at least one row.")
    reject_duplicate_ids(rows, path)
    return Table(path, rows, hash_file(path), sheet.notes)


@cache
def load_encoder(model: str):
    """Return a sentence encoder, or print an error and return None."""
    try:
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(model)
    except (ImportError, OSError, ValueError) as error:
        print(
            f"the embedding model {model!r} cannot be loaded ({first_line(error)}). Try pip "
            "install -r requirements-extra.txt."
        )


@lru_cache(maxsize=2)  # for the score and for the submission
def embed(texts: tuple[str, ...], model: str) -> np.ndarray | None:
    """Return embeddings (texts, size), or None if the model cannot be loaded."""
    encoder = load_encoder(model)
    return encoder and encoder.encode(list(texts), show_progress_bar=False).astype(float)


class WallpaperQA(Task):
    """Questions without an article and with up to five gold answers."""

    name = "wallpaper_qa"
    needs = ("question",)
    sample = Row(
        "sample", "", "벽지에 곰팡이가 생기는 이유는?", ("습기가 벽에 맺히기 때문입니다.",)
    )
    headline = ("char_f1", "rouge_l")
    boxes = (Box("questions", "Questions (one per line)", 6),)
    page = PageForm("Wallpaper", boxes, "data/sample/wallpaper_test.csv")
    models = ("embedding_model",)
    nouns = ("questions", "rows")

    def recognizes(self, path):
        if not path.is_file() or path.suffix.lower() not in TABLES:
            return False
        header = set(read_table(path).header)
        return "context" not in header and "id" in header and bool(header & {"질문", "질문_1"})

    def read(self, paths, columns, need_answers):
        reject_columns(columns)
        files = [file for path in paths for file in find_files(path)]
        tables = [read_file(file, need_answers) for file in files]
        return tables[0] if len(tables) == 1 else join(tables)

    def kind(self, row):
        return row.fields.get("category") or "(none)"

    def expand(self, rows):
        """Return one row per answer: ten for two questions with five answers."""
        return [
            replace(row, id=f"{row.id}#{number}", answers=(answer,))
            for row in rows
            for number, answer in enumerate(row.answers, 1)
        ]

    def score(self, rows, predictions):
        """Return character F1 and ROUGE-L; the best gold answer counts."""
        pairs = zip(predictions, rows, strict=True)
        values = [metrics.rouge_l(prediction, row.answers) for prediction, row in pairs]
        return super().score(rows, predictions) | {
            "metric": f"{metrics.METRIC_VERSION}, char-rouge-l",
            "rouge_l": sum(values) / len(values),
            "rouge_l_interval": metrics.bootstrap_interval(values, [row.article for row in rows]),
        }

    def score_extra(self, recipe, rows, predictions):
        """Return the cosine similarity of answers and gold answers as sentence embeddings."""
        model, golds = recipe.embedding_model, [gold for row in rows for gold in row.answers]
        ours, theirs = (embed(tuple(texts), model) for texts in (predictions, golds))
        if ours is None or theirs is None:
            return {}
        counts = [len(row.answers) for row in rows]
        ours = np.repeat(ours, counts, axis=0)  # (golds, size), as theirs
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        cosines = (ours * theirs).sum(axis=1) / np.maximum(norms, 1e-12)
        each = np.split(cosines, np.cumsum(counts)[:-1])  # per row: (gold answers,)
        mean, best = (float(np.mean([f(values) for values in each])) for f in (np.mean, np.max))
        return {"similarity": {"mean": mean, "best": best, "model": model}}

    def summarize(self, scores):
        lines = super().summarize(scores)
        if of := scores.get("similarity"):
            lines.append(
                f"cosine similarity {of['mean']:.4f} (mean), {of['best']:.4f} (best), "
                f"by {of['model']}"
            )
        return lines

    def submit(self, recipe, folder, test_file, answers, form):
        """Write answers.csv, and submission.csv if the embedding model can be loaded."""
        ids, plain = [row.id for row in answers.rows], folder / "answers.csv"
        write_submission(plain, SubmissionForm(("id", "답변")), ids, answers.predictions)
        vectors = embed(tuple(answers.predictions), recipe.embedding_model)
        if vectors is None:
            return plain, "no submission: sentence embeddings need the embedding model"
        import pandas as pd  # 0.4 s

        # Columns id, vec_0, vec_1, ...
        table, path = pd.DataFrame(vectors).add_prefix("vec_"), folder / "submission.csv"
        table.insert(0, "id", ids)
        write_text(path, table.to_csv(index=False, lineterminator="\n"), encoding="utf-8-sig")
        # Without dtype, the id 007 would be read as 7.
        back = pd.read_csv(path, dtype={"id": str}, keep_default_na=False, encoding="utf-8-sig")
        numbers = back.drop(columns="id").to_numpy(float)
        if back["id"].tolist() != ids or not np.allclose(numbers, vectors, rtol=0, atol=1e-6):
            raise RuntimeError(f"{path} differs from what was written")
        return path, f"answers as text: {plain}"


TASK = WallpaperQA()
