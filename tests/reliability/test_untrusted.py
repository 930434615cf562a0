"""Test that hostile texts and files are handled as plain text or rejected."""

import csv
import json
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
from tasks import TASKS
from tasks.submission import SubmissionForm, write_review, write_submission
from tests.conftest import HEADER
from tests.reliability.hostile import HOSTILE

ARTICLE, QUESTION = "한빛전자는 올해 매출 {}을 기록했다고 4월 3일 밝혔다.", "올해 {}은 얼마인가?"


def test_texts_never_become_control_tokens():
    """A hostile text in any field does not change the number of control tokens."""
    tokenizer = load_tokenizer(Recipe(model="data/demo_model"))
    encoder = Encoder(tokenizer, prompts.get_template("concise"))

    def control_tokens(context, question, answer):
        question = QUESTION.replace("{}", question)
        row = Row("0", ARTICLE.replace("{}", context), question, ("답" + answer,))
        (example,) = encoder.encode([row], 40_000, True, "trim")
        return [
            Counter(token for token in ids if token in encoder.control_ids)
            for ids in (example.prompt_ids, example.answer_ids)
        ]

    plain = control_tokens("", "", "")
    for text in HOSTILE:
        for texts in ((text, "", ""), ("", text, ""), ("", "", text)):
            assert control_tokens(*texts) == plain, text[:50]


@pytest.fixture(scope="module")
def hostile_files(tmp_path_factory):
    """Return a folder with train.csv and test.csv of all texts except the longest."""
    folder = tmp_path_factory.mktemp("hostile")
    rows = [
        [f"행 {n}", ARTICLE.replace("{}", text), QUESTION.replace("{}", text), f"답 {text}"]
        for n, text in enumerate(HOSTILE[:-1])
    ]
    for name, columns in (("train", 4), ("test", 3)):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL)
            writer.writerows(row[:columns] for row in [HEADER, *rows])
    return folder


def options(folder, output):
    files = f"--train_file {folder}/train.csv --test_file {folder}/test.csv --output_dir {output}"
    return f"--recipe demo {files} --epochs 0.1 --max_new_tokens 8".split()


READ = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}


def test_hostile_rows_end_to_end(hostile_files, tmp_path, monkeypatch, capfd):
    """A hub token in the environment must not be written to any file."""
    canary = "hf_CANARY0123456789abcdefghijklmnopqr"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, canary)
    fine_tune.main(options(hostile_files, tmp_path))
    submission = pd.read_csv(inference.main(["--output_dir", str(tmp_path)])["submission"], **READ)
    assert submission["id"].tolist() == [f"행 {n}" for n in range(len(HOSTILE) - 1)]
    assert canary not in "".join(capfd.readouterr())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if canary.encode() in path.read_bytes()]


def test_hostile_answers_round_trip(tmp_path):
    """NUL is removed, because pandas 2.2 ends a cell there and loses the rest of the answer."""
    ids, file = [str(n) for n in range(len(HOSTILE))], tmp_path / "submission.csv"
    for encoding in ("utf-8", "utf-8-sig"):
        write_submission(file, SubmissionForm(("id", "answer"), encoding), ids, HOSTILE)
        answers = pd.read_csv(file, **READ)["answer"].tolist()
        assert answers == [text.replace("\0", "") for text in HOSTILE]


