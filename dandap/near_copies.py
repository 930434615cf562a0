"""Texts that are nearly the same, found in bounded memory: a small sketch of each, and a look at the few that may be alike.

A text is the set of its runs of PIECE characters; two texts are near copies when they share ALIKE of both sets (Jaccard).
The hashes of the pieces are as good as random, so the SKETCH smallest of a text are a fair sample of it (bottom-k
sketch: Broder, 1997; Cohen and Kaplan, 2007), and near copies have most of their smallest hashes in common.
"""

from collections.abc import Mapping

import numpy as np

from dandap.texts import bare

ALIKE = 0.8
PIECE = 8  # characters
SKETCH = 64  # hashes kept of a text: 512 bytes, 100 MB of 200,000 articles
LOOKED_UP = 8  # of the smallest hashes, those by which candidates are found; near copies miss all eight once in 10,000
REPRESENTATIVES = 16  # of a piece's groups, those that a text is held against: a copyright line stands in every article


def group_near_copies(texts: Mapping[str, str]) -> list[set[str]]:
    """Return the groups of names whose texts are near copies of one another, directly or through others.

    Every text is held against one text of each group that shares one of its smallest hashes, so that a thousand copies of
    one article cost a thousand comparisons and not a million. A group is known by its first text, and by one near copy of
    that which does not share its pieces, and so on.
    """
    group: dict[str, set[str]] = {}
    sketches: dict[str, np.ndarray] = {}
    by_piece: dict[int, list[str]] = {}  # a piece -> the first text of each group that has it
    for name, text in texts.items():
        pieces = _pieces(text)
        sketches[name] = sketch = np.sort(np.partition(pieces, SKETCH)[:SKETCH] if len(pieces) > SKETCH else pieces)
        group[name] = {name}
        compared: set[str] = set()
        for piece in sketch[:LOOKED_UP].tolist():
            known = by_piece.setdefault(piece, [])
            for other in known:
                if other in compared or other in group[name]:
                    continue
                compared.add(other)
                if _may_be_alike(sketch, sketches[other]) and _likeness(pieces, _pieces(texts[other])) >= ALIKE:
                    _merge(group, name, other)
            if len(known) < REPRESENTATIVES and not any(other in group[name] for other in known):
                known.append(name)
    groups = {id(members): members for members in group.values() if len(members) > 1}
    return list(groups.values())


def _merge(group: dict[str, set[str]], one: str, other: str) -> None:
    """Make one group of two; the smaller one moves."""
    larger, smaller = sorted((group[one], group[other]), key=len, reverse=True)
    larger |= smaller
    for name in smaller:
        group[name] = larger


def _pieces(text: str) -> np.ndarray:
    """Hashes of all runs of PIECE characters, each once; a shorter text is one piece."""
    codes = np.frombuffer(bare(text).encode("utf-32-le", "replace"), dtype=np.uint32).astype(np.uint64)
    count = max(1, len(codes) - PIECE + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(min(PIECE, len(codes))):
        hashes = hashes * np.uint64(0x100000001B3) + codes[offset : offset + count]  # FNV's prime, modulo 2**64
    return np.unique(_mixed(hashes))


def _mixed(hashes: np.ndarray) -> np.ndarray:
    """Spread hashes evenly over 64 bits (splitmix64's end: Steele, Lea and Flood, 2014), so that the smallest are a sample."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def _may_be_alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two sketches leave it open: at 0.8 the sketch of 64 shows less than 0.6 once in 10,000."""
    together = np.union1d(one, other)[:SKETCH]
    common = np.isin(together, one, assume_unique=True) & np.isin(together, other, assume_unique=True)
    return common.sum() >= 0.6 * len(together)


def _likeness(one: np.ndarray, other: np.ndarray) -> float:
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / max(len(one) + len(other) - common, 1)
