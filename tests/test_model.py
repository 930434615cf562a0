"""Loading and adapters, on tiny models made here."""

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from dandap.training.plain import split_step
from peft import PeftModel
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig

from dandap.data.checks import answer_share
from dandap.data.encode import Example
from dandap.data.rows import Row
from dandap.errors import InputError
from dandap.model import device as model_module
from dandap.model.adapter import add_adapter, for_answering, resolve_targets
from dandap.model.device import pick_compute_dtype, pick_device, why_no_gpu
from dandap.model.hub import confirm_remote_code
from dandap.model.load import load_base, load_config, load_tokenizer, pick_attention
from dandap.model.memory import empty_model
from dandap.recipe import Recipe, load_recipe

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
DEMO = load_recipe("demo", {})
# EEVE-10.8B's shape: 10,804,924,416 parameters.
EEVE = LlamaConfig(
    vocab_size=40960,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=48,
    num_attention_heads=32,
    num_key_value_heads=8,
)


@pytest.fixture(scope="module")
def adapted():
    return add_adapter(load_base(DEMO, CPU), DEMO)


def test_the_base_is_nf4_with_double_quantisation(adapted):
    layers = [module for module in adapted.modules() if isinstance(module, Linear4bit)]
    assert layers
    assert {layer.weight.quant_type for layer in layers} == {"nf4"}
    assert all(layer.weight.quant_state.nested for layer in layers)
    assert not isinstance(adapted.get_output_embeddings(), Linear4bit)


def test_weights_are_never_repacked(adapted):
    """bitsandbytes repacks 4-bit weights on AVX512-BF16 CPUs in eval mode.

    That corrupts later gradients.
    """
    assert hasattr(Linear4bit(64, 64), "support_avx512bf16_for_cpu"), (
        "bitsandbytes renamed the switch"
    )
    layers = [module for module in adapted.modules() if isinstance(module, Linear4bit)]
    before = [layer.weight.data.clone() for layer in layers]
    with torch.no_grad():
        adapted.eval()(torch.arange(20)[None])
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    assert all(
        torch.equal(old, layer.weight.data) for old, layer in zip(before, layers, strict=True)
    )


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma2"])
def test_a_dequantized_base_gives_the_same_bits(bases, family):
    """Compare loss and gradients, in training and in eval mode, with biases and fused layers."""
    recipe, ids = Recipe(model=str(bases / family)), torch.arange(3, 43)[None]
    results = []
    for dequantized in (False, True):
        model = add_adapter(load_base(recipe, CPU, None, dequantized), recipe)
        layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
        assert bool(layers) != dequantized
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.05, generator=generator)
        for training in (True, False):
            model.train(training)
            model.zero_grad()
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
            results.append((loss.item(), gradients))
    for (loss, gradients), (other, others) in zip(results[:2], results[2:], strict=True):
        assert loss == other
        assert all(torch.equal(gradients[name], others[name]) for name in gradients)


def test_fused_projections_under_nf4(tmp_path):
    """GPT-2's Conv1D becomes Linear4bit, whose weights are the other way round."""
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=64, n_head=2, vocab_size=50)).save_pretrained(
        tmp_path
    )
    recipe = Recipe(model=str(tmp_path), lora_target_modules=["q_proj"])
    model = add_adapter(load_base(recipe, CPU), recipe)
    loss = model(input_ids=torch.arange(10)[None], labels=torch.arange(10)[None]).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_only_the_adapter_trains_in_float32(adapted):
    trained = {name: p.dtype for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert set(trained.values()) == {torch.float32}


def test_the_adapter_follows_the_seed():
    def first(seed):
        recipe = load_recipe("demo", {"seed": seed})
        return next(
            p
            for n, p in add_adapter(load_base(recipe, CPU), recipe).named_parameters()
            if "lora_A" in n
        )

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_sixteen_bit_bases_load_too():
    recipe = load_recipe("demo", {"quantization": "none"})
    assert not any(isinstance(module, Linear4bit) for module in load_base(recipe, CPU).modules())


def test_fused_projections_are_found():
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=50))
    assert resolve_targets(gpt2, ["q_proj", "v_proj"]) == ["c_attn"]
    adapter = add_adapter(gpt2, Recipe(lora_target_modules=["q_proj"], quantization="none"))
    assert isinstance(adapter, PeftModel)
    assert any("c_attn.lora_A" in name for name, _ in adapter.named_parameters())


def test_targets_that_do_not_exist_name_those_that_do(adapted):
    with pytest.raises(InputError, match="got 'query'; this model's linear modules are down_proj"):
        resolve_targets(empty_model(load_config(DEMO)), ["query"])


