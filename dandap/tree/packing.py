"""Trees -> batches that fit."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from dandap.tree.token_tree import TokenTree


class Part(NamedTuple):
    """What of an article goes through the model together."""

    members: list
    tree: TokenTree


def pack(
    groups: Iterable[list], tree_of: Callable[[list], TokenTree], fits: Callable[[list[Part]], bool]
) -> list[list[Part]]:
    """Batches of parts that fit, the largest tree first; a group too large for a batch is split by its members."""

    def split(group: list) -> list[Part]:
        part = Part(group, tree_of(group))
        if len(group) == 1 or fits([part]):
            return [part]
        middle = len(group) // 2
        return split(group[:middle]) + split(group[middle:])

    batches: list[list[Part]] = []
    for part in sorted(
        (part for group in groups for part in split(group)), key=lambda part: -len(part.tree)
    ):
        if batches and fits([*batches[-1], part]):
            batches[-1].append(part)
        else:
            batches.append([part])
    return batches
