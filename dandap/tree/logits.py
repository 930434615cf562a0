"""Logits at selected positions, and their cross-entropy without a float32 copy."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from transformers import PreTrainedModel

CHUNK = 2**24  # logits that are float32 at once: 67 MB


@contextmanager
def logits_at(model: PreTrainedModel | PeftModel, positions: torch.Tensor) -> Iterator[None]:
    """Let the model return the logits of these positions alone, (positions, vocab).

    Positions are counted row by row through the batch. transformers' `logits_to_keep` takes a mask,
    for which the host waits for the device, or the same number of positions in every row.
    """

    def select(head, inputs):
        states, *others = inputs  # (rows, length, hidden)
        return (states.flatten(0, 1).index_select(0, positions), *others)

    head: torch.nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    hook = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()


def summed_cross_entropy(
    logits: torch.Tensor, predictor: torch.Tensor, target_ids: torch.Tensor, times: torch.Tensor
) -> torch.Tensor:
    """Return the sum over pairs of -log softmax(logits[predictor])[target], in float32.

    logits are (positions, vocab) in any precision; `times` is how often each pair occurs. Only the
    logits and, in the backward, their gradient are whole tensors, in their own precision: 4 bytes a
    logit in 16 bits, where the usual way takes 16.
    """
    return _SummedCrossEntropy.apply(logits, predictor, target_ids, times)


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, predictor, target_ids, times):
        # log softmax is (logit - top) - rest. Kept apart: their sum, a log-sum-exp of 50, would
        # round away the difference of a softmax from 1.
        top = logits.amax(-1).float()
        parts = zip(_chunks(logits), _chunks(top, logits), strict=True)
        rest = torch.cat(
            [(part.float() - high[:, None]).exp_().sum(-1).log() for part, high in parts]
        )
        right = logits[predictor, target_ids].float() - top[predictor] - rest[predictor]
        ctx.save_for_backward(logits, top, rest, right, predictor, target_ids, times)
        return -right.sum()

    @staticmethod
    def backward(ctx, upstream):
        """Return (softmax x pairs of the position - times of the target) x upstream."""
        logits, top, rest, right, predictor, target_ids, times = ctx.saved_tensors
        pairs = torch.zeros_like(top).index_add_(0, predictor, torch.ones_like(right))
        gradient = torch.empty_like(logits)
        by_position = [_chunks(each, logits) for each in (top, rest, pairs)]
        parts = zip(_chunks(logits), _chunks(gradient), *by_position, strict=True)
        for part, out, high, log_sum, weight in parts:
            softmax = part.float().sub_(high[:, None]).sub_(log_sum[:, None]).exp_()
            out.copy_(softmax.mul_(weight[:, None]).mul_(upstream))
        # A target's gradient is computed in float32: near 1, a softmax in 16 bits would leave
        # nothing after the subtraction.
        exact = right.exp() * pairs[predictor] - times
        gradient[predictor, target_ids] = (exact * upstream).to(gradient.dtype)
        return gradient, None, None, None


def _chunks(tensor: torch.Tensor, like: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """Split a tensor into pieces of rows with CHUNK logits (of `like`) each."""
    vocabulary = (tensor if like is None else like).shape[-1]
    return tensor.split(max(1, CHUNK // vocabulary))
