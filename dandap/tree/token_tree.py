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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch


@dataclass(frozen=True)
class TokenTree:
    """Tokens in depth-first order; branches stand in the order in which their sequences came."""

    input_ids: list[int]
    position_ids: list[int]
    subtree_end: list[int]
    prompt_end: list[
        int
    ]  # per sequence the index of its last prompt token, which predicts the first answer token
    targets: list[
        tuple[int, int]
    ]  # (index that predicts, token predicted); equal answers repeat their pairs

    def __len__(self) -> int:
        return len(self.input_ids)


def grow(sequences: Iterable[tuple[Sequence[int], Sequence[int]]]) -> TokenTree:
    """The tree of (prompt_ids, answer_ids) pairs; prompts may not be empty, answers may.

    An answer's last token is predicted and predicts nothing, so it is a target and no part of the tree. Time and memory
    are linear in the tokens given.
    """
    children: list[dict[int, int]] = [
        {}
    ]  # node -> {token: node below}; node 0 stands above every first token
    paths: list[
        tuple[list[int], Sequence[int]]
    ] = []  # the nodes that predict the answer's tokens, and the answer
    for prompt_ids, answer_ids in sequences:
        if not prompt_ids:
            raise ValueError(
                "got an empty prompt; expected at least one token, which predicts the answer's first."
            )
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
        [
            (index_of[node], token)
            for path, answer_ids in paths
            for node, token in zip(path, answer_ids, strict=False)
        ],
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
    pairs = [
        (number[row, index], target)
        for row, tree in enumerate(trees)
        for index, target in tree.targets
    ]
    tensors = {
        "input_ids": torch.tensor(
            [tree.input_ids + [pad_id] * len(pad) for tree, pad in zip(trees, padding, strict=True)]
        ),
        "position_ids": torch.tensor(
            [tree.position_ids + [0] * len(pad) for tree, pad in zip(trees, padding, strict=True)]
        ),
        "subtree_end": torch.tensor(
            [tree.subtree_end + pad for tree, pad in zip(trees, padding, strict=True)]
        ),
        "predicts": predicts,
        "predictor": torch.tensor([pair[0] for pair in pairs], dtype=torch.long),
        "target_ids": torch.tensor([pair[1] for pair in pairs], dtype=torch.long),
    }
    return {name: tensor.to(device) for name, tensor in tensors.items()}
