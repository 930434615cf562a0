"""Create, load and merge LoRA adapters."""

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dandap.errors import InputError, first_line
from dandap.files import MANIFEST, find_damage
from dandap.model.hub import loading
from dandap.recipe import Recipe

# Projections that some architectures fuse.
FUSED = {
    **dict.fromkeys(
        ("q_proj", "k_proj", "v_proj"), ("c_attn", "qkv_proj", "query_key_value", "Wqkv")
    ),
    **dict.fromkeys(("gate_proj", "up_proj"), ("gate_up_proj", "c_fc", "dense_h_to_4h")),
    "o_proj": ("attn.c_proj", "attention.dense"),
    "down_proj": ("mlp.c_proj", "dense_4h_to_h"),
}
TOWER = re.compile("vision|visual|audio|image|multi_modal|mm_projector")
# PEFT rejects these modules of Mamba layers, whose fused kernels bypass them.
MAMBA = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
MAMBA_MODULES = ("out_proj", "conv1d")


def add_adapter(model: PreTrainedModel, recipe: Recipe) -> PeftModel:
    """Return the model with a new float32 LoRA adapter on the recipe's target modules."""
    # LoRA initializes A at random.
    torch.manual_seed(recipe.seed)
    config = LoraConfig(
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,  # type: ignore[arg-type]  # any number works
        lora_dropout=recipe.lora_dropout,
        target_modules=resolve_targets(model, recipe.lora_target_modules),
        exclude_modules=unadapted(model, recipe.lora_target_modules == "all-linear"),
        task_type="CAUSAL_LM",
        # GPT-2's Conv1D stores its weight as (in, out), the transpose of Linear's.
        fan_in_fan_out=any(type(module) is Conv1D for module in model.modules()),
    )
    # float32, also on 16-bit bases: a bf16 adapter answers differently after reloading.
    return skip_input_casts(get_peft_model(model, config, autocast_adapter_dtype=True))


def skip_input_casts(model: PeftModel) -> PeftModel:
    """Skip PEFT's casts of inputs to float32, which autocast reverts; bit-equal."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False  # type: ignore[assignment]
    return model


def unadapted(model: PreTrainedModel, everywhere: bool) -> str | None:
    """Return a pattern of linear layers that get no adapter, or None.

    Excludes vision and audio towers, which text does not use. With all-linear (`everywhere`), also
    excludes expert routers and the Mamba modules that PEFT rejects.
    """
    patterns = set()
    modules = dict(model.named_modules())
    for name, module in modules.items():
        *parents, leaf = name.split(".")
        if not isinstance(module, (torch.nn.Linear, Conv1D)):
            continue
        if tower := next(filter(TOWER.search, parents), None):
            patterns.add(rf"(.*\.)?{tower}\..*")
        elif everywhere and (
            "router" in type(module).__name__.lower()
            or (leaf in ("gate", "router") and hasattr(modules[".".join(parents)], "experts"))
            or (model.config.model_type in MAMBA and leaf in MAMBA_MODULES)
        ):
            patterns.add(rf"(.*\.)?{'.'.join([*parents[-1:], leaf])}")
    return "|".join(sorted(patterns)) or None


def resolve_targets(model: PreTrainedModel, wanted: str | list[str]) -> str | list[str]:
    """Return the wanted LoRA targets, or the fused modules that replace them."""
    if wanted == "all-linear":
        return wanted
    wanted = [wanted] if isinstance(wanted, str) else wanted
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D))
    ]

    def present(target: str) -> bool:
        # As PEFT matches: "proj" is not "q_proj".
        return any(f".{name}".endswith(f".{target}") for name in linear)

    found = []
    for target in wanted:
        candidates = [name for name in (target, *FUSED.get(target, ())) if present(name)]
        if not candidates:
            known = sorted({name.rsplit(".", 1)[-1] for name in linear})
            raise InputError(
                f"lora_target_modules: got {target!r}, expected all-linear or some of "
                f"{', '.join(known)}."
            )
        found.append(candidates[0])
    return list(dict.fromkeys(found))  # each fused module once, in the order of the recipe


def load_weights(model: PeftModel, checkpoint: Path) -> None:
    """Load a checkpoint's adapter into a model."""
    check_tensors(model, checkpoint)
    set_peft_model_state_dict(model, load_file(checkpoint / "adapter_model.safetensors"))


def verify_adapter(folder: Path) -> None:
    """Reject an adapter that does not match its manifest; print a note if it has none."""
    if not (folder / MANIFEST).is_file():
        print(f"{folder} has no {MANIFEST}: it cannot be verified")
    elif reason := find_damage(folder):
        raise InputError(
            f"the adapter {folder} cannot be used: {reason}. Restore it from a copy, or train "
            f"again; if the change was intended, remove {folder / MANIFEST}."
        )


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Return the base with a run's adapter; raise InputError if it is damaged or does not fit."""
    verify_adapter(folder)
    with loading(str(folder), "adapter"), warnings.catch_warnings():
        # check_tensors rejects missing keys.
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        try:
            adapted = skip_input_casts(PeftModel.from_pretrained(model, str(folder)).eval())
            check_tensors(adapted, folder)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"adapter_config.json is not PEFT's ({first_line(error)})") from error
    return adapted


def for_answering(model: PeftModel, merged: bool) -> PreTrainedModel | PeftModel:
    """Return the model in the form with the fewest kernels per token.

    `merged` adds the adapter to 16- or 32-bit weights: 2,500 instead of 5,000 kernels per token
    of a 10.8B model. Otherwise the adapter is cast once to the base's dtype.
    """
    if merged:
        _untie_adapted_head(model)
        return model.merge_and_unload()
    base: Any = model.get_base_model()
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(base.dtype)
    return model


def _untie_adapted_head(model: PeftModel) -> None:
    """Untie an LM head that has an adapter, or merging would change the embeddings."""
    base: Any = model.get_base_model()
    head, shared = base.get_output_embeddings(), base.get_input_embeddings().weight
    layer: Any = head.get_base_layer() if isinstance(head, BaseTunerLayer) else None
    if layer is not None and layer.weight is shared:
        layer.weight = torch.nn.Parameter(shared.clone(), requires_grad=False)
        # PEFT changes only the outer config of multimodal models.
        config = base.config
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False


def check_tensors(model: PeftModel, folder: Path) -> None:
    """Reject an adapter if its tensor names or shapes differ from the model's; PEFT only warns."""
    # Without the embeddings, which PEFT adds if the LM head has an adapter.
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    ours = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        theirs = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    names = sorted(ours.keys() | theirs.keys())
    if different := [name for name in names if ours.get(name) != theirs.get(name)]:
        name = different[0]
        raise InputError(
            f"the adapter {folder} does not fit: got {theirs.get(name, 'nothing')} for {name}, "
            f"expected {ours.get(name, 'nothing')} ({len(different)} of {len(names)} tensors "
            "differ). Use its base, lora_r and lora_target_modules, or start a new run."
        )
