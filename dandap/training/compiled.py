"""Compile decoder layers for training, after a check on real batches."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch._dynamo.utils import counters

from dandap.errors import first_line
from dandap.model.load import decoder_layers

MIN_SECONDS = 1000  # shorter runs do not repay compiling: 73 s for 1.11x on a CPU
LIMIT_16_BITS, LIMIT_FLOAT32 = 0.05, 0.001  # relative; Gemma 3 270M differs by 0.024 in bfloat16
Batches = list[dict[str, torch.Tensor]]


def compile_layers(
    model: Any, compute_loss: Callable[..., torch.Tensor], batches: Batches, faster: bool
) -> str:
    """Compile the decoder layers in place, and return a message.

    The layers are restored if losses or gradients of `batches` differ, if a graph breaks or
    recompiles in a second pass, or (with `faster`) if that pass is not faster.
    """
    work = partial(_gradients, model, compute_loss, batches)
    layers = decoder_layers(model)
    forwards = [layer.forward for layer in layers]
    counters.clear()
    try:
        expected, eager = work()
        for layer, forward in zip(layers, forwards, strict=True):
            layer.forward = partial(_forward, layer, forward, torch.compile(forward, dynamic=True))
        # Compiled dropout must draw the same numbers.
        with (
            torch._inductor.config.patch(fallback_random=True),  # type: ignore[attr-defined]
            torch._dynamo.config.patch(recompile_limit=64),
        ):
            _, compiling = work()
        with torch.compiler.set_stance("fail_on_recompile"):
            found, compiled = work()
        reason = next(iter(counters["graph_break"]), "")
        off = [
            ((got - wanted).norm() / wanted.norm()).item()
            for got, wanted in zip(found, expected, strict=True)
        ]
        limit = LIMIT_FLOAT32 if model.dtype is torch.float32 else LIMIT_16_BITS
        if not all(each <= limit for each in off):  # a NaN must fail
            reason = f"losses differ by {off[0]:.1%}, gradients by {off[1]:.1%}"
        elif faster and compiled > eager:
            reason = f"steps take {compiled / eager:.2f}x as long"
    # Compilers raise many types of error.
    except Exception as error:  # noqa: BLE001
        reason = first_line(error)
    if reason:
        for layer, forward in zip(layers, forwards, strict=True):
            layer.forward = forward
        torch.compiler.reset()
        return f"layers are not compiled: {reason}"
    return f"compiled the layers in {compiling:.0f} s: steps are {eager / compiled:.2f}x as fast"


def _forward(layer: torch.nn.Module, eager: Any, compiled: Any, *args: Any, **options: Any) -> Any:
    # Not for validation, which has other shapes and a key-value cache.
    return (compiled if layer.training else eager)(*args, **options)


def _gradients(
    model: Any, compute_loss: Callable[..., torch.Tensor], batches: Batches
) -> tuple[list[torch.Tensor], float]:
    """Return [losses, summed gradients] and the seconds it took."""
    losses, started = [], time.perf_counter()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for batch in batches:
                loss = compute_loss(model, batch, num_items_in_batch=1)
                loss.backward()
                losses.append(loss.detach())
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found = [torch.stack(losses).cpu(), torch.cat(gradients).cpu()]
        return found, time.perf_counter() - started
    finally:
        model.zero_grad()
