"""Test report.html: complete, self-contained, escaped, and with embedded Korean glyphs."""

import base64
import io
import math
import re

import pytest
from fontTools.ttLib import TTFont

import metrics
from dandap import language
from dandap.data.korean import question_kind
from dandap.data.rows import Answers, Row
from dandap.recipe import Recipe
from dandap.runs.predictions import confidence
from dandap.runs.report import mark, worst_records, write_report
from tasks import TASKS
from tasks.task import compute_scores
from tests.reliability.hostile import HOSTILE

CONTEXT = "본사는 부산에 있다. 매출은 1,240억 원이다. 대표는 김철수다."


def record(number, prediction, gold, question="매출은 얼마인가?", **more):
    return {
        "id": f"q{number}",
        "question": question,
        "prediction": prediction,
        "gold": [gold],
        "char_f1": metrics.char_f1(prediction, gold),
        "exact_match": metrics.exact_match(prediction, gold),
        "log_probability": -0.1,
        "span": None,
        "ended": "stopped",
        "trimmed_characters": 0,
        "article": f"a{number // 2}",
        "kind": question_kind(question),
        **more,
    }


def report(folder, records, task="economic_qa", contexts=(), fields=None, **more):
    """Write a report on records and return its HTML."""
    rows = [
        Row(r["id"], context, r["question"], tuple(r["gold"]), fields=fields or {})
        for r, context in zip(records, contexts or [CONTEXT] * len(records), strict=True)
    ]
    answers, task = Answers(rows, records), TASKS[task]
    recipe = Recipe(model="데모", columns={"context": "본문", "question": "질문"})
    environment = {"packages": {"torch": "2"}, "gpu": None}
    scores = compute_scores(task, answers)
    page = write_report(folder, "한글 run", task, recipe, answers, scores, environment, **more)
    return page.read_text(encoding="utf-8")


SCORED = {"char_f1": 0.7, "char_f1_interval": (0.1, 0.8), "questions": 4, "exact_match": 0.5}
HISTORY = [
    *({"step": step, "loss": 2 / step, "grad_norm": 1.0} for step in range(1, 9)),
    *({"step": step, "evaluation": SCORED} for step in (4, 8)),
    {"kept": 4},
]
FINDINGS = {
    "contradictions": [{"ids": ["q0", "q1"], "question": "매출은?", "answers": ["가", "나"]}],
    "not_in_article": [],
}


def test_report_is_complete_and_self_contained(tmp_path):
    records = [
        record(0, "1,240억", "1,240억 원"),
        record(1, "부산", "부산", "본사는 어디에 있나?"),
        record(2, "이영희", "김철수", "대표는 누구인가?"),
        record(3, "36.70%", "36.7%"),
    ]
    page = report(tmp_path, records, history=HISTORY, findings=FINDINGS, suspects=records[2:3])
    drawn = {path.stem for path in (tmp_path / "plots").glob("*.png")}
    assert drawn == {"training", "kinds", "answer_length", "confidence"}
    assert page.count('<svg class="plot"') == 4
    # `#` is a link within the page.
    fetched = re.search(
        r"""(?:src|href)\s*=\s*["'](?!data:|#)|@import|url\((?!["']?(?:data:|#))""", page
    )
    assert not fetched, f"{fetched[0]} is fetched"
    texts = ["4 questions on 1 articles", "36.70% → 36.7%", "repeated questions", "torch 2"]
    texts += ["Labels to check", "<td>columns</td><td>context=본문, question=질문</td>"]
    texts += ['<tr class="best"><td class="n">4</td>', '<mark class="gold">김철수</mark>']
    for text in texts:
        assert text in page, text


def test_texts_are_escaped(tmp_path):
    markup = ["<script>alert(1)</script>", "{{ 7 * 7 }}", "</style><img src=x onerror=alert(1)>"]
    texts = [*HOSTILE, *markup][-30:]
    records = [record(n, text, f"정답{n}", text) for n, text in enumerate(texts)]
    page = report(tmp_path, records, contexts=texts)
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "{{ 7 * 7 }}" in page


def test_only_used_korean_glyphs_are_embedded(tmp_path):
    """Regression: without Korean fonts, Korean text was shown as boxes."""
    page = report(tmp_path, [record(0, "뷁", "부산")])
    (data,) = re.findall(r'url\("data:font/woff;base64,([^"]+)"', page)
    glyphs = {chr(code) for code in TTFont(io.BytesIO(base64.b64decode(data))).getBestCmap()}
    assert {sign for sign in page.replace(data, "") if "가" <= sign <= "힣"} <= glyphs
    assert "뷁" in glyphs and "똠" not in glyphs
    assert len(data) < 30_000, "the full font has 4 MB"
    assert report(tmp_path, [record(0, "뷁", "부산")]) == page, "reproducible"


def test_choices_are_right_or_wrong(tmp_path):
    """Regression: a report on dialogues showed F1 and near-misses of letters."""
    choices = {"A": -9.0, "B": -9.0 + math.log(3), "C": -20.0}
    records = [record(n, "B", gold, choices=choices) for n, gold in enumerate("AB")]
    fields = {"category": "원인", "details": "원인\n화자1: 비가 와.\nA. 하나"}
    body = report(tmp_path, records, "dialogue_inference", fields=fields).split("<body>")[1]
    for text in ("2 items on", "confidence 75%", "A. 하나", ">right<"):
        assert text in body, text
    assert "F1" not in body.replace("char-f1", "") and "Near-misses" not in body


def test_korean_report(tmp_path):
    records = [record(0, "부산은", "부산"), record(1, "서울", "부산", "본사는 어디에 있나?")]
    language.set_language("ko")
    try:
        page = report(tmp_path, records, history=HISTORY, findings=FINDINGS)
    finally:
        language.set_language("en")
    assert '<html lang="ko">' in page
    body = re.sub(r"<svg.*?</svg>|<[^>]+>", "\n", page.split("<body>")[1], flags=re.DOTALL)
    assert "질문 2개, 기사 1개" in body and "조사와 어미" in body
    assert not [text for text in language.korean() if f"\n{text}\n" in body]


def test_worst_records_are_wrong_and_most_confident():
    records = [record(n, answer, "부산") for n, answer in enumerate(("x", "y", "부", "부산"))]
    records[0]["log_probability"] = -2
    assert [r["id"] for r in worst_records(records)] == ["q1", "q0", "q2"]
    assert confidence(records[0]) == pytest.approx(math.exp(-2))
    unlikely = {"A": -1000.0, "B": -1001.0}
    assert confidence({"prediction": "A", "choices": unlikely}) == pytest.approx(0.731, abs=1e-3)


def test_answers_are_marked_in_the_article():
    answer = {"gold": ["1,240억 원", "1,240"], "prediction": "부산"}
    assert mark(answer, CONTEXT) == [
        ("본사는 ", ""),
        ("부산", "prediction"),
        ("에 있다. 매출은 ", ""),
        ("1,240억 원", "gold"),
        ("이다. 대표는 김철수다.", ""),
    ]
    assert mark({"gold": ["A"], "prediction": "", "choices": {"A": 0}}, "A") == [("A", "")]
