"""People with files of their own in data/ are told how a recipe trains on them."""

import argparse
from pathlib import Path

import pytest

from dandap.errors import InputError
from dandap.training import start
from tools import explore


def choose(recipe, **options):
    arguments = {"recipe": recipe, "resume": None, "preview": False} | options
    return start.choose(argparse.Namespace(**arguments))


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Stand in a folder whose data/ holds workbooks."""
    (tmp_path / "data").mkdir()
    for name in ("train.xlsx", "test.xlsx"):
        (tmp_path / "data" / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)


TOLD = "For yours: --train_file data/train.xlsx --test_file data/test.xlsx"


def test_the_demo_by_name_tells_of_own_files(own, capsys):
    """It trained on the sample and said so in the first line's path alone."""
    assert "data/sample/train.csv" in choose("demo").recipe.train_file
    assert TOLD in capsys.readouterr().out


def test_the_bare_command_tells_of_own_files_under_another_ending(own, capsys):
    assert choose(None).name == "demo"
    assert TOLD in capsys.readouterr().out


def test_the_samples_files_are_found_from_any_folder(own, capsys):
    """They are named as the project has them, and lie where it is."""
    named = {"train_file": "data/sample/train.csv", "test_file": "data/sample/test.csv"}
    assert Path(choose("demo", **named).recipe.test_file).is_file()
    choose("demo", train_file="data/sample/train.csv")
    assert "For yours" not in capsys.readouterr().out
    with pytest.raises(InputError, match="no file at data/nope.csv"):
        choose("demo", test_file="data/sample/test.csv,data/nope.csv")


def test_files_that_were_named_need_no_telling(own, capsys):
    choose("demo", train_file="data/train.xlsx")
    assert TOLD not in capsys.readouterr().out
    choose("demo", train_file="data/train.xlsx", test_file="data/train.xlsx")
    assert "For yours" not in capsys.readouterr().out


def test_another_task_needs_no_telling(own, capsys):
    """Questions on articles cannot train dialogues."""
    choose("dialogue-demo")
    assert "For yours" not in capsys.readouterr().out


def test_explore_reads_renamed_columns(tmp_path):
    """A table of 번호, 본문, 질문, 정답 was taken for wallpaper's, and --columns was unknown."""
    file = tmp_path / "train.csv"
    file.write_text("번호,본문,질문,정답\n1,매출은 5억이다.,매출은?,5억\n", encoding="utf-8")
    columns = "id=번호,context=본문,question=질문,answer=정답"
    test = tmp_path / "test.csv"
    test.write_text("번호,본문,질문\n2,이익은 1억이다.,이익은?\n", encoding="utf-8")
    more = ["--columns", columns, "--output_dir", str(tmp_path)]
    # Which has no answers, as test files have none.
    assert explore.main([str(file), "--test", str(test), *more])
    with pytest.raises(InputError, match="has no column"):
        explore.main([str(file), "--output_dir", str(tmp_path)])
