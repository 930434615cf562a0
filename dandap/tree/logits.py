"""Compute logits at selected positions, and their cross-entropy without a float32 copy."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from transformers import PreTrainedModel

CHUNK = 2**24  # logits to convert to float32 at once: 67 MB


@contextmanager
def logits_at(model: PreTrainedModel | PeftModel, positions: torch.Tensor) -> Iterator[None]:
    """Make the model return only the logits of these flat positions, (positions, vocab).

    transformers' `logits_to_keep` needs equal counts per row, or a mask that synchronizes the host.
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

    logits are (positions, vocab) in any dtype; `times` is the count of each pair. Only logits and
    gradient are stored, in their own dtype: 4 bytes per logit in 16 bits, instead of 16.
    """
    return _SummedCrossEntropy.apply(logits, predictor, target_ids, times)


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, predictor, target_ids, times):
        # log softmax is (logit - top) - rest. Subtract separately: rounding their sum
        # (a log-sum-exp of 50) would lose a small 1 - softmax.
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
        """Return (softmax * pairs at the position - times at the target) * upstream gradient."""
        logits, top, rest, right, predictor, target_ids, times = ctx.saved_tensors
        pairs = torch.zeros_like(top).index_add_(0, predictor, torch.ones_like(right))
        gradient = torch.empty_like(logits)
        by_position = [_chunks(each, logits) for each in (top, rest, pairs)]
        parts = zip(_chunks(logits), _chunks(gradient), *by_position, strict=True)
        for part, out, high, log_sum, weight in parts:
            softmax = part.float().sub_(high[:, None]).sub_(log_sum[:, None]).exp_()
            out.copy_(softmax.mul_(weight[:, None]).mul_(upstream))
        # In float32: in 16 bits the difference of a softmax near 1 would vanish.
        exact = right.exp() * pairs[predictor] - times
        gradient[predictor, target_ids] = (exact * upstream).to(gradient.dtype)
        return gradient, None, None, None


def _chunks(tensor: torch.Tensor, like: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """Split a tensor into rows with CHUNK logits (of `like`) each."""
    vocabulary = (tensor if like is None else like).shape[-1]
    return tensor.split(max(1, CHUNK // vocabulary))