def test_formulas_in_a_review_are_escaped(tmp_path):
    record = {"id": "1", "question": "=1+1", "gold": ["@x", "b"], "char_f1": None}
    record |= {"log_probability": -0.5, "ended": "stopped"}
    write_review(tmp_path / "review.csv", [record | {"prediction": text} for text in HOSTILE])
    with (tmp_path / "review.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, text in zip(rows, HOSTILE, strict=True):
        assert not any(cell.startswith(("=", "+", "@", "\t", "\r")) for cell in row.values())
        assert row["prediction"].lstrip("'") in text
        assert row["question"] == "'=1+1"


def test_lone_surrogates_are_replaced(tmp_path):
    """Neither tokenizers nor files can encode them."""
    record = {"id": "1", "context": "기사 \ud800", "question": "질문?", "answer": "답"}
    (tmp_path / "train.jsonl").write_text(json.dumps(record) + "\n")
    (row,) = read_questions(tmp_path / "train.jsonl", need_answers=True).rows
    assert row.context == "기사 ?"


def test_safe_names_are_one_folder(tmp_path):
    for name, expected in {"../../etc": "etc", "a b/c": "a-b-c", "한글-1.2": "한글-1.2"}.items():
        assert safe_name(name) == expected
    for name in ("/etc/passwd", "C:\\x", "con\x00"):
        assert (tmp_path / safe_name(name)).resolve().parent == tmp_path.resolve()
    for name in ("..", ".", "/", " "):
        with pytest.raises(InputError, match="expected letters"):
            safe_name(name)


DIALOGUE = (
    '[{"id": "1", "input": {"conversation": [{"speaker": 1, "utterance": "가", '
    '"utterance_id": "u"}], ',
    '"reference_id": ["u"], "category": "원인", "inference_1": "a", "inference_2": "b", '
    '"inference_3": "c"}, ',
    '"output": "inference_1"}]',
)
PREDICTION = (
    '{"id": "2", "prediction": "답", "gold": [1], "choices": {"A": null}, "log_probability": "x"}\n'
)
TABLE = ('"', ",", "\n", "\r", "\x00", "\ufeff")
JSON = ("{", "}", "[", "]", '"', ":", ",", "1", "null", "\\ud800", "\n")
# Per file type: the reader, and fragments of which test files are composed.
READERS = {
    "csv": (
        lambda path: read_questions(path, need_answers=True),
        ("id,context,question,answer\n", "1,기사,질문,답\n", "a", "답", *TABLE),
    ),
    "jsonl": (
        lambda path: read_questions(path, need_answers=True),
        ('{"id": "1", "context": "기사", "question": "질문", "answer": "답"}\n', *JSON),
    ),
    "json": (
        lambda path: read_questions(path, need_answers=True),
        (
            '{"data": [{"paragraphs": [',
            '{"context": "기사", "qas": [',
            '{"id": "1", "question": "?", "answers": [{"text": "답"}]}',
            *("]}", "null"),
        ),
    ),
    "yaml": (
        lambda path: load_recipe(str(path), {}),
        (
            *("model: x\n", "epochs: 1\n", "- a\n", "&a [*a]", "{", ": ", "\t", "'", "\n"),
            "!!python/object/apply:os.system ['id']\n",
        ),
    ),
    "predictions.jsonl": (
        load_predictions,
        ('{"id": "1", "prediction": "답"}\n', PREDICTION, '{"id": 1, "prediction": null}', *JSON),
    ),
    "answers.csv": (
        load_predictions,
        ("id,prediction\n", "id,answer\n", "1,답\n", "\u2028", *TABLE),
    ),
    "nikl.json": (
        lambda path: TASKS["dialogue_inference"].read([path], {}, True),
        (*DIALOGUE, '"reference_id": 3', '"category": []', '"utterance_id": {}', *JSON),
    ),
    "wallpaper.csv": (
        lambda path: TASKS["wallpaper_qa"].read([path], {}, True),
        (
            "id,질문_1,질문_2,category,답변_1,답변_2,답변_3,답변_4,답변_5\n",
            *("1,가,나,다,라,마,바,사,아\n", "id,질문\n", "1,가\n", "accept", *TABLE),
        ),
    ),
}


@pytest.mark.parametrize("kind", READERS)
def test_readers_raise_only_input_errors(kind, tmp_path):
    """Any content gives rows, or an InputError that names the file."""
    read, pieces = READERS[kind]
    path = tmp_path / f"file.{kind}"
    text = st.lists(st.sampled_from(pieces) | st.text(max_size=5), max_size=12).map("".join)
    noise = text.map(lambda value: value.encode("utf-8", "surrogatepass")) | st.binary(max_size=60)

    @settings(max_examples=150)
    @given(noise)
    def check(data):
        path.write_bytes(data)
        try:
            read(path)
        except InputError as error:
            assert str(path) in str(error) or kind == "yaml"

    check()
