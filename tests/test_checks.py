"""Test data checks, question kinds and near-miss kinds."""

from dandap.data.checks import check_data, finding_lines
from dandap.data.korean import KINDS, NEAR_MISSES, near_miss, question_kind
from dandap.data.rows import Row

LONG = (
    "한빛전자는 올해 1분기 매출 1,240억 원을 기록했다고 4월 3일 밝혔다. "
    "영업이익은 90억 원으로 지난해보다 12% 늘었다. "
)
OTHER = (
    "서울시는 내년부터 버스 요금을 올리지 않기로 했다. "
    "시의회는 다음 달 이 안을 표결한다. 시민 단체는 환영했다."
)


def row(name, context=LONG, question="매출은?", *answers):
    return Row(name, context, question, answers)


def test_contradictory_answers_are_found():
    rows = [
        row("a", LONG, "매출은 얼마인가?", "1,240억 원"),
        row("b", LONG, "매출은  얼마인가", "90억 원"),
        row("c", LONG, "영업이익은?", "90억 원", "1,240억 원"),
        row("d", LONG, "영업이익은?", "90억원"),
        row("e", OTHER, "매출은 얼마인가?", "90억 원"),
    ]
    (found,) = check_data({"train": rows})["contradictions"]
    assert found["ids"] == ["a", "b"]
    assert found["answers"] == ["1,240억 원", "90억 원"]


def test_answers_that_are_not_in_the_article_are_found():
    rows = [row("b", LONG, "?", "1240억 원"), row("c", LONG, "?", "x", "90억 원"), row("d")]
    findings = check_data({"train": rows})
    assert [found["ids"] for found in findings["not_in_article"]] == [["b"]]
    assert finding_lines(findings | {"contradictions": []}) == [
        "1 answers that are not literally in their article, first b"
    ]


def test_shared_and_near_duplicate_articles_are_found_once():
    long = LONG * 3
    train = [row("a", long), row("a2", long), row("b", OTHER), row("c", "가"), row("d", "나")]
    test = [row("t", long.replace("12%", "13%", 1)), row("u", f" {OTHER}\n")]
    findings = check_data({"train": train, "validation": [], "test": test})
    both = ["train", "test"]
    assert findings["shared_articles"] == [{"ids": ["b", "u"], "splits": both}]
    assert findings["near_duplicates"] == [{"ids": ["a", "t"], "splits": both}]


def test_question_kinds():
    for kind, questions in {
        "who": "한빛전자의 대표는 누구인가?|이 제품을 누가 발표했나|이 회사를 세운 사람은?",
        "when": "신제품 출시는 언제인가?|행사는 몇 월 며칠에 열리나?|지명수배된 연도는?",
        "how much": "몇 시간 동안 진행됐나?|직원은 몇 명인가?|점유율은 몇 %인가?|인수한 금액은?",
        "where": "본사는 어디에 있나?|어느 나라에 수출하나?|공장이 있는 나라는?",
        "what": "어느 기관이 조사했나?|한빛전자의 주력 제품|어떠한 나무로 만들었는가?",
        "why": "주가가 내린 이유는 무엇인가?|왜 공장을 옮겼나?",
        "yes/no": "매출이 늘었는가?|이 회사는 흑자인가요?",
    }.items():
        assert {question_kind(question) for question in questions.split("|")} == {kind}
        assert kind in KINDS


def test_near_miss_kinds():
    cases = {
        "white space": "1,240억원/1,240억 원",
        "quotation marks": "“한빛”/한빛|한빛·우리/한빛우리|‘25명’/25명",
        "form of a number": "36.70%/36.7%|1240명/1,240명",
        "unit": "25/25명|25만 원/25만 달러|3.5/3.5%",
        "another number": "26명/25명|-3%/3%|4월 3일/4월 5일",
        "particle": "부산에/부산|부산/부산은|25명이다/25명",
        "too long": "한빛전자 대표 김철수/김철수",
        "too short": "김철수/김철수 사장",
        "some letters": "한빛화학/한빛전자",
        "wrong": "서울/부산|/부산",
    }
    assert list(cases) == list(NEAR_MISSES)
    assert near_miss("부산", "부산") is None
    for kind, pairs in cases.items():
        for pair in pairs.split("|"):
            assert near_miss(*pair.split("/")) == kind, pair
