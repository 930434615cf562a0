"""Test that tree decoding gives the same tokens as generate on each prompt."""

import contextlib
import functools
import gc
import random
import warnings
import weakref

import pytest
import torch
from capturing import capture_on_cpu
from tiny_models import FAMILIES

from dandap.answering import cuda_graph, tree_decoder
from dandap.answering.answer import Decoding
from dandap.answering.choices import score_choices
from dandap.answering.generate import generate_answers
from dandap.answering.tree_decoder import TreeDecoder, answer_examples
from dandap.data.encode import Example
from dandap.data.rows import Row
from dandap.errors import InputError
from dandap.model.adapter import add_adapter
from dandap.model.load import load_base
from dandap.recipe import Recipe

PLENTY = 100_000
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)


def make_examples(shape=(1, 3, 20, 1), seed=0):
    """Return prompts of random ids; `shape` is the number of questions per article.

    Article lengths vary, and some questions of an article share a prefix.
    """
    rng = random.Random(seed)

    def draw(low, high):
        return [rng.randint(3, 95) for _ in range(rng.randint(low, high))]

    examples = []
    for number, questions in enumerate(shape):
        context, start = draw(4, 60), draw(1, 4)
        for _ in range(questions):
            prompt_ids = context + rng.choice([[], start]) + draw(1, 6)
            row = Row(str(len(examples)), f"article {number}", "q")
            examples.append(Example(row, prompt_ids, []))
    return examples


@pytest.fixture(scope="module")
def models(bases):
    """Return a cached function that loads a family's model, optionally with an adapter."""

    @functools.cache
    def get(family, quantization="none", adapter=False):
        recipe = Recipe(model=str(bases / family), quantization=quantization, lora_r=4)
        model = load_base(recipe, torch.device("cpu"))
        if family == "gemma3":  # tied, random weights repeat the prompt's last token for ever
            head = torch.empty_like(model.lm_head.weight)
            head.normal_(0, 0.2, generator=torch.Generator().manual_seed(2))
            model.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
        if adapter:
            model = add_adapter(model, recipe)
            generator = torch.Generator().manual_seed(1)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.data.normal_(0, 0.05, generator=generator)
        return model

    return get


@pytest.fixture
def llama(models):
    return models("llama")


def natural(**options):
    """Return a decoding with many stop tokens, so that answer lengths vary."""
    stops = [1, 2, *range(3, 15)]  # a seventh of the vocabulary
    return Decoding(**({"stop_ids": stops, "pad_id": 0, "max_new_tokens": 20} | options))


def forced(**options):
    """Return a decoding with exactly 16 tokens per answer."""
    return Decoding([1, 2], pad_id=0, max_new_tokens=16, min_new_tokens=16, **options)


def by_trees(model, examples, decoding, tokens=PLENTY):
    """Return the samples of each example, in order."""
    answers = dict(answer_examples(model, examples, decoding, tokens))
    assert sorted(answers) == list(range(len(examples)))
    return [answers[index] for index in range(len(examples))]


def ids_by_trees(*arguments):
    return [[answer.token_ids for answer in samples] for samples in by_trees(*arguments)]


def one_by_one(model, examples, decoding):
    return [next(generate_answers(model, [e.prompt_ids], decoding, 1))[1] for e in examples]


def assert_equal_generate(model, examples, decoding, tokens=PLENTY, expected=None):
    expected = expected or one_by_one(model, examples, decoding)
    got = [answer for (answer,) in by_trees(model, examples, decoding, tokens)]
    assert [(a.token_ids, a.stopped) for a in got] == [(a.token_ids, a.stopped) for a in expected]
    means = [answer.log_probability for answer in expected]
    assert [answer.log_probability for answer in got] == pytest.approx(means, abs=1e-4)
    return expected


@pytest.mark.parametrize(
    ("quantization", "adapter"),
    [
        ("nf4", True),
        *(pytest.param("none", adapter, marks=pytest.mark.slow) for adapter in (False, True)),
    ],
)
@EVERY_FAMILY
def test_answers_equal_generate(models, family, quantization, adapter):
    model, examples = models(family, quantization, adapter), make_examples()
    expected = assert_equal_generate(model, examples, natural())
    assert len({len(answer.token_ids) for answer in expected}) > 3
    assert_equal_generate(model, examples, forced())


