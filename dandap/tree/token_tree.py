"""Merge sequences that share prefixes into one tree of tokens, in depth-first order.

            [BOS] article ...          article, once
                     |-- question 1 -- answer 1
                     |-- question 2 -- answer 2

    index          0  1  2 | 3  4 | 5  6  7
    position_ids   0  1  2 | 3  4 | 3  4  5        depth in the tree
    subtree_end    7  7  7 | 4  4 | 7  7  7        last index below this token

    query q sees key k   <=>   k <= q <= subtree_end[k]        (q is in k's subtree)

Each token sees its ancestors at their positions, so its hidden state equals that in a separate
sequence.

`grow` creates nodes in order of appearance; `_lay_out` orders them depth-first, so that a subtree
is a range of indices. In this example BOS is the article, and sequences 1 and 3 share a question:

    sequences      [BOS Q1]   [A STOP]        nodes   0 (no token)    children
                   [BOS Q2 ?] [STOP]                  `- 1 BOS        0: {BOS: 1}
                   [BOS Q1]   [B STOP]                   |- 2 Q1      1: {Q1: 2, Q2: 4}
                                                         |  |- 3 A    2: {A: 3, B: 6}
    paths          nodes 2 3  predict A STOP             |  `- 6 B    4: {?: 5}
                   node  5    predicts STOP              `- 4 Q2
                   nodes 2 6  predict B STOP                `- 5 ?

    the walk       BOS   Q1    A     B     Q2    ?     (end)
    node           1     2     3     6     4     5
    index          0     1     2     3     4     5             index_of[node]
    ancestors      0     01    012   013   04    045           after this token
    closed here    -     -     -     2     1 3   -     0 4 5   subtree_end[closed] = index - 1
    subtree_end    5     3     2     3     5     5

    prompt_end     1, 5, 1
    targets        (1, A) (2, STOP)   (5, STOP)   (1, B) (3, STOP)
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch

from dandap.tree.mixers import segment_arrays


@dataclass(frozen=True)
class TokenTree:
    """Tokens in depth-first order; branches are in the order of the sequences."""

    input_ids: list[int]
    position_ids: list[int]
    subtree_end: list[int]
    # Per sequence: the index of its last prompt token, which predicts the first answer token.
    prompt_end: list[int]
    # (predicting index, predicted token); equal answers repeat their pairs, as in the usual loss.
    targets: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.input_ids)


def grow(sequences: Iterable[tuple[Sequence[int], Sequence[int]]]) -> TokenTree:
    """Return the tree of (prompt_ids, answer_ids) pairs; answers may be empty, prompts may not.

    An answer's last token predicts nothing: it is a target, but not in the tree. Time and memory
    are linear in the number of tokens.
    """
    # node -> {token: child}. Node 0 is the root and no child, so 0 can mean "missing".
    children: list[dict[int, int]] = [{}]
    # Per sequence: the nodes that predict the answer's tokens, and the answer.
    paths: list[tuple[list[int], Sequence[int]]] = []
    for prompt_ids, answer_ids in sequences:
        if not prompt_ids:
            raise ValueError(
                "got an empty prompt, expected at least one token to predict the answer from."
            )
        node, path = 0, []
        for token in chain(prompt_ids, answer_ids[:-1]):
            below = children[node]
            node = below.get(token, 0)
            if not node:
                node = below[token] = len(children)
                children.append({})
            path.append(node)
        # A node predicts its next token: from the prompt's last to the answer's second last.
        paths.append((path[len(prompt_ids) - 1 :], answer_ids))
    input_ids, position_ids, subtree_end, index_of = _lay_out(children)
    prompt_end, targets = [], []
    for path, answer_ids in paths:
        prompt_end.append(index_of[path[0]])
        # Not strict: the path of an empty answer has one node.
        for node, token in zip(path, answer_ids, strict=False):
            targets.append((index_of[node], token))
    return TokenTree(input_ids, position_ids, subtree_end, prompt_end, targets)


def _lay_out(children: list[dict[int, int]]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return tokens, depths, subtree ends, and node -> index, in depth-first order.

    Uses a stack, because a tree can be deeper than Python's recursion limit.
    """
    input_ids: list[int] = []
    position_ids: list[int] = []
    subtree_end, index_of = [0] * (len(children) - 1), [0] * len(children)
    ancestors: list[int] = []  # indices from the root to the previous token
    # Reversed, because a stack is last in, first out.
    stack = [(token, node, 0) for token, node in reversed(children[0].items())]
    while stack:
        token, node, depth = stack.pop()
        index = index_of[node] = len(input_ids)
        # The subtrees of tokens at this depth or deeper ended at the previous index.
        for finished in ancestors[depth:]:
            subtree_end[finished] = index - 1
        del ancestors[depth:]
        ancestors.append(index)
        input_ids.append(token)
        position_ids.append(depth)
        stack.extend((token, node, depth + 1) for token, node in reversed(children[node].items()))
    for finished in ancestors:  # the last sequence's path
        subtree_end[finished] = len(input_ids) - 1
    return input_ids, position_ids, subtree_end, index_of


