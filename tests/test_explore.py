"""Test tools.explore on files of all three tasks."""

import json

import pytest

from dandap.errors import InputError
from tools import explore
from tools.demo.dialogues import make_dialogues, numbered


def test_economic_qa(small_train, capsys):
    found = explore.main([str(small_train), "--test", "data/sample/test.csv"])
    out = capsys.readouterr().out
    assert (found["questions"], found["articles"], found["literal"]) == (20, 10, 1.0)
    assert "20 questions on 10 articles, 2.0 each (economic_qa)" in out
    # Lengths include the answers.
    assert found["every"] == sum(found["lengths"])
    assert 1.2 < found["every"] / found["once"] < 2
    assert out.count("\n\nTRAIN_") == explore.SAMPLES
    assert sum(found["kinds"].values()) == 20
    assert "exceed" not in out


def test_long_prompts_and_other_columns(tmp_path, capsys):
    path = tmp_path / "long.csv"
    path.write_text(
        f"본문,question,answer\n{'매출은 백억 원이다. ' * 200},얼마?,백억 원\n", "utf-8"
    )
    explore.main([str(path), "--columns", "context=본문"])
    assert "1 (100.0%) exceed 512 tokens" in capsys.readouterr().out


def test_dialogues(tmp_path, capsys):
    path = tmp_path / "train.json"
    items = numbered(make_dialogues(count=10), "train")
    path.write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")
    found = explore.main([str(path)])
    assert (found["items"], found["dialogues"]) == (30, 10)
    assert found["kinds"]["전제"] == 6
    assert "30 items on 10 dialogues, 3.0 each" in capsys.readouterr().out


def test_wallpaper_qa(capsys):
    found = explore.main(["data/sample/wallpaper_train.csv"])
    assert found["questions"] == 160
    assert len(found["lengths"]) > 160, "a training row per answer"
    assert "literal spans" not in capsys.readouterr().out, "there are no articles"


def test_invalid_input_is_rejected():
    for name, message in (("nowhere.csv", "no file at"), ("README.md", "Expected a .csv")):
        with pytest.raises(InputError, match=message):
            explore.main([name])
