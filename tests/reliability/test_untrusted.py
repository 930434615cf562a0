"""Hostile texts as articles, questions and answers: plain text all the way from the file to the submission."""

import csv
import json
import os
import subprocess
import sys
from collections import Counter

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fine_tune
import inference
import prompts
from dandap.data.encode import Encoder
from dandap.data.read import read_questions
from dandap.data.rows import Row
from dandap.errors import InputError
from dandap.files import safe_name
from dandap.model.load import load_tokenizer
from dandap.recipe import Recipe, load_recipe
from dandap.runs.predictions import load_predictions
from tasks import dialogue_inference as nikl
from tasks import wallpaper_qa as wallpaper
from tasks.submission import SubmissionForm, write_review, write_submission
from tests.conftest import HEADER, ROOT
from tests.reliability.hostile import HOSTILE

ARTICLE, QUESTION = "한빛전자는 올해 매출 {}을 기록했다고 4월 3일 밝혔다.", "올해 {}은 얼마인가?"


@pytest.fixture(scope="module")
def encode():
    template = prompts.get_template("concise")
    return Encoder(
        load_tokenizer(Recipe(model="data/demo_model")),
        lambda c, row, a: prompts.render(template, {"context": c, "question": row.question}),
    )


def controls(encoder, ids):
    return Counter(token for token in ids if token in encoder.control_ids)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_becomes_control(encode, text):
    """A prompt with it has the control tokens of one without, in the article, the question and the answer alike."""

    def encoded(context, question, answer):
        row = Row(
            "0", ARTICLE.replace("{}", context), QUESTION.replace("{}", question), ("답" + answer,)
        )
        (example,) = encode.encode([row], 40_000, answers=True)
        return controls(encode, example.prompt_ids), controls(encode, example.answer_ids)

    plain = encoded("", "", "")
    assert encoded(text, "", "") == encoded("", text, "") == encoded("", "", text) == plain


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory):
    """Trained on hostile rows for a step, hostile questions answered; everything but the longest text."""
    folder = tmp_path_factory.mktemp("hostile")
    texts = [text for text in HOSTILE if len(text) < 1000]
    rows = [
        [f"행 {n}", ARTICLE.replace("{}", text), QUESTION.replace("{}", text), f"답 {text}"]
        for n, text in enumerate(texts)
    ]
    for name, columns in (("train", 4), ("test", 3)):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows(
                [HEADER[:columns], *(row[:columns] for row in rows)]
            )
    paths = [
        "--train_file",
        str(folder / "train.csv"),
        "--test_file",
        str(folder / "test.csv"),
        "--output_dir",
        str(folder),
    ]
    fine_tune.main(
        [
            "--recipe",
            "demo",
            *paths,
            "--epochs",
            "0.1",
            "--max_new_tokens",
            "8",
            "--run_name",
            "run",
        ]
    )
    return folder, texts


def test_hostile_rows_run_from_end_to_end(hostile_run):
    folder, texts = hostile_run
    result = inference.main(["--output_dir", str(folder)])
    submission = pd.read_csv(
        result["submission"], dtype=str, keep_default_na=False, encoding="utf-8-sig"
    )
    assert submission["id"].tolist() == [f"행 {n}" for n in range(len(texts))]


def test_hostile_answers_survive_the_round_trip(tmp_path):
    """All but NUL, at which pandas 2.2 ended a cell: the answer was lost from there."""
    rows = [Row(str(n), "기사", "질문?") for n in range(len(HOSTILE))]
    for encoding in ("utf-8", "utf-8-sig"):
        write_submission(
            tmp_path / "submission.csv",
            SubmissionForm(("id", "answer"), encoding),
            [row.id for row in rows],
            HOSTILE,
        )
        table = pd.read_csv(
            tmp_path / "submission.csv", dtype=str, keep_default_na=False, encoding="utf-8-sig"
        )
        assert table["answer"].tolist() == [text.replace("\0", "") for text in HOSTILE]


