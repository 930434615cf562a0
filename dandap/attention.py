"""FlexAttention for token trees: tried on the machine before it is used, the ordinary kernels for everything else."""

from functools import cache

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from dandap.errors import InputError
from dandap.recipe import Recipe
from dandap.token_tree import BLOCK, collate, grow, tree_masks

NAME = "tree_flex"  # how transformers knows our attention function


def why_no_flex(recipe: Recipe, config: PretrainedConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why training cannot use FlexAttention here, or None if it can; raises if the recipe insists on it."""
    reason = _obstacle(recipe, config.get_text_config(), device, dtype)
    if reason and recipe.attention == "flex":
        raise InputError(f"attention=flex cannot be used: {reason}. Use --attention auto.")
    return reason


def _obstacle(recipe: Recipe, config: PretrainedConfig, device: torch.device, dtype: torch.dtype) -> str | None:
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
    except Exception as error:  # noqa: BLE001  a compiler may raise anything, and all of it means: not on this machine
        return f"flex failed its probe: {type(error).__name__}: {str(error).splitlines()[0][:120]}"
    return None


def use_flex(model: PreTrainedModel) -> None:
    """Let a model's attention take BlockMasks; other masks go to the ordinary kernels as before."""
    model.set_attn_implementation(NAME)


def probe(config: PretrainedConfig, device: torch.device, dtype: torch.dtype) -> None:
    """A forward and backward at the model's heads and head size, compared with the plain formula; raises if it fails."""
    heads, kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    softcap = getattr(config, "attn_logit_softcapping", None)
    batch = collate([grow([([*range(9, 300), q], [1, 2]) for q in range(4)])], pad_id=0, multiple_of=BLOCK)
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    length = batch["input_ids"].shape[1]
    generator = torch.Generator(device).manual_seed(0)
    shapes = [(1, heads, length, size), (1, kv_heads, length, size), (1, kv_heads, length, size)]
    inputs = [torch.randn(s, device=device, dtype=dtype, generator=generator).requires_grad_() for s in shapes]
    plain_config, module, results = PretrainedConfig(), torch.nn.Module(), []
    module.num_key_value_groups = heads // kv_heads
    for flex in (True, False):
        mask = tree_masks(plain_config, batch, dtype, flex)
        output = tree_attention(module, *inputs, mask, scaling=size**-0.5, softcap=softcap)[0]
        results.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=0.1, atol=0.1)


def tree_attention(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, softcap=None, **kwargs
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: a BlockMask goes to FlexAttention, any other mask (generation) to SDPA or eager.

    query (batch, heads, length, size), key and value with their own number of heads -> (batch, length, heads, size).
    """
    if isinstance(attention_mask, BlockMask):
        output = _compiled()(
            query, key, value, _capped(softcap), attention_mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
        return output.transpose(1, 2).contiguous(), None
    plain = eager_attention_forward if softcap else sdpa_attention_forward
    more = {"softcap": softcap} if softcap else {}
    return plain(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **more, **kwargs)[0], None


@cache
def _compiled():
    # dynamic: otherwise it is compiled again for each new length, 14.7 s against 1.4 ms.
    return torch.compile(flex_attention, dynamic=True)


@cache
def _capped(softcap: float | None):
    """Gemma 2's soft-capping of scores, None without."""
    if softcap is None:
        return None

    def score_mod(score, row, head, query, key):
        return softcap * torch.tanh(score / softcap)

    return score_mod


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, eager_mask)  # additive, which both ordinary kernels take
