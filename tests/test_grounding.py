"""Grounded answers are literal spans of their article, whatever the model would rather say."""

import random

import pytest
import torch
from capturing import capture_on_cpu
from helpers import make_encoder
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import prompts
from dandap.answering.answer import Decoding
from dandap.answering.grounding import Grounding, token_bytes
from dandap.answering.tree_decoder import answer_examples
from dandap.data.read import read_questions
from dandap.data.rows import Row
from dandap.model.load import load_base, load_tokenizer
from dandap.recipe import Recipe

DEMO = Recipe(model="data/demo_model", quantization="none")


@pytest.fixture(scope="module")
def questions():
    return read_questions("data/sample/train.csv", need_answers=True).rows[:200]


@pytest.fixture(scope="module")
def articles(questions):
    return sorted({row.context for row in questions})


@pytest.fixture(scope="module")
def demo():
    tokenizer = load_tokenizer(DEMO)
    return load_base(DEMO, torch.device("cpu")), tokenizer


@pytest.fixture(scope="module")
def byte_level(articles):
    """Return a model of no sense and a GPT-2 kind of vocabulary.

    Most of its tokens are parts of Korean characters.
    """
    inner = ByteLevelBPETokenizer()
    inner.train_from_iterator(
        articles, vocab_size=600, special_tokens=["<pad>", "</s>"], show_progress=False
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner._tokenizer, pad_token="<pad>", eos_token="</s>"
    )
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }}\n{% endfor %}"
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
    }
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, **sizes)
    ).eval(), tokenizer


def answers(model, tokenizer, rows, grounded, **options):
    """Return (example, text, answer) of every row."""
    encoder = make_encoder(DEMO, prompts.get_template(DEMO.template), tokenizer)
    examples = encoder.encode(rows, 1500, answers=False)
    grounding = Grounding(tokenizer, encoder.control_ids)
    stops = encoder.stop_ids(model.generation_config)
    decoding = Decoding(
        **({"stop_ids": stops, "pad_id": tokenizer.pad_token_id, "max_new_tokens": 4} | options)
    )
    found = dict(
        answer_examples(model, examples, decoding, 20_000, grounding if grounded else None)
    )
    text_of = grounding.text if grounded else encoder.decode
    return [
        (examples[index], text_of(found[index][0].said), found[index][0])
        for index in range(len(rows))
    ]


@pytest.mark.parametrize("kind", ["demo", "byte_level"])
def test_a_grounded_answer_is_a_span_and_equals_greedy_where_greedy_is_one(
    kind, questions, request
):
    """Random questions are answered on articles cut at random places, 100 cases each.

    So spans end anywhere.
    """
    model, tokenizer = request.getfixturevalue(kind)
    rng = random.Random(0)
    rows = []
    for number in range(100):
        row = rng.choice(questions)
        rows.append(
            Row(
                str(number),
                row.context[rng.randrange(8) :][: rng.randrange(40, 400)].strip(),
                row.question,
            )
        )
    greedy = answers(model, tokenizer, rows, grounded=False)
    grounded = answers(model, tokenizer, rows, grounded=True)
    spans = 0
    for (example, said, free), (_, text, answer) in zip(greedy, grounded, strict=True):
        assert text
        assert text in example.context
        if said and said in example.context:
            spans += 1
            assert (text, answer.token_ids) == (said, free.token_ids)
    assert spans > 5 or kind == "byte_level", (
        "greedy answers that are spans are what the comparison is about"
    )
    assert spans < 100, "nothing had to be grounded"


def test_captured_steps_ground_the_same(demo, questions, monkeypatch):
    """As on CUDA, where stopped answers are fed along with those that go on."""
    options = {"grounded": True, "max_new_tokens": 12}
    expected = [answer for _, _, answer in answers(*demo, questions[:40], **options)]
    capturing = capture_on_cpu(monkeypatch)
    got = [answer for _, _, answer in answers(*demo, questions[:40], **options)]
    assert [answer.token_ids for answer in got] == [answer.token_ids for answer in expected]
    assert len({len(answer.token_ids) for answer in got}) > 3
    assert capturing.replays > 1


def test_samples_are_grounded_too(demo, articles):
    rows = [Row("0", articles[0], "얼마인가?")]
    options = {"samples": 8, "temperature": 2.0}
    (example, _, _), model = answers(*demo, rows, grounded=True)[0], demo[0]
    encoder = make_encoder(DEMO, prompts.get_template(DEMO.template), demo[1])
    grounding = Grounding(demo[1], encoder.control_ids)
    decoding = Decoding(
        stop_ids=[demo[1].eos_token_id], pad_id=demo[1].pad_token_id, max_new_tokens=8, **options
    )
    ((_, samples),) = answer_examples(model, [example], decoding, 4096, grounding)
    texts = [grounding.text(sample.said) for sample in samples]
    assert all(text and text in articles[0] for text in texts)
    assert len(set(texts)) > 2


@pytest.mark.parametrize("kind", ["demo", "byte_level"])
def test_tokens_are_the_bytes_of_the_text(kind, request):
    """Encoding a text and joining its tokens' bytes gives the text.

    That holds for syllables outside the vocabulary, too.
    """
    _, tokenizer = request.getfixturevalue(kind)
    bytes_of = token_bytes(tokenizer, set(tokenizer.all_special_ids))
    for text in ("한빛전자는 12.5% 늘었다.", "뷁 쀍 😀 漢字", 'a "b" <0xEA> ▁'):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        joined = b"".join(bytes_of[token] for token in ids).decode()
        assert joined.strip() == (text if kind == "byte_level" else text.replace("▁", " ")).strip()


