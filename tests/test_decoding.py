"""Answers from trees against transformers' generate, one prompt at a time, token for token."""

import contextlib
import gc
import random
import re
import warnings
import weakref
from functools import partial

import pytest
import torch
from capturing import capture_on_cpu
from tiny_models import FAMILIES

from dandap.answering import capture, tree_decoder
from dandap.answering.answer import Decoding
from dandap.answering.choices import score_choices
from dandap.answering.generate import generate_answers
from dandap.answering.tree_decoder import answer_examples
from dandap.data.encode import Example
from dandap.data.rows import Row
from dandap.errors import InputError
from dandap.model.adapter import add_adapter
from dandap.model.load import load_base
from dandap.recipe import Recipe

CPU = torch.device("cpu")
STOPS = [1, 2]
PLENTY = 100_000


def make_examples(shape, seed=0, longest=60):
    """Return examples of random ids; `shape` has the number of questions of each article.

    Questions of an article share a beginning of their own now and then.
    """
    rng = random.Random(seed)
    draw = lambda low, high: [rng.randint(3, 95) for _ in range(rng.randint(low, high))]  # noqa: E731
    examples = []
    for number, questions in enumerate(shape):
        context, name, start = draw(4, longest), f"article {number}", draw(1, 4)
        for _ in range(questions):
            question = rng.choice([[], start]) + draw(1, 6)
            examples.append(Example(Row(str(len(examples)), name, "q"), context + question, []))
    return examples


@pytest.fixture(scope="module")
def models(bases):
    """Return what loads a family's base or base and adapter, fp32 or NF4, once."""
    made = {}

    def get(family, quantization="none", adapter=False):
        key = (family, quantization, adapter)
        if key not in made:
            recipe = Recipe(model=str(bases / family), quantization=quantization, lora_r=4)
            made[key] = load_base(recipe, CPU)
            if family == "gemma3":  # tied, random weights say the prompt's last token for ever
                head = torch.empty_like(made[key].lm_head.weight)
                head.normal_(0, 0.2, generator=torch.Generator().manual_seed(2))
                made[key].lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
            if adapter:
                made[key] = add_adapter(made[key], recipe)
                generator = torch.Generator().manual_seed(1)
                for name, parameter in made[key].named_parameters():
                    if "lora_B" in name:
                        parameter.data.normal_(0, 0.05, generator=generator)
        return made[key]

    return get


def natural(**options):
    """Return stops as they come: a third of the vocabulary ends an answer.

    So some answers end at once and some late.
    """
    return Decoding(
        **({"stop_ids": [1, 2, *range(3, 15)], "pad_id": 0, "max_new_tokens": 20} | options)
    )


def forced(**options):
    """16 tokens, whatever the model would say."""
    return Decoding(
        **({"stop_ids": STOPS, "pad_id": 0, "max_new_tokens": 16, "min_new_tokens": 16} | options)
    )


def ours(model, examples, decoding, tokens=PLENTY, **more):
    """Return the samples of each example, in the examples' order."""
    answers = dict(answer_examples(model, examples, decoding, tokens, **more))
    assert sorted(answers) == list(range(len(examples)))
    return [answers[index] for index in range(len(examples))]


def one_at_a_time(model, examples, decoding):
    return [
        next(iter(generate_answers(model, [example.prompt_ids], decoding, 1)))[1]
        for example in examples
    ]


def assert_same(got, expected):
    assert [answer.token_ids for (answer,) in got] == [answer.token_ids for answer in expected]
    assert [answer.stopped for (answer,) in got] == [answer.stopped for answer in expected]
    for (answer,), want in zip(got, expected, strict=True):
        assert answer.log_probability == pytest.approx(want.log_probability, abs=1e-4)


SHAPE = [1, 3, 20, 1]


