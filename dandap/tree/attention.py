"""Attention of token trees: by FlexAttention, of branches over their tree, by ordinary kernels.

FlexAttention is tried on the machine before it is used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

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
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from dandap.errors import InputError, first_line
from dandap.recipe import Recipe
from dandap.tree.masks import BLOCK, tree_masks
from dandap.tree.token_tree import collate, grow

NAME = "tree"  # how transformers knows our attention function


def why_no_flex(
    recipe: Recipe, config: PretrainedConfig, device: torch.device, dtype: torch.dtype
) -> str | None:
    """Return the reason why training cannot use FlexAttention here, or None if it can.

    InputError is raised if there is a reason and the recipe insists on FlexAttention.
    """
    reason = _obstacle(recipe, config.get_text_config(), device, dtype)
    if reason and recipe.attention == "flex":
        raise InputError(f"attention=flex cannot be used: {reason}. Use --attention auto.")
    return reason


def _obstacle(
    recipe: Recipe, config: PretrainedConfig, device: torch.device, dtype: torch.dtype
) -> str | None:
    if recipe.attention not in ("auto", "flex"):
        return f"attention={recipe.attention} was asked for"
    if not recipe.read_once:
        return "read_once is off"
    if device.type != "cuda":
        return "flex has no backward on CPU"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"flex needs a GPU from sm_80 on, this one is sm_{major}{minor}"
    if getattr(config, "attention_dropout", 0) or getattr(config, "attn_pdrop", 0):
        return "flex knows no attention dropout"
    try:
        probe(config, device, dtype)
    # A compiler may raise anything, and all of it means: not on this machine.
    except Exception as error:  # noqa: BLE001
        return f"flex failed its probe: {first_line(error)}"
    return None


class Branched(NamedTuple):
    """Holds keys, or values, that branches' new tokens see; a row's branches share its trunk."""

    trunk: torch.Tensor  # (rows, kv_heads, length, size): the tree that was read
    own: torch.Tensor  # (rows, kv_heads, branches, steps, size): what each branch has said


def use_tree_attention(model: PreTrainedModel) -> None:
    """Let a model's attention take BlockMasks and branches; `tree_attention` tells them apart."""
    model.set_attn_implementation(NAME)


@contextmanager
def branching(model: PreTrainedModel) -> Iterator[None]:
    """Let the model's attention take branches for as long as this lasts."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    before = base.config._attn_implementation
    use_tree_attention(base)
    try:
        yield
    finally:
        base.set_attn_implementation(before)


def probe(config: PretrainedConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Run FlexAttention forward and backward at the model's heads and head size.

    An AssertionError is raised where it differs from the plain formula; what the compiler raises
    is passed on.
    """
    heads, kv_heads = (
        config.num_attention_heads,
        getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
    )
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    softcap = getattr(config, "attn_logit_softcapping", None)
    # Four questions on an article of 291 tokens: three blocks of 128, full, partial and empty ones.
    batch = collate(
        [grow([([*range(9, 300), q], [1, 2]) for q in range(4)])],
        pad_id=0,
        multiple_of=BLOCK,
        device=device,
    )
    length = batch["input_ids"].shape[1]
    generator = torch.Generator(device).manual_seed(0)
    shapes = [(1, heads, length, size), (1, kv_heads, length, size), (1, kv_heads, length, size)]
    inputs = [
        torch.randn(s, device=device, dtype=dtype, generator=generator).requires_grad_()
        for s in shapes
    ]
    plain_config, module, results = PretrainedConfig(), torch.nn.Module(), []
    module.num_key_value_groups = heads // kv_heads
    for flex in (True, False):
        mask = tree_masks(plain_config, batch, dtype, flex)
        output = tree_attention(module, *inputs, mask, scaling=size**-0.5, softcap=softcap)[0]
        results.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    # Wide, because the dtype may have 16 bits.
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=0.1, atol=0.1)