def ranked(tokenizer, *likeliest):
    """Tokens as a model ranks them that prefers these in this order."""
    return [*likeliest, *(token for token in range(len(tokenizer)) if token not in likeliest)]


def test_a_span_may_not_begin_or_end_within_a_character(byte_level):
    _, tokenizer = byte_level
    grounding = Grounding(tokenizer, set(tokenizer.all_special_ids))
    byte = lambda value: next(t for t, b in grounding.bytes_of.items() if b == bytes([value]))  # noqa: E731
    eos = tokenizer.eos_token_id
    first, second, third = "뷁".encode()
    context = "가 뷁 나"
    assert grounding.pick(
        [], context, [eos], 8, ranked(tokenizer, eos, byte(second), byte(first))
    ) == byte(first)
    assert grounding.pick(
        [byte(first)], context, [eos], 8, ranked(tokenizer, eos, byte(third), byte(second))
    ) == byte(second)
    whole = [byte(first), byte(second), byte(third)]
    assert grounding.pick(whole, context, [eos], 8, ranked(tokenizer, byte(third), eos)) == eos
    assert grounding.text(whole) == "뷁"
    assert grounding.text([*whole, byte(ord(" ")), byte("나".encode()[0])]) == "뷁"


def test_white_space_around_a_span_does_not_count(byte_level):
    _, tokenizer = byte_level
    grounding = Grounding(tokenizer, set(tokenizer.all_special_ids))
    byte = lambda value: next(t for t, b in grounding.bytes_of.items() if b == value)  # noqa: E731
    eos, space, a, b = tokenizer.eos_token_id, byte(b" "), byte(b"a"), byte(b"b")
    assert grounding.pick([], "ab", [eos], 8, ranked(tokenizer, space)) == space
    assert grounding.pick([space], "ab", [eos], 8, ranked(tokenizer, eos, b)) == b
    assert grounding.pick([space, a, b], "ab", [eos], 8, ranked(tokenizer, space)) == space
    assert grounding.pick([space, a, b, space], "ab", [eos], 8, ranked(tokenizer, a, eos)) == eos
    assert grounding.text([space, a, b, space]) == "ab"


def test_other_white_space_is_white_space_too(byte_level):
    """An answer may not end after a no-break space alone, as scraped articles have them."""
    _, tokenizer = byte_level
    grounding = Grounding(tokenizer, set(tokenizer.all_special_ids))
    ids = {
        value: next(t for t, b in grounding.bytes_of.items() if b == bytes([value]))
        for value in "\u00a0a".encode()
    }
    eos, no_break = tokenizer.eos_token_id, [ids[value] for value in "\u00a0".encode()]
    assert (
        grounding.pick(no_break, "b\u00a0a", [eos], 8, ranked(tokenizer, eos, ids[ord("a")]))
        == ids[ord("a")]
    )
    assert grounding.text([*no_break, ids[ord("a")], *no_break]) == "a"


def test_the_first_character_is_always_said(byte_level):
    """However few tokens are left, white space is never all, and each character can be ended."""
    _, tokenizer = byte_level
    grounding = Grounding(tokenizer, set(tokenizer.all_special_ids))
    byte = lambda value: next(t for t, b in grounding.bytes_of.items() if b == bytes([value]))  # noqa: E731
    eos, space, letter, (first, second, _) = (
        tokenizer.eos_token_id,
        byte(ord(" ")),
        byte(ord("a")),
        map(byte, "뷁".encode()),
    )
    context = "뷁 a"

    def pick(said, left, *likeliest):
        return grounding.pick(said, context, [eos], left, ranked(tokenizer, *likeliest))

    assert pick([], 1, eos, space, first, letter) == letter
    assert pick([], 2, space, first, letter) == space
    assert pick([], 3, first, letter) == first
    assert pick([first], 2, second) == second
    assert pick([], 5, space) == space
    assert pick([space], 4, space, letter) == letter


def test_an_article_without_a_character_is_answered_by_nothing(demo):
    """The row must not stop thousands of others."""
    ((_, text, answer),) = answers(*demo, [Row("0", " ", "얼마인가?")], grounded=True)
    assert (text, answer.stopped) == ("", True)


@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("temperature", [0.0, 100.0])
def test_few_tokens_and_high_temperatures_still_give_spans(demo, most, temperature):
    articles = ["😀😀😀", "x", "\t\n 뷁\t쀍\n", "\u3000\u3000뷁", "가\u00a0나"]
    rows = [Row(str(n), article, "무엇인가?") for n, article in enumerate(articles)]
    known = Grounding(demo[1], set(demo[1].all_special_ids)).known
    for example, text, _ in answers(
        *demo, rows, grounded=True, max_new_tokens=most, temperature=temperature
    ):
        sizes = [
            len(c.encode()) for c in example.context if c.strip()
        ]  # a character outside the vocabulary takes a token a byte
        easiest = (
            1 if any(c.encode() in known for c in example.context if c.strip()) else min(sizes)
        )
        assert text or easiest > most
        assert text in example.context
