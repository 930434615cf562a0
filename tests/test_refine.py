"""Test the nine cleaning steps, which must preserve referenced utterances."""

import json
from collections import Counter

import pytest

from dandap.errors import InputError
from tasks.dialogue_inference import load_items
from tools import refine
from tools.demo.dialogues import make_dialogues, numbered


def test_cleaning_steps():
    for step, text, expected in (
        ("join_lines", "한 줄\n두  줄 ", "한 줄 두 줄"),
        ("spell_yes", "나도 ㅇㅇ 알았어", "나도 응 알았어"),
        ("spell_yes", "ㅇ ㅇㅋ 하ㅇㅇ", "ㅇ ㅇㅋ 하ㅇㅇ"),
        ("shorten_marks", "그래.... 왜??? 응..", "그래... 왜?? 응.."),
        ("delete_signs", "와~! <진짜> @a_b/c-dᆢ :) (응) ^^;", "와 진짜 abcd 응"),
        ("delete_greetings", "안녕하세요 반갑습니다 저는 학생이에요 안녕", "저는 학생이에요"),
        ("name_speakers", "name1이 name2를 name12", "화자1이 화자2를 name12"),
        ("delete_jamo", "아 ㅋㅋ 진짜 ㅠㅡㅠ ㅎㅎㅎ", "아 진짜"),
        ("empty_symbols", "?? ...", ""),
        ("empty_symbols", "OK?", "OK?"),
    ):
        assert refine.clean(text, step) == expected, text


def turn(speaker, text, name):
    return {"speaker": speaker, "utterance": text, "utterance_id": name}


def item(*turns, reference):
    content = {"conversation": list(turns), "reference_id": reference, "category": "원인"}
    content |= {f"inference_{n}": f"추론{n}" for n in (1, 2, 3)}
    return {"id": "a", "input": content | {"more": 1}, "output": "inference_1", "x": [1]}


def texts(turns):
    return [(turn["utterance"], turn["utterance_id"]) for turn in turns]


def test_turns_of_a_speaker_are_merged_except_referenced_ones():
    turns = [turn(1, text, f"u{number}") for number, text in enumerate("가나다라마", 1)]
    merged = refine.merge_turns([*turns, turn(2, "바", "u6")], {"u3"})
    expected = [("가 나", ["u1", "u2"]), ("다", "u3"), ("라 마", ["u4", "u5"]), ("바", "u6")]
    assert texts(merged) == expected


def test_referenced_utterance_is_never_dropped():
    counts = Counter()
    turns = [turn(1, "ㅋㅋㅋ", "u1"), turn(1, "ㅠㅠ", "u2"), turn(1, "안녕", "u3")]
    cleaned = refine.refine(item(*turns, reference=["u2", "u3"]), counts)
    assert texts(cleaned["input"]["conversation"]) == [("ㅠㅠ", "u2"), ("안녕", "u3")]
    assert counts["dropped"] == 1
    assert (cleaned["x"], cleaned["input"]["more"]) == ([1], 1)


def test_sample_dialogues(tmp_path, capsys):
    source, target = tmp_path / "in.json", tmp_path / "out.json"
    items = numbered(make_dialogues()[:20], "train")
    source.write_text(json.dumps(items, ensure_ascii=False, indent=4), encoding="utf-8")
    counts = refine.main([str(source), str(target), "--report"])
    before, after = load_items(source), load_items(target)
    assert [(i["id"], i["input"]["reference_id"]) for i in before] == [
        (i["id"], i["input"]["reference_id"]) for i in after
    ]
    assert counts["shorten_marks"] > 0
    assert "2 spell_yes" in capsys.readouterr().out
    with pytest.raises(InputError, match="exists already"):
        refine.main([str(source), str(target)])
