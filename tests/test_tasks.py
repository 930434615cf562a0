"""Submissions and predictions: what was meant is what reads back."""

import csv
from pathlib import Path

import pandas as pd
import pytest

from dandap.answering.answer import Answer
from dandap.data.encode import Example
from dandap.data.rows import Row
from dandap.errors import InputError
from dandap.recipe import Recipe
from dandap.runs.predictions import write_predictions
from tasks import TASKS, get_task
from tasks.submission import (
    SubmissionForm,
    check_submission,
    submission_form,
    write_submission,
)

TASK = TASKS["economic_qa"]
NASTY = ['"따옴표", 쉼표', "줄\n바꿈", "복귀\r문자", "=1+1", "NA", "0007", "1.50", " 빈칸 ", ""]


def rows(count):
    return [Row(f"TEST_{n:04d}", "기사", "질문?") for n in range(count)]


def write(path, test_file, questions, answers):
    form = submission_form(test_file, [row.id for row in questions])
    write_submission(path, form, [row.id for row in questions], answers)
    return form.note


def test_submission_round_trip_of_nasty_answers(tmp_path):
    path = tmp_path / "submission.csv"
    assert write(path, tmp_path / "test.csv", rows(len(NASTY)), NASTY) is None
    table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    assert table["id"].tolist() == [row.id for row in rows(len(NASTY))]
    assert table["answer"].tolist() == NASTY
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    assert b"\r\n" not in path.read_bytes()


def sample(folder: Path, ids, columns=("id", "answer"), encoding="utf-8"):
    with (folder / "sample_submission.csv").open("w", encoding=encoding, newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *([i, ""] for i in ids)])


@pytest.mark.parametrize(("encoding", "bom"), [("utf-8", False), ("utf-8-sig", True)])
def test_the_organisers_columns_and_byte_order_mark(tmp_path, encoding, bom):
    sample(tmp_path, ["TEST_0001", "TEST_0000"], columns=("ID", "정답"), encoding=encoding)
    path = tmp_path / "submission.csv"
    note = write(path, tmp_path / "test.csv", rows(2), ["가", "나"])
    assert "rows stand in the order of" in note
    assert path.read_bytes().startswith(b"\xef\xbb\xbf") == bom
    assert path.read_text(encoding="utf-8-sig") == "ID,정답\nTEST_0001,나\nTEST_0000,가\n"


def test_a_sample_of_another_file_is_not_used_and_told(tmp_path):
    sample(tmp_path, ["X"], columns=("ID", "정답"))
    note = write(tmp_path / "submission.csv", tmp_path / "test.csv", rows(1), ["가"])
    assert "is not of this test file" in note
    assert (tmp_path / "submission.csv").read_text(encoding="utf-8-sig").startswith("id,answer\n")


def test_a_wrong_submission_is_noticed(tmp_path):
    path = tmp_path / "submission.csv"
    form = SubmissionForm(("id", "answer"), "utf-8")
    for text in (
        "id,answer\nTEST_0001,가\n",
        "id,answer\nTEST_0000,나\n",
        "ID,answer\nTEST_0000,가\n",
        "\ufeffid,answer\nTEST_0000,가\n",
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(RuntimeError, match="reads back differently"):
            check_submission(path, form, [row.id for row in rows(1)], ["가"])
    path.write_text("id,answer\nTEST_0000,가\n", encoding="utf-8")
    check_submission(path, form, [row.id for row in rows(1)], ["가"])


def test_gold_answers_from_a_file_of_their_own(write_csv, tmp_path):
    test = write_csv([["id", "context", "question"], ["a", "기사", "질문?"]], "test.csv")
    write_csv([["id", "answer"], ["a", "답"]], "test_answers.csv")
    table = TASK.read_test(Recipe(), test)
    assert table.rows[0].answers == ("답",)
    assert "test_answers.csv" in table.notes[-1]


def test_gold_answers_that_do_not_belong_are_refused(write_csv):
    test = write_csv([["id", "context", "question"], ["a", "기사", "질문?"]], "test.csv")
    write_csv([["id", "answer"], ["b", "답"]], "test_answers.csv")
    with pytest.raises(InputError, match="no answer for 1 ids"):
        TASK.read_test(Recipe(), test)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('id,answer\na,"답\n', "quotation mark"),
        ("id,answer\na,답\na,답\n", "is there twice"),
        ("id,answer\na,\n", "no answer for a"),
        ("id,anwser\na,답\n", "Did you mean 'anwser'"),
    ],
)
def test_broken_gold_answers(write_csv, tmp_path, text, message):
    test = write_csv([["id", "context", "question"], ["a", "기사", "질문?"]], "test.csv")
    (tmp_path / "test_answers.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        TASK.read_test(Recipe(), test)


def test_a_sample_in_cp949_reads(tmp_path):
    sample(tmp_path, ["TEST_0000"], columns=("번호", "정답"), encoding="cp949")
    assert submission_form(tmp_path / "test.csv", ["TEST_0000"]).columns == ("번호", "정답")


def test_a_test_file_needs_no_answer_column_even_when_training_maps_one(write_csv):
    test = write_csv([["id", "본문", "question"], ["a", "기사", "질문?"]], "test.csv")
    assert (
        TASK.read_test(Recipe(columns={"context": "본문", "answer": "정답"}), test).rows[0].answers
        == ()
    )


def test_predictions_keep_every_text(tmp_path):
    records = [
        TASK.record(
            Example(Row(str(n), "기사", "질문?", ("답", "정답")), [1], []),
            [Answer([1, 2], True, -0.5, text)],
        )
        for n, text in enumerate(NASTY)
    ]
    write_predictions(tmp_path / "predictions.csv", records)
    table = pd.read_csv(
        tmp_path / "predictions.csv", dtype=str, keep_default_na=False, encoding="utf-8-sig"
    )
    assert table["prediction"].tolist() == NASTY
    assert table["gold"].tolist() == ["답 | 정답"] * len(NASTY)


def test_an_unknown_task():
    with pytest.raises(InputError, match="Did you mean 'economic_qa'"):
        get_task("economic-qa")
