"""Sequences that share beginnings -> one tree of tokens, laid out depth-first, and the attention masks that go with it.

            [BOS] article ...          article, once
                     |-- question 1 -- answer 1
                     |-- question 2 -- answer 2

    index          0  1  2 | 3  4 | 5  6  7
    position_ids   0  1  2 | 3  4 | 3  4  5        depth in the tree
    subtree_end    7  7  7 | 4  4 | 7  7  7        last index below this token

    query q sees key k   <=>   k <= q <= subtree_end[k]        (q lies in k's subtree)

A token's hidden state then is what it would be in a sequence of its own: it sees its ancestors, at their positions.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import PretrainedConfig

from dandap.errors import InputError

BLOCK = 128  # FlexAttention's block of queries and of keys
Masks = torch.Tensor | BlockMask | dict[str, torch.Tensor | BlockMask]


@dataclass(frozen=True)
class TokenTree:
    """Tokens in depth-first order; branches stand in the order in which their sequences came."""

    input_ids: list[int]
    position_ids: list[int]
    subtree_end: list[int]
    prompt_end: list[int]  # per sequence the index of its last prompt token, which predicts the first answer token
    targets: list[tuple[int, int]]  # (index that predicts, token predicted); equal answers repeat their pairs

    def __len__(self) -> int:
        return len(self.input_ids)


def grow(sequences: Iterable[tuple[Sequence[int], Sequence[int]]]) -> TokenTree:
    """The tree of (prompt_ids, answer_ids) pairs; prompts may not be empty, answers may.

    An answer's last token is predicted and predicts nothing, so it is a target and no part of the tree. Time and memory
    are linear in the tokens given.
    """
    children: list[dict[int, int]] = [{}]  # node -> {token: node below}; node 0 stands above every first token
    paths: list[tuple[list[int], Sequence[int]]] = []  # the nodes that predict the answer's tokens, and the answer
    for prompt_ids, answer_ids in sequences:
        if not prompt_ids:
            raise ValueError("got an empty prompt; expected at least one token, which predicts the answer's first.")
        node, path = 0, []
        for token in chain(prompt_ids, answer_ids[:-1]):
            below = children[node]
            node = below.get(token, 0)
            if not node:
                node = below[token] = len(children)
                children.append({})
            path.append(node)
        paths.append((path[len(prompt_ids) - 1 :], answer_ids))
    input_ids, position_ids, subtree_end, index_of = _lay_out(children)
    return TokenTree(
        input_ids,
        position_ids,
        subtree_end,
        [index_of[path[0]] for path, _ in paths],
        [(index_of[node], token) for path, answer_ids in paths for node, token in zip(path, answer_ids, strict=False)],
    )


def _lay_out(children: list[dict[int, int]]) -> tuple[list[int], list[int], list[int], list[int]]:
    """(tokens, depths, last index below, node -> index) in depth-first order; a stack, because articles are deep."""
    input_ids, position_ids = [], []
    subtree_end, index_of = [0] * (len(children) - 1), [0] * len(children)
    ancestors: list[int] = []  # indices from the root to the token before
    stack = [(token, node, 0) for token, node in reversed(children[0].items())]
    while stack:
        token, node, depth = stack.pop()
        index = index_of[node] = len(input_ids)
        for finished in ancestors[depth:]:
            subtree_end[finished] = index - 1
        del ancestors[depth:]
        ancestors.append(index)
        input_ids.append(token)
        position_ids.append(depth)
        stack.extend((token, node, depth + 1) for token, node in reversed(children[node].items()))
    for finished in ancestors:
        subtree_end[finished] = len(input_ids) - 1
    return input_ids, position_ids, subtree_end, index_of


class Part(NamedTuple):
    """What of an article goes through the model together."""

    members: list
    tree: TokenTree


def pack(groups: Iterable[list], tree_of: Callable[[list], TokenTree], fits: Callable[[list[Part]], bool]) -> list[list[Part]]:
    """Batches of parts that fit, the largest tree first; a group too large for a batch is split by its members."""

    def split(group: list) -> list[Part]:
        part = Part(group, tree_of(group))
        if len(group) == 1 or fits([part]):
            return [part]
        middle = len(group) // 2
        return split(group[:middle]) + split(group[middle:])

    batches: list[list[Part]] = []
    for part in sorted((part for group in groups for part in split(group)), key=lambda part: -len(part.tree)):
        if batches and fits([*batches[-1], part]):
            batches[-1].append(part)
        else:
            batches.append([part])
    return batches


def collate(
    trees: list[TokenTree], pad_id: int, multiple_of: int = 1, device: torch.device | str = "cpu"
) -> dict[str, torch.Tensor]:
    """One tree a row, padded on the right; a padding token is its own end, so it sees and is seen by itself alone.

    input_ids, position_ids, subtree_end: (rows, length). `predicts`, (rows, length), marks the positions that predict an
    answer token; the k-th pair (predictor[k], target_ids[k]) names one of them, counted row by row, and what it predicts.
    """
    length = -(-max(map(len, trees)) // multiple_of) * multiple_of
    padding = [list(range(len(tree), length)) for tree in trees]
    marked = [sorted({index for index, _ in tree.targets}) for tree in trees]
    predicts = torch.zeros(len(trees), length, dtype=torch.bool)
    number: dict[tuple[int, int], int] = {}  # (row, index) -> which of the marked positions
    for row, indices in enumerate(marked):
        predicts[row, indices] = True
        number |= {(row, index): len(number) + i for i, index in enumerate(indices)}
    pairs = [(number[row, index], target) for row, tree in enumerate(trees) for index, target in tree.targets]
    tensors = {
        "input_ids": torch.tensor([tree.input_ids + [pad_id] * len(pad) for tree, pad in zip(trees, padding, strict=True)]),
        "position_ids": torch.tensor([tree.position_ids + [0] * len(pad) for tree, pad in zip(trees, padding, strict=True)]),
        "subtree_end": torch.tensor([tree.subtree_end + pad for tree, pad in zip(trees, padding, strict=True)]),
        "predicts": predicts,
        "predictor": torch.tensor([pair[0] for pair in pairs], dtype=torch.long),
        "target_ids": torch.tensor([pair[1] for pair in pairs], dtype=torch.long),
    }
    return {name: tensor.to(device) for name, tensor in tensors.items()}


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


def tree_masks(config: PretrainedConfig, batch: dict[str, torch.Tensor], dtype: torch.dtype, flex: bool) -> Masks:
    """What the model takes as `attention_mask` for a collated batch: one mask, or a dict where its layers differ."""
    make = _block_mask if flex else _dense_mask
    masks = {
        kind: make(batch["subtree_end"], batch["position_ids"], window, dtype) for kind, window in sliding_windows(config).items()
    }
    return masks.get("", masks)


def _dense_mask(subtree_end: torch.Tensor, position_ids: torch.Tensor, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask, (rows, 1, length, length): 0 where a query sees a key. The window counts positions, not indices."""
    index = torch.arange(subtree_end.shape[1], device=subtree_end.device)
    sees = (index <= index[:, None]) & (index[:, None] <= subtree_end[:, None, :])  # (rows, query, key)
    if window is not None:
        sees &= position_ids[:, :, None] - position_ids[:, None, :] < window
    return additive(sees, dtype)


def additive(sees: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(rows, queries, keys) booleans as the mask that attention adds to its scores, (rows, 1, queries, keys)."""
    mask = torch.full(sees.shape, torch.finfo(dtype).min, dtype=dtype, device=sees.device)
    return mask.masked_fill_(sees, 0)[:, None]


def _block_mask(subtree_end: torch.Tensor, position_ids: torch.Tensor, window: int | None, dtype: torch.dtype) -> BlockMask:
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
    kinds = [(kind.sum(-1), kind.int().argsort(dim=-1, descending=True, stable=True)) for kind in (seen & ~full, full)]
    partial_blocks, full_blocks = [(count[:, None].int(), order[:, None].int()) for count, order in kinds]
    return BlockMask.from_kv_blocks(*partial_blocks, *full_blocks, BLOCK, sees, (length, length))
