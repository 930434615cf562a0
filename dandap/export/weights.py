"""The weights of an export: the base with a run's adapter merged into it, or the adapter itself."""

import shutil
from pathlib import Path

import torch
from peft import PeftConfig
from transformers import GenerationConfig

from dandap.errors import InputError
from dandap.manifest import MANIFEST, fault
from dandap.model.adapter import for_answering, load_adapter
from dandap.model.dequantize import check_space, load_plain, plain_weights
from dandap.model.device import pick_compute_dtype, pick_device
from dandap.model.load import load_config
from dandap.model.memory import make_plan
from dandap.recipe import Recipe, make_recipe
from dandap.runs.folder import RunFolder


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
    way_out = "name another --exports_dir, or export the adapter alone (--to adapter)"
    check_space(recipe, folder, "the merged model", way_out)
    plain = make_recipe(recipe.model_dump() | {"quantization": "none"}, "the merged model")
    try:
        make_plan(plain, load_config(recipe), pick_device(), training=False)
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
    model = load_plain(recipe)
    was_tied = model.config.get_text_config().tie_word_embeddings
    merged = for_answering(load_adapter(model, run.adapter), merged=True)
    state = plain_weights(merged)
    merged.generation_config = GenerationConfig(**generation)
    merged.save_pretrained(str(folder), state_dict=state)
    copy_tokenizer(run.adapter, folder)
    return was_tied and not merged.config.get_text_config().tie_word_embeddings


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
