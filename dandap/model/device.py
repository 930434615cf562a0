"""Select the device and the compute dtype, and handle out-of-memory errors."""

import gc
import shutil
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from dandap.model.distributed import world_size
from dandap.recipe import Recipe

T = TypeVar("T")
SMALL = 1e7  # parameters: three times the demo's base


def pick_device() -> torch.device:
    """Return this process's GPU, or the CPU."""
    if world_size() > 1:
        # accelerate assigns each process a GPU and initializes the process group.
        return PartialState(cpu=why_no_gpu() is not None).device
    if why_no_gpu():
        return torch.device("cpu")
    if torch.cuda.device_count() > 1:
        print(
            f"Using the first of {torch.cuda.device_count()} GPUs. Select another with "
            "CUDA_VISIBLE_DEVICES, or use all with `accelerate launch` (docs/processes.md)."
        )
    torch.cuda.set_device(0)
    return torch.device("cuda", 0)


def why_no_gpu() -> str | None:
    """Return why torch cannot use a GPU on this machine, or None if it can."""
    if torch.cuda.is_available():
        # torch reports a GPU that is too old for this build as available.
        major, minor = torch.cuda.get_device_capability()
        architectures = [name for name in torch.cuda.get_arch_list() if name.startswith("sm_")]
        # sm_90a is sm_90 with extra features.
        built_for = [name.removeprefix("sm_").rstrip("af") for name in architectures]
        oldest = min(map(int, built_for), default=0)
        if major * 10 + minor < oldest:
            return f"this torch needs sm_{oldest} or newer; this GPU is sm_{major}{minor}"
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
    return f"torch {torch.__version__} finds no usable GPU; check `nvidia-smi`"


def empty_model(config: PretrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return the architecture without weights, on the meta device."""
    # Unlike accelerate's init_empty_weights, this keeps tied embeddings tied.
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def pick_compute_dtype(
    recipe: Recipe, device: torch.device, config: PretrainedConfig | None = None
) -> torch.dtype:
    """Return the recipe's compute dtype; "auto" is the device's native one.

    On a CPU that is bfloat16 with AVX512-BF16 or AMX, except for a base as small as the demo's.
    """
    if recipe.compute_dtype != "auto":
        return getattr(torch, recipe.compute_dtype)
    if device.type == "cpu":
        cpu: Any = torch.cpu  # its stub lacks these
        if not config or not (cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()):
            return torch.float32
        model = empty_model(config, recipe.trust_remote_code)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return torch.bfloat16 if parameters > SMALL else torch.float32
    # By default a T4's emulated bfloat16 counts as supported.
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def autocast_for(model: PreTrainedModel | PeftModel) -> torch.autocast:
    """Return the autocast context for answering: the model's own dtype."""
    device = next(model.parameters()).device
    return torch.autocast(device.type, dtype=model.dtype, enabled=model.dtype != torch.float32)


def free_memory() -> None:
    """Free the memory of unused models, which contain reference cycles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def unless_out_of_memory(work: Callable[[], T]) -> T | None:
    """Return `work()`, or None after an out-of-memory error, with its tensors freed."""
    try:
        return work()
    except torch.OutOfMemoryError:
        pass  # the traceback references the tensors until here
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
