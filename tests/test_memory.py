"""The memory estimate against a count of what autograd keeps, and the plan that comes of it."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import fine_tune
from dandap import recipe as recipes
from dandap.errors import InputError
from dandap.model import memory, plans
from dandap.model.adapter import add_adapter
from dandap.model.load import load_base, load_config
from dandap.model.memory import (
    GB,
    Machine,
    _layer_bytes,
    cpu_plan,
    empty_model,
    estimate_training,
    parse_size,
    plan_for_size,
)
from dandap.model.shapes import NAMES, SHAPES, make_config
from dandap.recipe import RECIPES_DIR, Recipe, load_recipe
from dandap.tree.logits import logits_at
from dandap.tree.masks import tree_masks
from dandap.tree.token_tree import collate, grow

CPU = torch.device("cpu")
TOKENS = 256
# From the bases' cards and shard sizes.
PARAMETERS = {
    "yanolja/EEVE-Korean-Instruct-10.8B-v1.0": 10_804_924_416,
    "NousResearch/Nous-Hermes-2-SOLAR-10.7B": 10_731_540_480,
    "rtzr/ko-gemma-2-9b-it": 9_241_705_984,
    "beomi/llama-2-ko-7b": 6_855_856_128,
    "K-intelligence/Midm-2.0-Mini-Instruct": 2_305_517_312,
    "Qwen/Qwen3-4B-Instruct-2507": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "google/gemma-3-270m": 268_098_176,
    "ibm-granite/granite-4.0-350m": 352_379_904,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "x2bee/POLAR-14B-v0.2": 14_221_316_096,
    "beomi/Solar-Ko-Recovery-11B": 10_993_668_096,
    "chihoonlee10/T3Q-ko-solar-dpo-v7.0": 10_731_524_096,
    "42dot/42dot_LLM-SFT-1.3B": 1_439_270_912,
    "skt/kogpt2-base-v2": 125_164_032,
}


def kept_by_autograd(model: PreTrainedModel, batch: dict, dtype: torch.dtype) -> int:
    """Bytes of the storages that a forward leaves for the backward, parameters not counted."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (
                storage.nbytes(),
                tensor,
            )  # the tensor too, so that its place is not used again
        return tensor

    mixed = torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), mixed:
        mask = tree_masks(model.config, batch, dtype, flex=False)
        ids, positions = batch["input_ids"], batch["position_ids"]
        with logits_at(model, batch["predicts"]):
            model(ids, position_ids=positions, attention_mask=mask, use_cache=False).logits.sum()
    return sum(size for size, _ in kept.values())


