"""Test the exploration of all three tasks' files: what is counted, and which pictures there are.

Korean must show in them.
"""

import json
import re
import warnings
from collections import Counter

import pandas as pd
import pytest

from dandap.errors import InputError
from tools import explore, findings, words
from tools.demo.dialogues import make_dialogues, numbered

PUBLISHED = {
    *(
        "category_distribution.png",
        "conversation_length_distribution.png",
        "output_distribution.png",
    ),
    *("total_utterance_length_distribution.png", "wordcloud.png", "total_utterance_lengths.csv"),
}


def run(tmp_path, *argv):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*Glyph.*")  # a box instead of a character
        tables = explore.main([*map(str, argv), "--output_dir", str(tmp_path)])
    (folder,) = tmp_path.glob("explore-*")
    return {title: {row[0]: row[1:] for row in rows} for title, rows in tables.items()}, folder


def test_economic_qa(small_train, tmp_path):
    tables, folder = run(tmp_path / "o", small_train, "--test", "data/sample/test.csv")
    assert tables["Size"]["questions"] == (20,)
    assert tables["Size"]["articles"] == (10,)
    assert tables["Reading once"]["questions per article"] == (2.0,)
    every, once = (tables["Reading once"][name][0] for name in list(tables["Reading once"])[1:3])
    assert tables["Reading once"]["times fewer"] == (round(every / once, 2),)
    assert 1.2 < every / once < 2
    assert tables["Answers"]["share that stand in their article as written"] == ("100.0%",)
    names = {path.name for path in folder.iterdir()}
    pictures = {
        "answer_length",
        "questions_per_article",
        "article_length",
        "question_length",
        "kinds",
        "correlations",
    }
    assert {f"{name}.png" for name in pictures | {"question_similarity", "wordcloud"}} | {
        "rows.csv",
        "report.html",
    } <= names
    table = pd.read_csv(folder / "rows.csv", encoding="utf-8-sig")
    assert len(table) == 20
    assert table["is_span"].eq(1).all()
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count('class="plot"') == len(list(folder.glob("*.png")))
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", page)


@pytest.mark.parametrize("refined", [False, True])
def test_dialogues_have_the_published_pictures(tmp_path, refined):
    path = tmp_path / "train.json"
    items = numbered(make_dialogues(count=10), "train")
    path.write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")
    tables, folder = run(tmp_path / "o", path, *(["--refined"] if refined else []))
    assert {path.name for path in folder.iterdir()} == PUBLISHED | {"report.html"}
    assert folder.name.startswith("explore-train-refined-") == refined
    # Cleaning merges turns, but none that its item refers to: then a dialogue's items differ.
    dialogues = 17 if refined else 10
    assert tables["Size"]["dialogues"] == (dialogues,)
    assert tables["Reading once"]["items per dialogue"] == (round(30 / dialogues, 2),)
    assert tables["Category and output"]["전제"] == (6,)
    assert len(pd.read_csv(folder / "total_utterance_lengths.csv")) == 30
    assert ("Cleaning, utterances changed" in tables) == refined


def test_wallpaper_qa(tmp_path):
    tables, folder = run(tmp_path / "o", "data/sample/wallpaper_train.csv")
    assert tables["Size"]["questions"] == (160,)
    assert "Reading once" not in tables, "there are no articles"
    assert not (folder / "article_length.png").exists()
    assert (folder / "lengths_by_kind.csv").read_text(encoding="utf-8-sig").count("곰팡이") == 1


def test_squad_json(tmp_path):
    qas = [
        {"id": f"q{n}", "question": f"매출은 {n}?", "answers": [{"text": "백억 원"}]}
        for n in range(3)
    ]
    content = {"data": [{"paragraphs": [{"context": "매출은 백억 원이다.", "qas": qas}]}]}
    (tmp_path / "dev.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    tables, _ = run(tmp_path / "o", tmp_path / "dev.json")
    assert tables["Reading once"]["questions per article"] == (3.0,)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere.csv"], "no file at"),
        (["data/sample/train.csv", "--refined"], "cleans dialogues; this file is economic_qa's"),
        (["README.md"], "expected a .csv"),
    ],
)
def test_what_cannot_be_explored_is_told(tmp_path, argv, message):
    with pytest.raises(InputError, match=message):
        explore.main([*argv, "--output_dir", str(tmp_path)])


def test_of_very_many_texts_some_give_the_words(small_train, tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "CLOUD_TEXTS", 4)
    counted = []
    monkeypatch.setattr(findings, "count_words", lambda texts: counted.extend(texts) or Counter())
    _, folder = run(tmp_path / "o", small_train)
    assert 2 <= len(counted) <= 4
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"words of {len(counted)} of " in page


def test_words_lose_their_particles():
    assert words.without_particle("한국은행에서는") == "한국은행"
    assert words.without_particle("매출이") == "매출"
    assert words.without_particle("나는") == "나는", "a syllable alone is no word"


TEXTS = ["한국은행은 그리고 매출을 발표했다. 매출이 늘었지만 이번에 한국은행에서 밝혔다."]


def test_words_without_stop_words_and_endings(monkeypatch):
    monkeypatch.setattr(words, "find_spec", {"kiwipiepy": None}.get)
    assert words.count_words(TEXTS) == {"한국은행": 2, "매출": 2}


def test_words_by_kiwi():
    pytest.importorskip("kiwipiepy", reason="pip install -r requirements-extra.txt")
    found = words.count_words(TEXTS)
    assert found["한국은행"] == found["매출"] == 2
    assert not {"그리고", "늘었지만", "이번"} & set(found)


def test_what_kinds_explain():
    kinds = pd.Series(["a", "a", "b", "b"])
    assert findings.explained(pd.Series([1, 1, 3, 3]), kinds) == 1
    assert findings.explained(pd.Series([1, 3, 1, 3]), kinds) == 0
    assert findings.explained(pd.Series([2, 2, 2, 2]), kinds) == 0