def test_the_review_runs_no_formula(tmp_path):
    record = {
        "id": "1",
        "question": "=1+1",
        "gold": ["@x", "b"],
        "char_f1": None,
        "log_probability": -0.5,
        "ended": "stopped",
    }
    write_review(tmp_path / "review.csv", [record | {"prediction": text} for text in HOSTILE])
    with (tmp_path / "review.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(HOSTILE)
    assert all(
        not row[name].startswith(("=", "+", "@", "\t", "\r")) for row in rows for name in row
    )
    assert all(
        row["prediction"].lstrip("'") in text or not text
        for row, text in zip(rows, HOSTILE, strict=True)
    )
    assert {row["question"] for row in rows} == {"'=1+1"}


def test_lone_surrogates_become_question_marks(tmp_path):
    """No tokenizer or file can hold them."""
    path = tmp_path / "train.jsonl"
    path.write_text(
        json.dumps({"id": "1", "context": "기사 \ud800", "question": "질문?", "answer": "답"})
        + "\n"
    )
    assert read_questions(path, need_answers=True).rows[0].context == "기사 ?"


@pytest.mark.parametrize(
    "name", ["../../etc", "/etc/passwd", "a/b", "..", ".", "C:\\x", "con\x00", "한글 이름"]
)
def test_names_stay_one_folder(name, tmp_path):
    try:
        folder = tmp_path / safe_name(name)
    except InputError:
        return
    assert folder.resolve().parent == tmp_path.resolve()


def test_a_token_in_the_environment_reaches_no_file(hostile_run, tmp_path):
    folder, _ = hostile_run
    canary = "hf_CANARY0123456789abcdefghijklmnopqr"
    environment = os.environ | {"HF_TOKEN": canary, "HUGGING_FACE_HUB_TOKEN": canary}
    options = [
        "--recipe",
        "demo",
        "--train_file",
        str(folder / "train.csv"),
        "--test_file",
        str(folder / "test.csv"),
    ]
    script = "import sys, fine_tune, inference; fine_tune.main(sys.argv[1:-2]); inference.main(sys.argv[-2:])"
    command = [
        sys.executable,
        "-c",
        script,
        *options,
        "--epochs",
        "0.1",
        "--output_dir",
        str(tmp_path),
        "--output_dir",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert canary.encode() not in done.stdout + done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if canary.encode() in path.read_bytes()]


READERS = {
    "csv": lambda path: read_questions(path, need_answers=True),
    "jsonl": lambda path: read_questions(path, need_answers=True),
    "json": lambda path: read_questions(path, need_answers=True),
    "yaml": lambda path: load_recipe(str(path), {}),
    "predictions.jsonl": load_predictions,
    "predictions.csv": load_predictions,
    "nikl.json": lambda path: nikl.TASK.read([path], {}, True),
    "wallpaper.csv": lambda path: wallpaper.TASK.read([path], {}, True),
}
PIECES = {
    "csv": [
        "id,context,question,answer\n",
        "1,기사,질문,답\n",
        '"',
        ",",
        "\n",
        "\r",
        "a",
        "답",
        "\x00",
        "\ufeff",
    ],
    "jsonl": [
        '{"id": "1", "context": "기사", "question": "질문", "answer": "답"}\n',
        "{",
        "}",
        "[",
        "]",
        '"',
        ":",
        "1",
        "null",
        "\\ud800",
        "\n",
    ],
    "json": [
        '{"data": [{"paragraphs": [',
        '{"context": "기사", "qas": [',
        '{"id": "1", "question": "?", "answers": [{"text": "답"}]}',
        "]}",
        "null",
    ],
    "predictions.jsonl": [
        '{"id": "1", "prediction": "답"}\n',
        '{"id": "2", "prediction": "답", "gold": [1], "choices": {"A": null}, "log_probability": "x"}\n',
        '{"id": 1, "prediction": null}',
        *("{", "}", "[", '"', ":", "\\ud800", "\n", "null"),
    ],
    "predictions.csv": [
        "id,prediction\n",
        "id,answer\n",
        "1,답\n",
        '"',
        ",",
        "\n",
        "\r",
        "\u2028",
        "\x00",
        "\ufeff",
    ],
    "nikl.json": [
        '[{"id": "1", "input": {"conversation": [{"speaker": 1, "utterance": "가", "utterance_id": "u"}], ',
        '"reference_id": ["u"], "category": "원인", "inference_1": "a", "inference_2": "b", "inference_3": "c"}, ',
        '"output": "inference_1"}]',
        *(
            '"reference_id": 3',
            '"category": []',
            '"utterance_id": {}',
            "null",
            "[",
            "]",
            "{",
            "}",
            ",",
            '"',
        ),
    ],
    "wallpaper.csv": [
        "id,질문_1,질문_2,category,답변_1,답변_2,답변_3,답변_4,답변_5\n",
        "1,가,나,다,라,마,바,사,아\n",
        "id,질문\n",
        *("1,가\n", "accept", '"', ",", "\n", "\r", "\x00", "\ufeff"),
    ],
    "yaml": [
        "model: x\n",
        "epochs: 1\n",
        "- a\n",
        "!!python/object/apply:os.system ['id']\n",
        "&a [*a]",
        "{",
        ": ",
        "\t",
        "'",
        "\n",
    ],
}


@pytest.mark.parametrize("kind", READERS)
def test_readers_read_or_refuse(kind, tmp_path_factory):
    """Whatever is in the file: rows, or an InputError that names the file; never another exception."""
    path = tmp_path_factory.mktemp("readers") / f"file.{kind}"
    text = st.lists(st.sampled_from(PIECES[kind]) | st.text(max_size=5), max_size=12).map("".join)
    noise = text.map(lambda value: value.encode("utf-8", "surrogatepass")) | st.binary(max_size=60)

    @settings(max_examples=150, deadline=None)
    @given(noise)
    def check(data):
        path.write_bytes(data)
        try:
            READERS[kind](path)
        except InputError as error:
            assert str(path) in str(error) or kind == "yaml"

    check()