CASES = {
    "llama nf4": ("tiny-llama", {}),
    "llama nf4, one module": (
        "tiny-llama",
        {"lora_target_modules": "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"},
    ),
    "llama float32": ("tiny-llama", {"compute_dtype": "float32"}),
    "llama 16 bit": ("tiny-llama", {"quantization": "none"}),
    "llama eager": ("tiny-llama", {"attention": "eager"}),
    "llama checkpointing": ("tiny-llama", {"gradient_checkpointing": True}),
    "qwen3 nf4": ("tiny-qwen3", {}),
    "gemma2 nf4": ("tiny-gemma2", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_layers_activations_are_what_autograd_keeps(case, tmp_path, monkeypatch):
    """Within 5%: the difference of a model with four layers and one with two, per token."""
    name, options = CASES[case]
    recipe = Recipe(
        model=str(tmp_path),
        **({"compute_dtype": "bfloat16", "max_length": TOKENS, "max_new_tokens": 8} | options),
    )
    dtype = getattr(torch, recipe.compute_dtype)
    checkpointing = recipe.gradient_checkpointing is True
    if not checkpointing:
        # PEFT asks for CUDA's autocast (no device named), and casts inputs of its own where that is
        # off.
        real = torch.is_autocast_enabled
        monkeypatch.setattr(
            torch, "is_autocast_enabled", lambda *on: real(*on) if on else dtype is torch.bfloat16
        )
    batch = collate([grow([(list(range(10, 9 + TOKENS)), [1, 2])])], pad_id=0)
    kept = []
    for layers in (2, 4):
        config = AutoConfig.for_model(**{**NAMES[name], "num_hidden_layers": layers})
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
        model = add_adapter(load_base(recipe, CPU), recipe).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable()
        kept.append(kept_by_autograd(model, batch, dtype))
        if (
            dtype is torch.bfloat16 and not checkpointing
        ):  # autocast's copies of the adapter are counted with the adapter
            kept[-1] -= 2 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    measured = (kept[1] - kept[0]) / 2 / batch["input_ids"].numel()
    expected = config.hidden_size * dtype.itemsize
    if not checkpointing:
        expected = _layer_bytes(recipe, empty_model(config), dtype.itemsize, flex=False)
    assert measured == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_shapes_have_the_published_parameters(name):
    parameters = sum(
        parameter.numel() for parameter in empty_model(make_config(SHAPES[name])).parameters()
    )
    if name in PARAMETERS:
        assert parameters == PARAMETERS[name]
    assert 1e8 < parameters < 15e9


def machine(flex=False):
    return Machine(torch.device("cuda"), torch.bfloat16, None, flex)


def test_flex_repeats_no_keys_and_makes_no_mask():
    model = empty_model(make_config(NAMES["EEVE-10.8B"]))
    sdpa, flex = (
        estimate_training(Recipe(), model, 4096, False, machine(flex)).activations
        for flex in (False, True)
    )
    repeated, mask = 48 * 4096 * 2 * (4096 - 1024) * 2, 4096 * 2048 * 2
    assert sdpa - flex == pytest.approx(repeated + mask)


def test_every_recipe_has_a_plan(capsys):
    """`--plan` needs no network: the recipes' shapes are known."""
    fine_tune.main(["--plan", "--gpu_memory", "80GB"])
    lines = capsys.readouterr().out.splitlines()
    assert lines.pop(-2).startswith("Of what does not fit")
    recipes = sorted(path.stem for path in RECIPES_DIR.glob("*.yaml"))
    assert [line.split()[0] for line in lines[:-1]] == recipes
    known = [
        line
        for line in lines[:-1]
        if Path(m := load_recipe(line.split()[0], {}).model).is_dir() or m in SHAPES
    ]
    assert len(known) >= 12
    assert all("tokens per batch" in line and "base" in line for line in known)
    assert "Estimates; the peak of a step on an H200 was 0.5% below" in lines[-1]


def test_a_recipe_that_is_wrong_does_not_hide_the_others(capsys, monkeypatch, tmp_path):
    for name, text in {"mine": "epochs: many\n", "yours": "model: data/demo_model\n"}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(plans, "RECIPES_DIR", tmp_path)
    monkeypatch.setattr(recipes, "RECIPES_DIR", tmp_path)
    fine_tune.main(["--plan", "--gpu_memory", "80GB"])
    mine, yours, *_ = capsys.readouterr().out.splitlines()
    assert "epochs: got 'many', expected a number" in mine
    assert "tokens per batch" in yours


def test_a_plan_for_one_recipe_and_common_gpus(capsys):
    fine_tune.main(["--plan", "--recipe", "qwen3-4b", "--gradient_checkpointing", "true"])
    lines = capsys.readouterr().out.splitlines()[:-1]
    assert len(lines) == 4 or torch.cuda.is_available()
    assert all(" checkpointing" in line and "no checkpointing" not in line for line in lines)


def test_a_small_base_has_a_plan_for_this_cpu(capsys, monkeypatch):
    monkeypatch.setattr(plans, "why_no_gpu", lambda: "there is none")
    monkeypatch.setattr(memory, "available_memory", lambda: 16 * GB)
    fine_tune.main(["--plan", "--recipe", "gemma-3-270m"])
    (line,) = (each for each in capsys.readouterr().out.splitlines() if "this CPU" in each)
    assert "4096 tokens per batch" in line
    assert line.endswith("NF4 weights dequantised once")
    assert "base 1.1" in line
    fine_tune.main(["--plan", "--recipe", "qwen3-4b"])
    assert "this CPU" not in capsys.readouterr().out


def test_a_cpu_with_little_memory_reads_less_at_once(capsys, monkeypatch):
    """Smaller batches cost nothing there, checkpointing a third; then it is told."""
    recipe = load_recipe("qwen3-0.6b", {})
    model = empty_model(make_config(SHAPES[recipe.model]))
    host = Machine(torch.device("cpu"), torch.float32, None)
    chosen = []
    for free in (24, 10, 5, 1):
        monkeypatch.setattr(memory, "available_memory", lambda free=free: free * GB)
        plan = cpu_plan(recipe, model, host, training=True)
        chosen.append((plan.tokens_per_batch, plan.gradient_checkpointing, plan.dequantised))
        assert plan.estimate.total <= free * GB or free == 1
        assert ("may need" in capsys.readouterr().out) == (free == 1)
    assert chosen == [
        (4096, False, True),
        (2048, False, False),
        (4096, True, True),
        (2048, True, False),
    ]


def test_what_does_not_fit_is_said(capsys):
    fine_tune.main(["--plan", "--recipe", "eeve-10.8b", "--gpu_memory", "6"])
    assert "Way out" in capsys.readouterr().out
    fine_tune.main(["--plan", "--gpu_memory", "6"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "eeve-10.8b" in line)
    assert re.search(r"does not fit +9\.4 GB \(base 6\.7, ", line)
    assert "Way out" not in line


def test_more_memory_never_means_a_smaller_choice():
    recipe = load_recipe("qwen3-8b", {})
    model = empty_model(make_config(SHAPES[recipe.model]))
    plans = [plan_for_size(recipe, model, size * GB) for size in (16, 24, 48, 80, 140)]
    order = [(not plan.gradient_checkpointing, plan.tokens_per_batch) for plan in plans]
    assert order == sorted(order)
    assert all(plan.estimate.total <= plan.free for plan in plans)


def test_one_question_a_step_needs_no_large_batches():
    recipe = load_recipe("eeve-10.8b", {})
    assert (
        plan_for_size(
            recipe, empty_model(make_config(SHAPES[recipe.model])), 80 * GB
        ).tokens_per_batch
        == recipe.max_length
    )


@pytest.mark.parametrize("text", ["x", "-1", "0GB", "", "nan"])
def test_sizes_that_are_none(text):
    with pytest.raises(InputError, match="expected a size like 16GB"):
        parse_size(text)


def test_sizes():
    assert parse_size("16GB") == parse_size("16") == parse_size("16 gb") == 16 * GB


def test_the_demo_is_small():
    recipe, host = load_recipe("demo", {}), Machine(CPU, torch.float32, None)
    assert (
        estimate_training(recipe, empty_model(load_config(recipe)), 4096, False, host).total
        < 3 * GB
    )
