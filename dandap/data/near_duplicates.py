"""Texts that are nearly the same are found in a time that grows as their number does.

A text is the set of its runs of PIECE characters; two texts are near copies when they share ALIKE
of both sets (Jaccard). MinHash signatures find the few that may be (Broder, 1997; `datasketch`),
and those are compared whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache, lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dandap.data.kept import kept, key_of
from dandap.data.text import bare

if TYPE_CHECKING:  # for annotations alone
    from datasketch import MinHash

MANY = 5_000  # texts; fewer are compared within about two seconds
ALIKE = 0.8
PIECE = 8  # characters
SIGNATURE = 64  # hashes of a signature
MAY_BE_ALIKE = 0.6  # what signatures are searched with; a pair at 0.8 is missed once in 1,000
# Of a group, the members that later texts are compared with: a thousand copies cost thousands of
# comparisons, not a million.
MEMBERS_HELD = 16


def group_near_copies(texts: Mapping[str, str]) -> list[set[str]]:
    """Return the groups of names whose texts are near copies, directly or through others.

    Those of many texts are kept in a file for the next start.
    """
    make = partial(_group, texts)
    if len(texts) < MANY:
        return make()
    name = f"{key_of(chain.from_iterable(texts.items()))}.json"
    return kept(name, "the groups of near copies", make, _read, _write)


def forget_signatures() -> None:
    """Free what was held for a second search among the same texts: 1 kB a text."""
    _signature.cache_clear()


def _read(file: Path) -> list[set[str]]:
    return list(map(set, json.loads(file.read_text(encoding="utf-8"))))


def _write(file: Path, groups: list[set[str]]) -> None:
    file.write_text(json.dumps(list(map(sorted, groups))), encoding="utf-8")


def _group(texts: Mapping[str, str]) -> list[set[str]]:
    # With scipy it takes 0.5 s, which reading a recipe need not take.
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=MAY_BE_ALIKE, num_perm=SIGNATURE)
    group: dict[str, set[str]] = {}
    held: dict[str, int] = {}  # a group's first name -> how many of its members are in the index
    for name, text in texts.items():
        signature = _signature(text)
        group[name] = {name}
        for other in index.query(signature):
            if other not in group[name] and _likeness(text, texts[other]) >= ALIKE:
                _merge(group, name, other)
        first = min(group[name])
        if held.get(first, 0) < MEMBERS_HELD:
            index.insert(name, signature)
            held[first] = held.get(first, 0) + 1
    groups = {id(members): members for members in group.values() if len(members) > 1}
    return list(groups.values())


# The split and the data checks ask for the same articles; a signature takes about 1 kB.
@lru_cache(maxsize=2**18)
def _signature(text: str) -> MinHash:
    from datasketch import MinHash

    signature = MinHash(SIGNATURE, hashfunc=int, permutations=_permutations())
    signature.update_batch((_pieces(text) >> np.uint64(32)).tolist())  # MinHash takes 32 bits
    return signature


@cache
def _permutations() -> tuple[np.ndarray, np.ndarray]:
    """Return the permutations that all signatures share; drawing them took a third of the time."""
    from datasketch import MinHash

    return MinHash(SIGNATURE).permutations


def _merge(group: dict[str, set[str]], one: str, other: str) -> None:
    """Make one group of two; the smaller one moves."""
    larger, smaller = sorted((group[one], group[other]), key=len, reverse=True)
    larger |= smaller
    for name in smaller:
        group[name] = larger


def _pieces(text: str) -> np.ndarray:
    """Return hashes of all runs of PIECE characters, each once; a shorter text is one piece."""
    codes = np.frombuffer(bare(text).encode("utf-32-le", "replace"), dtype=np.uint32).astype(
        np.uint64
    )
    count = max(1, len(codes) - PIECE + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(min(PIECE, len(codes))):
        # Modulo 2**64.
        hashes = (hashes + codes[offset : offset + count]) * np.uint64(0x9E3779B97F4A7C15)
    return np.unique(hashes)


def _likeness(one: str, other: str) -> float:
    """Return the share of two texts' pieces that is in both (Jaccard)."""
    ours, theirs = _pieces(one), _pieces(other)
    common = len(np.intersect1d(ours, theirs, assume_unique=True))
    return common / max(len(ours) + len(theirs) - common, 1)
