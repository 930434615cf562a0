"""Model families in sizes that a test can afford.

Their random weights are large enough that attention and answers matter.
"""

from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteMoeHybridConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
}
SMALL = {**SIZES, "head_dim": 16}
WINDOW = 8  # shorter than the articles
FAMILIES = {
    "llama": LlamaConfig(**SMALL),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SMALL),
    "gpt2": GPT2Config(
        vocab_size=96,
        n_embd=64,
        n_head=4,
        n_layer=2,
        attn_pdrop=0,
        resid_pdrop=0,
        embd_pdrop=0,
        initializer_range=0.2,
    ),
    "gemma2": Gemma2Config(
        **SMALL,
        sliding_window=WINDOW,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=2.0,
        tie_word_embeddings=False,  # tied, a random one repeats the prompt's last token for ever
    ),
    # As Gemma 3 270M: one key head, two kinds of layers with a RoPE base each, tied embeddings.
    "gemma3": Gemma3TextConfig(
        **(SMALL | {"num_key_value_heads": 1}),
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=16,
        tie_word_embeddings=True,
    ),
    # A key head for each head.
    "mistral": MistralConfig(**(SMALL | {"num_key_value_heads": 4}), sliding_window=WINDOW),
    # As Granite 4.0 350M: every layer attends, none has experts, and embeddings, attention, each
    # layer's addition and the logits are scaled. Its mamba numbers only have to agree.
    "granite": GraniteMoeHybridConfig(
        **SIZES,
        shared_intermediate_size=128,
        layer_types=["full_attention"] * 2,
        num_local_experts=0,
        num_experts_per_tok=0,
        mamba_n_heads=8,
        mamba_d_head=16,
        position_embedding_type="rope",
        embedding_multiplier=12,
        attention_multiplier=1 / 16,
        residual_multiplier=0.26,
        logits_scaling=4,
        tie_word_embeddings=False,
    ),
    # A recurrent layer, and gated attention with partial rotary embeddings.
    "qwen3_5": Qwen3_5TextConfig(
        **(SMALL | {"initializer_range": 0.1}),
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        tie_word_embeddings=False,
    ),
}
# Not among the families, whose every test would take it through a loop over experts.
EXPERTS = Qwen3MoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
