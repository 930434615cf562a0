"""What a task is: how its files are read, the prompt's fields, the scores, the submission."""

import codecs
import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import pandas as pd

import metrics
from dandap import nikl, wallpaper
from dandap.analysis import KINDS, question_kind
from dandap.answering import Prediction
from dandap.dataset import Row, Table, match_ids, read, read_answers
from dandap.encoding import Example
from dandap.errors import InputError, nearest
from dandap.files import decode, read_cells
from dandap.nikl import LETTERS
from dandap.recipe import Recipe
from dandap.similarity import cosine, embed
from dandap.storage import write_bytes, write_text
from dandap.texts import short_list, writable


@dataclass(frozen=True)
class Task:
    """One kind of question. A new task is one entry of TASKS and a template in prompts.py."""

    name: str
    read: Callable[[list[Path], dict[str, str], bool], Table]  # (files, columns, whether every row needs an answer)
    fields: Callable[[str, Row, str], dict[str, str]]  # (context as far as it fits, row, answer) -> what templates may use
    needs: tuple[str, ...]  # the fields without which a template makes no sense
    sample: Row
    score: Callable[[Sequence[Row], Sequence[str]], dict]  # (rows with gold answers, predictions)
    headline: tuple[str, ...]  # names of the scores that count, the first decides which adapter is kept
    kind: Callable[[Row], str]  # what a question asks for, by which the report groups
    submit: Callable[[Recipe, Path, Path, Sequence[Row], Sequence[str], "SubmissionForm"], tuple[Path, str | None]]
    # (recipe, folder, test file, rows, predictions, form) -> (the submission, written and read back; a note for people)
    form: Callable[[Path, Sequence[Row]], "SubmissionForm"] = lambda test_file, rows: SubmissionForm()
    # what the submission must look like, read before anything is answered
    expand: Callable[[list[Row]], list[Row]] = list  # the rows to train on
    final_score: Callable[[Recipe, Sequence[Row], Sequence[str]], dict] = lambda recipe, rows, predictions: {}
    # what is scored once, at the end, because it needs another model


def _economic_score(rows: Sequence[Row], predictions: Sequence[str]) -> dict:
    return metrics.score(predictions, [row.answers for row in rows], [row.article for row in rows])


def _economic_kind(row: Row) -> str:
    kind = question_kind(row.question)
    return f"{KINDS[kind]} ({kind})"


def _economic_submit(
    recipe: Recipe,
    folder: Path,
    test_file: Path,
    rows: Sequence[Row],
    predictions: Sequence[str],
    form: "SubmissionForm | None" = None,
) -> tuple[Path, str | None]:
    path = folder / "submission.csv"
    write_submission(path, form or SubmissionForm(), [row.id for row in rows], predictions)
    lost = pd.read_csv(path, encoding="utf-8-sig").iloc[:, 1].isna().sum()
    told = f"{lost} answers are empty or words as NA, which pandas' plain read_csv takes for nothing: review.csv shows them"
    return path, told if lost else None


# A category's official term, and what it means in words of ours. The particle follows the Korean word's last syllable.
TERMS = {
    "원인": "cause",
    "후행사건": "subsequent event",
    "전제": "prerequisite",
    "동기": "motivation",
    "반응": "emotional reaction",
}
TERMS_KO = {"원인": "원인", "후행사건": "후행 사건", "전제": "전제 조건", "동기": "내적 동기", "반응": "감정 반응"}
DEFINITIONS = {
    "원인": "대상 발화에 나온 일이 일어나게 한 사건이나 상황",
    "후행사건": "대상 발화의 일이 있고 나서 이어서 일어날 법한 사건",
    "전제": "대상 발화가 말이 되려면 이미 참이어야 하는 사실",
    "동기": "화자가 대상 발화처럼 말하거나 행동하게 만든 마음이나 바람",
    "반응": "대상 발화의 일을 두고 화자나 듣는 사람이 느낄 법한 감정",
}


def with_ro(word: str, noted: str = "") -> str:
    """The word with the particle 으로 or 로 that its last syllable asks for; `noted` stands between, in brackets."""
    final = (ord(word[-1]) - 0xAC00) % 28
    return f"{word}{f'({noted})' if noted else ''}{'로' if final in (0, 8) else '으로'}"  # no final consonant, or ㄹ


