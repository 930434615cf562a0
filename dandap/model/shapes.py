"""The architectures of the recipes' bases, for planning and benchmarks without a network.

Sizes decide memory and speed; weights do not. `pytest -m hub` holds every entry against the hub.
"""

from transformers import AutoConfig, PretrainedConfig

from dandap.errors import InputError, nearest

COMMON = {
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 4096,
}
SOLAR = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 48,
    **COMMON,
}
LLAMA_3_8B = {
    **SOLAR,
    "num_hidden_layers": 32,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}
GEMMA_2_9B = {
    "model_type": "gemma2",
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "vocab_size": 256000,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
GEMMA_3_270M = {
    "model_type": "gemma3_text",
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "vocab_size": 262144,
    "sliding_window": 512,
    "max_position_embeddings": 32768,
}
DOT_1_3B = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 64,
    "vocab_size": 50304,
    "max_position_embeddings": 4096,
}
QWEN3 = {"model_type": "qwen3", "num_hidden_layers": 36, "vocab_size": 151936, **COMMON}
SHAPES = {
    "yanolja/EEVE-Korean-Instruct-10.8B-v1.0": {**SOLAR, "vocab_size": 40960},
    "yanolja/KoSOLAR-10.7B-v0.2": {**SOLAR, "vocab_size": 40960},
    "NousResearch/Nous-Hermes-2-SOLAR-10.7B": {**SOLAR, "vocab_size": 32002},
    "sdhan/SD_SOLAR_10.7B_v1.0": {**SOLAR, "vocab_size": 32000},
    "rtzr/ko-gemma-2-9b-it": GEMMA_2_9B,
    "beomi/llama-2-ko-7b": {
        **SOLAR,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "vocab_size": 46336,
        "max_position_embeddings": 2048,
    },
    "kakaocorp/kanana-1.5-8b-instruct-2505": {**LLAMA_3_8B, "vocab_size": 128259},
    "K-intelligence/Midm-2.0-Mini-Instruct": {
        **SOLAR,
        "hidden_size": 1792,
        "intermediate_size": 4608,
        "vocab_size": 131392,
        "tie_word_embeddings": True,
    },
    "skt/A.X-4.0-Light": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 102400,
    },
    # The bases of the dialogue and wallpaper systems. POLAR is SOLAR with 64 layers; 42dot's
    # queries are not grouped.
    "x2bee/POLAR-14B-v0.2": {**SOLAR, "num_hidden_layers": 64, "vocab_size": 32000},
    "x2bee/POLAR-14B-v0.5": {**SOLAR, "num_hidden_layers": 64, "vocab_size": 32000},
    "beomi/Solar-Ko-Recovery-11B": {**SOLAR, "vocab_size": 64000},
    "chihoonlee10/T3Q-ko-solar-dpo-v7.0": {**SOLAR, "vocab_size": 32000},
    "42dot/42dot_LLM-SFT-1.3B": DOT_1_3B,
    "maywell/Synatra-42dot-1.3B": {**DOT_1_3B, "max_position_embeddings": 8192},
    "skt/kogpt2-base-v2": {
        "model_type": "gpt2",
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_positions": 1024,
        "vocab_size": 51200,
    },
    "Qwen/Qwen3-4B-Instruct-2507": {
        **QWEN3,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "tie_word_embeddings": True,
    },
    # Small enough for a laptop.
    "google/gemma-3-270m": GEMMA_3_270M,
    "google/gemma-3-270m-it": GEMMA_3_270M,
    # Of the hybrid architecture, without its Mamba layers and experts.
    "ibm-granite/granite-4.0-350m": {
        "model_type": "granitemoehybrid",
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "shared_intermediate_size": 2048,
        "num_hidden_layers": 28,
        "layer_types": ["full_attention"] * 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "mamba_d_head": 16,  # transformers checks it against the hidden size, unused or not
        "position_embedding_type": "rope",
        "vocab_size": 100352,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-0.5B-Instruct": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen3-0.6B": {
        **QWEN3,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen3-8B": {**QWEN3, "hidden_size": 4096, "intermediate_size": 12288},
}
# The short names are for benchmarks' command lines.
NAMES = {
    "EEVE-10.8B": SHAPES["yanolja/EEVE-Korean-Instruct-10.8B-v1.0"],
    "Gemma-2-9B": GEMMA_2_9B,
    "Llama-3-8B": LLAMA_3_8B,
}
# Small enough for a CPU, with the same parts: grouped queries, normed queries, sliding window and
# soft-capping.
TINY = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "head_dim": 32,
    "vocab_size": 4096,
}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2}
NAMES |= {f"tiny-{kind}": {"model_type": kind, **TINY} for kind in ("llama", "qwen3", "gemma2")}
NAMES["tiny-gemma3"] = {"model_type": "gemma3_text", **TINY, "sliding_window": 64}


def make_config(shape: dict) -> PretrainedConfig:
    """Return transformers' config of an entry of SHAPES or NAMES."""
    return AutoConfig.for_model(**shape)


def named_config(name: str) -> PretrainedConfig:
    """Return the config of a shape by its short name; InputError lists the names."""
    if name not in NAMES:
        raise InputError(
            f"got {name!r}; expected a model folder or one of "
            f"{', '.join(NAMES)}.{nearest(name, NAMES)}"
        )
    return make_config(NAMES[name])
