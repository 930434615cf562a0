"""Memory estimates, compared with what autograd saves in real models, and memory plans."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

import fine_tune
from dandap.errors import InputError
from dandap.model import memory, plans
from dandap.model.adapter import add_adapter
from dandap.model.load import load_base, load_config
from dandap.model.memory import GB, Footprint, Plan, count_layers, fit_plan
from dandap.model.plans import NAMES, SHAPES, make_config, parse_size
from dandap.recipe import RECIPES_DIR, Recipe, load_recipe
from dandap.tree.logits import logits_at
from dandap.tree.masks import tree_masks
from dandap.tree.mixers import mixers_of
from dandap.tree.token_tree import collate, grow

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
EEVE, DEMO = make_config(NAMES["EEVE-10.8B"]), load_recipe("demo", {})
TOKENS = 256
# From model cards and shard sizes.
PARAMETERS = {
    "yanolja/EEVE-Korean-Instruct-10.8B-v1.0": 10_804_924_416,
    "NousResearch/Nous-Hermes-2-SOLAR-10.7B": 10_731_540_480,
    "rtzr/ko-gemma-2-9b-it": 9_241_705_984,
    "beomi/llama-2-ko-7b": 6_855_856_128,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "google/gemma-3-270m": 268_098_176,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "skt/kogpt2-base-v2": 125_164_032,
}


def footprint(config: PretrainedConfig = EEVE, flex: bool = False, **options: object) -> Footprint:
    return Footprint(Recipe(**options), config, CUDA, torch.bfloat16, flex)


def recipe_footprint(name: str, device: torch.device = CUDA) -> Footprint:
    recipe = load_recipe(name, {})
    dtype = torch.bfloat16 if device is CUDA else torch.float32
    return Footprint(recipe, make_config(SHAPES[recipe.model]), device, dtype)


def saved_by_autograd(model: PreTrainedModel, batch: dict, dtype: torch.dtype) -> int:
    """Return the bytes that autograd saves in a forward, without parameters."""
    saved = set()

    def save(tensor):
        saved.add(tensor.untyped_storage())
        return tensor

    mixed = torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(save, save), mixed:
        if mixers := mixers_of(model):
            mixers.read_next(batch)
        mask = tree_masks(model.config, batch, dtype, flex=False)
        ids, positions = batch["input_ids"], batch["position_ids"]
        with logits_at(model, batch["predicts"]):
            model(ids, position_ids=positions, attention_mask=mask, use_cache=False).logits.sum()
    saved -= {parameter.untyped_storage() for parameter in model.parameters()}
    return sum(storage.nbytes() for storage in saved)


ONE_BY_ONE = {"lora_target_modules": "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tiny-llama", {}),
        ("tiny-llama", ONE_BY_ONE),
        ("tiny-llama", {"compute_dtype": "float32"}),
        ("tiny-llama", {"quantization": "none"}),
        ("tiny-llama", {"attention": "eager"}),
        ("tiny-llama", {"gradient_checkpointing": True}),
        ("tiny-qwen3", {}),
        ("tiny-gemma2", {}),
        ("tiny-gemma3", {}),
        ("tiny-qwen3.5", {}),
        ("tiny-qwen3.5", {"compute_dtype": "float32"}),
    ],
)
def test_estimated_activations_match_what_autograd_saves(name, options, tmp_path, monkeypatch):
    """Bytes per token and layer, from models with two and four layers, agree within 5%.

    The batch is an article with four questions.
    """
    length = {"max_length": TOKENS, "max_new_tokens": 8}
    recipe = Recipe(model=str(tmp_path), **({"compute_dtype": "bfloat16"} | length | options))
    dtype = getattr(torch, recipe.compute_dtype)
    checkpointing = recipe.gradient_checkpointing is True
    if not checkpointing:
        # PEFT checks CUDA's autocast (without a device), and casts inputs if it is off.
        real = torch.is_autocast_enabled
        monkeypatch.setattr(
            torch, "is_autocast_enabled", lambda *on: real(*on) if on else dtype is torch.bfloat16
        )
    article, questions = [*range(10, 10 + TOKENS - 80)], range(300, 380, 20)
    tree = grow(([*article, *range(question, question + 19)], [1, 2]) for question in questions)
    batch = collate([tree], pad_id=0, segments="train")
    saved = []
    for layers in (2, 4):
        sizes = {**NAMES[name], "num_hidden_layers": layers}
        if "layer_types" in sizes:
            sizes["layer_types"] = sizes["layer_types"] * (layers // 2)
        config = AutoConfig.for_model(**sizes)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
        model = add_adapter(load_base(recipe, CPU), recipe).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable()
        saved.append(saved_by_autograd(model, batch, dtype))
        if dtype is torch.bfloat16 and not checkpointing:
            # Autocast's copies of the adapter are counted with the adapter.
            saved[-1] -= 2 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    measured = (saved[1] - saved[0]) / 2 / batch["input_ids"].numel()
    expected = config.hidden_size * dtype.itemsize
    if not checkpointing:
        expected = count_layers(recipe, config, dtype, False, tree)[0] / layers
    assert measured == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_shapes_have_the_published_parameter_counts(name):
    parameters = sum(p.numel() for p in memory.empty_model(make_config(SHAPES[name])).parameters())
    assert parameters == PARAMETERS.get(name, parameters)
    assert 1e8 < parameters < 15e9


def test_eeve_estimate_matches_arithmetic():
    on, off = (footprint().training(2048, checkpointing) for checkpointing in (True, False))
    assert on.parameters == 10_804_924_416
    linear = 48 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    constants, largest = 1 / 64 + 4 / (64 * 256), 4096 * 14336 * 2
    others = 2 * (on.parameters - linear)
    assert on.weights == pytest.approx(linear * (0.5 + constants) + others + largest)
    # rank x (in + out)
    adapter = 16 * 48 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    # float32 weight, gradient, two moments; without checkpointing also autocast's copy in bfloat16.
    assert (on.adapter, off.adapter) == (16 * adapter, 18 * adapter)
    assert off.activations > 5 * on.activations


def test_the_estimate_matches_the_peak_measured_on_an_h200():
    """RESULTS.md: 50.54 GB with 4,864 tokens, without 1 GB for the CUDA context."""
    estimate = footprint(flex=True).training(4864, checkpointing=False)
    assert (estimate.total - GB) / GB == pytest.approx(50.54, rel=0.02)


def test_flex_repeats_no_keys_and_makes_no_mask():
    sdpa, flex = (footprint(flex=on).training(4096, False).activations for on in (False, True))
    repeated, mask = 48 * 4096 * 2 * (4096 - 1024) * 2, 4096 * 2048 * 2
    assert sdpa - flex == pytest.approx(repeated + mask)


def test_estimates_do_not_advance_the_random_generator():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    footprint(make_config(NAMES["tiny-llama"]))
    assert torch.equal(torch.rand(1), expected)


def plan_for(size: float, training: bool = True, **options: object) -> Plan:
    return fit_plan(footprint(**options), size * GB, training)


def test_more_memory_never_gives_a_smaller_plan():
    sizes, qwen = (16, 24, 48, 80, 140), recipe_footprint("qwen3-8b")
    found = [fit_plan(qwen, size * GB, training=True) for size in sizes]
    order = [(not plan.gradient_checkpointing, plan.tokens_per_batch) for plan in found]
    assert order == sorted(order)
    assert all(plan.estimate.total <= plan.free for plan in found)


def test_long_answers_lower_the_tokens_per_batch():
    """Their share of tokens is known after encoding; plans for CPUs do not depend on it."""
    config = AutoConfig.for_model(**{**NAMES["EEVE-10.8B"], "vocab_size": 256_000})
    plan = fit_plan(footprint(config, flex=True), 16 * GB, training=True)
    long = memory.refit_plan(plan, Recipe(), config, 0.75)
    assert long.tokens_per_batch < plan.tokens_per_batch
    assert long.estimate.total <= 16 * GB
    host = memory.make_plan(DEMO, load_config(DEMO), CPU, training=True)
    assert memory.refit_plan(host, DEMO, load_config(DEMO), 0.75) is host


def test_answering_merges_the_adapter_where_16_bit_weights_fit():
    for quantization, size, merged in (("nf4", 80, True), ("nf4", 24, False), ("none", 80, True)):
        plan = plan_for(size, training=False, quantization=quantization)
        assert plan.merged == merged
        assert plan.dequantized == (merged and quantization == "nf4")
        assert plan.estimate.total <= size * GB
        assert ("adapter merged" in str(plan)) == merged
    assert not plan_for(80).merged


def test_a_model_that_does_not_fit_is_rejected_with_advice():
    with pytest.raises(InputError, match=r"8\.0 GB are free\. Try --quantization nf4"):
        plan_for(8, quantization="none")


def test_a_large_model_on_a_cpu_is_rejected(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="10.8B parameters and needs a GPU"):
        memory.make_plan(Recipe(), EEVE, CPU, training=True)


def test_a_cpu_dequantizes_a_base_if_memory_allows(monkeypatch):
    recipe, config = Recipe(model="data/demo_model"), load_config(DEMO)
    for free, dequantized in ((2e9, True), (1e6, False)):
        monkeypatch.setattr(memory, "available_memory", lambda free=free: free)
        plan = memory.make_plan(recipe, config, CPU, training=False)
        assert plan.dequantized == dequantized
        assert ("NF4 weights dequantized once" in str(plan)) == dequantized


def test_a_cpu_with_little_memory_gets_smaller_batches(capsys):
    """Smaller batches cost no time, checkpointing a third; if both are not enough, warn."""
    qwen, chosen = recipe_footprint("qwen3-0.6b", CPU), []
    for free in (24, 10, 5, 1):
        plan = fit_plan(qwen, free * GB, training=True)
        chosen.append((plan.tokens_per_batch, plan.gradient_checkpointing, plan.dequantized))
        assert plan.estimate.total <= free * GB or free == 1
        assert ("may need" in capsys.readouterr().out) == (free == 1)
    assert chosen == [
        (4096, False, True),
        (2048, False, False),
        (4096, True, True),
        (2048, True, False),
    ]


def test_every_recipe_has_a_plan_without_a_network(capsys):
    fine_tune.main(["--plan", "--gpu_memory", "80GB"])
    lines = capsys.readouterr().out.splitlines()
    recipes = {path.stem: path.read_text() for path in RECIPES_DIR.glob("*.yaml")}
    known = [name for name, text in sorted(recipes.items()) if "Not loaded by us" not in text]
    assert [line.split()[0] for line in lines[:-3]] == known
    assert all("tokens per batch" in line and "base" in line for line in lines[:-3])
    assert all(name in lines[-3] for name in recipes if name not in known)
    assert "within 5% of a simulated step" in lines[-1]


def test_a_plan_for_one_recipe(capsys, monkeypatch):
    monkeypatch.setattr(plans, "why_no_gpu", lambda: "there is none")
    monkeypatch.setattr(plans, "available_memory", lambda: 16 * GB)
    fine_tune.main(["--plan", "--recipe", "gemma-3-270m"])
    (line,) = (each for each in capsys.readouterr().out.splitlines() if "this CPU" in each)
    assert "4096 tokens per batch" in line
    assert line.endswith("NF4 weights dequantized once")
    fine_tune.main(["--plan", "--recipe", "wolminji-eeve-10.8b", "--gpu_memory", "6"])
    assert "needs about 9.4 GB (base 6.7, " in capsys.readouterr().out


def test_parse_size():
    assert parse_size("16GB") == parse_size("16") == parse_size("16 gb") == 16 * GB
    for text in ("x", "-1", "0GB", "", "nan"):
        with pytest.raises(InputError, match="expected a size like 16GB"):
            parse_size(text)
