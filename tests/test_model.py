"""Loading, adapters, devices and dtypes, on tiny models."""

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel

from dandap.errors import InputError
from dandap.model.adapter import add_adapter, for_answering, resolve_targets
from dandap.model.device import pick_compute_dtype, why_no_gpu
from dandap.model.hub import confirm_remote_code
from dandap.model.load import load_base, load_config, pick_attention
from dandap.model.memory import empty_model
from dandap.recipe import Recipe, load_recipe
from dandap.training.trainer import split_step

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DEMO = load_recipe("demo", {})
IDS = torch.arange(3, 43)[None]


@pytest.fixture(scope="module")
def adapted():
    return add_adapter(load_base(DEMO, CPU), DEMO)


def with_random_adapter(recipe, dequantized):
    """Return the recipe's base with an adapter, with random instead of zero lora_B."""
    model = add_adapter(load_base(recipe, CPU, None, dequantized), recipe)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05, generator=generator)
    return model


def four_bit_layers(model):
    return [module for module in model.modules() if isinstance(module, Linear4bit)]


def test_the_base_is_nf4_and_the_adapter_float32(adapted):
    layers = four_bit_layers(adapted)
    assert {layer.weight.quant_type for layer in layers} == {"nf4"}
    assert all(layer.weight.quant_state.nested for layer in layers)
    assert not isinstance(adapted.get_output_embeddings(), Linear4bit)
    assert not four_bit_layers(load_base(load_recipe("demo", {"quantization": "none"}), CPU))
    trained = {name: p.dtype for name, p in adapted.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    assert set(trained.values()) == {torch.float32}


def test_weights_are_never_repacked(adapted):
    """bitsandbytes repacks on AVX512-BF16 CPUs in eval mode, which corrupts later gradients."""
    switch = "support_avx512bf16_for_cpu"
    assert hasattr(Linear4bit(64, 64), switch), "bitsandbytes has renamed it"
    layers = four_bit_layers(adapted)
    before = [layer.weight.data.clone() for layer in layers]
    with torch.no_grad():
        adapted.eval()(IDS)
    assert not any(getattr(layer, switch) for layer in layers)
    assert all(map(torch.equal, before, [layer.weight.data for layer in layers]))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma2"])
def test_a_dequantized_base_is_bitwise_equal(bases, family):
    """Compare loss and gradients in training and eval mode, with biases and fused layers."""
    results = []
    for dequantized in (False, True):
        model = with_random_adapter(Recipe(model=str(bases / family)), dequantized)
        assert bool(four_bit_layers(model)) != dequantized
        for training in (True, False):
            model.train(training).zero_grad()
            loss = model(input_ids=IDS, labels=IDS).loss
            loss.backward()
            results.append([loss, *(p.grad for p in model.parameters() if p.requires_grad)])
    for got, expected in zip(results[2:], results[:2], strict=True):
        assert len(got) == len(expected) > 1
        assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize(
    ("family", "targets"),
    [(f, Recipe().lora_target_modules) for f in ("llama", "qwen2", "gpt2", "gemma3")]
    + [("gemma3", ["q_proj", "lm_head"])],  # head tied to the embeddings
)
def test_a_merged_or_cast_adapter_gives_the_same_logits(bases, family, targets):
    """A cast adapter gives equal bits: here the base has the adapter's dtype."""
    logits, recipe = {}, Recipe(model=str(bases / family), lora_target_modules=targets)
    for mode in ("as trained", "cast", "merged"):
        model = with_random_adapter(recipe, dequantized=True).eval()
        before = model.get_input_embeddings().weight.clone()
        if mode != "as trained":
            model = for_answering(model, merged=mode == "merged")
        assert isinstance(model, PeftModel) == (mode != "merged")
        assert torch.equal(model.get_input_embeddings().weight, before)
        with torch.no_grad():
            logits[mode] = model(IDS).logits
    assert torch.equal(logits["cast"], logits["as trained"])
    torch.testing.assert_close(logits["merged"], logits["as trained"], rtol=1e-4, atol=1e-4)


def test_adapter_weights_depend_on_the_seed():
    weights = []
    for seed in (1, 1, 2):
        model = add_adapter(load_base(DEMO, CPU), DEMO.model_copy(update={"seed": seed}))
        weights.append(next(p for name, p in model.named_parameters() if "lora_A" in name))
    assert [torch.equal(weights[0], other) for other in weights[1:]] == [True, False]


def test_fused_projections_train_with_nf4(tmp_path):
    """GPT-2's Conv1D is replaced by Linear4bit with a transposed weight."""
    config = GPT2Config(n_layer=1, n_embd=64, n_head=2, vocab_size=50)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    recipe = Recipe(model=str(tmp_path), lora_target_modules=["q_proj"])
    model = add_adapter(load_base(recipe, CPU), recipe)
    model(input_ids=IDS, labels=IDS).loss.backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all("c_attn.lora_" in name and grad is not None for name, grad in trained.items())


def test_an_unknown_target_module_is_rejected():
    with pytest.raises(InputError, match="got 'query', expected .* down_proj"):
        resolve_targets(empty_model(load_config(DEMO)), ["query"])


def test_the_compute_dtype_is_native_to_the_device(monkeypatch):
    """A T4 reports bfloat16 as supported unless emulation is excluded."""
    large, small = (AutoConfig.for_model("llama"), load_config(DEMO))
    for supported, config, expected in (
        (True, large, torch.bfloat16),
        (True, small, torch.float32),
        (False, large, torch.float32),
    ):
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, name, lambda supported=supported: supported)
        assert pick_compute_dtype(Recipe(), CPU, config) is expected
    for is_native, expected in ((False, torch.float16), (True, torch.bfloat16)):
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, native=is_native: native or including_emulation,
        )
        assert pick_compute_dtype(Recipe(), CUDA) is expected


def test_soft_capping_needs_eager_attention():
    assert pick_attention(Recipe(), AutoConfig.for_model("gemma2")) == "eager"
    assert pick_attention(Recipe(), AutoConfig.for_model("llama")) == "sdpa"


def test_why_no_gpu_names_the_cause(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "CPU-only build" in why_no_gpu()
    # Kaggle's P100 is available, and every kernel fails with "no kernel image".
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: "sm_75 sm_90a compute_120".split())
    assert "sm_75 or newer; this GPU is sm_60" in why_no_gpu()


def test_unusable_model_folders_are_rejected(tmp_path):
    config = load_config(DEMO).to_json_string()
    for files, message in (
        ({"config.json": config}, "config.json, tokenizer files and complete .safetensors weights"),
        ({"config.json": "{"}, "cannot be loaded"),
        ({"config.json": config, "pytorch_model.bin": "x"}, "only .bin weights.*save_pretrained"),
    ):
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=message):
            load_base(Recipe(model=str(tmp_path)), CPU)


def test_steps_are_split_into_equal_micro_batches():
    for questions, most, expected in ((16, 100, (16, 1)), (16, 5, (4, 4)), (7, 3, (1, 7))):
        assert split_step(questions, most) == expected
    assert split_step(4, 0) == (1, 4)


def test_remote_code_must_be_allowed_on_the_command_line(capsys):
    """Recipes and downloaded run folders cannot allow it."""
    confirm_remote_code(Recipe(model="owner/name"), on_command_line=False)
    assert capsys.readouterr().out == ""
    recipe = Recipe(model="owner/name", trust_remote_code=True)
    with pytest.raises(InputError, match="add --trust_remote_code true"):
        confirm_remote_code(recipe, on_command_line=False)
    confirm_remote_code(recipe, on_command_line=True)
    assert "running code from owner/name" in capsys.readouterr().out
