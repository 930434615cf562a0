"""Test how several answers to a question become one.

There are the published worked example, ties, what is refused, and the whole command.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

import ensemble
import metrics
from dandap.errors import InputError
from dandap.files import locked
from dandap.runs.predictions import load_predictions
from tasks.submission import REVIEW_COLUMNS, write_review


def records(*answers, **more):
    return [{"id": "q", "prediction": answer, **more} for answer in answers]


# The slides of Inha Wolminji (2024 Inha AI Challenge, 2nd): answers of Gemma, EEVE and Nous, and
# which was submitted.
WORKED = {
    "TEST_0001": (("중국과 일본", "중국과 일본", "중국과 일본"), "중국과 일본"),
    "TEST_0008": (("25명", "25명", "1710명"), "25명"),
    "TEST_0020": (("다섯 차례", "14일", "14일, 다섯 차례"), "14일, 다섯 차례"),
    "TEST_0099": (("공소시효", "선거사범의 공소시효", "선거 수사의 연속성"), "선거사범의 공소시효"),
}


@pytest.mark.parametrize("method", ["f1_sum", "vote_f1"])
@pytest.mark.parametrize("question", WORKED)
def test_the_published_worked_example(question, method):
    answers, taken = WORKED[question]
    assert answers[ensemble.METHODS[method](records(*answers))] == taken


@pytest.mark.parametrize(
    ("question", "expected"),
    [("TEST_0020", (0, 0.6, 0.7272727273)), ("TEST_0099", (0.6153846154, 0.4705882353, 0))],
)
def test_the_published_pairwise_f1(question, expected):
    a, b, c = WORKED[question][0]
    pairs = {"TEST_0020": ((a, b), (b, c), (a, c)), "TEST_0099": ((a, b), (b, c), (a, c))}[question]
    assert [round(metrics.char_f1(*pair), 10) for pair in pairs] == list(expected)


@pytest.mark.parametrize(
    ("method", "answers", "taken"),
    [
        ("vote", ("가", "나", "다"), 0),  # a tie of three: the first listed
        ("vote", ("가", "나", "나"), 1),
        ("vote", ("가", "나", "나", "가"), 0),
        ("vote", ("가나", "다라", "'다라'"), 1),  # equal by the metric's rules
        (
            "vote_f1",
            ("가", "나다", "나라"),
            1,
        ),  # a tie: the one with more in common, the first of equals
        ("f1_sum", ("가", "나"), 0),  # two members: always the first
        ("f1_sum", ("", "나"), 1),  # but an empty answer never scores
        ("f1_sum", ("가", ""), 0),
        ("f1_sum", ("서울", "서울시", "부산시"), 1),
        ("f1_sum", ("", "", "나"), 2),
    ],
)
def test_ties_and_majorities(method, answers, taken):
    assert ensemble.METHODS[method](records(*answers)) == taken


def test_a_hard_vote_breaks_ties_by_summed_probability():
    def chose(choice, **log_probabilities):
        return {"id": "q", "prediction": choice, "choices": log_probabilities}

    assert ensemble.hard([chose("A", A=-1, B=-5), chose("B", A=-9, B=-0.1)]) == 1
    assert ensemble.hard([chose("A", A=-0.1, B=-9), chose("B", A=-1, B=-0.9)]) == 0
    assert ensemble.hard([chose("A", A=-1, B=-1), chose("B", A=-1, B=-1)]) == 0
    assert (
        ensemble.hard([chose("A", A=-1, B=-9), chose("B", A=-3, B=-1), chose("B", A=-3, B=-1)]) == 1
    )
    with pytest.raises(InputError, match="--choices"):
        ensemble.hard(records("A", "B"))


def test_agreement_counts_patterns():
    answers = [("가", "가", "가"), ("가", "나", "가"), ("가", "나", "다"), ("가", "가", "'가'")]
    assert ensemble.agreement([records(*each) for each in answers]) == {
        "3:0": 2,
        "2:1": 1,
        "1:1:1": 1,
    }


@pytest.fixture
def write(tmp_path):
    def write(name, answers, gold=None, **more):
        lines = []
        for number, answer in enumerate(answers):
            record = {
                "id": f"TEST_{number:04d}",
                "question": "무엇?",
                "prediction": answer,
                "article": f"a{number // 2}",
                **more,
            }
            lines.append(
                json.dumps(record | ({"gold": [gold[number]]} if gold else {}), ensure_ascii=False)
            )
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(path)

    return write


def test_the_command_writes_a_submission_and_tells_scores(write, tmp_path, capsys):
    gold = ["서울", "부산", "25명", "14일"]
    files = [
        write("a.jsonl", ["서울", "대구", "25명", "14일"], gold),
        write("b.jsonl", ["서울", "부산", "25명", "15일"]),
        write("c.jsonl", ["인천", "부산", "25명", "14일"]),
    ]
    result = ensemble.main(
        [*files, "--output_dir", str(tmp_path / "o"), "--output", str(tmp_path / "mine.csv")]
    )
    assert result["char_f1"] == 1.0
    table = pd.read_csv(tmp_path / "mine.csv", dtype=str, encoding="utf-8-sig")
    assert table["answer"].tolist() == gold
    out = capsys.readouterr().out
    assert "agreement: 3:0 1, 2:1 3" in out
    assert out.count("char F1") == 4, "each member's score and the ensemble's"
    made = next((tmp_path / "o").glob("ensemble-f1_sum-*"))
    assert json.loads((made / "ensemble.json").read_text())["taken"] == [3, 1, 0]
    assert [r["prediction"] for r in load_predictions(made / "predictions.jsonl")] == gold
    again = ensemble.main([files[0], str(made), "--output_dir", str(tmp_path / "o")])
    assert again["questions"] == 4
    assert "f1_sum must take the first" in capsys.readouterr().out


def test_submissions_are_members_too(tmp_path):
    for name, answer in (("a", "서울"), ("b", "NA"), ("c", "NA")):
        (tmp_path / f"{name}.csv").write_text(
            f'ID,정답\nTEST_0000,{answer}\nTEST_0001,"가\r나"\n', encoding="utf-8"
        )
    names = [str(tmp_path / f"{name}.csv") for name in "abc"]
    result = ensemble.main([*names, "--output_dir", str(tmp_path), "--method", "vote"])
    assert result["char_f1"] is None
    table = pd.read_csv(result["submission"], dtype=str, keep_default_na=False)
    assert list(table.columns) == ["ID", "정답"]
    assert table["정답"].tolist() == ["NA", "가\r나"]


def test_the_submission_keeps_the_order_of_the_first_members(tmp_path, capsys):
    """Which is the organiser's, where their sample is in another order than the test file."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        lines = [json.dumps({"id": row, "prediction": row}) for row in ("a", "b", "c")]
        (tmp_path / name / "predictions.jsonl").write_text("\n".join(lines))
        (tmp_path / name / "submission.csv").write_text(
            "sep=,\nID,정답\nc,c\na,a\nb,b\n", encoding="utf-8"
        )
    members = [str(tmp_path / name) for name in ("one", "two")]
    result = ensemble.main([*members, "--output_dir", str(tmp_path / "out")])
    assert Path(result["submission"]).read_text(encoding="utf-8") == "ID,정답\nc,c\na,a\nb,b\n"
    assert (
        f"the submission's rows stand in the order of {tmp_path / 'one' / 'submission.csv'}"
        in capsys.readouterr().out
    )
    (tmp_path / "one" / "submission.csv").write_text("ID,정답\nx,c\na,a\nb,b\n", encoding="utf-8")
    result = ensemble.main([*members, "--output_dir", str(tmp_path / "out")])
    assert Path(result["submission"]).read_text(encoding="utf-8") == "ID,정답\na,a\nb,b\nc,c\n", (
        "it is of other questions"
    )