@EVERY_FAMILY
def test_captured_steps_equal_generate(models, monkeypatch, family):
    """As on CUDA: fixed shapes for 16 steps, stopped branches stay in, and no Python in replays."""
    model, examples = models(family), make_examples()
    capturing = capture_on_cpu(monkeypatch)
    longer, penalized = natural(max_new_tokens=40), forced(repetition_penalty=1.3)
    for decoding in (natural(), forced(), longer, penalized):
        assert_equal_generate(model, examples, decoding)
    assert capturing.replays > 20  # all steps but the first of 16


@pytest.mark.parametrize("captures", [False, True])
def test_a_batchs_memory_is_freed_before_the_next(llama, monkeypatch, captures):
    """Reference counts must suffice: waiting for garbage collection would fill the GPU."""
    decoders = []

    class Noted(TreeDecoder):
        def run(self):
            assert all(decoder() is None for decoder in decoders)
            decoders.append(weakref.ref(self))
            return super().run()

    monkeypatch.setattr(tree_decoder, "TreeDecoder", Noted)
    if captures:
        capture_on_cpu(monkeypatch)
    gc.disable()
    try:
        by_trees(llama, make_examples(), natural(), 150)
    finally:
        gc.enable()
    assert len(decoders) > 2


@pytest.fixture
def cuda(monkeypatch):
    """Replace the functions of torch.cuda that capturing calls.

    Yield two lists: the graphs begun, and the errors to raise at the end of successive captures.
    """
    begun, errors, modes = [], [], [0]

    @contextlib.contextmanager
    def graph(made, capture_error_mode="global"):
        begun.append(made)
        error = errors.pop(0) if errors else None
        try:
            yield
        finally:
            if error:
                raise error

    for name, replacement in {
        "CUDAGraph": object,
        "graph": graph,
        "stream": contextlib.nullcontext,
        "current_stream": lambda: None,
        "get_sync_debug_mode": lambda: modes[-1],
        "set_sync_debug_mode": modes.append,
    }.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    monkeypatch.setattr(cuda_graph, "_disabled", False)
    monkeypatch.setattr(tree_decoder, "can_capture", lambda device: not cuda_graph._disabled)
    yield begun, errors
    assert modes[-1] == 0


@pytest.mark.parametrize(
    ("kind", "end", "message"),
    [
        ("waits", None, "the model's code waits for the GPU"),
        # Reported by its own error, not its end's.
        ("fails", RuntimeError("capture was invalidated"), "(RuntimeError: not permitted)"),
        # The step has just fitted without one, so the next batch is captured again.
        ("out of memory", None, None),
        ("out of memory", RuntimeError("capture was invalidated"), None),
    ],
)
def test_steps_that_cannot_be_captured(llama, monkeypatch, capsys, cuda, kind, end, message):
    """Answers are equal. An empty capture after a failed one resets the state of torch."""
    (begun, errors), capture, step = cuda, cuda_graph.capture, TreeDecoder._step

    def waits(self, chosen):  # as remote code may
        warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
        return step(self, chosen)

    def fails():
        if kind == "fails":
            raise RuntimeError("not permitted\nand more")
        raise torch.OutOfMemoryError("CUDA out of memory")

    if kind == "waits":
        monkeypatch.setattr(TreeDecoder, "_step", waits)
    else:
        errors += [end, None] * 20
        monkeypatch.setattr(cuda_graph, "capture", lambda ignored: capture(fails))
    for tokens in (PLENTY, 150):
        assert_equal_generate(llama, make_examples(), forced(), tokens)
    printed = [line for line in capsys.readouterr().out.splitlines() if "CUDA graphs" in line]
    assert len(printed) == (1 if message else 0)
    assert message is None or message in printed[0]
    assert cuda_graph._disabled == bool(message)
    if kind == "out of memory":
        assert len(begun) > 4  # of each batch one that failed and one that ended it
    else:
        assert len(begun) == (0 if kind == "waits" else 2)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_repetition_penalty_is_that_of_transformers(models, family):
    """Equal to generate on a single prompt: padding is not penalized."""
    model, prompts = models(family), [example.prompt_ids for example in make_examples()]
    decoding = natural(repetition_penalty=1.3)
    expected = assert_equal_generate(model, make_examples(), decoding)
    padded = dict(generate_answers(model, prompts, decoding, PLENTY))
    options = {"eos_token_id": decoding.stop_ids, "pad_token_id": 0, "do_sample": False}
    for index, answer in enumerate(expected):
        ids = torch.tensor([prompts[index]])
        out = model.generate(ids, max_new_tokens=20, repetition_penalty=1.3, **options)
        assert out[0, ids.shape[1] :].tolist() == answer.token_ids == padded[index].token_ids


