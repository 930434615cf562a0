"""Describe the machine, measure peak memory, and build models with random weights."""

import ctypes
import functools
import os
import platform
import time
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from dandap.model.load import keep_weights_unpacked, pick_attention
from dandap.recipe import Recipe


def describe_machine(device: torch.device) -> str:
    """Return the processor and library versions in one line, for RESULTS.md."""
    names = " ".join(
        f"{name} {version(name)}"
        for name in ("torch", "transformers", "trl", "peft", "bitsandbytes")
    )
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        where = f"{_cpu_name()}, {torch.get_num_threads()} threads of {os.cpu_count()}"
    return f"{where}; Python {platform.python_version()}, {names}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


@contextmanager
def peak_memory(device: torch.device):
    """Yield a list; on exit, its only entry is the peak memory in MB.

    CUDA: peak of the allocator. CPU: peak of the whole process (Linux only, otherwise 0).
    """
    peak = [0.0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak[0] = torch.cuda.max_memory_allocated(device) / 1e6
        return
    if not Path("/proc/self/clear_refs").exists():
        yield peak
        return
    # Return freed memory to the system, so that earlier work does not count.
    ctypes.CDLL(None).malloc_trim(0)
    # 5 resets VmHWM (peak resident memory in kB) to the current size.
    Path("/proc/self/clear_refs").write_text("5")
    yield peak
    status = Path("/proc/self/status").read_text()
    peak[0] = int(status.split("VmHWM:")[1].split()[0]) / 1e3


@functools.cache
def matmul_flops() -> float:
    """Return the FLOP/s of a large bf16 matrix product, the upper limit for training."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    # Warm up: the library loads and selects a kernel.
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - started)


def random_model(
    config: PretrainedConfig, recipe: Recipe, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    """Return a frozen base model with random weights, quantized as in load_base.

    The unquantized model in `dtype` must fit into the device's memory.
    """
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=pick_attention(recipe, config)
        )
    if recipe.quantization == "nf4":
        _quantize(model, recipe, device, dtype)
    model.requires_grad_(False)
    return model


def _quantize(
    model: PreTrainedModel, recipe: Recipe, device: torch.device, dtype: torch.dtype
) -> None:
    # Like transformers, quantize every linear layer except the output head.
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is torch.nn.Linear and module is not head:
                setattr(parent, name, _quantized(module, recipe, device, dtype))
    # PEFT recognizes a quantized base model by this attribute.
    model.is_loaded_in_4bit = True
    keep_weights_unpacked(model)


def _quantized(
    linear: torch.nn.Linear, recipe: Recipe, device: torch.device, dtype: torch.dtype
) -> Linear4bit:
    double = recipe.double_quantization
    new = Linear4bit(
        linear.in_features,
        linear.out_features,
        linear.bias is not None,
        dtype,
        double,
        quant_type="nf4",
        device="meta",
    )
    # Params4bit quantizes in .to(), even on the same device.
    new.weight = Params4bit(
        linear.weight.data, requires_grad=False, compress_statistics=double, quant_type="nf4"
    ).to(device)
    new.bias = linear.bias
    return new
