"""Trimming: the article's text is cut, nothing else, and all its questions see the same cut."""

import os
import sys

import pytest
from transformers import AutoTokenizer

from dandap.data import encode as encoding
from dandap.data import in_processes
from dandap.data.encode import SAMPLE, Encoder
from dandap.data.rows import Row
from dandap.errors import InputError
from prompts import TEMPLATES, get_template, render, task_of

ECONOMIC = [name for name in TEMPLATES if task_of(name).name == "economic_qa"]
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
    parts = get_template(template) if isinstance(template, str) else template
    return Encoder(
        tokenizer,
        lambda context, row, answer: render(
            parts, {"context": context, "question": row.question, "answer": answer}
        ),
    )


@pytest.mark.parametrize("name", ECONOMIC)
def test_long_articles_are_cut_and_rendered_again(tokenizer, name):
    encode = encoder(tokenizer, name)
    limit = len(encode.encode_prompt("", ROWS[2])) + 100
    first, other, second = encode.encode(ROWS, limit, answers=True)
    assert first.trimmed == second.trimmed > 0
    assert other.trimmed == 0
    kept = first.context
    assert CONTEXT.startswith(kept)
    assert len(CONTEXT.strip()) - len(kept.strip()) == first.trimmed
    assert list(first.prompt_ids) == encode.encode_prompt(kept, ROWS[0])
    assert list(second.prompt_ids) == encode.encode_prompt(kept, ROWS[2])
    assert limit - 5 < len(second.prompt_ids) <= limit  # nothing is cut needlessly
    whole = encode.encode(ROWS[:1], 10_000, answers=True)[0]
    assert first.answer_ids == whole.answer_ids


def test_a_question_that_cannot_fit_is_named(tokenizer):
    with pytest.raises(InputError, match="question b: its prompt takes more than 20 tokens"):
        encoder(tokenizer).encode(ROWS, 20, answers=False)


def test_results_keep_the_rows_order(tokenizer):
    assert [e.row.id for e in encoder(tokenizer).encode(ROWS, 10_000, answers=False)] == [
        "a",
        "other",
        "b",
    ]


def test_bos_once_in_plain_and_chat_prompts(tokenizer):
    for name in ECONOMIC:
        ids = encoder(tokenizer, name).encode_prompt("기사", SAMPLE)
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1


def test_a_chat_template_without_a_turn_end_gets_the_stop_token(tokenizer):
    """Its assistant turn ends in text; the answer must still learn to stop."""
    plain = AutoTokenizer.from_pretrained("data/demo_model")
    plain.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    example = encoder(plain).encode(ROWS[1:2], 1000, answers=True)[0]
    assert example.answer_ids[-1] == plain.eos_token_id
    assert plain.decode(example.answer_ids[:-1]) == "짧은 기사"


def test_text_after_the_turn_end_is_not_learned(tokenizer):
    """Many chat templates add a newline after the end token."""
    newline = AutoTokenizer.from_pretrained("data/demo_model")
    newline.chat_template = newline.chat_template.replace("+ eos_token }}", "+ eos_token + '\n' }}")
    example = encoder(newline).encode(ROWS[1:2], 1000, answers=True)[0]
    assert example.answer_ids[-1] == newline.eos_token_id


def test_chat_turns_need_a_chat_template():
    bare = AutoTokenizer.from_pretrained("data/demo_model")
    bare.chat_template = None
    with pytest.raises(InputError, match="has no chat template"):
        encoder(bare).encode_prompt("기사", SAMPLE)
    assert encoder(bare, "answer_bot").encode_prompt("기사", SAMPLE)


def test_a_refused_system_turn_is_explained():
    gemma = AutoTokenizer.from_pretrained("data/demo_model")
    gemma.chat_template = (
        "{% if messages[0].role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
    )
    with pytest.raises(
        InputError, match="System role not supported.*Choose a template without a system turn"
    ):
        encoder(gemma, "context_bot_system").encode_prompt("기사", SAMPLE)


def test_any_text_encodes_and_decodes(tokenizer):
    text = "힣뷁 ☃ \U0001f600 <0x41> ㄱㅏ 漢字 1,234.5%"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_digits_are_single_tokens(tokenizer):
    assert [t for t in tokenizer.tokenize("1,234억") if t.isdigit()] == ["1", "2", "3", "4"]


def test_rows_that_differ_in_white_space_around_the_article_share_what_was_read(tokenizer):
    """The group is read as its first row; nothing counts as trimmed but text."""
    rows = [Row("0", CONTEXT + "\n " * 3000, "매출은?"), Row("1", CONTEXT.strip(), "언제?")]
    for example in encoder(tokenizer, "concise").encode(rows, 1000, answers=False):
        assert example.context.strip() == CONTEXT.strip()
        assert example.trimmed == 0


@pytest.fixture
def many(monkeypatch):
    monkeypatch.setattr(encoding, "MANY", 1)
    monkeypatch.setattr(in_processes.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)


FORKS = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")


@FORKS
def test_several_processes_encode_the_same(tokenizer, many, monkeypatch):
    """And hold each article once."""
    by_two = encoder(tokenizer).encode(ROWS, 200, answers=True, on_overflow="select")
    monkeypatch.setattr(encoding, "MANY", 1000)
    assert by_two == encoder(tokenizer).encode(ROWS, 200, True, "select")
    assert all(example.row is row for example, row in zip(by_two, ROWS, strict=True))
    whole = encoder(tokenizer).encode(ROWS, 10_000, answers=False)
    assert whole[0].context is ROWS[0].context


@FORKS
def test_what_one_of_several_processes_refuses_is_told(tokenizer, many):
    with pytest.raises(InputError, match="question b: its prompt takes more than 20 tokens"):
        encoder(tokenizer).encode(ROWS, 20, answers=False)


@FORKS
def test_a_killed_process_is_told(many):
    with pytest.raises(InputError, match="was killed"):
        list(in_processes.map_in_processes(os._exit, [1, 2], 1))
    assert list(in_processes.map_in_processes(abs, [-1, -2], 1)) == [1, 2], "the next time works"
