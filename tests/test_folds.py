"""Folds: every article is held out once, and all adapters, or their mean, answer together."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import TrainerCallback

import fine_tune
import inference
from dandap.data.rows import Row, split_by_article
from dandap.errors import InputError, Stopped
from dandap.model.adapter import add_adapter, average_adapters
from dandap.model.load import load_base
from dandap.recipe import make_recipe
from dandap.runs.folder import RunFolder
from dandap.training import run as training_run
from dandap.training.cross_validation import find_suspects

ROWS = [
    Row(f"{n}-{q}", f"{n}번 회사의 소식은 {n * 7919}억 원이다.", f"{q}?")
    for n in range(11)
    for q in range(2)
]


def test_every_article_is_held_out_once():
    parts = [split_by_article(ROWS, 0.05, f"{part}/4") for part in range(1, 5)]
    held = [row.id for _, validation in parts for row in validation]
    assert sorted(held) == sorted(row.id for row in ROWS)
    for train, validation in parts:
        assert not {row.article for row in train} & {row.article for row in validation}
        assert len(validation) in (4, 6), "parts differ by one article of two questions"
    again = split_by_article(ROWS[::-1], 0.05, "2/4")[1]
    assert {row.id for row in again} == {row.id for row in parts[1][1]}, "whatever the rows' order"


def test_more_folds_than_articles_are_refused():
    with pytest.raises(InputError, match=r"got 11 article\(s\) for 12 folds"):
        split_by_article(ROWS, 0, "1/12")


@pytest.mark.parametrize("fold", ["0/5", "6/5", "1/1", "1", "x", "1/2/3"])
def test_a_fold_is_a_part_of_parts(fold):
    with pytest.raises(InputError, match="expected a part of the articles, as 2/5"):
        make_recipe({"fold": fold}, "test")


def test_suspects_are_sure_and_wrong_the_surest_first():
    said = {"gold": ["5억 원"], "prediction": "부산"}
    records = [
        {"id": "unsure", "log_probability": -1.0, "char_f1": 0.0} | said,
        {"id": "right", "log_probability": -0.01, "char_f1": 0.5} | said,
        {"id": "second", "log_probability": -0.1, "char_f1": 0.1} | said,
        {"id": "first", "log_probability": -0.01, "char_f1": 0.0} | said,
        {"id": "in a sentence", "log_probability": -0.01, "char_f1": 0.1}
        | said
        | {"prediction": "매출은 5억원이라고 할 수 있습니다."},
    ]
    assert [record["id"] for record in find_suspects(records)] == ["first", "second"]


def test_a_soup_is_the_mean_of_what_its_adapters_add(tmp_path):
    recipe = make_recipe({"model": "data/demo_model", "lora_r": 2, "lora_alpha": 6}, "test")
    added = []
    for seed in range(3):
        model = add_adapter(load_base(recipe, torch.device("cpu")), recipe)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(0, 0.1, generator=generator)
        model.save_pretrained(tmp_path / str(seed))
        added.append(deltas(model))
    average_adapters(recipe, [tmp_path / str(seed) for seed in range(3)], tmp_path / "soup")
    soup = PeftModel.from_pretrained(load_base(recipe, torch.device("cpu")), tmp_path / "soup")
    got = deltas(soup)
    assert got.keys() == added[0].keys()
    for name, delta in got.items():
        mean = sum(each[name] for each in added) / 3
        torch.testing.assert_close(delta, mean, rtol=1e-5, atol=1e-6)
        assert delta.abs().max() > 0.01


def deltas(model):
    """Return what the adapter adds to each weight."""
    return {
        name: module.get_delta_weight("default")
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)


def test_folds_go_on_and_answer_together(small_train, tmp_path, monkeypatch, capsys):
    """Cut off in the second fold, gone on with, answered by a vote, then by a soup."""
    test = tmp_path / "test.csv"
    test.write_text(small_train.read_text(encoding="utf-8"), encoding="utf-8")
    output = ["--output_dir", str(tmp_path / "o")]
    files = ["--train_file", str(small_train), "--test_file", str(test)]
    command = ["--folds", "2", "--recipe", "demo", *files, *output, "--evaluate_every", "none"]
    made, real = [], training_run.make_trainer

    def make(*args):
        made.append(real(*args))
        if len(made) == 2:
            made[-1].callback_handler.callbacks.insert(0, Stop())
        return made[-1]

    monkeypatch.setattr(training_run, "make_trainer", make)
    with pytest.raises(
        Stopped, match=r"^fold 2: .*Continue with python fine_tune.py --folds 2 --resume"
    ):
        fine_tune.main(command)
    (parent,) = (tmp_path / "o").iterdir()
    assert not RunFolder(parent / "fold-2").finished
    fine_tune.main(["--folds", "2", "--resume", *output])
    out = capsys.readouterr().out
    assert "fold 1 of 2 is continued" in out
    assert "resuming" in out
    result = json.loads(out.splitlines()[-1])
    assert set(result) == {"folds", "char_f1", "exact_match", "suspects", "submission"}
    assert Path(result["submission"]).parent.name.startswith("ensemble-f1_sum")
    records = [json.loads(line) for line in (parent / "out_of_fold.jsonl").read_text().splitlines()]
    assert [record["id"] for record in records] == [f"TRAIN_{number:05d}" for number in range(20)]
    held = [
        RunFolder(parent / f"fold-{n}").validation_record.read_text().count("\n") for n in (1, 2)
    ]
    assert sum(held) == 20
    assert (parent / "report.html").is_file()
    assert RunFolder(parent / "fold-2").load_recipe().fold == "2/2"
    made.clear()
    fine_tune.main(["--folds", "2", "--resume", str(parent), "--soup"])
    assert not made, "nothing is trained again"
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "/soup/" in result["submission"]
    answers = [path for fold in parent.glob("fold-*") for path in fold.glob("answers/*")]
    assert len(answers) == 2, "nothing is answered again"
    # Cut off while it was written, a soup is made anew; answers to another file are no votes.
    (parent / "soup").rename(parent / ".soup")
    other = tmp_path / "other.csv"
    other.write_text("".join(test.read_text(encoding="utf-8").splitlines(True)[:3]), "utf-8")
    inference.main(["--run", str(parent / "fold-1"), "--test_file", str(other)])
    fine_tune.main(["--folds", "2", "--resume", str(parent), "--soup"])
    assert (parent / "soup" / "recipe.yaml").is_file()
    fine_tune.main(["--folds", "2", "--resume", str(parent)])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert Path(result["submission"]).read_text(encoding="utf-8").count("\n") == 21
    with pytest.raises(InputError, match=r"fold-1 was started with grounded=False \(now True\)"):
        fine_tune.main(["--folds", "2", "--resume", str(parent), "--grounded", "true"])
    with pytest.raises(InputError, match="has 2 folds, not 3"):
        fine_tune.main(["--folds", "3", "--resume", str(parent)])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--folds", "1"], "expected at least 2"),
        (["--folds", "2", "--fold", "1/2"], "give one of them"),
        (["--folds", "2", "--resume", "nowhere"], "there are no folds in"),
        (["--folds", "2", "--train_file", "nowhere.csv"], "no file at nowhere.csv"),
        (["--soup"], "add --folds N"),
    ],
)
def test_what_cannot_be_folded_is_told(tmp_path, more, message):
    with pytest.raises(InputError, match=message):
        fine_tune.main(["--recipe", "demo", "--output_dir", str(tmp_path), *more])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("look", ["--plan", "--preview"])
def test_a_look_before_folding_makes_nothing(tmp_path, capsys, look):
    fine_tune.main(["--recipe", "demo", "--output_dir", str(tmp_path), "--folds", "2", look])
    assert "tokens" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
