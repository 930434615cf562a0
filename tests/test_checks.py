"""Data checks, kinds of questions and kinds of near misses."""

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


def test_the_same_question_with_two_answers_is_found():
    rows = [
        row("a", LONG, "매출은 얼마인가?", "1,240억 원"),
        row("b", LONG, "매출은  얼마인가", "90억 원"),
    ]
    same = [
        row("c", LONG, "영업이익은?", "90억 원"),
        row("d", LONG, "영업이익은?", "90억원"),
        row("e", OTHER, "매출은 얼마인가?", "90억 원"),
    ]
    (found,) = check_data({"train": rows + same})["contradictions"]
    assert found == {
        "ids": ["a", "b"],
        "question": "매출은 얼마인가?",
        "answers": ["1,240억 원", "90억 원"],
    }


def test_two_of_several_gold_answers_in_common_is_no_contradiction():
    rows = [
        row("a", LONG, "매출은?", "1,240억 원", "90억 원"),
        row("b", LONG, "매출은?", "90억 원"),
    ]
    assert check_data({"train": rows})["contradictions"] == []


def test_answers_that_are_not_in_the_article_are_found():
    rows = [
        row("a", LONG, "?", "1,240억 원"),
        row("b", LONG, "?", "1240억 원"),
        row("c", LONG, "?", "x", "90억 원"),
        row("d", LONG, "?"),
    ]
    assert [found["ids"] for found in check_data({"train": rows})["not_in_article"]] == [["b"]]


def test_articles_in_train_and_test_are_found():
    splits = {
        "train": [row("a"), row("b", OTHER)],
        "validation": [],
        "test": [row("t", f" {OTHER}\n")],
    }
    assert check_data(splits)["shared_articles"] == [
        {"ids": ["b", "t"], "splits": ["train", "test"]}
    ]


def test_nearly_the_same_articles_are_found_once():
    edited = (LONG * 3).replace("12%", "13%", 1)
    splits = {
        "train": [row("a", LONG * 3), row("a2", LONG * 3), row("b", OTHER)],
        "test": [row("t", edited)],
    }
    assert check_data(splits)["near_duplicates"] == [
        {"ids": ["a", "t"], "splits": ["train", "test"]}
    ]


def test_many_copies_are_one_group():
    splits = {"train": [row(f"r{n}", LONG * 3 + f"{n}호") for n in range(30)]}
    (found,) = check_data(splits)["near_duplicates"]
    assert len(found["ids"]) == 30


def test_short_and_unlike_articles_are_no_pair():
    splits = {"train": [row("a", "가"), row("b", "나"), row("c", LONG), row("d", OTHER)]}
    assert check_data(splits)["near_duplicates"] == []


def test_findings_as_lines():
    lines = finding_lines(
        check_data({"train": [row("a", LONG, "매출은?", "없음")], "test": [row("t", LONG)]})
    )
    assert lines == [
        "1 answers that are not in their article as written, first a",
        "1 articles that are in more than one of train, validation and test, first a, t",
    ]
    assert finding_lines(check_data({"train": []})) == []


def test_the_kind_of_a_question():
    for question, kind in [
        ("한빛전자의 대표는 누구인가?", "who"),
        ("이 제품을 누가 발표했나", "who"),
        ("이 회사를 세운 사람은?", "who"),
        ("신제품 출시는 언제인가?", "when"),
        ("행사는 몇 월 며칠에 열리나?", "when"),
        ("몇 년에 설립됐나?", "when"),
        ("지명수배된 연도는?", "when"),
        ("몇 시간 동안 진행됐나?", "how much"),
        ("매출은 얼마인가?", "how much"),
        ("직원은 몇 명인가?", "how much"),
        ("점유율은 몇 %인가?", "how much"),
        ("포털을 인수한 금액은?", "how much"),
        ("본사는 어디에 있나?", "where"),
        ("어느 나라에 수출하나?", "where"),
        ("공장이 있는 나라는?", "where"),
        ("어느 기관이 조사했나?", "what"),
        ("무엇을 생산하는가?", "what"),
        ("어떤 기술을 개발했나?", "what"),
        ("한빛전자의 주력 제품", "what"),
        ("우수상을 받은 기업은?", "what"),
        ("어떠한 나무로 만들었는가?", "what"),
        ("주가가 내린 이유는 무엇인가?", "why"),
        ("왜 공장을 옮겼나?", "why"),
        ("매출이 늘었는가?", "yes/no"),
        ("이 회사는 흑자인가요?", "yes/no"),
    ]:
        assert question_kind(question) == kind, question
        assert kind in KINDS


def test_how_an_answer_is_nearly_right():
    for prediction, gold, kind in [
        ("부산", "부산", None),
        ("1,240억원", "1,240억 원", "white space"),
        ("“한빛”", "한빛", "quotation marks"),
        ("한빛·우리", "한빛우리", "quotation marks"),
        ("36.70%", "36.7%", "form of a number"),
        ("1240명", "1,240명", "form of a number"),
        ("‘25명’", "25명", "quotation marks"),
        ("25", "25명", "unit"),
        ("25만 원", "25만 달러", "unit"),
        ("26명", "25명", "another number"),
        ("-3%", "3%", "another number"),
        ("3.5", "3.5%", "unit"),
        ("4월 3일", "4월 5일", "another number"),
        ("부산에", "부산", "particle"),
        ("부산", "부산은", "particle"),
        ("25명이다", "25명", "particle"),
        ("한빛전자 대표 김철수", "김철수", "too long"),
        ("김철수", "김철수 사장", "too short"),
        ("한빛화학", "한빛전자", "some letters"),
        ("서울", "부산", "wrong"),
        ("", "부산", "wrong"),
    ]:
        assert near_miss(prediction, gold) == kind, (prediction, gold)
        assert kind is None or kind in NEAR_MISSES
