"""Grounded answers are literal spans of their article."""

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
KINDS = pytest.mark.parametrize("kind", ["demo", "byte_level"])


@pytest.fixture(scope="module")
def questions():
    return read_questions("data/sample/train.csv", need_answers=True).rows[:200]


@pytest.fixture(scope="module")
def demo():
    return load_base(DEMO, torch.device("cpu")), load_tokenizer(DEMO)


@pytest.fixture(scope="module")
def byte_level(questions):
    """Return a random model with a vocabulary of GPT-2's kind: mostly parts of characters."""
    inner = ByteLevelBPETokenizer()
    texts, special = sorted({row.context for row in questions}), ["<pad>", "</s>"]
    inner.train_from_iterator(texts, vocab_size=600, special_tokens=special, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner._tokenizer, pad_token="<pad>", eos_token="</s>"
    )
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }}\n{% endfor %}"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=2,
        num_hidden_layers=1,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval(), tokenizer


def answers(kind, rows, grounded, **options):
    """Return each row's article and its answers, as (text, ids, whether stopped)."""
    model, tokenizer = kind
    encoder = make_encoder(DEMO, prompts.get_template(DEMO.template), tokenizer)
    examples = encoder.encode(rows, 1500, False, "trim")
    grounding = Grounding(tokenizer, encoder.control_ids) if grounded else None
    stops = encoder.stop_ids(model.generation_config)
    decoding = Decoding(stops, tokenizer.pad_token_id, **({"max_new_tokens": 4} | options))
    found = dict(answer_examples(model, examples, decoding, 20_000, grounding))
    text_of = grounding.text if grounding else encoder.decode
    return [
        (example.context, [(text_of(a.content_ids), a.token_ids, a.stopped) for a in found[index]])
        for index, example in enumerate(examples)
    ]


@KINDS
def test_a_grounded_answer_is_a_span_and_the_greedy_one_where_that_is_a_span(
    kind, questions, request
):
    """On 100 articles cut at random places, so that spans end anywhere."""
    rng, rows = random.Random(0), []
    for number in range(100):
        row = rng.choice(questions)
        context = row.context[rng.randrange(8) :][: rng.randrange(40, 400)].strip()
        rows.append(Row(str(number), context, row.question))
    both = (answers(request.getfixturevalue(kind), rows, grounded) for grounded in (False, True))
    spans = 0
    for (article, [free]), (_, [answer]) in zip(*both, strict=True):
        assert answer[0]
        assert answer[0] in article
        if free[0] and free[0] in article:
            spans += 1
            assert answer == free
    assert (5 if kind == "demo" else -1) < spans < 100


def test_captured_steps_ground_the_same(demo, questions, monkeypatch):
    expected = answers(demo, questions[:40], True, max_new_tokens=12)
    capturing = capture_on_cpu(monkeypatch)
    assert answers(demo, questions[:40], True, max_new_tokens=12) == expected
    assert len({len(ids) for _, [(_, ids, _)] in expected}) > 3
    assert capturing.replays > 1


def test_samples_are_grounded_too(demo, questions):
    row = Row("0", questions[0].context, "얼마인가?")
    options = {"samples": 8, "temperature": 2.0, "max_new_tokens": 8}
    ((article, samples),) = answers(demo, [row], True, **options)
    texts = {text for text, _, _ in samples}
    assert all(text and text in article for text in texts)
    assert len(texts) > 2


@KINDS
def test_tokens_are_the_bytes_of_the_text(kind, request):
    """Those of syllables outside the vocabulary, too."""
    _, tokenizer = request.getfixturevalue(kind)
    bytes_of = token_bytes(tokenizer, set(tokenizer.all_special_ids))
    for text in ("한빛전자는 12.5% 늘었다.", "뷁 쀍 😀 漢字", 'a "b" <0xEA> ▁'):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        joined = b"".join(bytes_of[token] for token in ids).decode()
        assert joined.strip() == (text if kind == "byte_level" else text.replace("▁", " ")).strip()


STOP = None


@pytest.fixture
def grounded(byte_level):
    """Return `pick` and `text` of a Grounding, for bytes instead of token ids.

    pick(answer, context, likeliest) returns the next byte, of bytes in order of probability.
    """
    _, tokenizer = byte_level
    grounding = Grounding(tokenizer, set(tokenizer.all_special_ids))
    token_of = {data[0]: token for token, data in grounding.bytes_of.items() if len(data) == 1}
    token_of[STOP] = tokenizer.eos_token_id
    byte_of = {token: byte for byte, token in token_of.items()}

    def ids(data):
        return [token_of[byte] for byte in data]

    def pick(answer, context, likeliest, left=8):
        first = ids(likeliest)
        others = [token for token in range(len(tokenizer)) if token not in first]
        return byte_of[grounding.pick(ids(answer), context, ids([STOP]), left, first + others)]

    return pick, lambda answer: grounding.text(ids(answer))


BUEK = "뷁".encode()  # outside the vocabulary: three bytes
SPACE, A, B = b" ab"


def test_a_span_neither_begins_nor_ends_within_a_character(grounded):
    pick, text = grounded
    context, (first, second, third) = "가 뷁 나", BUEK
    assert pick(b"", context, [STOP, second, first]) == first
    assert pick([first], context, [STOP, third, second]) == second
    assert pick(BUEK, context, [third, STOP]) is STOP
    assert text(BUEK) == text(BUEK + " 나".encode()[:2]) == "뷁"


def test_white_space_around_a_span_does_not_count(grounded):
    pick, text = grounded
    assert pick(b"", "ab", [SPACE]) == SPACE
    assert pick(b" ", "ab", [STOP, B]) == B
    assert pick(b" ab", "ab", [SPACE]) == SPACE
    assert pick(b" ab ", "ab", [A, STOP]) is STOP
    assert text(b" ab ") == "ab"
    no_break = "\u00a0".encode()  # scraped articles contain them
    assert pick(no_break, "b\u00a0a", [STOP, A]) == A
    assert text(no_break + b"a" + no_break) == "a"


def test_few_tokens_are_enough_for_the_first_character(grounded):
    pick, _ = grounded
    context, (first, second, _) = "뷁 a", BUEK
    assert pick(b"", context, [STOP, SPACE, first, A], left=1) == A
    assert pick(b"", context, [SPACE, first, A], left=2) == SPACE
    assert pick(b"", context, [first, A], left=3) == first
    assert pick([first], context, [second], left=2) == second
    assert pick(b"", context, [SPACE], left=5) == SPACE
    assert pick(b" ", context, [SPACE, A], left=4) == A


def test_an_article_without_a_character_is_answered_by_nothing(demo):
    ((_, [(text, _, stopped)]),) = answers(demo, [Row("0", " ", "얼마인가?")], True)
    assert (text, stopped) == ("", True)


@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("temperature", [0.0, 100.0])
def test_few_tokens_and_high_temperatures_still_give_spans(demo, most, temperature):
    articles = ["😀😀😀", "x", "\t\n 뷁\t쀍\n", "\u3000\u3000뷁", "가\u00a0나"]
    rows = [Row(str(number), article, "무엇인가?") for number, article in enumerate(articles)]
    known = Grounding(demo[1], set(demo[1].all_special_ids)).known
    options = {"max_new_tokens": most, "temperature": temperature}
    for article, [(text, _, _)] in answers(demo, rows, True, **options):
        # A character outside the vocabulary takes a token a byte.
        characters = [character.encode() for character in article if character.strip()]
        easiest = min(1 if data in known else len(data) for data in characters)
        assert text or easiest > most
        assert text in article
