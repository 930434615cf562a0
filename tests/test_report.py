"""report.html: whole, self-contained, safe against what articles hold, and Korean in every plot."""

import base64
import io
import math
import re
import warnings
from dataclasses import replace

import pytest
from fontTools.ttLib import TTFont

import metrics
from dandap import language
from dandap.data.korean import question_kind
from dandap.runs import plots
from dandap.runs.html import write_page
from dandap.runs.report import (
    Report,
    _smooth,
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
from tools.explore import PAGE as EXPLORED

CONTEXT = "본사는 부산에 있다. 매출은 1,240억 원이다. 대표는 김철수다."


def record(number, prediction, gold, question="매출은 얼마인가?", sure=-0.1, **more):
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
        **more,
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
        nouns=("questions", "articles"),
        asked={r["id"]: r["question"] for r in records},
        settings={"model": "데모", "columns": {"context": "본문", "question": "질문"}},
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
    drawn = {path.stem for path in (tmp_path / "plots").glob("*.png")}
    assert drawn == names - {"article_length"}, "articles of one length are one bar"
    assert page.count('<svg class="plot"') == 2
    # `#` is another place of the page.
    fetched = re.search(
        r"""(?:src|href)\s*=\s*["'](?!data:|#)|@import|url\((?!["']?(?:data:|#))""", page
    )
    assert not fetched, f"{fetched[0]} is fetched"
    for text in (
        "form of a number",
        "36.70% → 36.7%",
        "<h3>Char F1 by kind of question</h3>",
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


def test_settings_are_told_as_options_have_them(tmp_path):
    page = write_report(tmp_path, make_report([record(0, "부산", "부산")])).read_text(
        encoding="utf-8"
    )
    assert "<td>columns</td><td>context=본문, question=질문</td>" in page


def test_one_right_answer_makes_a_report_too(tmp_path):
    page = write_report(tmp_path, make_report([record(0, "부산", "부산")])).read_text(
        encoding="utf-8"
    )
    assert "every answer is the gold answer to the letter" in page
    assert "every answer is right" in page


def test_korean_has_glyphs_in_plots(tmp_path):
    """matplotlib warns of every character that its fonts lack, and draws a box."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = plots.draw(
            tmp_path / "a.png",
            "한글 똠방각하 $1",
            lambda axes: axes.set_xlabel("“따옴표” −1 · ㎡ 36.7%"),
        )
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert svg.startswith('<svg class="plot"')


def glyphs_of(page):
    """Return the characters that a page's own font has, and the font in base64."""
    (data,) = re.findall(r'url\("data:font/woff;base64,([^"]+)"', page)
    return {chr(code) for code in TTFont(io.BytesIO(base64.b64decode(data))).getBestCmap()}, data


@pytest.mark.slow
def test_a_browser_draws_all_korean_by_the_font_of_the_page(tmp_path, browser):
    """The first words, too, which were boxes where the machine has no Korean font."""
    words = ("크기", "질문", "얼마 (how much)", "답변", "기사당 질문 수")
    rows = [(word, "1") for word in words]
    tables = {"크기": rows, "학습": rows, "한 번만 읽기": rows}
    page = write_page(tmp_path, EXPLORED, "제목 train.csv", tables=tables, pictures=[], cell=str)
    with browser.new_page() as opened:
        opened.goto(page.as_uri())
        opened.wait_for_timeout(500)
        session = opened.context.new_cdp_session(opened)
        session.send("DOM.enable")
        session.send("CSS.enable")
        root = session.send("DOM.getDocument")["root"]["nodeId"]
        where = {"nodeId": root, "selector": "h1, h2, td:first-child"}
        nodes = session.send("DOM.querySelectorAll", where)["nodeIds"]
        assert len(nodes) == 1 + 4 + 3 * len(words)
        for node in nodes:
            text = session.send("DOM.getOuterHTML", {"nodeId": node})["outerHTML"]
            fonts = session.send("CSS.getPlatformFontsForNode", {"nodeId": node})["fonts"]
            own = sum(font["glyphCount"] for font in fonts if font["isCustomFont"])
            hangul = len(re.findall("[가-힣]", text))
            assert own == hangul, (text, fonts)


def test_a_page_brings_the_korean_glyphs_that_it_uses(tmp_path):
    """Regression: on machines without Korean fonts all Korean was boxes."""
    page = write_report(tmp_path, make_report([record(0, "뷁", "부산")])).read_text(
        encoding="utf-8"
    )
    glyphs, data = glyphs_of(page)
    text = page.replace(data, "")
    assert {sign for sign in text if "가" <= sign <= "힣"} <= glyphs
    assert "뷁" in glyphs
    assert "똠" not in glyphs, "only what is used"
    assert len(data) < 30_000, "the whole font has 4 MB"
    again = write_report(tmp_path, make_report([record(0, "뷁", "부산")]))
    assert again.read_text(encoding="utf-8") == page, "the same every time"


def test_a_page_obeys_dark_mode_and_its_plots_the_page(tmp_path):
    page = write_report(tmp_path, make_report([record(0, "부산", "서울")], history=HISTORY))
    text = page.read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text
    assert '<meta name="viewport" content="width=device-width' in text
    (svg,) = re.findall(r'<svg class="plot".*?</svg>', text, re.DOTALL)[:1]
    assert "currentColor" in svg and "var(--blue)" in svg
    for colour in plots.OF_PAGE:
        assert colour not in svg, "a colour for white paper alone"
    assert "#ffffff" not in svg, "no white ground"


def test_full_bars_are_left_out_for_their_numbers(tmp_path):
    records = [record(n, "부산", "부산", q) for n, q in enumerate(("누구인가?", "언제인가?"))]
    for name in "ab":
        (tmp_path / name).mkdir()
    page = write_report(tmp_path / "a", make_report(records)).read_text(encoding="utf-8")
    assert "1.000" in page and '<div class="bar">' not in page
    assert not (tmp_path / "a" / "plots" / "kinds.png").exists()
    records.append(record(2, "서울", "부산", "언제인가?"))
    page = write_report(tmp_path / "b", make_report(records)).read_text(encoding="utf-8")
    assert page.count('<div class="bar">') == 2


def test_choices_are_right_or_wrong(tmp_path):
    """Regression: a dialogue's report told of near-misses of letters and of F1."""
    chances = {"A": -9.0, "B": -9.0 + math.log(3), "C": -20.0}
    records = [record(n, "B", gold, choices=chances) for n, gold in enumerate("AB")]
    task = TASKS["dialogue_inference"]
    report = replace(
        make_report(records),
        nouns=task.nouns,
        headline=task.headline,
        label=task.label,
        asked={"q0": "원인\n화자1: 비가 와.\nA. 하나", "q1": "?"},
    )
    for name in ("accuracy", "accuracy_interval"):
        report.scores[name] = report.scores[name.replace("accuracy", "exact_match")]
    page = write_report(tmp_path, report).read_text(encoding="utf-8")
    assert "2 items on 1 dialogues" in page
    body = page.split("<body>")[1]
    assert "F1" not in body.replace("char-f1", "") and "Near-misses" not in body
    assert "1 wrong answers" in body
    assert "confidence 75%" in body, "three to one, whatever the letters' own probability"
    assert "A. 하나" in body


def test_a_report_in_korean(tmp_path):
    records = [record(0, "부산은", "부산"), record(1, "서울", "부산", "본사는 어디에 있나?")]
    report = make_report(records, history=HISTORY, findings={"contradictions": []})
    language.use("ko")
    try:
        page = write_report(tmp_path, report).read_text(encoding="utf-8")
    finally:
        language.use("en")
    assert '<html lang="ko">' in page
    # In what is read, not in the style sheet and in the plots.
    body = re.sub(r"<svg.*?</svg>|<[^>]+>", "\n", page.split("<body>")[1], flags=re.DOTALL)
    for text in (
        "질문 2개, 기사 1개",
        "글자 F1",
        "질문 유형별 글자 F1",
        "조사와 어미",
        "데이터 점검",
    ):
        assert text in body
    left = {text for text in language.korean("texts") if f"\n{text}\n" in body}
    assert not left, "these stayed English"


def test_the_running_mean_of_the_loss():
    assert _smooth([4.0, 2.0, 0.0], share=0.7) == [4.0, 3.0, 1.0]


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
