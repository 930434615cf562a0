"""Tiny configs of all tested model families.

The initializer range is large, so that attention changes the answers of random models.
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
        tie_word_embeddings=False,  # tied random embeddings repeat the last token forever
    ),
    # Like Gemma 3 270M: one key head, sliding and full layers with separate RoPE bases, tied.
    "gemma3": Gemma3TextConfig(
        **(SMALL | {"num_key_value_heads": 1}),
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=16,
        tie_word_embeddings=True,
    ),
    # No grouped-query attention.
    "mistral": MistralConfig(**(SMALL | {"num_key_value_heads": 4}), sliding_window=WINDOW),
    # Like Granite 4.0 350M: attention in every layer, no experts, and scaled embeddings,
    # attention, residuals and logits. The mamba sizes are unused but validated.
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
# Not in FAMILIES: its loop over experts would slow down every test of a family.
EXPERTS = Qwen3MoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
