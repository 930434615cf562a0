"""Attention masks of token trees, dense or as FlexAttention's BlockMask.

Query q sees key k if k <= q <= subtree_end[k] (dandap/tree/token_tree.py).
"""

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import PretrainedConfig

from dandap.errors import InputError

BLOCK = 128  # FlexAttention's block size
# On CUDA, SDPA copies a mask in every layer unless its row length is a multiple of this: 0.7 of
# 10.6 GB for a 0.5B base.
ALIGNED = 16
# Layers without attention: mixers (dandap/tree/mixers.py), and layers that treat tokens separately.
MIXERS = {"linear_attention", "conv", "mamba", "hybrid", "mlp", "moe"}
Masks = torch.Tensor | BlockMask | dict[str, torch.Tensor | BlockMask]


def sliding_windows(config: PretrainedConfig) -> dict[str, int | None]:
    """Return the window of each kind of attention layer, in positions, or None for no window.

    The only kind is "" if all layers share one mask. Raise InputError for layers without masks.
    """
    config = config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - MIXERS
    window = getattr(config, "sliding_window", None)
    if unknown := sorted(kinds - {"full_attention", "sliding_attention", "attention"}):
        raise InputError(f"{config.model_type} has {', '.join(unknown)} layers")
    if "sliding_attention" in kinds:
        return {"full_attention": None, "sliding_attention": window}
    # The window may be unused: all layers are full, or (Qwen2) it is off.
    if kinds or not getattr(config, "use_sliding_window", True):
        window = None
    return {"": window}


def tree_masks(
    config: PretrainedConfig, batch: dict[str, torch.Tensor], dtype: torch.dtype, flex: bool
) -> Masks:
    """Return the `attention_mask` of a collated batch: a mask, or a dict by kind of layer."""
    make = _block_mask if flex else _dense_mask
    masks = {
        kind: make(batch["subtree_end"], batch["position_ids"], window, dtype)
        for kind, window in sliding_windows(config).items()
    }
    return masks.get("", masks)


def _dense_mask(
    subtree_end: torch.Tensor, position_ids: torch.Tensor, window: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """Return the additive mask, (rows, 1, length, length): 0 where a query sees a key."""
    index = torch.arange(subtree_end.shape[1], device=subtree_end.device)
    # (rows, query, key)
    sees = (index <= index[:, None]) & (index[:, None] <= subtree_end[:, None, :])
    # The window counts positions, not indices, because other branches are in between.
    if window is not None:
        sees &= position_ids[:, :, None] - position_ids[:, None, :] < window
    return additive(sees, dtype)


def additive(sees: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert booleans (rows, queries, keys) to an additive mask (rows, 1, queries, keys)."""
    # Finite, as in transformers: with -inf a row that sees nothing is NaN.
    mask = torch.full(sees.shape, torch.finfo(dtype).min, dtype=dtype, device=sees.device)
    return mask.masked_fill_(sees, 0)[:, None]


def _block_mask(
    subtree_end: torch.Tensor, position_ids: torch.Tensor, window: int | None, dtype: torch.dtype
) -> BlockMask:
    """Return the mask for FlexAttention, which skips blocks of keys that no query sees.

    The blocks follow from each key's range [k, subtree_end[k]], without a (length, length) mask.
    `length` must be a multiple of BLOCK. Blocks beyond a window are masked, not skipped.
    """

    def sees(row, head, query, key):
        below = (key <= query) & (query <= subtree_end[row, key])
        if window is None:
            return below
        return below & (position_ids[row, query] - position_ids[row, key] < window)

    rows, length = subtree_end.shape
    key = torch.arange(length, device=subtree_end.device)
    first = key[::BLOCK, None]  # (blocks, 1): first and last query of a block
    last = first + BLOCK - 1
    end = subtree_end[:, None]  # (rows, 1, length)
    by_block = (rows, len(first), len(first), BLOCK)  # (rows, query blocks, key blocks, keys)
    # A block is seen if any key's range [key, end] intersects its queries [first, last], and full
    # (needs no mask inside) if every key's range covers them.
    seen = (torch.maximum(key, first) <= torch.minimum(end, last)).view(by_block).any(-1)
    full = ((key <= first) & (last <= end)).view(by_block).all(-1)
    if window is not None:
        # The farthest pair of query and key must also be within the window.
        positions = position_ids.view(rows, -1, BLOCK)
        full &= positions.amax(-1)[:, :, None] - positions.amin(-1)[:, None] < window
    # Per row and query block: the number of key blocks, and their indices, relevant ones first.
    kinds = []
    for kind in (seen & ~full, full):
        count, order = kind.sum(-1), kind.int().argsort(dim=-1, descending=True, stable=True)
        kinds.append((count[:, None].int(), order[:, None].int()))  # (rows, 1 for all heads, ...)
    partial_blocks, full_blocks = kinds
    mask = BlockMask.from_kv_blocks(*partial_blocks, *full_blocks, BLOCK, sees, (length, length))
    # GPT-2 and Granite 4 read ndim, which a BlockMask lacks.
    mask.ndim = len(mask.shape)  # type: ignore[attr-defined]
    return mask
