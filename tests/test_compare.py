"""Test tools.compare: paired differences, differing recipe fields and rejected input."""

import json

import pytest

from dandap.errors import InputError
from dandap.files import read_json
from tools import compare

GOLD = ["서울", "부산", "25명", "14일"]


@pytest.fixture
def make_run(tmp_path):
    """Return a function that writes a run with one inference and returns its name."""

    def make(name, answers, gold=GOLD, **recipe):
        folder = tmp_path / "outputs" / name / "answers" / "test-1"
        folder.mkdir(parents=True)
        recipe = {"model": "m", "seed": 1, "run_name": name} | recipe
        (tmp_path / "outputs" / name / "recipe.yaml").write_text(json.dumps(recipe))
        lines = [
            {"id": f"q{n}", "prediction": answer, "article": f"a{n // 2}"}
            | ({"gold": [gold[n]]} if gold else {})
            for n, answer in enumerate(answers)
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / "predictions.jsonl").write_text(text, encoding="utf-8")
        scores = {"limit": None, "split": None, "run": name, "recipe": recipe}
        (folder / "scores.json").write_text(json.dumps(scores))
        return name

    return make


def compare_runs(tmp_path, *names):
    return compare.compare(names, str(tmp_path / "outputs"))


def test_scores_differences_and_recipes(make_run, tmp_path, capsys):
    names = [make_run("right", GOLD), make_run("wrong", ["가", "나", "25명", "14일"], seed=2)]
    result = compare.main([*names, "--output_dir", str(tmp_path / "outputs")])
    assert result["scores"]["right"]["char_f1"] == 1
    assert result["scores"]["wrong"]["char_f1"] == 0.5
    # All answers of one article are wrong, all of the other right.
    expected = {"of": "wrong", "to": "right", "difference": -0.5, "interval": (-1, 0)}
    assert result["differences"] == [expected]
    assert result["recipes"] == {"seed": {"right": 1, "wrong": 2}}
    out = capsys.readouterr().out
    assert "[2] - [1]  -0.5000 (95% -1.0000 to +0.0000)  not shown" in out
    (folder,) = (tmp_path / "outputs").glob("compare-*")
    assert read_json(folder / "compare.json")["scores"]["wrong"]["questions"] == 4


def test_incomparable_runs_are_rejected(make_run, tmp_path):
    make_run("a", ["가"] * 4)
    make_run("short", ["가"] * 3)
    make_run("blind", ["가"] * 4, gold=None)
    make_run("blind2", ["가"] * 4, gold=None)
    for names, message in (
        ("a", "expected two or more different files"),
        ("a short", "1 ids are in only one, like q3"),
        ("a nobody", "got run 'nobody', expected one"),
        ("blind blind2", "4 questions have no gold answer"),
    ):
        with pytest.raises(InputError, match=message):
            compare_runs(tmp_path, *names.split())
    assert not list((tmp_path / "outputs").glob("compare-*"))
