"""The loss of ours against cross-entropy by torch, and logits at chosen positions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from dandap.tree import logits as module
from dandap.tree.logits import logits_at, summed_cross_entropy
from dandap.tree.token_tree import Packed, send
from tests.tiny_models import FAMILIES


def both_ways(logits, pairs, upstream=0.37):
    """Return (loss, gradient) of ours and of torch's cross-entropy in float32."""
    predictor, target_ids = (torch.tensor(column) for column in zip(*pairs, strict=True))
    times = torch.tensor([pairs.count(pair) for pair in pairs])
    results = []
    for ours in (True, False):
        leaf = logits.clone().requires_grad_()
        if ours:
            loss = summed_cross_entropy(leaf, predictor, target_ids, times)
        else:
            picked = leaf.float()[predictor]
            loss = torch.nn.functional.cross_entropy(picked, target_ids, reduction="sum")
        (loss * upstream).backward()
        results.append((loss.item(), leaf.grad))
    return results


PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10)), min_size=1, max_size=20)


@given(PAIRS, st.sampled_from([1, 11, 25, 2**24]), st.integers(0, 99))
def test_the_loss_is_torchs_in_chunks_of_any_size(pairs, chunk, seed):
    """Positions with several targets, targets that repeat, positions with none."""
    before, module.CHUNK = module.CHUNK, chunk
    try:
        draw = torch.Generator().manual_seed(seed)
        (loss, gradient), (expected, exact) = both_ways(
            torch.randn(6, 11, generator=draw) * 5, pairs
        )
    finally:
        module.CHUNK = before
    assert loss == pytest.approx(expected, rel=1e-5, abs=1e-6)
    torch.testing.assert_close(gradient, exact, rtol=1e-4, atol=1e-5)


def test_it_is_as_exact_as_torchs_own():
    """Against float64: a log-sum-exp in one number is ten times farther off on sure answers."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 96, generator=draw) * 20
    target_ids = logits.argmax(-1)
    target_ids[30:] = 5
    results = []
    for leaf in (logits, logits.double()):
        leaf = leaf.clone().requires_grad_()
        if leaf.dtype is torch.float32:
            at = torch.arange(40)
            loss = summed_cross_entropy(leaf, at, target_ids, torch.ones(40))
        else:
            loss = torch.nn.functional.cross_entropy(leaf, target_ids, reduction="sum")
        loss.backward()
        results.append(leaf.grad.double())
    assert (results[0] - results[1]).norm() < 2e-7 * results[1].norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bits_round_as_autograd_would(dtype):
    """A sure answer keeps its small gradient: softmax - 1 is computed before it is rounded."""
    logits = torch.zeros(3, 50)
    logits[0, 7] = 12.0
    (loss, gradient), (expected, exact) = both_ways(logits.to(dtype), [(0, 7), (1, 3), (2, 3)])
    assert loss == pytest.approx(expected, rel=1e-6)
    assert gradient.dtype is dtype
    assert 0 > gradient[0, 7] > -1e-3
    torch.testing.assert_close(gradient, exact.to(dtype))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_chosen_positions_are_those_of_the_whole(family):
    """Counted through all rows, final soft caps included; the model is as before afterwards."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
    ids = torch.randint(3, 90, (3, 7))
    whole = model(ids).logits
    at = torch.tensor([0, 6, 7, 20])
    with logits_at(model, at):
        some = model(ids).logits
    torch.testing.assert_close(some, whole.flatten(0, 1)[at])
    torch.testing.assert_close(model(ids).logits, whole)


def test_what_is_packed_comes_out_as_it_was():
    shapes = [{"a": (2, 3), "b": (0,)}, {"a": (1, 1)}]
    first, second = Packed(send(list(range(7)), "cpu"), shapes).on("cpu")
    assert first["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert first["b"].shape == (0,)
    assert second["a"].tolist() == [[6]]
