"""Load the base model in NF4 or 16 bits and its tokenizer, and check their limits."""

import warnings
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from huggingface_hub import try_to_load_from_cache
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from dandap.data.encode import Example
from dandap.errors import InputError
from dandap.model.device import pick_compute_dtype
from dandap.model.hub import check_hub, loading
from dandap.recipe import Recipe

# Raised by peft.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")


def load_tokenizer(recipe: Recipe, folder: Path | None = None) -> PreTrainedTokenizerBase:
    """Return the base's tokenizer, or the one in a run's adapter folder, with a pad token."""
    source = str(folder or recipe.model)
    if not folder and not Path(source).is_dir():
        check_hub()
    options = {} if folder else {"revision": recipe.revision}
    with loading(source, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=recipe.trust_remote_code, **options
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        # A token other than eos, because labels may mask pad tokens.
        before, tokenizer.pad_token = tokenizer.pad_token, filler(tokenizer)
        if before and before != tokenizer.pad_token:
            print(f"pad token {tokenizer.pad_token!r} instead of the stop token {before!r}")
    return tokenizer


def check_base(
    recipe: Recipe, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Reject a base or recipe that cannot work, before weights are loaded.

    Exceeding learned positions (GPT-2) is a device-side assert on CUDA; rotary ones only degrade.
    """
    if saved := getattr(config, "quantization_config", None):
        method = saved["quant_method"] if isinstance(saved, dict) else saved.quant_method
        raise InputError(
            f"{recipe.model} is already quantized ({method}). Use its 16-bit version (without "
            "-FP8, -AWQ, -GPTQ or -bnb-4bit in its name), which is quantized here."
        )
    if (Path(recipe.model) / "adapter_config.json").is_file():
        raise InputError(
            f"{recipe.model} has an adapter (adapter_config.json), which transformers would load "
            "too. Move it to another folder, or merge it first."
        )
    names = config.architectures or []
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES | MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    is_known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    is_causal = is_known and (not names or bool(set(names) & set(known.values())))
    if not is_causal and not recipe.trust_remote_code:
        raise InputError(
            f"{recipe.model} is a {', '.join(names) or config.model_type}, not a causal language "
            "model. Choose a model that generates text, as in the README's table."
        )
    config = config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if positions and recipe.max_length > positions:
        message = f"max_length={recipe.max_length} exceeds the {positions} positions of "
        message += f"{recipe.model}. Use --max_length {positions}."
        if not rope and not hasattr(config, "rope_theta"):
            raise InputError(message)
        print(f"WARNING: {message}")
    for kind in (rope, *(each for each in rope.values() if isinstance(each, dict))):
        # These types rotate all tokens by the longest row of the batch.
        limit = kind.get("original_max_position_embeddings") or positions or recipe.max_length
        if kind.get("rope_type") in ("dynamic", "longrope") and recipe.max_length > limit:
            raise InputError(
                f"max_length={recipe.max_length} exceeds {limit}, above which {recipe.model} "
                f"rotates a batch by its longest prompt. Use --max_length {limit}."
            )
    size = getattr(config, "vocab_size", None)
    if size and tokenizer.vocab_size > size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, but {recipe.model} has "
            f"{size:,} embeddings. Use the base's own tokenizer."
        )
    pad_id: int | None = tokenizer.pad_token_id
    if size and pad_id is not None and pad_id >= size:
        # Added without resizing the embeddings (Llama 2 with [PAD]).
        tokenizer.pad_token = filler(tokenizer)


def filler(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a token to pad with, preferably not eos."""
    return tokenizer.unk_token or tokenizer.bos_token or tokenizer.eos_token


def check_ids(
    examples: list[Example], config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Reject token ids without an embedding, which are a device-side assert on CUDA."""
    size: int = getattr(config.get_text_config(), "vocab_size", 0)
    for example in examples if size else ():
        highest = max(max(example.prompt_ids), max(example.answer_ids, default=0))
        if highest >= size:
            token = tokenizer.convert_ids_to_tokens(highest)
            raise InputError(
                f"question {example.row.id}: the token {token!r} has id {highest}, but the base "
                f"has {size} embeddings. Use the base's own tokenizer."
            )


def load_config(recipe: Recipe) -> PretrainedConfig:
    """Return the base model's config."""
    if not Path(recipe.model).is_dir():
        check_hub()
    with loading(recipe.model, "model"):
        return AutoConfig.from_pretrained(
            recipe.model, revision=recipe.revision, trust_remote_code=recipe.trust_remote_code
        )


def load_base(
    recipe: Recipe,
    device: torch.device,
    config: PretrainedConfig | None = None,
    dequantized: bool = False,
) -> PreTrainedModel:
    """Load the frozen base model on `device` from safetensors, quantized as in the recipe.

    With `dequantized`, NF4 weights are replaced by their dequantized values.
    """
    config = config or load_config(recipe)
    dtype = pick_compute_dtype(recipe, device, config)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",  # Linear4bit's own default is fp4
        bnb_4bit_use_double_quant=recipe.double_quantization,
        bnb_4bit_compute_dtype=dtype,
    )
    load: Any = AutoModelForCausalLM.from_pretrained  # its type lacks output_loading_info
    with loading(recipe.model, "model"):
        model, info = load(
            recipe.model,
            revision=recipe.revision,
            config=config,
            quantization_config=quantization if recipe.quantization == "nf4" else None,
            dtype=dtype,
            device_map={"": device},
            attn_implementation=pick_attention(recipe, config),
            use_safetensors=True,
            trust_remote_code=recipe.trust_remote_code,
            output_loading_info=True,
        )
    for what, found in info.items():
        if names := sorted(map(str, found)):
            raise InputError(
                f"{len(names)} {what.replace('_', ' ')} in the weights of {recipe.model} "
                f"({names[0]}). Download or save the model again."
            )
    experts = [p for name, p in model.named_parameters() if "expert" in name and p.dim() == 3]
    if recipe.quantization == "nf4" and experts:
        size = sum(parameter.numel() * parameter.element_size() for parameter in experts) / 1e9
        print(f"experts stay in {dtype}: {size:.1f} GB, because bitsandbytes cannot quantize them")
    keep_weights_unpacked(model)
    if dequantized:
        dequantize(model)
    # Only the adapter is trained.
    model.requires_grad_(False)
    return model


def dequantize(model: torch.nn.Module, onto: torch.device | None = None) -> None:
    """Replace 4-bit layers with linear layers of dequantized weights, on the device `onto`.

    Without a fused CPU kernel, bitsandbytes dequantizes the weight in every matrix product: a tenth
    of the time to answer one question with a 270M base.
    """
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Linear4bit):
                quantized: Any = layer.weight
                weight = dequantize_4bit(quantized.data, quantized.quant_state)
                plain = torch.nn.Linear(1, 1, bias=False, device="meta")  # a placeholder
                plain.out_features, plain.in_features = weight.shape
                plain.weight = torch.nn.Parameter(weight.to(layer.compute_dtype), False)
                if layer.bias is not None:
                    bias = layer.bias.data.to(layer.compute_dtype)
                    plain.bias = torch.nn.Parameter(bias, False)
                setattr(parent, name, plain.to(onto))


def keep_weights_unpacked(model: torch.nn.Module) -> None:
    """Disable bitsandbytes' repacking on CPUs with AVX512-BF16.

    A forward pass in eval mode repacks the weights, after which gradients are silently wrong.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def decoder_layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    """Return the decoder layers of a text or multimodal model."""
    count = model.config.get_text_config().num_hidden_layers  # type: ignore[operator, union-attr]
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    return next(each for each in lists if len(each) == count)


def pick_attention(recipe: Recipe, config: PretrainedConfig) -> str:
    """Return the attention kernel to load the base with: the recipe's, else sdpa or eager.

    It is eager if the architecture has no sdpa, or soft-caps scores (Gemma 2), which sdpa cannot.
    Training may use flex instead (dandap/tree/attention.py).
    """
    if recipe.attention in ("sdpa", "eager"):
        return recipe.attention
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)  # None: remote code
    has_sdpa = getattr(architecture, "_supports_sdpa", True)
    softcap = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return "eager" if softcap or not has_sdpa else "sdpa"


def report_other_ids(tokenizer: PreTrainedTokenizerBase, recipe: Recipe, texts: list[str]) -> None:
    """Warn if the tokenizer's class splits texts differently than its own tokenizer.json.

    transformers 5 rebuilds some tokenizers with the pre-tokenizer of their class.
    """
    file = Path(recipe.model) / "tokenizer.json"
    if not Path(recipe.model).is_dir():
        revision = recipe.revision or "main"
        file = Path(str(try_to_load_from_cache(recipe.model, file.name, revision=revision)))
    if not file.is_file():
        return
    own = Tokenizer.from_file(str(file))
    own.no_truncation()
    differing = [
        text
        for text in texts
        if own.encode(text, add_special_tokens=False).ids
        != tokenizer(text, add_special_tokens=False).input_ids
    ]
    if differing:
        print(
            f"WARNING: {type(tokenizer).__name__} gives different ids than {file} for "
            f"{len(differing)} of {len(texts)} texts, e.g. {differing[0][:40]!r}. The base was "
            "trained on the file's ids; another transformers version may match them."
        )