def test_a_review_is_read_without_its_apostrophes(tmp_path):
    record = dict.fromkeys(REVIEW_COLUMNS, "x") | {"gold": [], "prediction": "-3.2%"}
    write_review(tmp_path / "review.csv", [record])
    assert "'-3.2%" in (tmp_path / "review.csv").read_text(encoding="utf-8-sig")
    assert load_predictions(tmp_path / "review.csv") == [{"id": "x", "prediction": "-3.2%"}]


def test_a_csv_is_read_by_its_columns_names_and_every_sign_in_it(tmp_path):
    (tmp_path / "a.csv").write_text("id,question,answer\nq1,뭐?,가\u2028나\x0b\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text("prediction,id\n다,q1\n", encoding="utf-8")
    assert load_predictions(tmp_path / "a.csv") == [{"id": "q1", "prediction": "가\u2028나\x0b"}]
    assert load_predictions(tmp_path / "b.csv") == [{"id": "q1", "prediction": "다"}]


def test_gold_answers_and_columns_come_from_whoever_has_them(write, tmp_path):
    blind, known = write("a.jsonl", ["가"]), write("b.jsonl", ["나"], ["가"])
    text = Path(blind).read_text(encoding="utf-8").replace('"article"', '"gold": [], "article"')
    Path(blind).write_text(text, encoding="utf-8")
    result = ensemble.main([blind, known, "--output_dir", str(tmp_path / "o")])
    assert result["char_f1"] == 1.0
    assert Path(result["submission"]).read_text(encoding="utf-8-sig") == "id,answer\nTEST_0000,가\n"


BAD = {
    "one member": (["a.jsonl"], "needs at least two"),
    "the same twice": (["a.jsonl", "a.jsonl"], "a member twice"),
    "other ids": (["a.jsonl", "short.jsonl"], r"1 are only in .*a.jsonl, as TEST_0001"),
    "more ids": (["short.jsonl", "a.jsonl"], r"1 are only in .*a.jsonl, as TEST_0001"),
    "nothing there": (["a.jsonl", "nobody"], "no such folder"),
    "hard without choices": (["a.jsonl", "b.jsonl", "--method", "hard"], "--choices"),
    "an output that exists": (["a.jsonl", "b.jsonl", "--output", "a.jsonl"], "exists already"),
    "no JSON": (["a.jsonl", "torn.jsonl"], "line 1: expected a JSON object"),
    "no id": (["a.jsonl", "noid.jsonl"], "line 1: expected a JSON object"),
    "empty": (["a.jsonl", "empty.jsonl"], "0 answers"),
    "an id twice": (["a.jsonl", "twice.jsonl"], "2 answers to 1 ids"),
    "a score that is no number": (["a.jsonl", "odd.jsonl"], "line 1: expected a JSON object"),
    "gold that is no text": (["a.jsonl", "odd2.jsonl"], "line 1: expected a JSON object"),
    "columns that say nothing": (
        ["a.jsonl", "three.csv"],
        "expected id and prediction, or id and answer",
    ),
    "a column twice": (["a.jsonl", "same.csv"], "expected id and prediction"),
    "an output that is a folder": (
        ["a.jsonl", "b.jsonl", "--output", ".", "--overwrite"],
        "is a folder",
    ),
    "a ragged CSV": (["a.jsonl", "ragged.csv"], "as many cells"),
}


ODD = {
    "odd.jsonl": '{"id": "a", "prediction": "b", "log_probability": null}\n',
    "odd2.jsonl": '{"id": "a", "prediction": "b", "gold": [3]}\n',
    "three.csv": "id,question,text\nq1,?,a\n",
    "same.csv": "id,id\nq1,a\n",
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_joined_is_told(write, tmp_path, monkeypatch, name):
    write("a.jsonl", ["가", "나"])
    write("b.jsonl", ["가", "나"])
    write("short.jsonl", ["가"])
    for file, text in {
        "torn.jsonl": '{"id',
        "noid.jsonl": '{"prediction": "가"}',
        "empty.jsonl": "",
        "ragged.csv": "id,a\nx\n",
        **ODD,
    }.items():
        (tmp_path / file).write_text(text, encoding="utf-8")
    (tmp_path / "twice.jsonl").write_text('{"id": "a", "prediction": "b"}\n' * 2)
    monkeypatch.chdir(tmp_path)
    argv, message = BAD[name]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message):
        ensemble.main(argv)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_in_use_is_not_begun_again(tmp_path):
    """recipes/all.sh clears a run without a checkpoint away, but not one that is being trained."""
    run = tmp_path / "x-demo"
    run.mkdir()
    command = ["recipes/all.sh", "x", "vote", "demo", "--", "--no_such_option"]
    environment = os.environ | {
        "OUTPUT_DIR": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with locked(run):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
        assert (done.returncode, done.stderr) == (
            2,
            f"error: {run} is in use; wait until it ends\n",
        )
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert "unknown option '--no_such_option'" in done.stderr, "now it begins"
    assert not run.exists()


@pytest.mark.slow
def test_the_published_system_in_one_command(tmp_path, small_train):
    """The demo's base takes the place of all three, with two steps each.

    Started again, the command trains and answers nothing twice.
    """
    test = tmp_path / "test.csv"
    test.write_text(
        "id,context,question\nTEST_0000,한빛전자는 부산에 있다.,본사는?\n", encoding="utf-8"
    )
    options = [
        "--model",
        "data/demo_model",
        "--train_file",
        str(small_train),
        "--test_file",
        str(test),
        "--epochs",
        "0.1",
    ]
    environment = os.environ | {
        "OUTPUT_DIR": str(tmp_path / "o"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = ["recipes/economic-all.sh", *options, "--optim", "adamw_torch"]
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout.strip().splitlines()[-1])["questions"] == 1
    assert "step" not in done.stdout, "the second time only the vote is made"
    recipes = [yaml.safe_load(file.read_text()) for file in (tmp_path / "o").glob("*/recipe.yaml")]
    assert sorted(recipe["template"] for recipe in recipes) == [
        "context_bot",
        "context_bot_system",
        "system_context",
    ]
    assert len(list((tmp_path / "o").glob("*/answers/*/scores.json"))) == 3
    assert len(list((tmp_path / "o").glob("ensemble-vote_f1-*"))) == 2
