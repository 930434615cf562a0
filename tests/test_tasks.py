"""Test submissions and gold answers: round trips and rejected files."""

import csv

import pandas as pd
import pytest

from dandap.errors import InputError
from dandap.recipe import Recipe
from tasks import TASKS, get_task, submission
from tasks.submission import (
    SubmissionForm,
    escape_formula,
    submission_form,
    submission_like,
    unescape_formula,
    write_submission,
)
from tasks.task import read_test

TASK = TASKS["economic_qa"]
NASTY = ['"따옴표", 쉼표', "줄\n바꿈", "복귀\r문자", "=1+1", "NA", "0007", "1.50", " 빈칸 ", ""]


def read_text_table(path):
    return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")


def test_submission_round_trip(tmp_path):
    path, ids = tmp_path / "s.csv", ["\u1100\u11611", " 2 ", "3\r4", *"456789"]
    write_submission(path, SubmissionForm(), ids, NASTY[: len(ids)])
    table = read_text_table(path)
    assert table["id"].tolist() == ids
    assert table["answer"].tolist() == NASTY[: len(ids)]
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    assert b"\r\n" not in path.read_bytes()


def test_wrongly_written_submission_is_detected(tmp_path, monkeypatch):
    def write_other(path, text, encoding):
        path.write_text(text.replace("가", "나"), encoding)

    monkeypatch.setattr(submission, "write_text", write_other)
    with pytest.raises(RuntimeError, match="reads back differently"):
        write_submission(tmp_path / "s.csv", SubmissionForm(), ["a"], ["가"])


def test_sample_submission_sets_columns_encoding_and_order(tmp_path):
    sample, test = tmp_path / "sample_submission.csv", tmp_path / "test.csv"
    for text, mark in (
        ("ID,정답\nb,x\na,x\n", False),
        ("\ufeffID,정답\nb,x\na,x\n", True),
        ("sep=;\nID;정답\nb;x\na;x\n", False),
        ("ID,정답,\nb,x,\na,x,\n", False),
    ):
        sample.write_text(text, encoding="utf-8")
        form = submission_form(test, ["a", "b"])
        assert (form.columns, form.order) == (("ID", "정답"), ("b", "a")), text
        assert form.encoding == ("utf-8-sig" if mark else "utf-8"), text
        assert f"the order of {sample}" in form.note
    write_submission(tmp_path / "s.csv", form, ["a", "b"], ["가", "나"])
    assert (tmp_path / "s.csv").read_text(encoding="utf-8") == "ID,정답\nb,나\na,가\n"
    for encoding in ("cp949", "utf-16"):
        sample.write_bytes("번호\t정답\r\na\tx\r\n".encode(encoding))
        form = submission_form(test, ["a"])
        assert (form.columns, form.encoding) == (("번호", "정답"), "utf-8-sig")


def test_mismatched_sample_submission(tmp_path):
    sample, test = tmp_path / "sample_submission.csv", tmp_path / "test.csv"
    for text in ("ID,정답\nX,\n", "id,answer\na,\na,\n", "id,x,answer\na,,\n"):
        sample.write_text(text, encoding="utf-8")
        form = submission_form(test, ["a"])
        assert "does not match" in form.note
        assert (form.columns, form.order) == (("id", "answer"), ())
    sample.write_bytes(b"id,answer\na,\xff\xff\n")
    with pytest.raises(InputError, match="the byte 0xff"):
        submission_form(test, ["a"])


def test_ensemble_submission_is_like_the_first_member(tmp_path):
    (tmp_path / "submission.csv").write_text("ID,정답\nb,\na,\n", encoding="utf-8")
    member = tmp_path / "predictions.jsonl"
    form = submission_like(member, ["a", "b"])
    assert (form.columns, form.encoding, form.order) == (("ID", "정답"), "utf-8", ("b", "a"))
    form = submission_like(member, ["a", "c"])
    assert (form.columns, form.order, form.note) == (("ID", "정답"), (), None)
    assert submission_like(tmp_path / "x" / "predictions.jsonl", ["a"]) == SubmissionForm()


def test_formulas_are_escaped_and_restored():
    for text in ("=1+1", "-10도", "'-10도'에서", "''=1", "'가'", "가", "'"):
        assert unescape_formula(escape_formula(text)) == text
        assert not escape_formula(text).startswith(("=", "-"))
    assert escape_formula("'-10도") == "''-10도"


@pytest.fixture
def test_file(tmp_path):
    with (tmp_path / "test.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", "본문", "question"], ["a", "기사", "질문?"]])
    return tmp_path / "test.csv"


RECIPE = Recipe(columns={"context": "본문", "answer": "정답"})


def test_gold_answers_from_a_separate_file(test_file):
    assert read_test(TASK, RECIPE, test_file).rows[0].answers == ()
    test_file.with_name("test_answers.csv").write_text("id,answer\na,답\n", encoding="utf-8")
    table = read_test(TASK, RECIPE, test_file)
    assert table.rows[0].answers == ("답",)
    assert "test_answers.csv" in table.notes[-1]


def test_invalid_gold_answers_are_rejected(test_file):
    for text, message in (
        ('id,answer\na,"답\n', "quotation mark"),
        ("id,answer\na,답\na,답\n", "duplicate id"),
        ("id,answer\na,\n", "no answer for a"),
        ("id,answer\nb,답\n", "got no answer for a"),
    ):
        test_file.with_name("test_answers.csv").write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            read_test(TASK, RECIPE, test_file)
    with pytest.raises(InputError, match="Did you mean 'economic_qa'"):
        get_task("economic-qa")
