"""report.html: whole, self-contained, safe against what articles hold, and Korean in every plot."""

import re
import warnings

import pytest

import metrics
from dandap.data.korean import question_kind
from dandap.runs import plots
from dandap.runs.report import (
    Report,
    by_answer_length,
    by_article_length,
    by_kind,
    mark,
    near_misses,
    worst_records,
    write_report,
)
from tasks import TASKS
from tests.reliability.hostile import HOSTILE

CONTEXT = "본사는 부산에 있다. 매출은 1,240억 원이다. 대표는 김철수다."


def record(number, prediction, gold, question="매출은 얼마인가?", sure=-0.1):
    return {
        "id": f"q{number}",
        "question": question,
        "prediction": prediction,
        "gold": [gold],
        "char_f1": metrics.char_f1(prediction, gold),
        "exact_match": metrics.exact_match(prediction, gold),
        "log_probability": sure,
        "span": None,
        "ended": "stopped",
        "trimmed_characters": 0,
        "article": f"a{number // 2}",
        "kind": question_kind(question),
    }


TASK = TASKS["economic_qa"]


def make_report(records, contexts=None, **more):
    scores = metrics.score(
        [r["prediction"] for r in records],
        [r["gold"] for r in records],
        [r["article"] for r in records],
    )
    shape = {"mean_length": 3.0, "stopped": 1.0, "spans": 0.5, "repeating": 0.0}
    return Report(
        title="한글 run",
        records=records,
        contexts=contexts or {r["id"]: CONTEXT for r in records},
        scores=scores | shape,
        headline=("char_f1", "exact_match"),
        settings={"model": "데모"},
        environment={"packages": {"torch": "2"}, "gpu": None},
        interval=metrics.bootstrap_interval,
        likeness=metrics.char_f1,
        label=TASK.label,
        remarks=TASK.remarks(scores | shape),
        table=[],
        **more,
    )


HISTORY = [
    *({"step": step, "loss": 2 / step, "grad_norm": 1.0} for step in range(1, 9)),
    *(
        {
            "step": s,
            "evaluation": {
                "char_f1": f,
                "char_f1_interval": (f - 0.1, f),
                "exact_match": f,
                "questions": 4,
                **SHAPE,
            },
        }
        for SHAPE in [{"mean_length": 3.0, "stopped": 1.0, "spans": 1.0, "repeating": 0.0}]
        for s, f in ((4, 0.7), (8, 0.6))
    ),
    {"kept": 4},
]


def test_a_page_with_everything_and_no_network(tmp_path):
    records = [
        record(0, "1,240억", "1,240억 원"),
        record(1, "부산", "부산", "본사는 어디에 있나?"),
        record(2, "이영희", "김철수", "대표는 누구인가?"),
        record(3, "36.70%", "36.7%"),
    ]
    findings = {
        "contradictions": [{"ids": ["q0", "q1"], "question": "매출은?", "answers": ["가", "나"]}],
        "not_in_article": [],
    }
    page = write_report(
        tmp_path, make_report(records, history=HISTORY, findings=findings)
    ).read_text(encoding="utf-8")
    names = {"training", "kinds", "answer_length", "article_length", "confidence"}
    assert {path.stem for path in (tmp_path / "plots").glob("*.png")} == names
    assert page.count("data:image/png;base64,") == 5
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!data:)|@import|url\(", page), (
        "nothing is fetched"
    )
    for text in (
        "form of a number",
        "36.70% → 36.7%",
        "unit",
        "questions asked twice",
        "가 · 나",
        "데모",
        "torch 2",
    ):
        assert text in page
    assert '<tr class="best"><td class="n">4</td>' in page
    assert '<mark class="gold">김철수</mark>' in page


def test_hostile_texts_stay_text(tmp_path):
    texts = [
        *HOSTILE,
        "<script>alert(1)</script>",
        "{{ 7 * 7 }}",
        "</style><img src=x onerror=alert(1)>",
    ]
    records = [record(n, text, f"정답{n}", text) for n, text in enumerate(texts)]
    page = write_report(
        tmp_path,
        make_report(records[-30:], {r["id"]: t for r, t in zip(records, texts, strict=True)}),
    )
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<img src=x" not in text
    assert "{{ 7 * 7 }}" in text
    write_report(
        tmp_path, make_report(records, {r["id"]: t for r, t in zip(records, texts, strict=True)})
    )


def test_one_right_answer_makes_a_report_too(tmp_path):
    page = write_report(tmp_path, make_report([record(0, "부산", "부산")])).read_text(
        encoding="utf-8"
    )
    assert "every answer is the gold answer to the letter" in page
    assert "every answer has an F1 of 1" in page


def test_korean_has_glyphs_in_plots(tmp_path):
    """matplotlib warns of every character that its fonts lack, and draws a box."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = plots.draw(
            tmp_path / "a.png", lambda axes: axes.set_title("한글 똠방각하 “따옴표” −1 · ㎡ 36.7%")
        )
    assert path.read_bytes().startswith(b"\x89PNG")


def test_groups():
    records = [
        record(0, "가", "가", "누구인가?"),
        record(1, "가", "가나다", "누구인가?"),
        record(2, "가", "가" * 20, "언제인가?"),
    ]
    assert {name: len(group) for name, group in by_kind(records).items()} == {"who": 2, "when": 1}
    assert {name: len(group) for name, group in by_answer_length(records).items()} == {
        "1-2": 1,
        "3-4": 1,
        "17 or more": 1,
    }
    contexts = {"q0": "가" * 10, "q1": "가" * 2000, "q2": "가" * 30}
    assert list(by_article_length(records, contexts)) == ["10-10", "30-30", "2,000-2,000"]


def test_near_misses_are_counted_by_what_they_cost():
    records = [
        record(0, "서울", "부산"),
        record(1, "부산에", "부산"),
        record(2, "부산은", "부산"),
        record(3, "부산", "부산"),
    ]
    rows = near_misses(records, metrics.char_f1)
    assert [(row["kind"], row["count"]) for row in rows] == [("wrong", 1), ("particle", 2)]
    assert rows[0]["lost"] == 0.25
    assert rows[1]["lost"] == pytest.approx(2 * 0.2 / 4)


def test_the_worst_are_the_wrong_and_the_surest_of_them():
    records = [
        record(0, "x", "부산", sure=-2),
        record(1, "y", "부산", sure=-0.1),
        record(2, "부", "부산"),
        record(3, "부산", "부산"),
    ]
    assert [r["id"] for r in worst_records(records)] == ["q1", "q0", "q2"]
    assert len(worst_records([record(n, "x", "부산") for n in range(50)])) == 30


def test_the_article_is_marked_where_answers_and_evidence_stand():
    pieces = mark(CONTEXT, ["1,240억 원"], "부산", "매출은 얼마인가?")
    assert "".join(text for text, _ in pieces) == CONTEXT
    assert pieces == [
        ("본사는 ", ""),
        ("부산", "prediction"),
        ("에 있다. ", ""),
        ("매출은 ", "evidence"),
        ("1,240억 원", "gold"),
        ("이다. ", "evidence"),
        ("대표는 김철수다.", ""),
    ]
    assert ("대표는 김철수다.", "evidence") in mark(CONTEXT, ["없음"], "", "대표는 누구인가?")
    assert mark("", ["가"], "나", "?") == []
