"""Test tools.explore: tables and charts for files of all three tasks, with Korean glyphs."""

import json
import re
import warnings

import pytest

from dandap.errors import InputError
from tools import explore
from tools.demo.dialogues import make_dialogues, numbered

PUBLISHED = {
    f"{name}_distribution.png"
    for name in ("category", "conversation_length", "output", "total_utterance_length")
}


def run(tmp_path, *argv):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*Glyph.*")  # a missing glyph
        tables = explore.main([*map(str, argv), "--output_dir", str(tmp_path)])
    (folder,) = tmp_path.glob("explore-*")
    return {title: {row[0]: row[1:] for row in rows} for title, rows in tables.items()}, folder


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def test_economic_qa(small_train, tmp_path):
    tables, folder = run(tmp_path / "o", small_train, "--test", "data/sample/test.csv")
    assert len(tables["Sample"]) == 3
    assert tables["Size"]["questions"] == (20,)
    assert tables["Size"]["articles"] == (10,)
    assert tables["Tokens of article and question"]["share above 512"] == ("0.0%",)
    once = tables["Reading once"]
    assert once["questions per article"] == (2.0,)
    (tokens,) = once["tokens, article read for every question"]
    (fewer,) = once["tokens, each article read once"]
    assert once["ratio"] == (round(tokens / fewer, 2),)
    assert 1.2 < tokens / fewer < 2
    assert tables["Answers"]["literally in their article"] == ("100.0%",)
    names = ("answer_length", "article_length", "question_length", "questions_per_article", "kinds")
    files = {f"{name}.png" for name in names} | {"report.html"}
    assert {path.name for path in folder.iterdir()} == files
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count('class="plot"') == len(list(folder.glob("*.png")))
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", page)


def test_dialogues_have_the_published_charts(tmp_path):
    items = numbered(make_dialogues(count=10), "train")
    path = write_json(tmp_path / "train.json", items)
    for options in ([], ["--refined"]):
        tables, folder = run(tmp_path / f"o{len(options)}", path, *options)
        assert {path.name for path in folder.iterdir()} == PUBLISHED | {"report.html"}
        assert folder.name.startswith("explore-train-refined-") == bool(options)
        # Cleaning never merges turns that an item refers to, so items of a dialogue can differ.
        dialogues = 17 if options else 10
        assert tables["Size"]["dialogues"] == (dialogues,)
        assert tables["Reading once"]["items per dialogue"] == (round(30 / dialogues, 2),)
        assert tables["Category and output"]["전제"] == (6,)
        assert ("Cleaning, changed utterances" in tables) == bool(options)


def test_wallpaper_qa(tmp_path):
    tables, folder = run(tmp_path / "o", "data/sample/wallpaper_train.csv")
    assert tables["Size"]["questions"] == (160,)
    assert tables["Size"]["sentences"] == (672,)
    assert "Reading once" not in tables, "there are no articles"
    assert not (folder / "article_length.png").exists()


def test_squad_json_and_korean(tmp_path):
    qas = [
        {"id": f"q{n}", "question": f"매출은 {n}?", "answers": [{"text": "백억 원"}]}
        for n in range(3)
    ]
    content = {"data": [{"paragraphs": [{"context": "매출은 백억 원이다.", "qas": qas}]}]}
    path = write_json(tmp_path / "dev.json", content)
    tables, _ = run(tmp_path / "o", path, "--lang", "ko")
    assert tables["크기"]["기사"] == (1,)
    assert tables["예시"]["q0"][-1] == "백억 원"


def test_invalid_input_is_rejected(tmp_path):
    for words_, message in (
        ("nowhere.csv", "no file at"),
        ("data/sample/train.csv --refined", "got a file of economic_qa"),
        ("README.md", "Expected a .csv"),
    ):
        with pytest.raises(InputError, match=message):
            explore.main([*words_.split(), "--output_dir", str(tmp_path)])
