"""Test FlexAttention and answers from trees on a CUDA GPU: `pytest -m gpu`."""

from unittest import mock

import pytest
import torch
from transformers import AutoModelForCausalLM

from dandap.answering import capture, tree_decoder
from dandap.answering.answer import Decoding
from dandap.answering.generate import generate_answers
from dandap.answering.tree_decoder import answer_examples
from dandap.data.encode import Example
from dandap.data.rows import Row
from dandap.model.shapes import NAMES, named_config
from dandap.tree.attention import probe, use_tree_attention
from dandap.tree.logits import logits_at
from dandap.tree.masks import BLOCK, tree_masks
from dandap.tree.token_tree import collate, grow

pytestmark = pytest.mark.gpu
TINY = [name for name in NAMES if name.startswith("tiny")]


@pytest.mark.parametrize("name", NAMES)
def test_the_probe_passes_at_every_head_size(name):
    probe(named_config(name), torch.device("cuda"), torch.bfloat16)


@pytest.mark.parametrize("name", TINY)
def test_flex_has_the_plain_kernels_loss_and_gradients(name):
    """Forest in one row, several lengths with one compilation, float32."""
    plain = "eager" if "gemma" in name else "sdpa"
    model = AutoModelForCausalLM.from_config(named_config(name), attn_implementation=plain).cuda()
    for length in (100, 300, 700):
        pairs = [([*range(10, 10 + length), q, q + 1], [5, q, 2]) for q in range(20, 24)]
        batch = {
            k: v.cuda() for k, v in collate([grow(pairs)], pad_id=0, multiple_of=BLOCK).items()
        }
        results = []
        for flex in (False, True):
            model.set_attn_implementation(plain)
            if flex:
                use_tree_attention(model)
            mask = tree_masks(model.config, batch, torch.float32, flex)
            with logits_at(model, batch["predicts"]):
                logits = model(
                    batch["input_ids"], position_ids=batch["position_ids"], attention_mask=mask
                ).logits
            loss = torch.nn.functional.cross_entropy(
                logits[batch["predictor"]], batch["target_ids"]
            )
            model.zero_grad()
            loss.backward()
            results.append((loss.item(), [p.grad.clone() for p in model.parameters()]))
        assert results[1][0] == pytest.approx(results[0][0], rel=1e-4)
        for got, expected in zip(results[1][1], results[0][1], strict=True):
            assert (got - expected).norm() <= 1e-3 * expected.norm() + 1e-6


def trees():
    """Return four articles of different lengths with one to eight questions, and two decodings.

    One stops now and then and goes on for 40 tokens, so that steps are captured three times, with
    fewer branches each time; the other has 16 tokens for all.
    """
    examples = []
    torch.manual_seed(0)
    for article, questions in enumerate((1, 3, 8, 1)):
        context = torch.randint(3, 90, (20 + 30 * article,)).tolist()
        rows = [Row(f"{article}-{n}", str(article), "q") for n in range(questions)]
        examples += [Example(row, [*context, 90 + n, 91], []) for n, row in enumerate(rows)]
    some = [1, 2, *range(100, 200)]
    return examples, (
        Decoding(stop_ids=some, pad_id=0, max_new_tokens=40),
        Decoding(stop_ids=[1, 2], pad_id=0, max_new_tokens=16, min_new_tokens=16),
    )


def random_base(name):
    """Return a tiny base in float32 on the GPU, whose random weights are large enough to differ."""
    config = named_config(name)
    config.initializer_range = 0.2
    torch.manual_seed(0)
    plain = "eager" if "gemma" in name else "sdpa"
    return AutoModelForCausalLM.from_config(config, attn_implementation=plain).cuda().eval()


def said(model, examples, decoding, tokens):
    found = dict(answer_examples(model, examples, decoding, tokens))
    return [found[index][0].token_ids for index in range(len(examples))]


@pytest.mark.parametrize("tokens", [100, 100_000])
@pytest.mark.parametrize("name", TINY)
def test_answers_from_trees_are_those_of_generate(name, tokens):
    """Eagerly, and by CUDA graphs, which are really captured."""
    model, (examples, decodings) = random_base(name), trees()
    for decoding in decodings:
        expected = [
            next(generate_answers(model, [example.prompt_ids], decoding, 1))[1].token_ids
            for example in examples
        ]
        for captures in (True, False):
            with (
                mock.patch.object(tree_decoder, "can_capture", return_value=captures),
                mock.patch.object(capture, "_refused", False),
            ):
                assert said(model, examples, decoding, tokens) == expected
                assert not capture._refused


def wait(module, given, out):
    out.sum().item()


@pytest.mark.parametrize("is_seen", [True, False])
def test_what_cannot_be_captured_is_answered_all_the_same(monkeypatch, capsys, is_seen):
    """A model that waits for the GPU in its forward, as one with code of its own may.

    Where that was not seen in time, a capture fails, and torch must be as before.
    """
    model, (examples, (_, decoding)) = random_base("tiny-llama"), trees()
    expected = said(model, examples, decoding, 100_000)
    monkeypatch.setattr(capture, "_refused", False)
    if not is_seen:
        monkeypatch.setattr(capture, "run_eagerly", eagerly)
    model.model.layers[0].register_forward_hook(wait)
    for _ in range(2):
        assert said(model, examples, decoding, 100) == expected
    assert capsys.readouterr().out.count("without CUDA graphs") == 1
    torch.cuda.synchronize()
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.rand(1, device="cuda")  # a generator that takes the capture to go on would raise
    torch.nn.functional.dropout(torch.ones(9, device="cuda"))


def eagerly(work):
    return work()
