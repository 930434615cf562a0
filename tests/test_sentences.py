"""Articles that are cut to the sentences their questions are about."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandap.data.rows import Row
from dandap.data.sentences import nearest_first, split_sentences
from dandap.errors import InputError
from tests.test_encoding import encoder, tokenizer  # noqa: F401 (a fixture)

SENTENCES = [
    "한빛전자는 5월 3일 신제품을 발표했다. ",
    "매출은 1,240.5억 원이다. ",
    "본사는 부산에 있다.\n",
    "대표는 김철수 사장이다! ",
    '그는 "내년에도 성장한다." ',
    "영업이익률은 3.5%로 나타났다.",
]
ARTICLE = "".join(SENTENCES)


def test_sentences_end_at_marks_and_lines_not_in_numbers():
    assert split_sentences(ARTICLE) == SENTENCES


@given(st.text(alphabet="가나 .!?\n\"'다”", max_size=60))
def test_sentences_join_to_the_text_again(text):
    assert "".join(split_sentences(text)) == text


def test_each_question_has_its_sentence_before_any_has_two():
    order = nearest_first(SENTENCES, ["본사는 어디에 있나?", "대표는 누구인가?"])
    assert set(order[:2]) == {2, 3}
    assert sorted(order) == list(range(6))


def test_select_keeps_the_nearest_sentences_in_order_for_all_questions(tokenizer):  # noqa: F811
    rows = [Row("a", ARTICLE, "영업이익률은 몇 %인가?"), Row("b", ARTICLE, "본사는 어디에 있나?")]
    whole = encoder(tokenizer, "concise").encode(rows, 1000, answers=False)
    limit = max(len(example.prompt_ids) for example in whole) - 40
    first, second = encoder(tokenizer, "concise").encode(
        rows, limit, answers=False, on_overflow="select"
    )
    assert first.context == second.context
    assert first.context.index("본사는 부산에 있다.") < first.context.index("영업이익률은 3.5%로")
    assert max(len(first.prompt_ids), len(second.prompt_ids)) <= limit
    assert first.trimmed == len(ARTICLE) - len(first.context) > 0
    trimmed = encoder(tokenizer, "concise").encode(rows, limit, answers=False, on_overflow="trim")[
        0
    ]
    assert "영업이익률은 3.5%" not in trimmed.context


def test_a_sentence_too_long_by_itself_is_trimmed(tokenizer):  # noqa: F811
    long = "매출은 " + "아주 " * 100 + "많다."
    row = Row("a", f"본사는 부산에 있다. {long}", "매출은 많은가?")
    example = encoder(tokenizer, "concise").encode([row], 120, answers=False, on_overflow="select")[
        0
    ]
    assert example.context.startswith("매출은 아주")
    assert len(example.prompt_ids) <= 120


def test_error_names_the_questions_that_do_not_fit(tokenizer):  # noqa: F811
    rows = [Row("short", "기사", "매출은?"), Row("long", ARTICLE * 3, "매출은?")]
    with pytest.raises(
        InputError,
        match="1 questions have prompts of more than 150 tokens .* first long.*--on_overflow trim",
    ):
        encoder(tokenizer, "concise").encode(rows, 150, answers=False, on_overflow="error")
    assert (
        len(encoder(tokenizer, "concise").encode(rows[:1], 150, answers=False, on_overflow="error"))
        == 1
    )