def _dialogue_fields(context: str, row: Row, answer: str) -> dict[str, str]:
    category, definition = row.fields["category"], DEFINITIONS[row.fields["category"]]
    options = {letter: row.fields[f"option_{letter}"] for letter in LETTERS}
    return {
        "context": context,
        "reference": row.fields["reference"],
        "options": "\n".join(f"{letter}. {text}" for letter, text in options.items()),
        "question": f"대상 발화의 {with_ro(category)} 가장 알맞은 것은 무엇인가?",
        "question_term": f"대상 발화의 {with_ro(TERMS_KO[category], TERMS[category])} 가장 알맞은 것은 무엇인가?",
        "question_definition": f"다음 설명에 가장 알맞은 것은 무엇인가? 설명: {definition}",
        "instruction_definition": f"아래 설명에 가장 알맞은 선택지를 골라 그 기호와 내용을 적어라. 설명: {definition}",
        "answer": answer,
        "answer_text": options.get(answer, ""),
    }


def _dialogue_score(rows: Sequence[Row], predictions: Sequence[str]) -> dict:
    """Accuracy with its interval over dialogues, per category, and which letter was said for which."""
    scores = _economic_score(rows, predictions)
    right = {"accuracy": scores["exact_match"], "accuracy_interval": scores["exact_match_interval"]}
    categories, confusion = {}, {gold: dict.fromkeys(LETTERS, 0) for gold in LETTERS}
    for row, prediction in zip(rows, predictions, strict=True):
        hits, count = categories.get(row.fields["category"], (0, 0))
        categories[row.fields["category"]] = (hits + (prediction in row.answers), count + 1)
        confusion[row.answers[0]][prediction] = confusion[row.answers[0]].get(prediction, 0) + 1
    by_category = {name: {"accuracy": hits / count, "questions": count} for name, (hits, count) in categories.items()}
    return (
        scores | {"metric": f"accuracy, {metrics.METRIC_VERSION}"} | right | {"by_category": by_category, "confusion": confusion}
    )


def _dialogue_submit(
    recipe: Recipe,
    folder: Path,
    test_file: Path,
    rows: Sequence[Row],
    predictions: Sequence[str],
    form: "SubmissionForm | None" = None,
) -> tuple[Path, str | None]:
    return write_dialogue(folder / "submission.json", test_file, list(predictions)), None


def write_dialogue(path: Path, like: Path, letters: list[str]) -> Path:
    """The file `like` with `output` filled, in its layout; read back and checked."""
    items = nikl.load_items(like)
    if len(items) != len(letters):
        raise InputError(f"{like} holds {len(items)} items, and {len(letters)} were answered. Name answers to that file.")
    write_bytes(path, nikl.to_json(nikl.filled(items, letters), like.read_bytes(), like))
    back = [(row.id, row.answers) for row in nikl.read([path], need_answers=True).rows]
    if back != [(writable(item["id"]), (letter,)) for item, letter in zip(items, letters, strict=True)]:
        raise RuntimeError(f"{path} reads back differently from what was written ({len(back)} items)")
    return path


def _wallpaper_score(rows: Sequence[Row], predictions: Sequence[str]) -> dict:
    """Character F1 and ROUGE-L, each with the gold answer that is nearest."""
    scores = _economic_score(rows, predictions)
    values = [metrics.rouge_l(prediction, row.answers) for row, prediction in zip(rows, predictions, strict=True)]
    interval = metrics.bootstrap_interval(values, [row.article for row in rows])
    return scores | {
        "metric": f"{metrics.METRIC_VERSION}, char-rouge-l",
        "rouge_l": sum(values) / len(values),
        "rouge_l_interval": interval,
    }


def _wallpaper_similarity(recipe: Recipe, rows: Sequence[Row], predictions: Sequence[str]) -> dict:
    """Cosine similarity of sentence embeddings to the gold answers, mean and best; nothing, and why, without the model."""
    try:
        said = embed(predictions, recipe.embedding_model)
        golds = embed([answer for row in rows for answer in row.answers], recipe.embedding_model)
    except InputError as error:
        print(f"no similarity of sentence embeddings: {error}")
        return {}
    left = iter(golds)
    each = [[cosine(vector, next(left)) for _ in row.answers] for row, vector in zip(rows, said, strict=True)]
    similarity = {"mean": fmean(map(fmean, each)), "best": fmean(map(max, each)), "model": recipe.embedding_model}
    return {"similarity": similarity}


