"""Attention for token trees: FlexAttention, attention of branches, and standard kernels.

FlexAttention is probed on the machine before it is used.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from dandap.errors import InputError, first_line
from dandap.recipe import Recipe
from dandap.tree.masks import BLOCK, tree_masks
from dandap.tree.token_tree import collate, grow

NAME = "tree"  # of our function in transformers' attention interface
# FlexAttention's defaults need 153 kB of shared memory forward and 136 kB backward at head size 256
# in 16 bits. These need 53 and 66 kB, and fit the 101 kB of an RTX 3090 or 4090, A10 or L4.
SMALL_TILES = {"fwd_num_stages": 1, "bwd_num_stages": 1}
SMALL_TILES |= dict.fromkeys(("bwd_BLOCK_M1", "bwd_BLOCK_N1", "bwd_BLOCK_M2", "bwd_BLOCK_N2"), 32)
OWN_CHOICE: dict[str, int] = {}
# Kernel options that passed the probe, by head size and dtype.
_chosen_tiles: dict[tuple[int, torch.dtype], dict[str, int]] = {}
# Limit on the relative difference from float32. Rounding to bfloat16 gives at most 0.0046, the
# broken kernels of tests/test_attention.py at least 0.25.
PROBE_LIMIT = 0.02
PROBE_WINDOW = 64  # shorter than the probe's article


def why_no_flex(
    recipe: Recipe, config: PretrainedConfig, device: torch.device, dtype: torch.dtype
) -> str | None:
    """Return why training cannot use FlexAttention, or None if it can.

    Raise InputError if it cannot and the recipe requires it.
    """
    config = config.get_text_config()
    on_gpu = device.type == "cuda"
    major, minor = torch.cuda.get_device_capability(device) if on_gpu else (0, 0)
    dropout = getattr(config, "attention_dropout", 0) or getattr(config, "attn_pdrop", 0)
    # The mapping lacks models with remote code; the probe and the branch check decide.
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    reason = None
    if recipe.attention not in ("auto", "flex"):
        reason = f"attention={recipe.attention}"
    elif not recipe.read_once:
        reason = "read_once is off"
    elif not on_gpu:
        reason = "flex has no backward on CPU"
    elif major < 8:
        reason = f"flex needs at least sm_80, this GPU is sm_{major}{minor}"
    elif dropout:
        reason = "flex has no attention dropout"
    elif not getattr(architecture, "_supports_flex_attn", True):
        reason = f"{config.model_type} has no flex attention"
    elif isinstance(sizes_of(config, "head_dim"), list):
        reason = "the flex probe supports one head size, but layers differ"
    for tiles in () if reason else tiles_to_try(config, device, dtype):
        _chosen_tiles[head_size(config), dtype] = tiles
        try:
            probe(config, device, dtype)
            return None
        # A compiler may raise anything.
        except Exception as error:  # noqa: BLE001
            reason = f"flex failed its probe: {first_line(error)}"
    if recipe.attention == "flex":
        raise InputError(f"attention=flex is not available: {reason}. Use --attention auto.")
    return reason


def tiles_to_try(
    config: PretrainedConfig, device: torch.device, dtype: torch.dtype
) -> list[dict[str, int]]:
    """Return the kernel options that may fit the GPU, fastest first."""
    properties: Any = torch.cuda.get_device_properties(device)  # torch's stub lacks this one
    shared = properties.shared_memory_per_block_optin
    wide = head_size(config) * dtype.itemsize > 256  # bytes of a head's key: above 128 x 16 bits
    # Failed compilations are slow.
    return [SMALL_TILES] if wide and shared < 160_000 else [OWN_CHOICE, SMALL_TILES]


def sizes_of(config: PretrainedConfig, name: str) -> Any:
    """Return a size in a config, a list if the layers differ (Gemma 4), or None."""
    try:
        return getattr(config, name, None)
    except RuntimeError:  # transformers: ambiguous
        return [getattr(layer, name, None) for layer in config.per_layer_config]


def largest(config: PretrainedConfig, name: str) -> int | None:
    """Return a size in a config, the largest one if the layers differ, or None."""
    sizes = sizes_of(config, name)
    return max(filter(None, sizes), default=None) if isinstance(sizes, list) else sizes


def head_size(config: PretrainedConfig) -> int:
    """Return the size of a head's query, key or value, the largest one if the layers differ."""
    heads = largest(config, "num_attention_heads") or 1
    return largest(config, "head_dim") or config.hidden_size // heads


class Branched(NamedTuple):
    """Keys or values for the new tokens of branches; the branches of a row share its trunk."""

    trunk: torch.Tensor  # (rows, kv_heads, length, size): the tree of prompts
    own: torch.Tensor  # (rows, kv_heads, branches, steps, size): each branch's own tokens


def use_tree_attention(model: Any) -> None:
    """Use `tree_attention` in a model."""
    model.set_attn_implementation(NAME)