def send(numbers: list | torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return numbers as a tensor on a device, copied asynchronously on CUDA."""
    tensor = torch.as_tensor(numbers)
    # Asynchronous copies need pinned memory.
    if torch.device(device).type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class Packed:
    """The arrays of several batches in one tensor, for a single transfer."""

    numbers: torch.Tensor  # flat, of integers
    shapes: list[dict[str, tuple[int, ...]]]  # per batch, in the order of the numbers

    def pin_memory(self) -> "Packed":
        """Return a copy in pinned memory, as DataLoader requires."""
        return Packed(self.numbers.pin_memory(), self.shapes)

    def on(self, device: torch.device | str) -> list[dict[str, torch.Tensor]]:
        """Return the batches on a device."""
        numbers = send(self.numbers, device)
        sizes = [math.prod(shape) for shapes in self.shapes for shape in shapes.values()]
        pieces = iter(numbers.split(sizes))
        return [
            {name: next(pieces).view(shape) for name, shape in shapes.items()}
            for shapes in self.shapes
        ]


def collate_all(
    batches: list[list[TokenTree]], pad_id: int, multiple_of: int = 1, segments: str | None = None
) -> Packed:
    """Collate several batches as `collate` does, into one Packed."""
    numbers: list[int] = []
    shapes: list[dict[str, tuple[int, ...]]] = []
    for trees in batches:
        shapes.append({})
        for name, (shape, values) in _arrays(trees, pad_id, multiple_of, segments).items():
            shapes[-1][name] = shape
            numbers += values
    return Packed(torch.tensor(numbers, dtype=torch.long), shapes)


def collate(
    trees: list[TokenTree],
    pad_id: int,
    multiple_of: int = 1,
    device: torch.device | str = "cpu",
    segments: str | None = None,
) -> dict[str, torch.Tensor]:
    """Collate trees, one per row, right-padded to a multiple of `multiple_of` tokens.

    input_ids, position_ids and subtree_end are (rows, length). `predicts` are the flat positions
    that predict an answer token. Pair k is the index predictor[k] into `predicts`, the predicted
    token target_ids[k], and its count times[k]. `segments`, for mixers (dandap/tree/mixers.py), is
    "train", or "read" for the states at the prompts' ends.
    """
    return collate_all([trees], pad_id, multiple_of, segments).on(device)[0]


def _arrays(
    trees: list[TokenTree], pad_id: int, multiple_of: int, segments: str | None
) -> dict[str, tuple[tuple[int, ...], list[int]]]:
    """Return a batch's arrays by name, each as its shape and its flat values."""
    length = -(-max(map(len, trees)) // multiple_of) * multiple_of
    rows = (len(trees), length)
    input_ids, position_ids, subtree_end = [], [], []
    predicts: list[int] = []
    pairs: list[tuple[int, int]] = []
    for row, tree in enumerate(trees):
        padding = length - len(tree)
        input_ids += tree.input_ids + [pad_id] * padding
        position_ids += tree.position_ids + [0] * padding
        # A padding token sees only itself.
        subtree_end += tree.subtree_end + list(range(len(tree), length))
        # Positions with logits (`logits_at`).
        marked = sorted({index for index, _ in tree.targets})
        number = {index: len(predicts) + place for place, index in enumerate(marked)}
        predicts += [row * length + index for index in marked]
        pairs += [(number[index], target) for index, target in tree.targets]
    times = Counter(pairs)
    count = (len(pairs),)
    by_segment = segment_arrays(trees, length, segments == "read") if segments else {}
    return by_segment | {
        "input_ids": (rows, input_ids),
        "position_ids": (rows, position_ids),
        "subtree_end": (rows, subtree_end),
        "predicts": ((len(predicts),), predicts),
        "predictor": (count, [position for position, _ in pairs]),
        "target_ids": (count, [target for _, target in pairs]),
        "times": (count, [times[pair] for pair in pairs]),
    }


class Part(NamedTuple):
    """Questions of one article to process together, and their tree."""

    members: list
    tree: TokenTree


def pack(
    groups: Iterable[list], tree_of: Callable[[list], TokenTree], fits: Callable[[list[Part]], bool]
) -> list[list[Part]]:
    """Return batches of parts that fit, the largest tree first.

    A group that is too large is split into the largest fitting parts; a single member that does not
    fit is a separate batch.
    """

    def largest(group: list) -> Part:
        """Return the largest fitting part of the first members, at least one."""
        part = Part(group, tree_of(group))
        if len(group) == 1 or fits([part]):
            return part
        part = Part(group[:1], tree_of(group[:1]))
        # `few` fit, `many` do not.
        few, many = 1, len(group)
        while many - few > 1:
            middle = (few + many) // 2
            more = Part(group[:middle], tree_of(group[:middle]))
            if fits([more]):
                part, few = more, middle
            else:
                many = middle
        return part

    parts: list[Part] = []
    for group in groups:
        left = group
        while left:
            parts.append(largest(left))
            left = left[len(parts[-1].members) :]
    batches: list[list[Part]] = []
    # By size, for little padding and an early memory peak.
    for part in sorted(parts, key=lambda part: -len(part.tree)):
        if batches and fits([*batches[-1], part]):
            batches[-1].append(part)
        else:
            batches.append([part])
    return batches