def _wallpaper_submit(
    recipe: Recipe,
    folder: Path,
    test_file: Path,
    rows: Sequence[Row],
    predictions: Sequence[str],
    form: "SubmissionForm | None" = None,
) -> tuple[Path, str | None]:
    """answers.csv, and submission.csv of sentence embeddings where their model can be loaded."""
    ids, answers = [row.id for row in rows], folder / "answers.csv"
    write_submission(answers, SubmissionForm(("id", "답변")), ids, predictions)
    try:
        vectors = embed(predictions, recipe.embedding_model)
    except InputError as error:
        return answers, f"no submission of sentence embeddings: {error}"
    columns = ["id", *(f"vec_{number}" for number in range(len(vectors[0])))]
    table = pd.DataFrame([[name, *vector] for name, vector in zip(ids, vectors, strict=True)], columns=columns)
    write_text(folder / "submission.csv", table.to_csv(index=False, lineterminator="\n"), encoding="utf-8-sig")
    vectors_as = dict.fromkeys(columns[1:], float)
    back = pd.read_csv(folder / "submission.csv", dtype={"id": str} | vectors_as, keep_default_na=False, encoding="utf-8-sig")
    if (
        list(back.columns) != columns
        or back["id"].tolist() != ids
        or not (back.iloc[:, 1:] - table.iloc[:, 1:]).abs().max().max() < 1e-6
    ):
        raise RuntimeError(f"{folder / 'submission.csv'} reads back differently from what was written")
    return folder / "submission.csv", f"the plain answers: {answers}"


def _no_columns(paths: list[Path], columns: dict[str, str]) -> list[Path]:
    """These files have columns of their own."""
    if columns:
        raise InputError(
            f"columns maps the columns of economic_qa; this task's files have their own. Got {columns}: leave it out."
        )
    return paths


TASKS = {
    "economic_qa": Task(
        name="economic_qa",
        read=read,
        fields=lambda context, row, answer: {"context": context, "question": row.question, "answer": answer},
        needs=("context", "question"),
        sample=Row(
            "sample", "한빛전자는 올해 1분기 매출 1,240억 원을 기록했다.", "한빛전자의 올해 1분기 매출은?", ("1,240억 원",)
        ),
        score=_economic_score,
        headline=("char_f1", "exact_match"),
        kind=_economic_kind,
        submit=_economic_submit,
        form=lambda test_file, rows: submission_form(test_file, [row.id for row in rows]),
    ),
    "dialogue_inference": Task(
        name="dialogue_inference",
        read=lambda paths, columns, need_answers: nikl.read(_no_columns(paths, columns), need_answers),
        fields=_dialogue_fields,
        needs=("context", "options"),
        sample=nikl.SAMPLE,
        score=_dialogue_score,
        headline=("accuracy",),
        kind=lambda row: row.fields["category"],
        submit=_dialogue_submit,
    ),
    "wallpaper_qa": Task(
        name="wallpaper_qa",
        read=lambda paths, columns, need_answers: wallpaper.read(_no_columns(paths, columns), need_answers),
        fields=lambda context, row, answer: {"question": row.question, "answer": answer},
        needs=("question",),
        sample=Row("sample", "", "벽지에 곰팡이가 생기는 이유는?", ("습기가 벽에 맺히기 때문입니다.",)),
        score=_wallpaper_score,
        headline=("char_f1", "rouge_l"),
        kind=lambda row: row.fields.get("category") or "(none)",
        submit=_wallpaper_submit,
        expand=wallpaper.one_per_answer,
        final_score=_wallpaper_similarity,
    ),
}


def get_task(name: str) -> Task:
    """The task of this name; InputError names the nearest known one."""
    if name not in TASKS:
        raise InputError(f"got task {name!r}; expected one of {', '.join(TASKS)}.{nearest(name, TASKS)}")
    return TASKS[name]


def read_train(recipe: Recipe) -> Table:
    """Read the training file, or several with commas between them; every row needs an answer."""
    names = [recipe.train_file] if Path(recipe.train_file).exists() else recipe.train_file.split(",")
    return get_task(recipe.task).read([Path(name.strip()) for name in names], recipe.columns, True)


