"""Test encoding: only the article is shortened, to the same text for all its questions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from dandap.data.encode import SAMPLE, Encoder
from dandap.data.korean import nearest_first, split_sentences
from dandap.data.rows import Row
from dandap.errors import InputError
from prompts import get_template

ECONOMIC = "concise answer_bot context_bot context_bot_system system_context nouns_only".split()
CONTEXT = "한빛전자는 매출 1,240억 원을 기록했다. " * 30
ROWS = [
    Row("a", CONTEXT, "매출은?", ("1,240억 원",)),
    Row("other", "짧은 기사다.", "무엇인가?", ("짧은 기사",)),
    Row("b", CONTEXT, "한빛전자가 올해 기록한 매출은 모두 얼마인가?", ("1,240억 원",)),
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained("data/demo_model")


def encoder(tokenizer, template="concise"):
    return Encoder(tokenizer, get_template(template))


def with_chat_template(change):
    tokenizer = AutoTokenizer.from_pretrained("data/demo_model")
    tokenizer.chat_template = change(tokenizer.chat_template)
    return tokenizer


@pytest.mark.parametrize("name", ECONOMIC)
def test_long_articles_are_trimmed(tokenizer, name):
    encode = encoder(tokenizer, name)
    limit = len(encode.encode_prompt("", ROWS[2])) + 100
    first, other, second = encode.encode(ROWS, limit, answers=True)
    assert [each.row.id for each in (first, other, second)] == ["a", "other", "b"]
    assert first.trimmed == second.trimmed == len(CONTEXT.strip()) - len(first.context) > 0
    assert other.trimmed == 0
    assert CONTEXT.startswith(first.context)
    assert list(first.prompt_ids) == encode.encode_prompt(first.context, ROWS[0])
    assert list(second.prompt_ids) == encode.encode_prompt(first.context, ROWS[2])
    assert limit - 5 < len(second.prompt_ids) <= limit  # no more than needed is trimmed
    untrimmed = encode.encode(ROWS[:1], 10_000, answers=True)[0]
    assert untrimmed.context is ROWS[0].context
    assert first.answer_ids == untrimmed.answer_ids


def test_question_that_cannot_fit_is_rejected(tokenizer):
    with pytest.raises(InputError, match="question b: its prompt takes more than 20 tokens"):
        encoder(tokenizer).encode(ROWS, 20, answers=False)


def test_prompts_have_one_bos_token(tokenizer):
    for name in ECONOMIC:
        ids = encoder(tokenizer, name).encode_prompt("기사", SAMPLE)
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1


def test_stop_token_is_added_to_chat_templates_without_one():
    turns = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    prompt = "{% if add_generation_prompt %}assistant: {% endif %}"
    plain = with_chat_template(lambda _: turns + prompt)
    example = encoder(plain).encode(ROWS[1:2], 1000, answers=True)[0]
    assert example.answer_ids[-1] == plain.eos_token_id
    assert plain.decode(example.answer_ids[:-1]) == "짧은 기사"


def test_text_after_the_turn_end_is_not_trained():
    """Many chat templates add a newline after the end token."""
    newline = with_chat_template(lambda t: t.replace("+ eos_token }}", "+ eos_token + '\n' }}"))
    example = encoder(newline).encode(ROWS[1:2], 1000, answers=True)[0]
    assert example.answer_ids[-1] == newline.eos_token_id


def test_unsupported_system_turn_is_explained():
    error = "{{ raise_exception('System role not supported') }}"
    gemma = with_chat_template(lambda _: error)
    with pytest.raises(InputError, match="System role not supported.*without a system turn"):
        encoder(gemma, "context_bot_system")


def test_white_space_around_the_article_is_ignored(tokenizer):
    rows = [Row("0", CONTEXT + "\n " * 3000, "매출은?"), Row("1", CONTEXT.strip(), "언제?")]
    for example in encoder(tokenizer).encode(rows, 1000, answers=False):
        assert example.context.strip() == CONTEXT.strip()
        assert example.trimmed == 0


SENTENCES = [
    "한빛전자는 5월 3일 신제품을 발표했다. ",
    "매출은 1,240.5억 원이다. ",
    "본사는 부산에 있다.\n",
    "대표는 김철수 사장이다! ",
    '그는 "내년에도 성장한다." ',
    "영업이익률은 3.5%로 나타났다.",
]
ARTICLE = "".join(SENTENCES)


def test_sentences_end_at_punctuation_and_newlines_but_not_in_numbers():
    assert split_sentences(ARTICLE) == SENTENCES


@given(st.text(alphabet="가나 .!?\n\"'다”", max_size=60))
def test_joined_sentences_equal_the_text(text):
    assert "".join(split_sentences(text)) == text


def test_each_question_gets_one_sentence_first():
    order = nearest_first(SENTENCES, ["본사는 어디에 있나?", "대표는 누구인가?"])
    assert set(order[:2]) == {2, 3}
    assert sorted(order) == list(range(6))


def test_select_uses_the_nearest_sentences_in_order(tokenizer):
    encode = encoder(tokenizer).encode
    rows = [Row("a", ARTICLE, "영업이익률은 몇 %인가?"), Row("b", ARTICLE, "본사는 어디에 있나?")]
    limit = max(len(each.prompt_ids) for each in encode(rows, 1000, answers=False)) - 40
    first, second = encode(rows, limit, answers=False, on_overflow="select")
    assert first.context == second.context
    assert first.context.index("본사는 부산에 있다.") < first.context.index("영업이익률은 3.5%로")
    assert max(len(first.prompt_ids), len(second.prompt_ids)) <= limit
    assert first.trimmed == len(ARTICLE) - len(first.context) > 0
    assert "영업이익률은 3.5%" not in encode(rows, limit, answers=False)[0].context


def test_overlong_sentence_is_trimmed(tokenizer):
    row = Row("a", "본사는 부산에 있다. 매출은 " + "아주 " * 100 + "많다.", "매출은 많은가?")
    (example,) = encoder(tokenizer).encode([row], 120, answers=False, on_overflow="select")
    assert example.context.startswith("매출은 아주")
    assert len(example.prompt_ids) <= 120


def test_on_overflow_error_counts_overlong_questions(tokenizer):
    rows = [Row("short", "기사", "매출은?"), Row("long", ARTICLE * 3, "매출은?")]
    expected = "1 questions have prompts of more than 150 tokens, first long.*--on_overflow trim"
    with pytest.raises(InputError, match=expected):
        encoder(tokenizer).encode(rows, 150, answers=False, on_overflow="error")
    assert len(encoder(tokenizer).encode(rows[:1], 150, False, "error")) == 1