@contextmanager
def branching(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Use `tree_attention` inside this context."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    before = base.config._attn_implementation
    use_tree_attention(base)
    latent = [module for module in base.modules() if hasattr(module, "expand_kv")]
    for module in latent:
        module.expand_kv = partial(_expand, module.expand_kv)
    try:
        yield
    finally:
        base.set_attn_implementation(before)
        for module in latent:
            del module.expand_kv


def _expand(expand: Callable, latent, rotary):
    """Expand the cached latents of multi-head latent attention (DeepSeek V2) to keys and values."""
    if not isinstance(latent, Branched):
        return expand(latent, rotary)
    own = expand(latent.own.flatten(2, 3), rotary.own.flatten(2, 3))
    own = (states.unflatten(2, latent.own.shape[2:4]) for states in own)
    return tuple(map(Branched, expand(latent.trunk, rotary.trunk), own))


def probe(config: PretrainedConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Run FlexAttention forward and backward with the model's heads, masks and soft cap.

    Raise AssertionError if output or gradients differ from the float32 reference.
    """
    config = copy.deepcopy(config)
    if getattr(config, "sliding_window", None):
        config.sliding_window = PROBE_WINDOW
    # Four questions on an article of 291 tokens: full, partial and empty blocks of 128.
    batch = collate(
        [grow([([*range(9, 300), q], [1, 2]) for q in range(4)])],
        pad_id=0,
        multiple_of=BLOCK,
        device=device,
    )
    inputs = _probe_inputs(config, batch["input_ids"].shape[1], device, dtype)
    flex: Any
    flex, plain = (tree_masks(config, batch, torch.float32, flex=flex) for flex in (True, False))
    plain_masks = plain if isinstance(plain, dict) else {"": plain}
    for kind, plain_mask in plain_masks.items():
        got = _output_and_gradients(config, inputs, flex[kind] if kind else flex)
        exact = [tensor.detach().float().requires_grad_() for tensor in inputs]
        expected = _output_and_gradients(config, exact, plain_mask)
        for name, ours, theirs in zip(("output", "dq", "dk", "dv"), got, expected, strict=True):
            difference = ((ours.float() - theirs).norm() / theirs.norm()).item()
            # Not `>`: a NaN must fail.
            if not difference <= PROBE_LIMIT:
                where = f"{name} of {kind or 'attention'}"
                raise AssertionError(f"{where} is off by {difference:.3f} of its norm")


def _probe_inputs(
    config: PretrainedConfig, length: int, device: torch.device, dtype: torch.dtype
) -> list[torch.Tensor]:
    """Return random query, key and value, (1, heads, length, size), that require gradients."""
    heads, size = config.num_attention_heads, head_size(config)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    generator = torch.Generator(device).manual_seed(0)
    inputs = [
        torch.randn(1, count, length, size, device=device, generator=generator)
        for count in (heads, kv_heads, kv_heads)
    ]
    # Scores as large as the cap, so that a lost cap is detected.
    inputs[0] *= getattr(config, "attn_logit_softcapping", None) or 1
    return [tensor.to(dtype).requires_grad_() for tensor in inputs]


def _output_and_gradients(
    config: PretrainedConfig, inputs: list[torch.Tensor], mask: Any
) -> list[torch.Tensor]:
    """Return the output, and the gradients of its squared norm for query, key and value."""
    module: Any = torch.nn.Module()
    module.num_key_value_groups = inputs[0].shape[1] // inputs[1].shape[1]
    softcap = getattr(config, "attn_logit_softcapping", None)
    scaling = head_size(config) ** -0.5
    query, key, value = inputs
    output = tree_attention(module, query, key, value, mask, scaling=scaling, softcap=softcap)[0]
    gradients = torch.autograd.grad(output.float().square().sum(), inputs)
    return [output.detach(), *gradients]


def tree_attention(
    module, query, key, value, attention_mask, *, softcap=None, **options
) -> tuple[torch.Tensor, None]:
    """Dispatch to FlexAttention (BlockMasks), to branch attention, or to SDPA or eager.

    transformers' attention interface: query (batch, heads, length, size), key and value with
    kv_heads -> (batch, length, heads, size), and no weights.
    """
    scaling = options.get("scaling")
    if isinstance(key, Branched):
        return _branch_attention(query, key, value, attention_mask, scaling, softcap), None
    if isinstance(attention_mask, BlockMask):
        # Inside a compiled layer, flex_attention is compiled with it.
        kernel = flex_attention if torch.compiler.is_compiling() else _compiled()
        output: Any = kernel(
            query,
            key,
            value,
            _capped(softcap, query.device),
            attention_mask,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
            kernel_options=_chosen_tiles.get((query.shape[-1], query.dtype)),
        )
        return output.transpose(1, 2).contiguous(), None
    # Gemma 2's eager function has soft-capping, SDPA does not.
    plain = eager_attention_forward if softcap else sdpa_attention_forward
    if softcap:
        options["softcap"] = softcap
    return plain(module, query, key, value, attention_mask, **options)[0], None


def _branch_attention(
    query: torch.Tensor,
    key: Branched,
    value: Branched,
    mask: torch.Tensor,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """Attend with one new token per branch to its row's trunk and to the branch's own tokens.

        row 0      article | q 1 | q 2            branch 0 (under q 1)   own 0: a b c
                   `----- trunk -----'            branch 1 (under q 2)   own 1: d e f
        row 1      another tree                   its branches           their own

        scores and mask of row 0:

                     columns of the trunk         columns of own steps
                     article   q 1    q 2         step 0  1  2
        branch 0       x        x      -            a     b  c
        branch 1       x        -      x            d     e  f
                     `-- query @ trunk --'        `- query . own, of its branch -'
                                `------ one softmax over both ------'

    query is (rows, heads, branches, size), mask (rows, 1, branches, length + steps). Trunk scores
    are one matrix product for all branches and query heads of a key head, without a copy of the
    trunk. Own columns have different keys per branch and need a product per branch; `c` and `f` are
    the new tokens, which see themselves.
    """
    rows, heads, width, size = query.shape
    kv_heads, length = key.trunk.shape[1:3]
    scaling = size**-0.5 if scaling is None else scaling
    # The fused kernel needs a key head per query head and values of the same size.
    is_plain = not softcap and heads == kv_heads and size == value.trunk.shape[-1]
    if query.device.type == "cpu" and is_plain:
        return _branch_attention_on_cpu(query, key, value, mask, scaling)
    # r rows, k key heads, g query heads of a key head, w branches, t own steps, d head size.
    grouped = (query * scaling).view(rows, kv_heads, heads // kv_heads, width, size)
    to_trunk = (grouped.flatten(2, 3) @ key.trunk.transpose(-1, -2)).view(
        *grouped.shape[:4], length
    )
    to_own = torch.einsum("rkgwd,rkwtd->rkgwt", grouped, key.own)
    scores = torch.cat([to_trunk, to_own], dim=-1)
    if softcap:
        scores = softcap * torch.tanh(scores.float() / softcap)
    # The softmax accumulates in float32; autocast would copy its input.
    with torch.autocast(query.device.type, enabled=False):
        weights = (scores + mask[:, :, None]).softmax(-1).to(query.dtype)
    # Flatten before splitting, to avoid a copy.
    from_trunk = (weights.flatten(2, 3)[..., :length] @ value.trunk).view(*grouped.shape[:4], -1)
    from_own = torch.einsum("rkgwt,rkwtd->rkgwd", weights[..., length:], value.own)
    return (from_trunk + from_own).view(rows, heads, width, -1).transpose(1, 2).contiguous()


def _branch_attention_on_cpu(
    query: torch.Tensor, key: Branched, value: Branched, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Compute `_branch_attention` with torch's fused CPU kernel, which stores no scores.

        trunk   fused kernel     from_trunk   its softmax's mean of values    sums      log sum exp
        own     two einsums      from_own     its softmax's mean of values    own_sums  log sum exp

        share  = exp(own_sums) / (exp(sums) + exp(own_sums)) = sigmoid(own_sums - sums)
        result = (1 - share) * from_trunk + share * from_own

    This equals one softmax over both parts.
    """
    length = key.trunk.shape[2]
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    from_trunk, sums = fused(
        query, key.trunk, value.trunk, attn_mask=mask[..., :length], scale=scaling
    )
    scores = torch.einsum("rhwd,rhwtd->rhwt", query * scaling, key.own) + mask[..., length:]
    own_sums = scores.logsumexp(-1)
    from_own = torch.einsum("rhwt,rhwtd->rhwd", (scores - own_sums[..., None]).exp(), value.own)
    # The softmax weight of own tokens, as a sigmoid because exp(sums) may overflow.
    share = torch.sigmoid(own_sums - sums)[..., None]
    # logsumexp returns float32 under autocast.
    result = (from_trunk + share * (from_own - from_trunk)).to(query.dtype)
    return result.transpose(1, 2).contiguous()


@cache
def _compiled():
    # dynamic: else it recompiles for each length, 14.7 s instead of 1.4 ms. fullgraph: after a
    # graph break the unfused formula runs silently (35 GB of scores at 8,192 tokens). Heads, masks
    # and gradients compile separately, and exceed torch's default limit of 8.
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


@cache
def _capped(softcap: float | None, device: torch.device):
    """Return Gemma 2's soft-capping as a score_mod, or None.

    Cached, because a new function object recompiles FlexAttention.
    """
    if softcap is None:
        return None
    # A tensor: with dynamic=True a Python float in a closure breaks the graph.
    cap = torch.tensor(softcap, device=device)

    def score_mod(score, row, head, query, key):
        return cap * torch.tanh(score / cap)

    return score_mod


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, eager_mask)  # additive, for SDPA and eager