def read_test(recipe: Recipe, test_file: Path) -> Table:
    """A test file, with gold answers if it or <name>_answers.csv beside it has them."""
    # A mapping for the answer column is for the training file: a test file rarely has one.
    columns = {ours: theirs for ours, theirs in recipe.columns.items() if ours not in ("answer", "answers")}
    table = get_task(recipe.task).read([test_file], columns, False)
    answers_file = test_file.with_name(f"{test_file.stem}_answers.csv")
    if not answers_file.is_file():
        return table
    given = read_answers(answers_file)
    find = match_ids([row.id for row in table.rows], given)
    golds = {row.id: given[name] for row in table.rows if (name := find(row.id)) is not None}
    missing = [row.id for row in table.rows if row.id not in golds]
    if missing:
        raise InputError(
            f"{answers_file} has no answer for {len(missing)} ids of {test_file}, first {missing[0]}. Correct or remove it."
        )
    odd = [row.id for row in table.rows if row.choices and not set(golds[row.id]) <= set(row.choices)]
    if odd:
        raise InputError(f"{answers_file}: the answer of {odd[0]} is {golds[odd[0]][0]!r}; expected one of {', '.join(LETTERS)}.")
    rows = [replace(row, answers=golds[row.id]) for row in table.rows]
    return Table(table.path, rows, table.sha256, [*table.notes, f"gold answers come from {answers_file}"])


def answer_shape(records: Sequence[dict]) -> dict:
    """What answers look like whatever their score: {"mean_length" in characters, "stopped", "spans", "repeating" as shares}."""
    return {
        "mean_length": sum(len(record["prediction"]) for record in records) / len(records),
        "stopped": sum(record["ended"] == "stopped" for record in records) / len(records),
        "spans": sum(record["span"] is not None for record in records) / len(records),
        "repeating": sum(metrics.repeats(record["prediction"]) for record in records) / len(records),
    }


def score_rows(task: Task, rows: list[Row], predictions: Sequence[str]) -> dict | None:
    """The task's scores, or None when not every row has a gold answer. Questions marked is_impossible are left out."""
    answerable = [index for index, row in enumerate(rows) if not row.fields.get("impossible")]
    if not answerable or not all(rows[index].answers for index in answerable):
        return None
    return task.score([rows[index] for index in answerable], [predictions[index] for index in answerable])


def prediction_record(task: Task, example: Example, prediction: Prediction) -> dict:
    """One line of predictions.jsonl and one row of predictions.csv."""
    row, text = example.row, prediction.text
    record = {
        "id": row.id,
        "question": row.question,
        "prediction": text,
        "gold": list(row.answers),
        "char_f1": metrics.char_f1(text, row.answers) if row.answers else None,
        "exact_match": metrics.exact_match(text, row.answers) if row.answers else None,
        "log_probability": round(prediction.log_probability, 4),
        "span": prediction.span and list(prediction.span),
        "token_ids": prediction.token_ids,
        "ended": "stopped" if prediction.stopped else "cut",
        "trimmed_characters": example.trimmed,
        "article": row.article,
        "kind": task.kind(row),
    }
    return record | ({"choices": prediction.choices} if prediction.choices else {})


def _in_a_cell(value):
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return " | ".join(map(str, value)) if isinstance(value, list) else value


def write_predictions(path: Path, records: list[dict]) -> None:
    """predictions.csv: the records, their lists (gold answers, samples, token ids) joined with " | ", choices as JSON."""
    table = pd.DataFrame([{name: _in_a_cell(value) for name, value in record.items()} for record in records])
    write_text(path, table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC), encoding="utf-8-sig")


SUBMISSION_COLUMNS = ("id", "answer")  # where the organiser's sample is not there
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for one (OWASP, CSV injection)


def write_review(path: Path, records: list[dict]) -> None:
    """Write review.csv, for a spreadsheet: what a person compares, with an apostrophe before what would run as a formula."""
    columns = ("id", "question", "prediction", "gold", "char_f1", "log_probability", "ended")
    table = [{name: inert(record[name]) for name in columns} for record in records]
    text = pd.DataFrame(table, columns=columns).to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    write_text(path, text, encoding="utf-8-sig")


def _runs(text: str) -> bool:
    """Whether a text would run as a formula, but for apostrophes before it."""
    return text.lstrip("'").startswith(FORMULA)


def active(text: str) -> str:
    """Undo what `inert` made of a text."""
    return text[1:] if text.startswith("'") and _runs(text) else text


def inert(value):
    """Put an apostrophe before a text, or several, that a spreadsheet would run as a formula."""
    text = " | ".join(value) if isinstance(value, list) else value
    return f"'{text}" if isinstance(text, str) and _runs(text) else text


@dataclass(frozen=True)
class SubmissionForm:
    """What a submission looks like. `note` tells people what of the organiser's sample was used, and why not all."""

    columns: tuple[str, str] = SUBMISSION_COLUMNS
    encoding: str = "utf-8-sig"
    order: tuple[str, ...] = ()  # the test file's ids as the sample has them; empty: as the test file has them
    note: str | None = None


