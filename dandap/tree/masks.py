"""Attention masks of token trees: dense, or as FlexAttention's blocks.

Both follow one rule (dandap/tree/token_tree.py): query q sees key k where k <= q <= subtree_end[k].
"""

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import PretrainedConfig

from dandap.errors import InputError

BLOCK = 128  # FlexAttention's block of queries and of keys
# On CUDA SDPA wants a mask's rows to be multiples of so many numbers, and else makes a padded copy
# in every layer, which is kept for the backward: 0.7 of 10.6 GB of a base of 0.5 B parameters.
ALIGNED = 16
Masks = torch.Tensor | BlockMask | dict[str, torch.Tensor | BlockMask]


def sliding_windows(config: PretrainedConfig) -> dict[str, int | None]:
    """Return the kinds of attention layers and the window of each, in positions; None is no window.

    "" stands for a model all of whose layers take the same mask, which it wants as one tensor
    instead of a dict. InputError is raised for layers that take no mask.
    """
    config = config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    # Recurrent and linear layers run over the row from left to right whatever a mask says: the
    # second branch would read the first.
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        raise InputError(
            f"{config.model_type} has layers of {', '.join(sorted(unknown))}, which cannot branch; "
            "in training use --read_once false."
        )
    if "sliding_attention" in kinds:
        return {"full_attention": None, "sliding_attention": window}
    # A config may name a window that no layer uses: all of its layers are full, or (Qwen2) it says
    # that the window is off.
    if kinds or not getattr(config, "use_sliding_window", True):
        window = None
    return {"": window}


def tree_masks(
    config: PretrainedConfig, batch: dict[str, torch.Tensor], dtype: torch.dtype, flex: bool
) -> Masks:
    """Return what the model takes as `attention_mask` for a collated batch.

    That is one mask, or a dict of one per kind of layer where layers differ.
    """
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
    # The window counts positions, not indices: in a row, other branches stand in between.
    if window is not None:
        sees &= position_ids[:, :, None] - position_ids[:, None, :] < window
    return additive(sees, dtype)


def additive(sees: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return (rows, queries, keys) booleans as the mask that attention adds to its scores.

    The mask is (rows, 1, queries, keys), the same for all heads.
    """
    # The smallest finite number, as in transformers' masks: -inf makes a row that sees nothing NaN.
    mask = torch.full(sees.shape, torch.finfo(dtype).min, dtype=dtype, device=sees.device)
    return mask.masked_fill_(sees, 0)[:, None]


def _block_mask(
    subtree_end: torch.Tensor, position_ids: torch.Tensor, window: int | None, dtype: torch.dtype
) -> BlockMask:
    """Return the same rule for FlexAttention, which skips blocks of keys that no query sees.

    Which blocks are seen follows from each key's reach, [k, subtree_end[k]]: the (length, length)
    mask is never made. `length` must be a multiple of BLOCK. Blocks beyond a window are kept, and
    masked inside.
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
    # A block is seen if any key's reach, [key, end], meets the block's queries, [first, last]; it
    # is full if every key's reach holds all of them, and then needs no mask inside.
    seen = (torch.maximum(key, first) <= torch.minimum(end, last)).view(by_block).any(-1)
    full = ((key <= first) & (last <= end)).view(by_block).all(-1)
    if window is not None:
        # The farthest pair of a block's queries and keys must be within the window, too.
        positions = position_ids.view(rows, -1, BLOCK)
        full &= positions.amax(-1)[:, :, None] - positions.amin(-1)[:, None] < window
    # FlexAttention wants, per row and block of queries, how many blocks of keys there are and
    # their numbers, those that count first; what is behind them is not read.
    kinds = []
    for kind in (seen & ~full, full):
        count, order = kind.sum(-1), kind.int().argsort(dim=-1, descending=True, stable=True)
        kinds.append((count[:, None].int(), order[:, None].int()))  # (rows, 1 for all heads, ...)
    partial_blocks, full_blocks = kinds
    mask = BlockMask.from_kv_blocks(*partial_blocks, *full_blocks, BLOCK, sees, (length, length))
    # GPT-2 and hybrid architectures (Granite 4) ask every mask whether it is padding's, of two
    # dimensions; a BlockMask has a shape and no ndim.
    mask.ndim = len(mask.shape)
    return mask
