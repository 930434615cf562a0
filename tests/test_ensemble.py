"""Test ensembles: a published example, ties, rejected input and the command."""

import json

import pandas as pd
import pytest

import ensemble
from dandap.errors import InputError
from dandap.runs.ensemble import combine, select
from dandap.runs.predictions import load_predictions
from tasks.submission import REVIEW_COLUMNS, write_review


def records(*answers, **more):
    return [{"id": "q", "prediction": answer, **more} for answer in answers]


# From the slides of Inha Wolminji (2024 Inha AI Challenge, 2nd place): the answers of Gemma, EEVE
# and Nous, and the one that was submitted.
PUBLISHED = {
    "TEST_0001": (("중국과 일본", "중국과 일본", "중국과 일본"), "중국과 일본"),
    "TEST_0008": (("25명", "25명", "1710명"), "25명"),
    "TEST_0020": (("다섯 차례", "14일", "14일, 다섯 차례"), "14일, 다섯 차례"),
    "TEST_0099": (("공소시효", "선거사범의 공소시효", "선거 수사의 연속성"), "선거사범의 공소시효"),
}


def test_published_example():
    for answers, submitted in PUBLISHED.values():
        for method in ("f1_sum", "vote_f1"):
            assert answers[select(records(*answers), method)] == submitted


def test_ties_and_majorities():
    for method, answers, selected in (
        ("vote", ("가", "나", "다"), 0),
        ("vote", ("가", "나", "나", "가"), 0),
        ("vote", ("가나", "다라", "'다라'"), 1),  # equal after normalization
        ("vote_f1", ("가", "나다", "나라"), 1),
        ("f1_sum", ("가", "나"), 0),  # a tie of two members
        ("f1_sum", ("", "나"), 1),  # an empty answer scores 0
        ("f1_sum", ("서울", "서울시", "부산시"), 1),
        ("f1_sum", ("", "", "나"), 2),
    ):
        assert select(records(*answers), method) == selected, (method, answers)


def test_hard_vote_breaks_ties_by_probability():
    def member(choice, **log_probabilities):
        return {"id": "q", "prediction": choice, "choices": log_probabilities}

    for members, selected in (
        ([member("A", A=-1, B=-5), member("B", A=-9, B=-0.1)], 1),
        ([member("A", A=-0.1, B=-9), member("B", A=-1, B=-0.9)], 0),
        ([member("A", A=-1, B=-1), member("B", A=-1, B=-1)], 0),
        ([member("A", A=-1, B=-9), member("B", A=-3, B=-1), member("B", A=-3, B=-1)], 1),
    ):
        assert select(members, "hard") == selected
    with pytest.raises(InputError, match="--choices"):
        select(records("A", "B"), "hard")


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a file of answers and returns its path."""

    def write(name, answers, gold=None):
        lines = []
        for number, answer in enumerate(answers):
            record = {"id": f"TEST_{number:04d}", "question": "무엇?", "prediction": answer}
            record |= {"article": f"a{number // 2}"} | ({"gold": [gold[number]]} if gold else {})
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        (tmp_path / name).write_text("".join(lines), encoding="utf-8")
        return str(tmp_path / name)

    return write


def test_command_writes_a_submission_and_prints_scores(write, tmp_path, capsys):
    gold = ["서울", "부산", "25명", "14일"]
    files = [
        write("a.jsonl", ["서울", "대구", "25명", "14일"], gold),
        write("b.jsonl", ["서울", "부산", "25명", "15일"]),
        write("c.jsonl", ["인천", "부산", "25명", "14일"]),
    ]
    out = ["--output_dir", str(tmp_path / "o")]
    result = ensemble.main([*files, *out, "--output", str(tmp_path / "mine.csv")])
    assert result["char_f1"] == 1.0
    table = pd.read_csv(tmp_path / "mine.csv", dtype=str, encoding="utf-8-sig")
    assert table["answer"].tolist() == gold
    printed = capsys.readouterr().out
    assert "agreement: 3:0 1, 2:1 3" in printed
    assert printed.count("char F1") == 4, "each member's score and the ensemble's"
    (folder,) = (tmp_path / "o").glob("ensemble-f1_sum-*")
    description = json.loads((folder / "ensemble.json").read_text())
    assert description["taken"] == [3, 1, 0]
    assert list(description["scores"]) == [*files, "ensemble"]
    assert ensemble.main([files[0], str(folder), *out])["questions"] == 4


def test_submission_has_the_order_of_the_first_member(tmp_path):
    """The order of sample_submission.csv may differ from that of the test file."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        lines = [json.dumps({"id": row, "prediction": row}) for row in ("a", "b", "c")]
        (tmp_path / name / "predictions.jsonl").write_text("\n".join(lines))
        submission = tmp_path / name / "submission.csv"
        submission.write_text("ID,정답\nc,c\na,a\nb,b\n", encoding="utf-8")
    members = [tmp_path / name for name in ("one", "two")]
    written = combine(members, output_dir=tmp_path / "out").submission
    assert written.read_text(encoding="utf-8") == "ID,정답\nc,c\na,a\nb,b\n"


def test_answers_are_read_from_csv_files(tmp_path):
    (tmp_path / "a.csv").write_text('ID,정답\nq1,"가\u2028나\x0b"\n', encoding="utf-8")
    assert load_predictions(tmp_path / "a.csv") == [{"id": "q1", "prediction": "가\u2028나\x0b"}]
    # A review has an apostrophe before text that a spreadsheet would run as a formula.
    record = dict.fromkeys(REVIEW_COLUMNS, "x") | {"gold": [], "prediction": "-3.2%"}
    write_review(tmp_path / "review.csv", [record])
    assert "'-3.2%" in (tmp_path / "review.csv").read_text(encoding="utf-8-sig")
    assert load_predictions(tmp_path / "review.csv") == [{"id": "x", "prediction": "-3.2%"}]


FILES = {
    "torn.jsonl": '{"id',
    "no_text.jsonl": '{"id": "a", "prediction": "b", "gold": [3]}\n',
    "twice.jsonl": '{"id": "a", "prediction": "b"}\n' * 2,
    "three.csv": "id,question,answer\nq1,?,a\n",
}
REJECTED = {
    "a.jsonl": "expected two or more",
    "a.jsonl short.jsonl": "1 ids are in only one, like TEST_0001",
    "a.jsonl b.jsonl --method hard": "--choices",
    "a.jsonl b.jsonl --output a.jsonl": "exists already",
    "a.jsonl torn.jsonl": "line 1: expected a JSON object",
    "a.jsonl no_text.jsonl": "line 1: expected a JSON object",
    "a.jsonl twice.jsonl": "2 answers with 1 different ids",
    "a.jsonl three.csv": "expected id and prediction, or the two columns",
}


def test_invalid_members_are_rejected(write, tmp_path, monkeypatch):
    for name, answers in (("a", ["가", "나"]), ("b", ["가", "나"]), ("short", ["가"])):
        write(f"{name}.jsonl", answers)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for command, message in REJECTED.items():
        with pytest.raises(InputError, match=message):
            ensemble.main(command.split())
        assert sorted(tmp_path.rglob("*")) == before, command
