"""Compile decoder layers for training, after a check on real batches."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch._dynamo.utils import counters

from dandap.answering.branch_check import LIMIT_16_BITS, LIMIT_FLOAT32
from dandap.errors import first_line
from dandap.model.load import decoder_layers

REPAYS = 1000  # seconds of training; 73 s of compiling gave 1.11 times the speed on a CPU
Batches = list[dict[str, torch.Tensor]]


def compile_layers(
    model: Any, compute_loss: Callable[..., torch.Tensor], batches: Batches, faster: bool
) -> str:
    """Compile the model's decoder layers in place, and return a line about it.

    On `batches`, losses and gradients must be equal within rounding, without graph breaks; a second
    pass must compile nothing and, if `faster`, take less time. Otherwise the layers are restored.
    """
    work = partial(_gradients, model, compute_loss, batches)
    expected, eager = work()
    # Dropout draws the same numbers as without compiling.
    torch._inductor.config.fallback_random = True  # type: ignore[attr-defined]
    torch._dynamo.config.recompile_limit = 64
    layers = decoder_layers(model)
    forwards = [layer.forward for layer in layers]
    for layer, forward in zip(layers, forwards, strict=True):
        layer.forward = partial(_forward, layer, forward, torch.compile(forward, dynamic=True))
    counters.clear()
    try:
        _, compiling = work()
        with torch.compiler.set_stance("fail_on_recompile"):
            found, compiled = work()
        reason = "".join(list(counters["graph_break"])[:1])
        off = [_difference(*pair) for pair in zip(found, expected, strict=True)]
        limit = LIMIT_FLOAT32 if model.dtype is torch.float32 else LIMIT_16_BITS
        if not all(each <= limit for each in off):  # a NaN must fail
            reason = f"losses and gradients were off by {off[0]:.2g} and {off[1]:.2g}"
        elif faster and compiled > eager:
            reason = f"steps took {compiled / eager:.2f} times as long"
    # A compiler may raise anything.
    except Exception as error:  # noqa: BLE001
        reason = first_line(error)
    if reason:
        for layer, forward in zip(layers, forwards, strict=True):
            layer.forward = forward
        torch.compiler.reset()
        return f"layers not compiled: {reason}"
    return f"layers compiled in {compiling:.0f} s: steps are {eager / compiled:.2f} times as fast"


def _forward(layer: torch.nn.Module, eager: Any, compiled: Any, *args: Any, **options: Any) -> Any:
    # Validation has other shapes, and a cache.
    return (compiled if layer.training else eager)(*args, **options)


def _gradients(
    model: Any, compute_loss: Callable[..., torch.Tensor], batches: Batches
) -> tuple[list[torch.Tensor], float]:
    """Return the losses, the summed gradients (two vectors), and the seconds of all batches."""
    losses, started = [], time.perf_counter()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for batch in batches:
            loss = compute_loss(model, batch, num_items_in_batch=1)
            loss.backward()
            losses.append(loss.detach())
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    found = [torch.stack(losses).cpu(), torch.cat(gradients).cpu()]
    model.zero_grad()
    return found, time.perf_counter() - started


def _difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()
