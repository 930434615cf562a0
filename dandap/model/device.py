"""The device that a model runs on, and its compute dtype."""

import gc
import shutil
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import PreTrainedModel

from dandap.model.distributed import world_size
from dandap.recipe import Recipe

T = TypeVar("T")


def pick_device() -> torch.device:
    """Return this process's GPU, else the CPU."""
    if world_size() > 1:
        # accelerate gives each process its own GPU, and joins it with the others.
        return PartialState(cpu=why_no_gpu() is not None).device
    if why_no_gpu():
        return torch.device("cpu")
    if torch.cuda.device_count() > 1:
        print(
            f"using the first of {torch.cuda.device_count()} GPUs; CUDA_VISIBLE_DEVICES selects "
            "another, `accelerate launch` with recipes/accelerate/ddp.yaml uses all"
        )
    torch.cuda.set_device(0)
    return torch.device("cuda", 0)


def why_no_gpu() -> str | None:
    """Return the reason why torch cannot use a GPU here, or None if it can."""
    if torch.cuda.is_available():
        # A GPU too old for this build counts as available until its first kernel fails.
        major, minor = torch.cuda.get_device_capability()
        architectures = [name for name in torch.cuda.get_arch_list() if name.startswith("sm_")]
        # sm_90a is sm_90 with features of its own.
        built_for = [name.removeprefix("sm_").rstrip("af") for name in architectures]
        oldest = min(map(int, built_for), default=0)
        if major * 10 + minor < oldest:
            return f"this torch needs at least sm_{oldest}, and this GPU is sm_{major}{minor}"
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            f"this torch ({torch.__version__}) is a CPU-only build; install one with CUDA "
            "(https://pytorch.org/get-started)"
        )
    if shutil.which("nvidia-smi") is None:
        return (
            "no NVIDIA driver was found (no nvidia-smi); install it, or select a GPU runtime "
            "(Colab: Runtime > Change type)"
        )
    return f"torch {torch.__version__} finds no usable GPU; see what `nvidia-smi` prints"


def pick_compute_dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    """Return the recipe's compute dtype; "auto" is one the device computes in natively."""
    if recipe.compute_dtype != "auto":
        return getattr(torch, recipe.compute_dtype)
    if device.type == "cpu":
        return torch.float32
    # A T4 reports bfloat16 as supported, because emulation counts by default.
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def autocast_for(model: PreTrainedModel | PeftModel) -> torch.autocast:
    """Return the autocast context of the base's precision, in which answers are computed."""
    device = next(model.parameters()).device
    return torch.autocast(device.type, dtype=model.dtype, enabled=model.dtype != torch.float32)


def free_memory() -> None:
    """Free what unused models still hold: their wrappers refer to each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def unless_out_of_memory(work: Callable[[], T]) -> T | None:
    """Return `work()`, or None where memory ran out; the attempt's tensors are freed by then."""
    try:
        return work()
    except torch.OutOfMemoryError:
        pass  # its traceback holds the tensors until here
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
