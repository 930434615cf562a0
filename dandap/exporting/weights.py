"""The weights of an export: the base with a run's adapter merged into it, or the adapter itself."""

import shutil
from pathlib import Path

import torch
from peft import PeftConfig
from transformers import GenerationConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dandap.base.adapter import for_answering, load_adapter
from dandap.base.device import pick_compute_dtype, pick_device
from dandap.base.memory import GB, available_memory, empty_model, make_plan
from dandap.base.model import dequantise, load_base, load_config
from dandap.errors import InputError
from dandap.recipe import Recipe, make_recipe
from dandap.runs.folder import RunFolder
from dandap.runs.manifest import MANIFEST, fault

CPU = torch.device("cpu")


def with_dtype(recipe: Recipe, run: RunFolder) -> Recipe:
    """Return the recipe with the number format that the run computed in, which the export has.

    "auto" is what it came to on the run's machine; runs of earlier versions did not note it.
    """
    if recipe.compute_dtype != "auto":
        return recipe
    environment = run.environment()
    dtype = environment.get("compute_dtype")
    if dtype is None and environment.get("gpu") is None:
        dtype = "float32"
    elif dtype is None:
        device = pick_device()
        # Without a GPU here it cannot be told; of the GPUs that train such runs only T4s lack it.
        dtype = "bfloat16" if device.type == "cpu" else _name(pick_compute_dtype(recipe, device))
    return make_recipe(recipe.model_dump() | {"compute_dtype": dtype}, "environment.json")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def as_base(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe by which an exported folder answers as a base alone."""
    alone = {"model": str(folder), "revision": None, "quantization": "none"}
    return make_recipe(recipe.model_dump() | alone, "the exported model")


def check_room(recipe: Recipe, folder: Path) -> None:
    """Refuse, before anything is loaded, a merged model that disk or memory cannot hold.

    It is made in main memory, and then answers on the device that there is.
    """
    config = load_config(recipe)
    model = empty_model(config, recipe.trust_remote_code)
    itemsize = pick_compute_dtype(recipe, CPU).itemsize
    size = itemsize * sum(parameter.numel() for parameter in model.parameters())
    existing = next(parent for parent in folder.absolute().parents if parent.is_dir())
    for name, free in (
        (f"the disk of {existing}", shutil.disk_usage(existing).free),
        ("main memory", available_memory()),
    ):
        if free < size:
            raise InputError(
                f"the merged model of {recipe.model} takes {size / GB:.1f} GB in "
                f"{recipe.compute_dtype}; {name} has {free / GB:.1f} GB free. Free some, name "
                "another --exports_dir, or export the adapter alone (--to adapter)."
            )
    plain = make_recipe(recipe.model_dump() | {"quantization": "none"}, "the merged model")
    try:
        make_plan(plain, config, pick_device(), training=False)
    except InputError as error:
        raise InputError(
            "the merged model has to answer the validation questions here, and cannot: "
            f"{error} Or export the adapter alone (--to adapter)."
        ) from error


def write_merged(recipe: Recipe, run: RunFolder, folder: Path, generation: dict) -> bool:
    """Write the base with the run's adapter merged into it, with the run's tokenizer.

    `generation` is what generation_config.json says. Return whether the LM head was given weights
    of its own, because it has an adapter and the base ties it to the embeddings.
    """
    model = load_base(recipe, pick_device())
    if quantizer := getattr(model, "hf_quantizer", None):
        # The adapter was trained on the base as NF4 has it. Merged into the base of the hub, three
        # of the demo's 265 test answers change; into NF4 itself, which rounds the sum, two.
        dequantise(model, onto=CPU)
        quantizer.remove_quantization_config(model)
    model.to(CPU)
    was_tied = model.config.get_text_config().tie_word_embeddings
    merged = for_answering(load_adapter(model, run.adapter), merged=True)
    state = plain_weights(merged)
    merged.generation_config = GenerationConfig(**generation)
    merged.save_pretrained(str(folder), state_dict=state)
    copy_tokenizer(run.adapter, folder)
    return was_tied and not merged.config.get_text_config().tie_word_embeddings


def plain_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return a merged model's weights as its architecture has them; InputError if one is no number.

    bitsandbytes puts Linear layers in the place of GPT-2's Conv1D, whose weight is the transpose.
    """
    state, layers = model.state_dict(), dict(model.named_modules())
    for name, module in empty_model(model.config).named_modules():
        if type(module) is Conv1D and isinstance(layers[name], torch.nn.Linear):
            state[f"{name}.weight"] = state[f"{name}.weight"].T.contiguous()
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(
                f"merged, {name} holds numbers that {tensor.dtype} cannot. "
                "Export with --compute_dtype bfloat16."
            )
    return state


def copy_tokenizer(adapter: Path, folder: Path) -> None:
    """Copy all that a run's adapter/ holds besides the adapter: the tokenizer, as it was trained.

    Its chat template is the mended one, by which others send the prompts that the run has learned.
    """
    for path in adapter.iterdir():
        if path.is_file() and not path.name.startswith("adapter_") and path.name != MANIFEST:
            shutil.copyfile(path, folder / path.name)


def write_adapter(recipe: Recipe, run: RunFolder, folder: Path) -> None:
    """Write the run's adapter so that PEFT finds its base from any folder, with the tokenizer.

    The run's own adapter/ names a local base without its path, which is nobody's business where a
    run is published; PEFT's AutoPeftModel needs it.
    """
    if reason := fault(run.adapter) if (run.adapter / MANIFEST).is_file() else None:
        raise InputError(f"the adapter {run.adapter} cannot be used: {reason}.")
    copy_tokenizer(run.adapter, folder)
    shutil.copyfile(run.weights, folder / run.weights.name)
    config = PeftConfig.from_pretrained(str(run.adapter))
    base = Path(recipe.model)
    config.base_model_name_or_path = str(base.resolve()) if base.is_dir() else recipe.model
    config.revision = recipe.revision
    config.save_pretrained(str(folder))
