"""The nine cleaning steps, each on the texts that describe it."""

import json

import pytest

from dandap.errors import InputError
from tasks.dialogue_inference import load_items
from tools import refine
from tools.demo.dialogues import make_dialogues, numbered

STEPS = [
    (refine.join_lines, "한 줄\n두  줄 ", "한 줄 두 줄"),
    (refine.spell_yes, "ㅇㅇ", "응"),
    (refine.spell_yes, "ㅇㅇㅇ 알았어", "응 알았어"),
    (refine.spell_yes, "나도 ㅇㅇ", "나도 응"),
    (refine.spell_yes, "ㅇ ㅇㅋ 하ㅇㅇ", "ㅇ ㅇㅋ 하ㅇㅇ"),
    (refine.shorten_marks, "그래.... 왜??? 응..", "그래... 왜?? 응.."),
    (refine.shorten_marks, "......?????", "...??"),
    (refine.delete_signs, "와~! <진짜> @a_b/c-dᆢ :) (응) ^^;", "와 진짜 abcd 응"),
    (refine.delete_greetings, "안녕하세요 반갑습니다 저는 학생이에요 안녕", "저는 학생이에요"),
    (refine.delete_greetings, "미안녕", "미안녕"),
    (refine.name_speakers, "name1이 name2를 name12", "화자1이 화자2를 name12"),
    (refine.delete_jamo, "아 ㅋㅋ 진짜 ㅠㅡㅠ ㅎㅎㅎ", "아 진짜"),
    (refine.delete_jamo, "ㄱ 자", "ㄱ 자"),
    (refine.empty_symbols, "?? ...", ""),
    (refine.empty_symbols, "OK?", "OK?"),
    (refine.empty_symbols, "3?", "3?"),
]


@pytest.mark.parametrize(("step", "text", "expected"), STEPS)
def test_each_step(step, text, expected):
    assert step(text) == expected


def turn(speaker, text, name):
    return {"speaker": speaker, "utterance": text, "utterance_id": name}


def test_turns_of_one_speaker_merge_but_never_with_a_referred_one():
    turns = [
        turn(1, "가", "u1"),
        turn(1, "나", "u2"),
        turn(1, "다", "u3"),
        turn(1, "라", "u4"),
        turn(1, "마", "u5"),
        turn(2, "바", "u6"),
    ]
    merged = refine.merge_turns(turns, {"u3"})
    assert [(t["utterance"], t["utterance_id"]) for t in merged] == [
        ("가 나", ["u1", "u2"]),
        ("다", "u3"),
        ("라 마", ["u4", "u5"]),
        ("바", "u6"),
    ]


def item(*turns, reference):
    content = {
        "conversation": list(turns),
        "reference_id": reference,
        "category": "원인",
        "more": 1,
    }
    return {
        "id": "a",
        "input": content | {f"inference_{n}": f"추론{n}" for n in (1, 2, 3)},
        "output": "inference_1",
        "x": [1],
    }


def test_a_referred_utterance_is_never_lost():
    counts = {}
    cleaned = refine.refine(
        item(
            turn(1, "ㅋㅋㅋ", "u1"),
            turn(1, "ㅠㅠ", "u2"),
            turn(1, "안녕", "u3"),
            reference=["u2", "u3"],
        ),
        counts,
    )
    assert [(t["utterance"], t["utterance_id"]) for t in cleaned["input"]["conversation"]] == [
        ("ㅠㅠ", "u2"),
        ("안녕", "u3"),
    ]
    assert counts["dropped"] == 1
    assert cleaned["x"] == [1]
    assert cleaned["input"]["more"] == 1


def test_a_referred_utterance_that_is_empty_stays_and_the_file_is_read_again(tmp_path):
    (tmp_path / "in.json").write_text(
        json.dumps([item(turn(1, "", "u1"), turn(2, "나", "u2"), reference=["u1"])]),
        encoding="utf-8",
    )
    refine.main([str(tmp_path / "in.json"), str(tmp_path / "out.json")])
    assert load_items(tmp_path / "out.json")[0]["input"]["conversation"][0]["utterance_id"] == "u1"


def test_cp949_and_windows_line_ends(tmp_path):
    text = json.dumps(
        [item(turn(1, "가~", "u1"), reference=["u1"])], ensure_ascii=False, indent=4
    ).replace("\n", "\r\n")
    (tmp_path / "in.json").write_bytes(text.encode("cp949"))
    refine.main([str(tmp_path / "in.json"), str(tmp_path / "out.json")])
    assert (tmp_path / "out.json").read_text(encoding="utf-8") == text.replace(
        "\r\n", "\n"
    ).replace("가~", "가")


def test_the_sample_dialogues(tmp_path, capsys):
    (tmp_path / "in.json").write_text(
        json.dumps(numbered(make_dialogues()[:20], "train"), ensure_ascii=False, indent=4)
    )
    counts = refine.main([str(tmp_path / "in.json"), str(tmp_path / "out.json"), "--report"])
    before, after = load_items(tmp_path / "in.json"), load_items(tmp_path / "out.json")
    assert [i["id"] for i in before] == [i["id"] for i in after]
    assert [i["input"]["reference_id"] for i in before] == [
        i["input"]["reference_id"] for i in after
    ]
    assert counts["shorten_marks"] > 0
    assert "2 spell_yes" in capsys.readouterr().out
    assert (tmp_path / "out.json").read_text().startswith("[\n    {"), "the layout is the file's"
    with pytest.raises(InputError, match="exists already"):
        refine.main([str(tmp_path / "in.json"), str(tmp_path / "out.json")])
