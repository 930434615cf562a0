"""Load a base with dequantized weights, for other programs."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dandap.errors import InputError
from dandap.files import existing_parent
from dandap.model.device import pick_compute_dtype, pick_device
from dandap.model.load import dequantize, load_base, load_config
from dandap.model.memory import GB, available_memory, empty_model
from dandap.recipe import Recipe


def check_space(recipe: Recipe, folder: Path, what: str, advice: str) -> None:
    """Reject a dequantized model that exceeds the free disk or main memory, before loading it."""
    model = empty_model(load_config(recipe), recipe.trust_remote_code)
    dtype = pick_compute_dtype(recipe, pick_device())
    size = dtype.itemsize * sum(parameter.numel() for parameter in model.parameters())
    existing = existing_parent(folder)
    free = {"main memory": available_memory(), str(existing): shutil.disk_usage(existing).free}
    for name, room in free.items():
        if room < size:
            raise InputError(
                f"{what} of {recipe.model} takes {size / GB:.1f} GB in {dtype}; {name} has "
                f"{room / GB:.1f} GB free. Free some space, {advice}."
            )


def load_dequantized(recipe: Recipe) -> PreTrainedModel:
    """Load the base into main memory, with dequantized weights."""
    model = load_base(recipe, pick_device())
    if quantizer := getattr(model, "hf_quantizer", None):
        # The adapter was trained on the quantized base. Merging into the original weights changes
        # three of the demo's 265 answers, merging into quantized weights two.
        dequantize(model, onto=torch.device("cpu"))
        quantizer.remove_quantization_config(model)
    return model.cpu()


def dequantized_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return a dequantized model's finite weights, in the layout of its architecture.

    bitsandbytes replaces GPT-2's Conv1D with Linear, which stores the transposed weight.
    """
    state, layers = model.state_dict(), dict(model.named_modules())
    for name, module in empty_model(model.config).named_modules():
        if type(module) is Conv1D and isinstance(layers[name], torch.nn.Linear):
            state[f"{name}.weight"] = state[f"{name}.weight"].T.contiguous()
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(f"{name} overflows in {tensor.dtype}. Use --compute_dtype bfloat16.")
    return state
