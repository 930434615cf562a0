"""`fine_tune.py --plan`: what recipes take on GPUs of several sizes, and what each leads to."""

import argparse
from pathlib import Path

import torch
from transformers import PreTrainedModel

from dandap.cli import chosen_options
from dandap.errors import InputError
from dandap.model.device import pick_compute_dtype, why_no_gpu
from dandap.model.hub import confirm_remote_code
from dandap.model.load import load_config
from dandap.model.memory import (
    GB,
    DoesNotFit,
    Machine,
    Plan,
    cpu_plan,
    empty_model,
    parse_size,
    plan_for_size,
)
from dandap.model.shapes import SHAPES, make_config
from dandap.recipe import RECIPES_DIR, Recipe, find_recipe, load_recipe


def show_plans(arguments: argparse.Namespace) -> None:
    """Print a line per recipe and GPU size: its batch and checkpointing, and the estimate."""
    options = chosen_options(arguments)
    names = (
        [arguments.recipe]
        if arguments.recipe
        else sorted(path.stem for path in RECIPES_DIR.glob("*.yaml"))
    )
    sizes = [parse_size(arguments.gpu_memory)] if arguments.gpu_memory else sizes_of_interest()
    width = max(map(len, names))
    unknown = []
    for name in names:
        try:
            recipe = load_recipe(name, options)
            confirm_remote_code(recipe, "trust_remote_code" in options)
            # Without a recipe's name the table is made offline, of bases whose shapes are known.
            here = recipe.model in SHAPES or Path(recipe.model).is_dir()
            if not arguments.recipe and not here:
                unknown.append(name)
                continue
            model = known_model(recipe)
        except InputError as error:
            if arguments.recipe:
                raise
            # One that somebody is writing must not hide the others.
            print(f"{name:<{width}}  {str(error).splitlines()[0]}")
            continue
        for size in sizes:
            line = plan_line(recipe, model, size, in_a_table=not arguments.recipe)
            print(f"{find_recipe(name).stem:<{width}} {size / GB:>4.0f} GB  {line}")
        if why_no_gpu() and not arguments.gpu_memory and (line := cpu_line(recipe, model)):
            print(f"{find_recipe(name).stem:<{width}} this CPU  {line}")
    if unknown:
        print(f"not known here: {', '.join(unknown)}; --plan --recipe NAME asks the hub for one")
    if not arguments.recipe:
        print("Of what does not fit, --plan --recipe NAME tells ways out.")
    print(
        "Estimates; the peak of a step on an H200 was 0.5% below its own. Above 16 GB the GPU is "
        "taken to run FlexAttention (sm_80 and newer)."
    )


def known_model(recipe: Recipe) -> PreTrainedModel:
    """Return a recipe's base without weights: one of SHAPES, or asked of the hub."""
    shape = SHAPES.get(recipe.model)
    config = make_config(shape) if shape else load_config(recipe)
    return empty_model(config, recipe.trust_remote_code)


def plan_line(recipe: Recipe, model: PreTrainedModel, size: float, in_a_table: bool) -> str:
    """Return what would be chosen on a GPU of `size` bytes, or why it cannot be used.

    In a table of many recipes the ways out would fill the screen.
    """
    try:
        return _choice(plan_for_size(recipe, model, size))
    except DoesNotFit as error:
        return f"{'does not fit':<40}  {error.estimate}" if in_a_table else str(error)
    except InputError as error:
        return str(error)


def cpu_line(recipe: Recipe, model: PreTrainedModel) -> str | None:
    """Return what would be chosen on this machine's CPU; None for a base that needs a GPU."""
    cpu = torch.device("cpu")
    machine = Machine(cpu, pick_compute_dtype(recipe, cpu), None)
    try:
        plan = cpu_plan(recipe, model, machine, training=True)
    except InputError:
        return None
    return _choice(plan) + (", NF4 weights dequantised once" if plan.dequantised else "")


def _choice(plan: Plan) -> str:
    checkpointing = "checkpointing" if plan.gradient_checkpointing else "no checkpointing"
    return f"{plan.tokens_per_batch:>6} tokens per batch, {checkpointing:<16}  {plan.estimate}"


def sizes_of_interest() -> list[float]:
    """Return this GPU's memory, or those that people rent."""
    if why_no_gpu():
        return [16 * GB, 24 * GB, 48 * GB, 80 * GB]
    return [float(torch.cuda.mem_get_info()[0])]
