"""Put the trees of articles into batches that fit."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from dandap.tree.token_tree import TokenTree


class Part(NamedTuple):
    """Holds what of an article goes through the model together: its questions and their tree."""

    members: list
    tree: TokenTree


def pack(
    groups: Iterable[list], tree_of: Callable[[list], TokenTree], fits: Callable[[list[Part]], bool]
) -> list[list[Part]]:
    """Return batches of parts that fit, the largest tree first.

    A group too large for a batch is halved by its members until its parts fit; a single member
    that does not fit is a batch by itself.
    """

    def split(group: list) -> list[Part]:
        part = Part(group, tree_of(group))
        # One member is kept even if it is too large: there is nothing left to split.
        if len(group) == 1 or fits([part]):
            return [part]
        middle = len(group) // 2
        return split(group[:middle]) + split(group[middle:])

    parts: list[Part] = []
    for group in groups:
        parts += split(group)
    batches: list[list[Part]] = []
    # By size, so that neighbours are alike and little is padding; the largest first, so that memory
    # peaks at the start.
    for part in sorted(parts, key=lambda part: -len(part.tree)):
        if batches and fits([*batches[-1], part]):
            batches[-1].append(part)
        else:
            batches.append([part])
    return batches