def submission_form(test_file: Path, ids: Sequence[str]) -> SubmissionForm:
    """Read sample_submission.csv beside the test file, before anything is answered.

    Without a sample, or where its ids or columns are not the test file's, the form is ours. A sample that cannot be read,
    or whose header is no header, is an InputError: found after hours of answering it would cost them.
    """
    sample = test_file.with_name("sample_submission.csv")
    if not sample.is_file():
        others = [path.name for path in test_file.parent.glob("*.[cC][sS][vV]") if "sample" in path.name.lower()]
        hint = f"{short_list(others)} beside {test_file} is not read; name it sample_submission.csv if it is the organiser's"
        return SubmissionForm(note=hint if others else None)
    text, encoding = decode(sample.read_bytes(), sample)
    sheet = read_cells(text, sample)
    if len(sheet.header) == 2 and len({name.strip() for name in sheet.header} - {""}) < 2:
        raise InputError(f"{sample} has the header {sheet.header}; expected two different names. Correct it, or remove it.")
    found = [cells.get(sheet.header[0], "") for _, cells in sheet.rows] if sheet.header else []
    find = match_ids(ids, found)
    places = {name: place for place, name in enumerate(found)}
    matched = {name: places[other] for name in ids if (other := find(name)) is not None}
    if len(sheet.header) != 2 or not len(matched) == len(ids) == len(found) == len(places):
        return SubmissionForm(
            note=f"{sample} is not of this test file (its ids or columns differ); the columns are {', '.join(SUBMISSION_COLUMNS)}"
        )
    has_mark = encoding != "utf-8" or sample.read_bytes().startswith(codecs.BOM_UTF8)
    notes = [] if encoding == "utf-8" else [f"{sample} is {encoding}; the submission is written as UTF-8"]
    if sheet.separator != ",":
        notes.append(f"{sample} is not separated by commas; the submission is")
    order = tuple(sorted(ids, key=matched.__getitem__))
    if order != tuple(ids):
        notes.append(f"the submission's rows stand in the order of {sample}, which is not the test file's")
    if any(name not in places for name in ids):
        notes.append(f"{sample} writes some ids in another way; the submission has them as the test file does")
    columns = (sheet.header[0], sheet.header[1])
    return SubmissionForm(columns, "utf-8-sig" if has_mark else "utf-8", order, "; ".join(notes) or None)


def form_of(submission: Path) -> SubmissionForm | None:
    """Return the form of a CSV of two columns, as a submission is, the order of its ids included; None for another."""
    data = submission.read_bytes()
    text, encoding = decode(data, submission)
    sheet = read_cells(text, submission)
    if len(sheet.header) != 2 or len({name.strip() for name in sheet.header} - {""}) != 2:
        return None
    has_mark = data.startswith(codecs.BOM_UTF8) or encoding != "utf-8"
    order = tuple(cells.get(sheet.header[0], "") for _, cells in sheet.rows)
    return SubmissionForm((sheet.header[0], sheet.header[1]), "utf-8-sig" if has_mark else "utf-8", order)


def write_submission(path: Path, form: SubmissionForm, ids: Sequence[str], answers: Sequence[str]) -> None:
    """Write the submission in the form's order; whole, read back and checked."""
    answer_of = dict(zip(ids, answers, strict=True))
    ids = list(form.order or ids)
    answers = [answer_of[name] for name in ids]
    text = io.StringIO()
    # Minimal quoting leaves a bare carriage return unquoted, and a reader would see two rows.
    quoting = csv.QUOTE_ALL if any("\r" in cell for cell in (*ids, *answers)) else csv.QUOTE_MINIMAL
    writer = csv.writer(text, lineterminator="\n", quoting=quoting)
    writer.writerow(form.columns)
    writer.writerows(zip(ids, answers, strict=True))
    write_text(path, text.getvalue(), encoding=form.encoding)
    check_submission(path, form, ids, answers)


def check_submission(path: Path, form: SubmissionForm, ids: Sequence[str], answers: Sequence[str]) -> None:
    """Read a written submission as the organiser would; RuntimeError if it is not what was meant."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    has_bom = path.read_bytes().startswith(codecs.BOM_UTF8)
    meant = (list(form.columns), list(ids), list(answers), form.encoding == "utf-8-sig")
    if (list(table.columns), table.iloc[:, 0].tolist(), table.iloc[:, 1].tolist(), has_bom) != meant:
        raise RuntimeError(f"{path} reads back differently from what was written ({len(table)} rows, {list(table.columns)})")
