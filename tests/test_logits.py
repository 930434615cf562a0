"""Test the summed cross-entropy and logits at selected positions against torch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from dandap.tree import logits as module
from dandap.tree.logits import logits_at, summed_cross_entropy
from tests.tiny_models import FAMILIES


def losses_and_gradients(logits, pairs):
    """Return (loss, gradient) of our cross-entropy and of torch in float32."""
    predictor, target_ids = (torch.tensor(column) for column in zip(*pairs, strict=True))
    times = torch.tensor([pairs.count(pair) for pair in pairs])
    ours, exact = (logits.clone().requires_grad_() for _ in range(2))
    losses = (
        summed_cross_entropy(ours, predictor, target_ids, times),
        torch.nn.functional.cross_entropy(exact.float()[predictor], target_ids, reduction="sum"),
    )
    for loss in losses:
        (loss * 0.37).backward()
    return (losses[0].item(), ours.grad), (losses[1].item(), exact.grad)


PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10)), min_size=1, max_size=20)


@given(PAIRS, st.sampled_from([1, 11, 25, 2**24]), st.integers(0, 99))
def test_loss_equals_torch_for_any_chunk_size(pairs, chunk, seed):
    """Positions can have no target, several targets, or repeated targets."""
    logits = torch.randn(6, 11, generator=torch.Generator().manual_seed(seed)) * 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        (loss, gradient), (expected, exact) = losses_and_gradients(logits, pairs)
    assert loss == pytest.approx(expected, rel=1e-5, abs=1e-6)
    torch.testing.assert_close(gradient, exact, rtol=1e-4, atol=1e-5)


def test_gradients_of_confident_predictions_are_exact():
    """Storing the log-sum-exp as one float32 number makes the error ten times larger."""
    logits = torch.randn(40, 96, generator=torch.Generator().manual_seed(0)) * 20
    target_ids = logits.argmax(-1)
    target_ids[30:] = 5
    ours, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    summed_cross_entropy(ours, torch.arange(40), target_ids, torch.ones(40)).backward()
    torch.nn.functional.cross_entropy(exact, target_ids, reduction="sum").backward()
    assert (ours.grad.double() - exact.grad).norm() < 2e-7 * exact.grad.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_gradients_round_like_autograd(dtype):
    """A confident prediction has a small gradient: softmax - 1 is computed before rounding."""
    logits = torch.zeros(3, 50, dtype=dtype)
    logits[0, 7] = 12.0
    (loss, gradient), (expected, exact) = losses_and_gradients(logits, [(0, 7), (1, 3), (2, 3)])
    assert loss == pytest.approx(expected, rel=1e-6)
    assert gradient.dtype is dtype
    assert 0 > gradient[0, 7] > -1e-3
    torch.testing.assert_close(gradient, exact)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_at_positions_equal_full_logits(family):
    """Positions index the flattened batch. The model is unchanged afterwards."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
    ids, positions = torch.randint(3, 90, (3, 7)), torch.tensor([0, 6, 7, 20])
    full_logits = model(ids).logits
    with logits_at(model, positions):
        torch.testing.assert_close(model(ids).logits, full_logits.flatten(0, 1)[positions])
    torch.testing.assert_close(model(ids).logits, full_logits)
