"""Hold model families in sizes that a test can afford.

Their random weights are large enough that attention and answers matter.
"""

from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "max_position_embeddings": 256,
}
HEADS = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "head_dim": 16,
}
WINDOW = 8  # shorter than the articles
FAMILIES = {
    "llama": LlamaConfig(**SIZES, **HEADS),
    "qwen2": Qwen2Config(**SIZES, **{name: HEADS[name] for name in HEADS if name != "head_dim"}),
    "qwen3": Qwen3Config(**SIZES, **HEADS),
    "gpt2": GPT2Config(
        vocab_size=96, n_embd=64, n_head=4, n_layer=2, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0
    ),
    "gemma2": Gemma2Config(
        **SIZES,
        **HEADS,
        sliding_window=WINDOW,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=2.0,
        tie_word_embeddings=False,  # tied, a random one says the prompt's last token for ever
    ),
    # As Gemma 3 270M: one key head, two kinds of layers with a RoPE base each, tied embeddings.
    "gemma3": Gemma3TextConfig(
        **SIZES,
        **(HEADS | {"num_key_value_heads": 1}),
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=16,
        tie_word_embeddings=True,
    ),
    "mistral": MistralConfig(
        **SIZES, **(HEADS | {"num_key_value_heads": 4}), sliding_window=WINDOW
    ),  # a key head per head
}
for config in FAMILIES.values():
    config.initializer_range = 0.2
