"""Attention masks of token trees: dense, or as FlexAttention's blocks."""

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import PretrainedConfig

from dandap.errors import InputError

BLOCK = 128  # FlexAttention's block of queries and of keys
Masks = torch.Tensor | BlockMask | dict[str, torch.Tensor | BlockMask]


def sliding_windows(config: PretrainedConfig) -> dict[str, int | None]:
    """The kinds of attention layers and the window of each; InputError for layers that take no mask.

    "" stands for a model all of whose layers take the same mask, which it wants as one tensor instead of a dict.
    """
    config = config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        raise InputError(
            f"{config.model_type} has layers of {', '.join(sorted(unknown))}, which cannot branch; "
            "in training use --read_once false."
        )
    if "sliding_attention" in kinds:
        return {"full_attention": None, "sliding_attention": window}
    if kinds or not getattr(config, "use_sliding_window", True):
        window = None
    return {"": window}


def tree_masks(
    config: PretrainedConfig, batch: dict[str, torch.Tensor], dtype: torch.dtype, flex: bool
) -> Masks:
    """What the model takes as `attention_mask` for a collated batch: one mask, or a dict where its layers differ."""
    make = _block_mask if flex else _dense_mask
    masks = {
        kind: make(batch["subtree_end"], batch["position_ids"], window, dtype)
        for kind, window in sliding_windows(config).items()
    }
    return masks.get("", masks)


def _dense_mask(
    subtree_end: torch.Tensor, position_ids: torch.Tensor, window: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """Additive mask, (rows, 1, length, length): 0 where a query sees a key. The window counts positions, not indices."""
    index = torch.arange(subtree_end.shape[1], device=subtree_end.device)
    sees = (index <= index[:, None]) & (
        index[:, None] <= subtree_end[:, None, :]
    )  # (rows, query, key)
    if window is not None:
        sees &= position_ids[:, :, None] - position_ids[:, None, :] < window
    return additive(sees, dtype)


def additive(sees: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(rows, queries, keys) booleans as the mask that attention adds to its scores, (rows, 1, queries, keys)."""
    mask = torch.full(sees.shape, torch.finfo(dtype).min, dtype=dtype, device=sees.device)
    return mask.masked_fill_(sees, 0)[:, None]


def _block_mask(
    subtree_end: torch.Tensor, position_ids: torch.Tensor, window: int | None, dtype: torch.dtype
) -> BlockMask:
    """The same rule for FlexAttention, which skips blocks of keys that no query of a block sees.

    Which blocks are seen follows from each key's reach, [k, subtree_end[k]]: the (length, length) mask is never made.
    `length` must be a multiple of BLOCK. Blocks beyond a window are kept, and masked inside.
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
    seen = (torch.maximum(key, first) <= torch.minimum(end, last)).view(by_block).any(-1)
    full = ((key <= first) & (last <= end)).view(by_block).all(-1)
    if window is not None:
        positions = position_ids.view(rows, -1, BLOCK)
        full &= positions.amax(-1)[:, :, None] - positions.amin(-1)[:, None] < window
    kinds = [
        (kind.sum(-1), kind.int().argsort(dim=-1, descending=True, stable=True))
        for kind in (seen & ~full, full)
    ]
    partial_blocks, full_blocks = [
        (count[:, None].int(), order[:, None].int()) for count, order in kinds
    ]
    return BlockMask.from_kv_blocks(*partial_blocks, *full_blocks, BLOCK, sees, (length, length))