def test_the_answers_share_is_the_largest_articles():
    def example(article, prompt, answer):
        return Example(Row("1", article, "?"), [5] * prompt, [6] * answer)

    few, many = [example("a", 100, 5)] * 2, [example("b", 90, 10), example("b", 80, 20)]
    assert answer_share(few) == 10 / 110
    assert answer_share(few + many) == 30 / 120


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma3"])
def test_a_merged_adapter_says_the_same(bases, family):
    """And one that is cast to the base's precision, which here is its own, does to the bit."""
    recipe, ids = Recipe(model=str(bases / family)), torch.arange(3, 43)[None]
    logits = {}
    for way in ("as trained", "cast", "merged"):
        model = add_adapter(load_base(recipe, CPU, None, dequantized=True), recipe).eval()
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.05, generator=generator)
        if way != "as trained":
            model = for_answering(model, merged=way == "merged")
        assert isinstance(model, PeftModel) == (way != "merged")
        with torch.no_grad():
            logits[way] = model(ids).logits
    assert torch.equal(logits["cast"], logits["as trained"])
    torch.testing.assert_close(logits["merged"], logits["as trained"], rtol=1e-4, atol=1e-4)


def test_compute_dtype(monkeypatch):
    """A T4 emulates bfloat16 and says it is supported, unless asked not to count emulation."""
    assert pick_compute_dtype(Recipe(), CPU) is torch.float32
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    assert pick_compute_dtype(Recipe(), CUDA) is torch.float16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert pick_compute_dtype(Recipe(), CUDA) is torch.bfloat16
    assert pick_compute_dtype(Recipe(compute_dtype="float16"), CUDA) is torch.float16


def test_soft_capping_needs_eager_attention():
    assert pick_attention(Recipe(), AutoConfig.for_model("gemma2")) == "eager"
    assert pick_attention(Recipe(), EEVE) == "sdpa"


def test_why_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "CPU-only build" in why_no_gpu()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(model_module.shutil, "which", lambda name: None)
    assert "no NVIDIA driver" in why_no_gpu()
    monkeypatch.setattr(model_module.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert "no usable GPU although a driver" in why_no_gpu()


def test_several_gpus_without_a_launcher_use_one(monkeypatch, capsys):
    monkeypatch.setattr(model_module, "why_no_gpu", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    assert pick_device() == torch.device("cuda", 0)
    assert "2 GPUs visible, using the first" in capsys.readouterr().out


def test_a_gpu_too_old_for_this_torch_is_named(monkeypatch):
    """Kaggle's P100 is visible, and every kernel fails with "no kernel image"."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 0))
    monkeypatch.setattr(
        torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90", "sm_120", "compute_120"]
    )
    assert "sm_75 on and this one is sm_60" in why_no_gpu()


def broken_folder(tmp_path, name):
    (tmp_path / "config.json").write_bytes(
        b"{" if name == "config" else (load_config(DEMO).to_json_string()).encode()
    )
    if name == "bin":
        (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    return str(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bin", "only .bin weights, which are pickles.*save_pretrained"),
        ("config", "cannot be loaded"),
        ("nothing", "needs config.json, tokenizer files and .safetensors weights"),
    ],
)
def test_folders_that_cannot_be_loaded(tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        load_base(Recipe(model=broken_folder(tmp_path, name)), CPU)


def test_a_hub_name_without_network_is_explained():
    with pytest.raises(InputError, match="'nobody/nothing' cannot be loaded.*Without network"):
        load_tokenizer(Recipe(model="nobody/nothing"))


@pytest.mark.parametrize(
    ("questions", "most", "expected"),
    [(16, 100, (16, 1)), (16, 5, (4, 4)), (7, 3, (1, 7)), (4, 0, (1, 4))],
)
def test_a_step_is_split_exactly(questions, most, expected):
    assert split_step(questions, most) == expected


def test_code_of_a_repository_runs_only_if_the_command_says_so(capsys):
    """It does not run because a recipe or somebody's run folder asks for it.

    It is told before anything is loaded.
    """
    recipe = Recipe(model="owner/name", trust_remote_code=True)
    with pytest.raises(InputError, match=r"Read that code, then add --trust_remote_code true"):
        confirm_remote_code(recipe, on_command_line=False)
    confirm_remote_code(recipe, on_command_line=True)
    assert "code from owner/name runs on this machine" in capsys.readouterr().out
    confirm_remote_code(Recipe(model="owner/name"), on_command_line=False)
    assert capsys.readouterr().out == ""


def test_a_merged_adapter_on_a_tied_head_leaves_the_embeddings_alone(bases):
    recipe = Recipe(model=str(bases / "gemma3"), lora_target_modules=["q_proj", "lm_head"])
    ids, logits = torch.arange(3, 43)[None], []
    for merged in (False, True):
        model = add_adapter(load_base(recipe, CPU, None, dequantized=True), recipe).eval()
        before = model.get_input_embeddings().weight.clone()
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.05, generator=generator)
        model = for_answering(model, merged)
        assert torch.equal(model.get_input_embeddings().weight, before)
        with torch.no_grad():
            logits.append(model(ids).logits)
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)