@pytest.mark.parametrize(
    ("quantization", "adapter"),
    [
        ("none", False),
        ("none", True),
        ("nf4", True),
        pytest.param("nf4", False, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_equal_generate(models, family, quantization, adapter):
    """Articles have one to twenty questions and very different lengths, several are in a batch."""
    model, examples = models(family, quantization, adapter), make_examples(SHAPE)
    for decoding in (natural(), forced()):
        expected = one_at_a_time(model, examples, decoding)
        assert len({len(answer.token_ids) for answer in expected}) > (
            3 if decoding.min_new_tokens == 0 else 0
        )
        assert_same(ours(model, examples, decoding), expected)


@pytest.mark.parametrize(
    ("quantization", "adapter"),
    [("none", False), pytest.param("nf4", True, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_captured_steps_answer_as_generate(models, monkeypatch, family, quantization, adapter):
    """As on CUDA: shapes last for 16 steps, stopped branches are fed along, Python is not run."""
    model, examples = models(family, quantization, adapter), make_examples(SHAPE)
    capturing = capture_on_cpu(monkeypatch)
    for decoding in (natural(), forced(), natural(max_new_tokens=40)):
        assert_same(ours(model, examples, decoding), one_at_a_time(model, examples, decoding))
    # Of forced answers' fifteen steps the first is eager and the others replay.
    assert capturing.replays > 20


def test_captured_steps_in_many_batches_with_samples_and_a_penalty(models, monkeypatch):
    model, examples = models("llama"), make_examples(SHAPE)
    ways = (
        natural(samples=4, temperature=1.0),
        natural(samples=3, repetition_penalty=1.3),
        forced(repetition_penalty=1.3),
    )
    texts = lambda answers: [[answer.token_ids for answer in samples] for samples in answers]  # noqa: E731
    plain = [texts(ours(model, examples, decoding)) for decoding in ways]
    capturing = capture_on_cpu(monkeypatch)
    for tokens in (300, PLENTY):
        assert [texts(ours(model, examples, decoding, tokens)) for decoding in ways] == plain
    assert capturing.replays > 20


@pytest.mark.parametrize("captures", [False, True])
def test_a_batch_is_given_back_before_the_next(models, monkeypatch, captures):
    """Without a garbage collection, which may be long in coming: its keys fill a GPU's memory."""
    model, examples, decoders = models("llama"), make_examples(SHAPE), []

    class Noted(tree_decoder.TreeDecoder):
        def run(self):
            assert all(decoder() is None for decoder in decoders)
            decoders.append(weakref.ref(self))
            return super().run()

    monkeypatch.setattr(tree_decoder, "TreeDecoder", Noted)
    if captures:
        capture_on_cpu(monkeypatch)
    gc.disable()
    try:
        ours(model, examples, natural(), tokens=150)
    finally:
        gc.enable()
    assert len(decoders) > 2


@pytest.fixture
def cuda(monkeypatch):
    """Stand in for what capturing calls of torch.cuda.

    Return two lists: the graphs that were begun, and the errors that ending them raises in turn.
    """
    begun, ends, modes = [], [], [0]

    @contextlib.contextmanager
    def graph(made, capture_error_mode="global"):
        begun.append(made)
        end = ends.pop(0) if ends else None
        try:
            yield
        finally:
            if end:
                raise end

    for name, stand_in in {
        "CUDAGraph": object,
        "graph": graph,
        "stream": contextlib.nullcontext,
        "current_stream": lambda: None,
        "get_sync_debug_mode": lambda: modes[-1],
        "set_sync_debug_mode": modes.append,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(capture, "_refused", False)
    monkeypatch.setattr(tree_decoder, "can_capture", lambda device: not capture._refused)
    yield begun, ends
    assert modes[-1] == 0


def told(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if "CUDA graphs" in line]


def test_a_model_that_waits_for_the_gpu_is_not_captured(models, monkeypatch, capsys, cuda):
    """As one with code of its own may: a failed capture would harm what torch does later."""
    model, examples = models("llama"), make_examples(SHAPE)
    expected = one_at_a_time(model, examples, forced())
    real = tree_decoder.TreeDecoder._step

    def waits(self, chosen):
        warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
        return real(self, chosen)

    monkeypatch.setattr(tree_decoder.TreeDecoder, "_step", waits)
    for tokens in (PLENTY, 150):
        assert_same(ours(model, examples, forced(), tokens), expected)
    reason = "the model's code waits for the GPU"
    assert told(capsys) == [
        f"answers are decoded without CUDA graphs ({reason}): slower, and the same"
    ]
    assert cuda[0] == []


def test_a_capture_that_fails_is_told_and_ended(models, monkeypatch, capsys, cuda):
    """Its own error is told, not that of its end; an empty capture tells torch that it is over."""
    model, examples = models("llama"), make_examples(SHAPE)
    begun, ends = cuda
    expected = one_at_a_time(model, examples, forced())
    ends.append(RuntimeError("capture was invalidated"))
    fault = RuntimeError("operation not permitted\nand more")
    real = capture.captured
    monkeypatch.setattr(capture, "captured", lambda work: real(partial(fail, work, fault)))
    for tokens in (PLENTY, 150):
        assert_same(ours(model, examples, forced(), tokens), expected)
    (line,) = told(capsys)
    assert "(RuntimeError: operation not permitted)" in line
    assert len(begun) == 2


def fail(work, error):
    raise error


@pytest.mark.parametrize("end", [None, RuntimeError("capture was invalidated")])
def test_a_capture_that_runs_out_of_memory_goes_on_eagerly(models, monkeypatch, capsys, cuda, end):
    """The step has just fitted as it was; the next batch is captured again."""
    model, examples = models("llama"), make_examples(SHAPE)
    begun, ends = cuda
    ends += [end, None] * 20
    expected = one_at_a_time(model, examples, forced())
    real, lack = capture.captured, torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(capture, "captured", lambda work: real(partial(fail, work, lack)))
    assert_same(ours(model, examples, forced(), 150), expected)
    assert not told(capsys)
    assert not capture._refused
    assert len(begun) > 4  # of each batch one that failed and one that ended it


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_repetition_penalty_is_that_of_transformers(models, family):
    """Trees and padded batches are held against transformers' own penalty for a prompt alone.

    Prompts count, padding does not.
    """
    model, examples = models(family), make_examples(SHAPE)
    decoding = natural(repetition_penalty=1.3)
    expected = one_at_a_time(model, examples, decoding)
    assert_same(ours(model, examples, decoding), expected)
    batched = dict(
        generate_answers(model, [example.prompt_ids for example in examples], decoding, PLENTY)
    )
    assert [batched[index].token_ids for index in range(len(examples))] == [
        answer.token_ids for answer in expected
    ]
    for example, answer in zip(examples, expected, strict=True):
        ids = torch.tensor([example.prompt_ids])
        theirs = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=20,
            do_sample=False,
            repetition_penalty=1.3,
            eos_token_id=decoding.stop_ids,
            pad_token_id=0,
        )
        assert theirs[0, ids.shape[1] :].tolist() == answer.token_ids
    plain = one_at_a_time(model, examples, natural())
    assert [a.token_ids for a in plain] != [a.token_ids for a in expected]


@pytest.mark.parametrize("tokens", [1, 300, 1500])
def test_batch_size_changes_nothing(models, tokens):
    model, examples = models("llama"), make_examples(SHAPE)
    assert_same(ours(model, examples, natural(), tokens), one_at_a_time(model, examples, natural()))


def test_one_question_per_article(models):
    model, examples = models("gemma2"), make_examples([1] * 12)
    assert_same(ours(model, examples, natural()), one_at_a_time(model, examples, natural()))


def test_duplicated_questions_and_prompts_within_prompts(models):
    """A prompt may be another's beginning: it ends in the middle of the tree."""
    model, (example,) = models("llama"), make_examples([1])
    ids = example.prompt_ids
    prompts = [ids, ids, ids[:-2], [*ids, 7], ids]
    examples = [Example(Row(str(n), "a", "q"), prompt, []) for n, prompt in enumerate(prompts)]
    for decoding in (natural(), forced()):
        assert_same(ours(model, examples, decoding), one_at_a_time(model, examples, decoding))


def test_an_immediate_stop(models):
    model, examples = models("llama"), make_examples([2, 1])
    first = one_at_a_time(model, examples, forced())[0].token_ids[0]
    decoding = natural(stop_ids=[first])
    got = ours(model, examples, decoding)
    assert got[0][0].token_ids == [first]
    assert got[0][0].stopped
    assert_same(got, one_at_a_time(model, examples, decoding))


def test_a_single_new_token(models):
    model, examples = models("qwen3"), make_examples([3, 1])
    decoding = natural(max_new_tokens=1)
    assert_same(ours(model, examples, decoding), one_at_a_time(model, examples, decoding))


def test_samples_at_temperature_zero_are_greedy(models):
    model, examples = models("llama"), make_examples([3, 1])
    greedy = ours(model, examples, natural())
    for answers, (expected,) in zip(ours(model, examples, natural(samples=3)), greedy, strict=True):
        assert [answer.token_ids for answer in answers] == [expected.token_ids] * 3


def test_samples_do_not_depend_on_the_batch(models):
    model, examples = models("llama"), make_examples(SHAPE)
    decoding = natural(samples=4, temperature=1.0)
    texts = lambda answers: [[answer.token_ids for answer in samples] for samples in answers]  # noqa: E731
    together = texts(ours(model, examples, decoding))
    assert together == texts(ours(model, examples, decoding, tokens=1))
    assert together == texts(ours(model, examples, decoding, tokens=700))
    fewer = texts(ours(model, examples, natural(samples=2, temperature=1.0)))
    assert [samples[:2] for samples in together] == fewer
    assert together != texts(ours(model, examples, natural(samples=4, temperature=1.0, seed=1)))
    assert len({tuple(sample) for samples in together for sample in samples}) > len(together)


def test_samples_follow_the_softmax(models):
    """First tokens of 3,000 samples against the model's own distribution at temperature 0.7."""
    model, (example,) = models("llama"), make_examples([1])
    decoding = natural(samples=3000, temperature=0.7, max_new_tokens=1)
    drawn = (
        torch.tensor(
            [answer.token_ids[0] for answer in ours(model, [example], decoding)[0]]
        ).bincount(minlength=96)
        / 3000
    )
    with torch.inference_mode():
        expected = (
            model(input_ids=torch.tensor([example.prompt_ids])).logits[0, -1] / 0.7
        ).softmax(-1)
    assert (drawn - expected).abs().max() < 4 * (0.25 / 3000) ** 0.5


def test_out_of_memory_halves_the_batch(models, monkeypatch, capsys):
    model, examples = models("llama"), make_examples(SHAPE)
    expected = ours(model, examples, natural())
    forward, seen = type(model).forward, []

    def limited(self, input_ids, **others):
        seen.append(input_ids.numel())
        if input_ids.numel() > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, input_ids=input_ids, **others)

    monkeypatch.setattr(type(model), "forward", limited)
    assert_same(ours(model, examples, natural(), tokens=8000), [answer for (answer,) in expected])
    assert max(seen) > 100 >= seen[-1]
    assert re.search(
        r"out of memory with (\d+) tokens in a batch: going on with \d+", capsys.readouterr().out
    )


def test_one_question_out_of_memory_is_refused_with_a_way_out(models, monkeypatch):
    model = models("llama")

    def never(self, **others):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(model), "forward", never)
    with pytest.raises(InputError, match="out of memory while answering one question"):
        ours(model, make_examples([3]), natural())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("whole", [True, False])
def test_choices_equal_plain_forwards(models, family, whole):
    model, examples, rng = models(family), make_examples([3, 1, 2]), random.Random(0)
    choices = [
        [[rng.randint(3, 95) for _ in range(rng.randint(1, 4))] + [1] for _ in range(3)]
        for _ in examples
    ]
    choices[0][1] = choices[0][0]  # the same twice
    for tokens in (1, PLENTY):
        got = dict(
            score_choices(
                model,
                examples,
                [[ids if whole else ids[:1] for ids in of] for of in choices],
                pad_id=0,
                tokens_per_batch=tokens,
            )
        )
        for index, example in enumerate(examples):
            for ids, score in zip(choices[index], got[index], strict=True):
                ids = ids if whole else ids[:1]
                with torch.inference_mode():
                    logits = model(input_ids=torch.tensor([example.prompt_ids + ids])).logits[
                        0, len(example.prompt_ids) - 1 : -1
                    ]
                expected = logits.log_softmax(-1)[range(len(ids)), ids].sum().item()
                assert score == pytest.approx(expected, abs=1e-4)
