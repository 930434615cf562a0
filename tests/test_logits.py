"""Summed cross-entropy equals torch's; selected logits equal those of a full forward."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from dandap.tree import logits as logits_module
from dandap.tree.logits import logits_at, summed_cross_entropy
from tests.tiny_models import FAMILIES


def ours_and_torchs(logits, pairs):
    """Return (loss, gradient) of our cross-entropy and of torch's in float32."""
    predictor, target_ids = (torch.tensor(column) for column in zip(*pairs, strict=True))
    times = torch.tensor([pairs.count(pair) for pair in pairs])
    ours, torchs = (logits.clone().requires_grad_() for _ in range(2))
    losses = (
        summed_cross_entropy(ours, predictor, target_ids, times),
        torch.nn.functional.cross_entropy(torchs.float()[predictor], target_ids, reduction="sum"),
    )
    for loss in losses:
        (loss * 0.37).backward()
    return (losses[0].item(), ours.grad), (losses[1].item(), torchs.grad)


PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10)), min_size=1, max_size=20)


@given(PAIRS, st.sampled_from([1, 11, 25, 2**24]), st.integers(0, 99))
def test_the_loss_equals_torchs_for_any_chunk_size(pairs, chunk, seed):
    """Positions have several targets or none; targets may repeat."""
    logits = torch.randn(6, 11, generator=torch.Generator().manual_seed(seed)) * 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logits_module, "CHUNK", chunk)
        (loss, gradient), (expected, exact) = ours_and_torchs(logits, pairs)
    assert loss == pytest.approx(expected, rel=1e-5, abs=1e-6)
    torch.testing.assert_close(gradient, exact, rtol=1e-4, atol=1e-5)


def test_gradients_of_confident_answers_are_exact():
    """Compared with float64. One rounded log-sum-exp would have ten times the error."""
    logits = torch.randn(40, 96, generator=torch.Generator().manual_seed(0)) * 20
    target_ids = logits.argmax(-1)
    target_ids[30:] = 5
    ours, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    summed_cross_entropy(ours, torch.arange(40), target_ids, torch.ones(40)).backward()
    torch.nn.functional.cross_entropy(exact, target_ids, reduction="sum").backward()
    assert (ours.grad.double() - exact.grad).norm() < 2e-7 * exact.grad.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_gradients_round_as_in_autograd(dtype):
    """A confident answer has a small gradient: softmax - 1 is computed before rounding."""
    logits = torch.zeros(3, 50, dtype=dtype)
    logits[0, 7] = 12.0
    (loss, gradient), (expected, exact) = ours_and_torchs(logits, [(0, 7), (1, 3), (2, 3)])
    assert loss == pytest.approx(expected, rel=1e-6)
    assert gradient.dtype is dtype
    assert 0 > gradient[0, 7] > -1e-3
    torch.testing.assert_close(gradient, exact)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_at_positions_equal_the_full_logits(family):
    """Positions are flat, soft caps apply, and the model is restored afterwards."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
    ids, at = torch.randint(3, 90, (3, 7)), torch.tensor([0, 6, 7, 20])
    whole = model(ids).logits
    with logits_at(model, at):
        torch.testing.assert_close(model(ids).logits, whole.flatten(0, 1)[at])
    torch.testing.assert_close(model(ids).logits, whole)