def tree_attention(
    module, query, key, value, attention_mask, *, softcap=None, **options
) -> tuple[torch.Tensor, None]:
    """Send BlockMasks to FlexAttention, branches to their own attention, the rest to SDPA or eager.

    This is transformers' attention interface: query (batch, heads, length, size), key and value
    with their own number of heads -> (batch, length, heads, size), and no weights.
    """
    scaling = options.get("scaling")
    if isinstance(key, Branched):
        return _branch_attention(query, key, value, attention_mask, scaling, softcap), None
    if isinstance(attention_mask, BlockMask):
        output = _compiled()(
            query,
            key,
            value,
            _capped(softcap),
            attention_mask,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return output.transpose(1, 2).contiguous(), None
    # SDPA has no soft-capping; of transformers' eager functions Gemma 2's has.
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
    """Attend with one new token per branch to its row's trunk and to what the branch has said.

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
    are one matrix product for all branches and all query heads of a key head, so the trunk is read
    once and nothing of it is copied. Own columns mean other keys for every branch, so they are a
    product per branch; `c` and `f` are the new tokens, which see themselves. The weights are cut
    where the scores were joined, and each half is applied to its own values.
    """
    rows, heads, width, size = query.shape
    kv_heads, length = key.trunk.shape[1:3]
    scaling = size**-0.5 if scaling is None else scaling
    # The fused kernel caps no scores and takes no grouped queries.
    if query.device.type == "cpu" and not softcap and heads == kv_heads:
        return _branch_attention_on_cpu(query, key, value, mask, scaling)
    # r rows, k key heads, g query heads of a key head, w branches, t own steps, d head size.
    grouped = (query * scaling).view(rows, kv_heads, heads // kv_heads, width, size)
    to_trunk = (grouped.flatten(2, 3) @ key.trunk.transpose(-1, -2)).view(
        *grouped.shape[:4], length
    )
    to_own = torch.einsum("rkgwd,rkwtd->rkgwt", grouped, key.own)
    # In float32, as transformers' eager attention computes its softmax.
    scores = torch.cat([to_trunk, to_own], dim=-1).float()
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    weights = (scores + mask[:, :, None]).softmax(-1).to(query.dtype)
    from_trunk = (weights[..., :length].flatten(2, 3) @ value.trunk).view(grouped.shape)
    from_own = torch.einsum("rkgwt,rkwtd->rkgwd", weights[..., length:], value.own)
    return (from_trunk + from_own).view(query.shape).transpose(1, 2).contiguous()


def _branch_attention_on_cpu(
    query: torch.Tensor, key: Branched, value: Branched, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Return the same as `_branch_attention` by torch's fused CPU kernel, which keeps no scores.

        trunk   fused kernel     from_trunk   its softmax's mean of values    sums      log sum exp
        own     two einsums      from_own     its softmax's mean of values    own_sums  log sum exp

        share  = exp(own_sums) / (exp(sums) + exp(own_sums)) = sigmoid(own_sums - sums)
        result = (1 - share) * from_trunk + share * from_own

    That is one softmax over both: each part's own softmax lacks only the other part's exponentials
    in its denominator.
    """
    length = key.trunk.shape[2]
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    from_trunk, sums = fused(
        query, key.trunk, value.trunk, attn_mask=mask[..., :length], scale=scaling
    )
    scores = torch.einsum("rhwd,rhwtd->rhwt", query * scaling, key.own) + mask[..., length:]
    own_sums = scores.logsumexp(-1)
    from_own = torch.einsum("rhwt,rhwtd->rhwd", (scores - own_sums[..., None]).exp(), value.own)
    # What of the softmax falls on the branch's own tokens. A sigmoid, because the exponentials of
    # the sums themselves could overflow.
    share = torch.sigmoid(own_sums - sums)[..., None]
    return (from_trunk + share * (from_own - from_trunk)).transpose(1, 2).contiguous()


@cache
def _compiled():
    # dynamic: otherwise it is compiled again for each new length, 14.7 s against 1.4 ms.
    return torch.compile(flex_attention, dynamic=True)


@cache
def _capped(softcap: float | None):
    """Return Gemma 2's soft-capping of scores as FlexAttention takes it, or None without.

    Cached: another function object would have FlexAttention compiled again.
    """
    if softcap is None:
        return None

    def score_mod(score, row, head, query, key):
        return softcap * torch.tanh(score / softcap)

    return score_mod


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, eager_mask)  # additive, which both ordinary kernels take
