"""The device that a model runs on, and the number format of its arithmetic."""

import shutil

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import PreTrainedModel

from dandap.base.processes import process_count
from dandap.recipe import Recipe


def pick_device() -> torch.device:
    """This process's GPU, else the CPU. Several GPUs without a launcher: one is used, and a line says so."""
    if process_count() > 1:
        return PartialState(cpu=why_no_gpu() is not None).device
    if why_no_gpu():
        return torch.device("cpu")
    if torch.cuda.device_count() > 1:
        print(
            f"{torch.cuda.device_count()} GPUs visible, using the first; CUDA_VISIBLE_DEVICES chooses another, "
            "`accelerate launch fine_tune.py` trains on all"
        )
    torch.cuda.set_device(0)
    return torch.device("cuda", 0)


def why_no_gpu() -> str | None:
    """The reason why torch cannot use a GPU here, or None if it can."""
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        built_for = [
            name.removeprefix("sm_").rstrip("af")
            for name in torch.cuda.get_arch_list()
            if name.startswith("sm_")
        ]
        oldest = min(map(int, built_for), default=0)
        if major * 10 + minor < oldest:
            return f"this torch is built for GPUs from sm_{oldest} on and this one is sm_{major}{minor}; choose a newer GPU"
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return f"this torch ({torch.__version__}) is a CPU-only build; install one with CUDA (https://pytorch.org/get-started)"
    if shutil.which("nvidia-smi") is None:
        return "no NVIDIA driver was found (no nvidia-smi); install it, or choose a GPU runtime (Colab: Runtime > Change type)"
    return f"torch {torch.__version__} finds no usable GPU although a driver is installed; see what `nvidia-smi` says"


def pick_compute_dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    """The recipe's, or: float32 on CPU, bfloat16 where the GPU has it natively, else float16.

    A T4 reports bfloat16 as supported because emulation counts; it is asked not to.
    """
    if recipe.compute_dtype != "auto":
        return getattr(torch, recipe.compute_dtype)
    if device.type == "cpu":
        return torch.float32
    return (
        torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    )


def computing(model: PreTrainedModel | PeftModel) -> torch.autocast:
    """The precision answers are computed in: the base's, adapters and all."""
    device = next(model.parameters()).device
    return torch.autocast(device.type, dtype=model.dtype, enabled=device.type == "cuda")
