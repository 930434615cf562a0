"""A base as plain numbers, those that its NF4 weights stand for: what other programs can load."""

import shutil
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dandap.errors import InputError
from dandap.files import existing_parent
from dandap.model.device import pick_compute_dtype, pick_device
from dandap.model.load import dequantise, load_base, load_config
from dandap.model.memory import GB, available_memory, empty_model
from dandap.recipe import Recipe

CPU = torch.device("cpu")


def check_space(recipe: Recipe, folder: Path, what: str, way_out: str) -> None:
    """Refuse, before anything is loaded, a plain model that disk or main memory cannot hold."""
    model = empty_model(load_config(recipe), recipe.trust_remote_code)
    dtype = pick_compute_dtype(recipe, pick_device())
    size = dtype.itemsize * sum(parameter.numel() for parameter in model.parameters())
    existing = existing_parent(folder)
    for name, free in (
        (f"the disk of {existing}", shutil.disk_usage(existing).free),
        ("main memory", available_memory()),
    ):
        if free < size:
            raise InputError(
                f"{what} of {recipe.model} takes {size / GB:.1f} GB in "
                f"{str(dtype).removeprefix('torch.')}; {name} has {free / GB:.1f} GB free. "
                f"Free some, {way_out}."
            )


def load_plain(recipe: Recipe) -> PreTrainedModel:
    """Load the base into main memory; of NF4 weights the numbers that they stand for."""
    model = load_base(recipe, pick_device())
    if quantizer := getattr(model, "hf_quantizer", None):
        # The adapter was trained on the base as NF4 has it. Merged into the base of the hub, three
        # of the demo's 265 test answers change; into NF4 itself, which rounds the sum, two.
        dequantise(model, onto=CPU)
        quantizer.remove_quantization_config(model)
    return model.to(CPU)


def plain_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return a plain model's weights as its architecture has them; InputError if one is no number.

    bitsandbytes puts Linear layers in the place of GPT-2's Conv1D, whose weight is the transpose.
    """
    state, layers = model.state_dict(), dict(model.named_modules())
    for name, module in empty_model(model.config).named_modules():
        if type(module) is Conv1D and isinstance(layers[name], torch.nn.Linear):
            state[f"{name}.weight"] = state[f"{name}.weight"].T.contiguous()
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(
                f"{name} holds numbers that {tensor.dtype} cannot. Use --compute_dtype bfloat16."
            )
    return state
