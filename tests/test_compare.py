"""Runs side by side: the paired difference, what differs between recipes, and what is refused."""

import json

import pytest

import metrics
from dandap.errors import InputError
from tools import compare


@pytest.fixture
def run(tmp_path):
    """Write a run of one inference; its name."""

    def make(name, answers, gold=("서울", "부산", "25명", "14일"), ids=None, **recipe):
        folder = tmp_path / "outputs" / name
        (folder / "answers" / "test-1").mkdir(parents=True)
        recipe = {"model": "m", "seed": 1, "run_name": name} | recipe
        (folder / "recipe.yaml").write_text(json.dumps(recipe))
        lines = [
            {"id": ids[n] if ids else f"q{n}", "prediction": answer, "article": f"a{n // 2}"}
            | ({"gold": [gold[n]]} if gold else {})
            for n, answer in enumerate(answers)
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / "answers" / "test-1" / "predictions.jsonl").write_text(text, encoding="utf-8")
        noted = {"limit": None, "split": None, "run": name, "recipe": recipe}
        (folder / "answers" / "test-1" / "scores.json").write_text(json.dumps(noted))
        return name

    return make


def call(tmp_path, *names):
    return compare.main([*names, "--output_dir", str(tmp_path / "outputs")])


def test_scores_differences_recipes_and_chart(run, tmp_path, capsys):
    result = call(
        tmp_path,
        run("right", ["서울", "부산", "25명", "14일"]),
        run("wrong", ["가", "나", "25명", "14일"], seed=2),
    )
    assert result["scores"]["right"]["char_f1"] == 1
    assert result["scores"]["wrong"]["char_f1"] == 0.5
    difference = result["differences"][0]
    assert (difference["of"], difference["to"], difference["difference"]) == (
        "wrong",
        "right",
        -0.5,
    )
    assert difference["interval"] == (-1, 0), "two articles: one all wrong, one all right"
    assert result["recipes"] == {"seed": {"right": 1, "wrong": 2}}
    out = capsys.readouterr().out
    assert "[2] - [1]  -0.5000 (95% -1.0000 to +0.0000)  not shown" in out
    assert "seed: [1] 1, [2] 2" in out
    folder = next((tmp_path / "outputs").glob("compare-*"))
    assert (folder / "compare.png").stat().st_size > 5000
    assert json.loads((folder / "compare.json").read_text())["scores"]["wrong"]["questions"] == 4


def test_the_pairing_shows_what_two_intervals_hide():
    """A run is a little better on every article: the intervals overlap, the difference is clear."""
    articles = [f"a{n}" for n in range(40)]
    first = [n % 10 / 10 for n in range(40)]
    second = [value + 0.02 for value in first]
    low, high = metrics.compare(second, first, articles)["interval"]
    assert low == pytest.approx(0.02)
    assert high == pytest.approx(0.02)
    assert (
        metrics.bootstrap_interval(first, articles)[1]
        > metrics.bootstrap_interval(second, articles)[0]
    )


def test_zero_shot_and_tuned_can_be_told_apart(run, tmp_path):
    names = [run("base", ["가"] * 4), run("tuned", ["서울"] * 4)]
    noted = tmp_path / "outputs" / "base" / "answers" / "test-1" / "scores.json"
    noted.write_text(json.dumps(json.loads(noted.read_text()) | {"run": None}))
    assert call(tmp_path, *names)["recipes"]["adapter"] == {
        "base": "none (zero-shot)",
        "tuned": "trained",
    }


def test_gold_answers_of_one_are_enough(run, tmp_path):
    result = call(
        tmp_path,
        run("blind", ["서울", "부산", "25명", "14일"], gold=None),
        run("known", ["가"] * 4),
    )
    assert result["scores"]["blind"]["char_f1"] == 1


def test_a_file_without_a_recipe_differs_in_none(run, tmp_path):
    """An ensemble, say."""
    run("a", ["가"] * 4)
    (tmp_path / "joined").mkdir()
    source = tmp_path / "outputs" / "a" / "answers" / "test-1" / "predictions.jsonl"
    (tmp_path / "joined" / "predictions.jsonl").write_bytes(source.read_bytes())
    result = call(tmp_path, "a", str(tmp_path / "joined"))
    assert result["recipes"] == {}
    assert list(result["scores"]) == ["a", "joined"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda run: ["a", "a"], "each once"),
        (lambda run: ["a"], "expected two or more"),
        (lambda run: ["a", run("b", ["가"] * 3)], "1 are only in .*as q3"),
        (
            lambda run: ["a", run("b", ["가"] * 4, ids=["q0", "q1", "q2", "x"])],
            "different questions.*as q3; 1 are only in .*as x",
        ),
        (lambda run: ["a", "b"], "got run 'b'; there is no such folder"),
        (
            lambda run: [run("c", ["가"] * 4, gold=None), run("d", ["가"] * 4, gold=None)],
            "gold answer and article of 4 questions",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(run, tmp_path, make, message):
    run("a", ["가"] * 4)
    with pytest.raises(InputError, match=message):
        call(tmp_path, *make(run))
    assert not list((tmp_path / "outputs").glob("compare-*"))


def test_unfinished_answers_do_not_count(run, tmp_path):
    name = run("a", ["가"] * 4)
    (tmp_path / "outputs" / "a" / "answers" / "test-1" / "scores.json").unlink()
    with pytest.raises(InputError, match="holds no answers"):
        call(tmp_path, name, run("b", ["가"] * 4))
