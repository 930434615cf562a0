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

    Of a group too large for a batch each part takes as many members as there is room for; a single
    member that does not fit is a batch by itself.
    """

    def largest(group: list) -> Part:
        """Return the part of as many first members as fit, of one at least."""
        part = Part(group, tree_of(group))
        if len(group) == 1 or fits([part]):
            return part
        part = Part(group[:1], tree_of(group[:1]))
        # So many fit (or one, which has to), and so many do not.
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
    # By size, so that neighbours are alike and little is padding; the largest first, so that memory
    # peaks at the start.
    for part in sorted(parts, key=lambda part: -len(part.tree)):
        if batches and fits([*batches[-1], part]):
            batches[-1].append(part)
        else:
            batches.append([part])
    return batches
