"""Test FlexAttention and tree decoding on a CUDA GPU: `pytest -m gpu`."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.material import named_config
from dandap.answering import cuda_graph, tree_decoder
from dandap.answering.answer import Decoding
from dandap.answering.generate import generate_answers
from dandap.answering.tree_decoder import answer_examples
from dandap.data.encode import Example
from dandap.data.rows import Row
from dandap.model.plans import NAMES
from dandap.tree.attention import probe, use_tree_attention
from dandap.tree.logits import logits_at
from dandap.tree.masks import BLOCK, tree_masks
from dandap.tree.token_tree import collate, grow

pytestmark = pytest.mark.gpu
TINY = [name for name in NAMES if name.startswith("tiny")]


@pytest.mark.parametrize("name", NAMES)
def test_probe_passes_at_every_head_size(name):
    probe(named_config(name), torch.device("cuda"), torch.bfloat16)


def plain_kernel(name):
    return "eager" if "gemma" in name else "sdpa"


def random_base(name, deviation=0.02):
    """Return a tiny random model in float32 on the GPU; deviation 0.2 makes answers differ."""
    config = named_config(name)
    config.initializer_range = deviation
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=plain_kernel(name))
    return model.cuda().eval()


@pytest.mark.parametrize("name", TINY)
def test_flex_equals_the_plain_kernel(name):
    """Loss and gradients in float32, with one compilation for all lengths."""
    model = random_base(name)
    for length in (100, 300, 700):
        pairs = [([*range(10, 10 + length), q, q + 1], [5, q, 2]) for q in range(20, 24)]
        batch = collate([grow(pairs)], pad_id=0, multiple_of=BLOCK, device="cuda")
        ids, positions, results = batch["input_ids"], batch["position_ids"], []
        for flex in (False, True):
            model.set_attn_implementation(plain_kernel(name))
            if flex:
                use_tree_attention(model)
            mask = tree_masks(model.config, batch, torch.float32, flex)
            with logits_at(model, batch["predicts"]):
                logits = model(ids, position_ids=positions, attention_mask=mask).logits
            loss = torch.nn.functional.cross_entropy(
                logits[batch["predictor"]], batch["target_ids"]
            )
            model.zero_grad()
            loss.backward()
            results.append((loss.item(), [p.grad.clone() for p in model.parameters()]))
        (expected, exact), (got, gradients) = results
        assert got == pytest.approx(expected, rel=1e-4)
        for ours, plain in zip(gradients, exact, strict=True):
            assert (ours - plain).norm() <= 1e-3 * plain.norm() + 1e-6


def examples():
    """Return four articles of different lengths with one to eight questions."""
    torch.manual_seed(0)
    made = []
    for article, questions in enumerate((1, 3, 8, 1)):
        context = torch.randint(3, 90, (20 + 30 * article,)).tolist()
        for number in range(questions):
            row = Row(f"{article}-{number}", str(article), "q")
            made.append(Example(row, [*context, 90 + number, 91], []))
    return made


# Some answers stop early; others need three captures, each with fewer branches.
NATURAL = Decoding(stop_ids=[1, 2, *range(100, 200)], pad_id=0, max_new_tokens=40)
FORCED = Decoding(stop_ids=[1, 2], pad_id=0, max_new_tokens=16, min_new_tokens=16)


def tree_answers(model, decoding, tokens):
    found = dict(answer_examples(model, examples(), decoding, tokens))
    return [found[index][0].token_ids for index in range(len(found))]


@pytest.mark.parametrize("tokens", [100, 100_000])
@pytest.mark.parametrize("name", TINY)
def test_answers_from_trees_equal_generate(monkeypatch, name, tokens):
    """Eagerly and with CUDA graphs."""
    monkeypatch.setattr(cuda_graph, "_disabled", False)
    model = random_base(name, 0.2)
    for decoding in (NATURAL, FORCED):
        expected = [
            next(generate_answers(model, [example.prompt_ids], decoding, 1))[1].token_ids
            for example in examples()
        ]
        for captures in (True, False):
            monkeypatch.setattr(tree_decoder, "can_capture", lambda device, can=captures: can)
            assert tree_answers(model, decoding, tokens) == expected
            assert not cuda_graph._disabled


def wait(module, inputs, output):
    output.sum().item()


@pytest.mark.parametrize("is_detected", [True, False])
def test_models_that_cannot_be_captured_run_eagerly(monkeypatch, capsys, is_detected):
    """Remote code may synchronize in its forward, which cannot be captured.

    If this is not detected before the capture, the capture fails and torch's state is restored.
    """
    model = random_base("tiny-llama", 0.2)
    expected = tree_answers(model, FORCED, 100_000)
    monkeypatch.setattr(cuda_graph, "_disabled", False)
    if not is_detected:
        monkeypatch.setattr(cuda_graph, "run_eagerly", lambda work: work())
    model.model.layers[0].register_forward_hook(wait)
    for _ in range(2):
        assert tree_answers(model, FORCED, 100) == expected
    assert capsys.readouterr().out.count("without CUDA graphs") == 1
    torch.cuda.synchronize()
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.rand(1, device="cuda")  # raises if the generator is still in capture mode
    torch.nn.functional.dropout(torch.ones(9, device="cuda"))
