"""Put the trees of articles into batches that fit."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from dandap.tree.token_tree import TokenTree


class Part(NamedTuple):
    """Questions of an article that go through the model together, and their tree."""

    members: list
    tree: TokenTree


def pack(
    groups: Iterable[list], tree_of: Callable[[list], TokenTree], fits: Callable[[list[Part]], bool]
) -> list[list[Part]]:
    """Return batches of parts that fit, the largest tree first.

    A group too large for a batch is split into parts as large as possible; a single member that
    does not fit is a batch by itself.
    """

    def largest(group: list) -> Part:
        """Return the part of as many first members as fit, at least one."""
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
    # By size: there is little padding, and memory peaks at the start.
    for part in sorted(parts, key=lambda part: -len(part.tree)):
        if batches and fits([*batches[-1], part]):
            batches[-1].append(part)
        else:
            batches.append([part])
    return batches
