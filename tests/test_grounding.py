"""Test that grounded answers are literal spans of the article."""

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
    """Return a random model with a byte-level vocabulary: most tokens are partial characters."""
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
    """Return each row's article and its answers as (text, token_ids, stopped)."""
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
def test_grounded_answer_is_a_span_and_greedy_if_possible(kind, questions, request):
    """100 articles are cut at random places, so that spans end anywhere."""
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


def test_captured_steps_give_the_same_grounded_answers(demo, questions, monkeypatch):
    expected = answers(demo, questions[:40], True, max_new_tokens=12)
    capturing = capture_on_cpu(monkeypatch)
    assert answers(demo, questions[:40], True, max_new_tokens=12) == expected
    assert len({len(ids) for _, [(_, ids, _)] in expected}) > 3
    assert capturing.replays > 1


@KINDS
def test_token_bytes_join_to_the_text(kind, request):
    """Also for syllables outside the vocabulary."""
    _, tokenizer = request.getfixturevalue(kind)
    bytes_of = token_bytes(tokenizer, set(tokenizer.all_special_ids))
    for text in ("한빛전자는 12.5% 늘었다.", "뷁 쀍 😀 漢字", 'a "b" <0xEA> ▁'):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        joined = b"".join(bytes_of[token] for token in ids).decode()
        assert joined.strip() == (text if kind == "byte_level" else text.replace("▁", " ")).strip()


STOP = None


@pytest.fixture
def grounded(byte_level):
    """Return the methods `pick` and `text` of a Grounding, with bytes instead of token ids.

    pick(answer, context, likeliest) returns the next byte; `likeliest` is sorted by probability.
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
FIRST, SECOND, THIRD = BUEK
NO_BREAK = "\u00a0".encode()  # scraped articles contain them


@pytest.mark.parametrize(
    ("context", "answer", "likeliest", "left", "picked"),
    [
        # A span begins and ends at a character boundary.
        ("가 뷁 나", b"", [STOP, SECOND, FIRST], 8, FIRST),
        ("가 뷁 나", [FIRST], [STOP, THIRD, SECOND], 8, SECOND),
        ("가 뷁 나", BUEK, [THIRD, STOP], 8, STOP),
        # White space around a span is ignored.
        ("ab", b" ", [STOP, B], 8, B),
        ("ab", b" ab ", [A, STOP], 8, STOP),
        ("b\u00a0a", NO_BREAK, [STOP, A], 8, A),
        # Enough tokens must be left for the first character.
        ("뷁 a", b"", [STOP, SPACE, FIRST, A], 1, A),
        ("뷁 a", b"", [SPACE, FIRST, A], 2, SPACE),
        ("뷁 a", [FIRST], [SECOND], 2, SECOND),
        ("뷁 a", b" ", [SPACE, A], 4, A),
    ],
)
def test_next_token(grounded, context, answer, likeliest, left, picked):
    assert grounded[0](answer, context, likeliest, left) == picked


def test_text_has_only_complete_characters_and_is_stripped(grounded):
    _, text = grounded
    assert text(BUEK) == text(BUEK + " 나".encode()[:2]) == "뷁"
    assert text(NO_BREAK + b"a" + NO_BREAK) == text(b" a ") == "a"


@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("temperature", [0.0, 100.0])
def test_spans_with_few_tokens_and_high_temperatures(demo, most, temperature):
    articles = ["😀😀😀", "x", "\t\n 뷁\t쀍\n", "\u3000\u3000뷁", "가\u00a0나", " "]
    rows = [Row(str(number), article, "무엇인가?") for number, article in enumerate(articles)]
    known = Grounding(demo[1], set(demo[1].all_special_ids)).known
    options = {"max_new_tokens": most, "temperature": temperature, "samples": 3}
    for article, samples in answers(demo, rows, True, **options):
        # A character outside the vocabulary takes one token per byte. The answer for " " is empty.
        characters = [character.encode() for character in article if character.strip()]
        easiest = min((1 if data in known else len(data) for data in characters), default=9)
        for text, _, _ in samples:
            assert text or easiest > most
            assert text in article