def test_batches_of_any_size_and_shape(models):
    for tokens in (1, 300, 1500):
        assert_equal_generate(models("llama"), make_examples(), natural(), tokens)
    assert_equal_generate(models("qwen3"), make_examples([2, 1]), natural(max_new_tokens=1))
    assert_equal_generate(models("gemma2"), make_examples([1] * 12), natural())
    ids = make_examples([1])[0].prompt_ids
    prompts = [ids, ids, ids[:-2], [*ids, 7], ids]  # some end in the middle of the tree
    examples = [Example(Row(str(n), "a", "q"), prompt, []) for n, prompt in enumerate(prompts)]
    for decoding in (natural(), forced()):
        assert_equal_generate(models("llama"), examples, decoding)


def test_samples_depend_on_neither_batch_nor_capture(llama, monkeypatch):
    def sampled(tokens=PLENTY, **options):
        decoding = natural(**({"samples": 4, "temperature": 1.0} | options))
        return ids_by_trees(llama, make_examples(), decoding, tokens)

    expected = sampled()
    assert sampled(1) == sampled(700) == expected
    assert sampled(samples=2) == [samples[:2] for samples in expected]
    assert sampled(seed=1) != expected
    assert len({tuple(sample) for samples in expected for sample in samples}) > len(expected)
    capturing = capture_on_cpu(monkeypatch)
    assert sampled(300) == sampled() == expected
    assert capturing.replays > 20


def test_samples_follow_the_softmax(llama):
    """The first tokens of 3,000 samples at temperature 0.7, within four standard errors."""
    (example,) = make_examples([1])
    decoding = natural(samples=3000, temperature=0.7, max_new_tokens=1)
    (samples,) = ids_by_trees(llama, [example], decoding)
    drawn = torch.tensor(samples).flatten().bincount(minlength=96) / 3000
    with torch.inference_mode():
        expected = (llama(torch.tensor([example.prompt_ids])).logits[0, -1] / 0.7).softmax(-1)
    assert (drawn - expected).abs().max() < 4 * (0.25 / 3000) ** 0.5


def test_out_of_memory_halves_the_batch(llama, monkeypatch, capsys):
    expected = one_by_one(llama, make_examples(), natural())
    forward, seen, most = type(llama).forward, [], 100

    def limited(self, input_ids, **others):
        seen.append(input_ids.numel())
        if input_ids.numel() > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, input_ids=input_ids, **others)

    monkeypatch.setattr(type(llama), "forward", limited)
    assert_equal_generate(llama, make_examples(), natural(), 8000, expected)
    assert max(seen) > 100 >= seen[-1]
    assert "out of memory with " in capsys.readouterr().out
    most = 0
    with pytest.raises(InputError, match="out of memory while answering one question"):
        by_trees(llama, make_examples([3]), natural())


@EVERY_FAMILY
@pytest.mark.parametrize("whole", [True, False])
def test_choices_equal_plain_forwards(models, family, whole):
    model, examples, rng = models(family), make_examples([3, 1, 2]), random.Random(0)
    choices = []
    for _ in examples:
        drawn = [[rng.randint(3, 95) for _ in range(rng.randint(1, 4))] + [1] for _ in range(3)]
        choices.append(drawn if whole else [ids[:1] for ids in drawn])
    choices[0][1] = choices[0][0]
    for tokens in (1, PLENTY):
        got = dict(score_choices(model, examples, choices, 0, tokens))
        for index, example in enumerate(examples):
            prompt_ids = example.prompt_ids
            for ids, score in zip(choices[index], got[index], strict=True):
                with torch.inference_mode():
                    logits = model(torch.tensor([prompt_ids + ids])).logits[0]
                each = logits[len(prompt_ids) - 1 : -1].log_softmax(-1)[range(len(ids)), ids]
                assert score == pytest.approx(each.sum().item(), abs=1e-4)
