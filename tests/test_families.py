"""Test that each architecture gives the same results on trees, or is read question by question."""

import pytest
import torch
from test_trainer import (
    SGD,
    make_examples,
    make_plan,
    make_recipe,
    plain_gradients,
    relative,
    tree_gradients,
)
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

from dandap.answering.answer import Decoding
from dandap.answering.branch_check import why_no_tree
from dandap.answering.generate import generate_answers
from dandap.answering.tree_decoder import answer_examples
from dandap.model.adapter import add_adapter
from dandap.model.load import load_base
from dandap.training.trainer import make_trainer
from tests.conftest import ROOT

SIZES = {
    **{"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128},
    **{"max_position_embeddings": 256, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    # Dropout is random, and so is the noise of routers.
    **{"attention_dropout": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    **{"hidden_dropout": 0.0, "residual_dropout": 0.0, "router_jitter_noise": 0.0, "dropout": 0.0},
}
MLA = {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8}
MLA |= {"qk_nope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2}
MLA |= {"moe_intermediate_size": 32, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
FEW_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SHARED_EXPERT = FEW_EXPERTS | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1}
SHARED_EXPERT |= {"first_k_dense_replace": 1, "head_dim": 16}
WINDOWS = {"head_dim": 16, "sliding_window": 8}
WINDOWS |= {"layer_types": ["sliding_attention", "full_attention"]}
SMALL_INPUTS = {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 96}
# Options of one architecture beyond SIZES.
BY_TREES = {
    name: {}
    for name in "apertus arcee bitnet cohere cohere2 exaone4 gemma glm glm4 gpt2 gpt_bigcode "
    "gpt_neox granite granitemoe granitemoeshared hyperclovax llama mistral mixtral nanochat "
    "nemotron olmo olmo2 olmo3 "
    "olmoe opt persimmon phi phi3 phimoe qwen2 qwen3 seed_oss smollm3 stablelm "
    "starcoder2".split()
}
BY_TREES |= {
    "gemma2": WINDOWS | {"query_pre_attn_scalar": 16},
    "gemma3_text": WINDOWS | {"query_pre_attn_scalar": 16},
    # The upper half of the layers uses the keys and values of the lower half.
    "gemma4_text": WINDOWS
    | SMALL_INPUTS
    | {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": 2 * WINDOWS["layer_types"],
    },
    "deepseek_v3": MLA,
    "qwen2_moe": FEW_EXPERTS | {"shared_expert_intermediate_size": 32},
    "qwen3_moe": FEW_EXPERTS,
    "axk1": MLA,
    **dict.fromkeys(("exaone_moe", "glm4_moe", "solar_open"), SHARED_EXPERT),
    **{name: {"head_dim": 16} for name in ("ernie4_5", "hunyuan_v1_dense", "ministral3")},
}
HYBRID = {"num_hidden_layers": 4, "head_dim": 16}
DELTA = {"layer_types": ["linear_attention"] * 3 + ["full_attention"], **HYBRID}
DELTA |= {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
DELTA |= {"linear_key_head_dim": 16, "linear_value_head_dim": 16}
MAMBA = {"num_hidden_layers": 4, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16}
MAMBA |= {"mamba_expand": 2, "mamba_n_groups": 1}
# Recurrent and convolutional layers (dandap/tree/mixers.py).
BY_TREES |= {
    "qwen3_5_text": DELTA | {"linear_num_value_heads": 4},
    "qwen3_next": DELTA | FEW_EXPERTS | {"shared_expert_intermediate_size": 32},
    "olmo_hybrid": DELTA,
    "kimi_linear": HYBRID
    | {"layer_types": ["linear_attention"] * 3 + ["full_attention"]}
    | {"q_lora_rank": None, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16}
    | {"v_head_dim": 16, "num_key_value_heads": 4, "num_experts": 4, "num_experts_per_tok": 2}
    | {"moe_intermediate_size": 32},
    "lfm2": {"num_hidden_layers": 4, "layer_types": ["conv", "conv", "full_attention", "conv"]},
    "lfm2_moe": FEW_EXPERTS
    | {"num_hidden_layers": 4, "layer_types": ["conv", "conv", "full_attention", "conv"]}
    | {"num_dense_layers": 2},
    "granitemoehybrid": MAMBA
    | {"layer_types": ["mamba", "mamba", "attention", "mamba"]}
    | {"num_local_experts": 0, "shared_intermediate_size": 96},
    "bamba": MAMBA | {"attn_layer_indices": [2]},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 128},
    "nemotron_h": {"num_hidden_layers": 4, "hybrid_override_pattern": "M-*M"}
    | {"layers_block_type": ["mamba", "mlp", "attention", "mamba"]}
    | {"mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 1},
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1, "expand": 2},
}
# Attention without an interface or by index, other masks, a cache of its own (minimax), Mamba 1,
# whose scan has no initial state, or steps that differ from the whole sequence (zamba2).
SEPARATELY = {
    name: {}
    for name in "bloom codegen gpt_neo gpt_oss gptj jamba jetmoe llama4_text mamba minimax mpt "
    "recurrent_gemma rwkv xglm".split()
}
SEPARATELY |= {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 24},
    "falcon": {"alibi": True},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "mamba"]}
    | {"mamba_d_state": 16, "n_mamba_heads": 8, "mamba_headdim": 16, "mamba_ngroups": 1}
    | {"num_mem_blocks": 1, "attention_head_dim": 32, "adapter_rank": 8},
}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / "data/demo_model")


def tiny_base(kind, options, folder):
    """Save a random model with weights large enough for attention to matter."""
    config = CONFIG_MAPPING[kind](**(SIZES | options))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            is_embedding = any(part in name for part in ("embed", "wte", "word_emb"))
            scale = 0.3 if is_embedding else 1.5 / parameter.shape[-1] ** 0.5
            torch.nn.init.normal_(parameter, 0, scale)
    model.save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options", "branches"),
    [(*each, True) for each in BY_TREES.items()] + [(*each, False) for each in SEPARATELY.items()],
    ids=[*BY_TREES, *(f"{name}-separately" for name in SEPARATELY)],
)
def test_an_architecture_branches_equally_or_is_read_separately(
    tokenizer, tmp_path, kind, options, branches
):
    tiny_base(kind, options, tmp_path / "base")
    recipe = make_recipe(tmp_path / "base", **SGD)
    model = add_adapter(load_base(recipe, torch.device("cpu")), recipe)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05, generator=generator)
    decoding = Decoding([1, 2], pad_id=0, max_new_tokens=6, min_new_tokens=6)
    reason = why_no_tree(model, decoding)
    assert (reason is None) == branches, reason
    if not branches:
        return
    examples = make_examples(articles=2, questions=2)
    answers = dict(answer_examples(model, examples, decoding, 100_000))
    for index, example in enumerate(examples):
        ((_, expected),) = generate_answers(model, [example.prompt_ids], decoding, 1)
        assert answers[index][0].token_ids == expected.token_ids
    trainer = make_trainer(recipe, make_plan(200), tokenizer, examples, model, str(tmp_path), [])
    loss, gradients = plain_gradients(trainer.model, examples)
    ours = tree_gradients(trainer, examples)
    assert ours[0] == pytest.approx(loss, rel=1e-5)
    assert relative(ours[1], gradients) < 1e-4
