"""Print the batch size, checkpointing and memory of recipes (fine_tune.py --plan)."""

from pathlib import Path

import torch
import yaml
from transformers import AutoConfig, PretrainedConfig

from dandap.errors import InputError
from dandap.model.device import pick_compute_dtype, why_no_gpu
from dandap.model.hub import confirm_remote_code
from dandap.model.load import load_config
from dandap.model.memory import CPU_LIMIT, GB, Footprint, available_memory, fit_plan
from dandap.recipe import RECIPES_DIR, find_recipe, load_recipe

# Architectures by hub id, and by a short name.
_DATA = yaml.safe_load(Path(__file__).with_name("shapes.yaml").read_text(encoding="utf-8"))
SHAPES: dict[str, dict] = _DATA["hub"]
NAMES: dict[str, dict] = _DATA["names"]
COMMON_SIZES = [16 * GB, 24 * GB, 48 * GB, 80 * GB]  # of common GPUs


def make_config(shape: dict) -> PretrainedConfig:
    """Return transformers' config for an entry of SHAPES or NAMES."""
    return AutoConfig.for_model(**shape)


def print_plans(recipe_name: str | None, options: dict, gpu_memory: str | None) -> None:
    """Print a line per recipe and GPU size, for one recipe or for all with a known shape."""
    names = [recipe_name] if recipe_name else sorted(p.stem for p in RECIPES_DIR.glob("*.yaml"))
    sizes = COMMON_SIZES if why_no_gpu() else [float(torch.cuda.mem_get_info()[0])]
    if gpu_memory:
        sizes = [parse_size(gpu_memory)]
    width = max(map(len, names))
    unknown = []
    for name in names:
        try:
            recipe = load_recipe(name, options)
            confirm_remote_code(recipe, "trust_remote_code" in options)
            if recipe.model in SHAPES:
                config = make_config(SHAPES[recipe.model])
            elif recipe_name or Path(recipe.model).is_dir():
                config = load_config(recipe)
            else:  # the table of all recipes needs no network
                unknown.append(name)
                continue
        except InputError as error:
            if recipe_name:
                raise
            print(f"{name:<{width}}  {str(error).splitlines()[0]}")
            continue
        label = f"{find_recipe(name).stem:<{width}}"
        dtype = torch.bfloat16
        if recipe.compute_dtype != "auto":
            dtype = getattr(torch, recipe.compute_dtype)
        flexible = recipe.read_once and recipe.attention in ("auto", "flex")
        by_flex = {}
        for size in sizes:
            flex = flexible and size > 16 * GB  # no T4 has more
            if flex not in by_flex:
                by_flex[flex] = Footprint(recipe, config, torch.device("cuda"), dtype, flex)
            line = _plan_line(by_flex[flex], size, short=not recipe_name)
            print(f"{label} {size / GB:>4.0f} GB  {line}")
        if why_no_gpu() and not gpu_memory and by_flex.popitem()[1].parameters <= CPU_LIMIT:
            cpu = torch.device("cpu")
            footprint = Footprint(recipe, config, cpu, pick_compute_dtype(recipe, cpu, config))
            print(f"{label} this CPU  {_plan_line(footprint, available_memory())}")
    if unknown:
        print(f"Unknown shapes: {', '.join(unknown)}. --plan --recipe NAME downloads the config.")
    if not recipe_name:
        print("If a recipe does not fit, --plan --recipe NAME suggests changes.")
    print("Estimates, within 5% of a simulated step. Assumes sm_80 or newer above 16 GB.")


def _plan_line(footprint: Footprint, free: float, short: bool = False) -> str:
    try:
        plan = fit_plan(footprint, free, training=True)
    except InputError as error:
        return str(error).partition(" Try ")[0] if short else str(error)
    checkpointing = "checkpointing" if plan.gradient_checkpointing else "no checkpointing"
    dequantized = ", NF4 weights dequantized once" if plan.dequantized else ""
    return (
        f"{plan.tokens_per_batch:>6} tokens per batch, {checkpointing:<16}  "
        f"{plan.estimate}{dequantized}"
    )


def parse_size(text: str) -> float:
    """Return the bytes of "16GB" or "16"."""
    number = text.upper().removesuffix("GB").strip()
    try:
        size = float(number) * GB
    except ValueError:
        size = 0
    if not 0 < size < 1e15:
        raise InputError(f"--gpu_memory: got {text!r}, expected a size like 16GB.")
    return size
