"""Attention masks of token trees: dense, or as FlexAttention's blocks.

Both follow one rule (dandap/tree/token_tree.py): query q sees key k where k <= q <= subtree_end[k].
"""

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import PretrainedConfig

from dandap.errors import InputError

BLOCK = 128  # FlexAttention's block of queries and of keys
# On CUDA SDPA needs a mask's rows to be multiples of this, or it makes a padded copy in every layer
# for the backward: 0.7 of 10.6 GB for a base of 0.5 B parameters.
ALIGNED = 16
Masks = torch.Tensor | BlockMask | dict[str, torch.Tensor | BlockMask]


def layers_without_masks(config: PretrainedConfig) -> str | None:
    """Return which layers ignore attention masks, so that branches would read each other."""
    config = config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    unknown = sorted(kinds - {"full_attention", "sliding_attention"})
    return f"{config.model_type} has {', '.join(unknown)} layers" if unknown else None


def sliding_windows(config: PretrainedConfig) -> dict[str, int | None]:
    """Return the window of each kind of attention layers, in positions; None for no window.

    The kind is "" where all layers take the same mask, as one tensor instead of a dict. InputError
    is raised for layers without a mask.
    """
    config = config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if reason := layers_without_masks(config):
        raise InputError(reason)
    if "sliding_attention" in kinds:
        return {"full_attention": None, "sliding_attention": window}
    # A config may name a window that no layer uses: all layers are full, or (Qwen2) it is off.
    if kinds or not getattr(config, "use_sliding_window", True):
        window = None
    return {"": window}


def tree_masks(
    config: PretrainedConfig, batch: dict[str, torch.Tensor], dtype: torch.dtype, flex: bool
) -> Masks:
    """Return the model's `attention_mask` for a collated batch: one, or a dict by kind of layer."""
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
    # The window counts positions, not indices: in a row, other branches are in between.
    if window is not None:
        sees &= position_ids[:, :, None] - position_ids[:, None, :] < window
    return additive(sees, dtype)


def additive(sees: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return (rows, queries, keys) booleans as an additive mask, (rows, 1, queries, keys)."""
    # The smallest finite number, as in transformers' masks: -inf makes a row that sees nothing NaN.
    mask = torch.full(sees.shape, torch.finfo(dtype).min, dtype=dtype, device=sees.device)
    return mask.masked_fill_(sees, 0)[:, None]


def _block_mask(
    subtree_end: torch.Tensor, position_ids: torch.Tensor, window: int | None, dtype: torch.dtype
) -> BlockMask:
    """Return the same rule for FlexAttention, which skips blocks of keys that no query sees.

    The blocks follow from each key's range, [k, subtree_end[k]]; no (length, length) mask is made.
    `length` must be a multiple of BLOCK. Blocks beyond a window are kept and masked inside.
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
    # A block is seen if any key's range, [key, end], meets the block's queries, [first, last]; it
    # is full, and needs no mask inside, if every key's range covers all of them.
    seen = (torch.maximum(key, first) <= torch.minimum(end, last)).view(by_block).any(-1)
    full = ((key <= first) & (last <= end)).view(by_block).all(-1)
    if window is not None:
        # The farthest pair of a block's queries and keys must be within the window, too.
        positions = position_ids.view(rows, -1, BLOCK)
        full &= positions.amax(-1)[:, :, None] - positions.amin(-1)[:, None] < window
    # FlexAttention needs, per row and block of queries, the number of blocks of keys and their
    # indices, the relevant ones first.
    kinds = []
    for kind in (seen & ~full, full):
        count, order = kind.sum(-1), kind.int().argsort(dim=-1, descending=True, stable=True)
        kinds.append((count[:, None].int(), order[:, None].int()))  # (rows, 1 for all heads, ...)
    partial_blocks, full_blocks = kinds
    mask = BlockMask.from_kv_blocks(*partial_blocks, *full_blocks, BLOCK, sees, (length, length))
    # GPT-2 and Granite 4 ask every mask for its dimensions; a BlockMask has a shape and no ndim.
    mask.ndim = len(mask.shape)  # type: ignore[attr-defined]
    return mask
