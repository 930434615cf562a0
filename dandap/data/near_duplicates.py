"""Find near-duplicate texts in linear time.

Two texts are near duplicates if the Jaccard similarity of their shingles (SHINGLE characters) is at
least SIMILAR. MinHash signatures (Broder, 1997; `datasketch`) find candidate pairs, which are then
compared exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from dandap.data.text import comparable

if TYPE_CHECKING:  # takes 0.5 s to import
    from datasketch import MinHash

LARGE = 5_000  # texts; fewer are compared within two seconds and not cached
SIMILAR = 0.8
SHINGLE = 8  # characters
PERMUTATIONS = 64
CANDIDATE = 0.6  # LSH threshold: misses 1 in 1,000 pairs with similarity 0.8
# Members to index per group: a thousand copies need thousands of comparisons, not a million.
INDEXED_PER_GROUP = 16


def group_near_duplicates(texts: Mapping[str, str]) -> list[set[str]]:
    """Return the connected groups of near-duplicate texts, by name."""
    if len(texts) < LARGE:
        return _group(texts)
    import pyarrow as pa

    from dandap.data.cache import load_cached

    schema = pa.schema({"names": pa.list_(pa.string())})

    def build() -> Iterator[pa.RecordBatch]:
        yield pa.record_batch([pa.array(map(list, _group(texts)), schema.types[0])], schema=schema)

    batches = load_cached(chain.from_iterable(texts.items()), schema, build)
    return [set(names) for batch in batches for names in batch["names"].to_pylist()]


# The split and the data checks need the same signatures; each takes about 1 kB.
@lru_cache(maxsize=2**18)
def signature(text: str) -> MinHash:
    """Return the MinHash of a text's shingles."""
    signed = _empty_signature().copy()
    signed.update_batch((_shingles(text) >> np.uint64(32)).tolist())  # MinHash takes 32 bits
    return signed


@cache  # drawing permutations takes a third of the time
def _empty_signature() -> MinHash:
    from datasketch import MinHash

    return MinHash(PERMUTATIONS, hashfunc=int)


def _group(texts: Mapping[str, str]) -> list[set[str]]:
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=CANDIDATE, num_perm=PERMUTATIONS)
    group: dict[str, set[str]] = {}
    indexed: dict[str, int] = {}  # a group's first name -> how many of its members are indexed
    for name, text in texts.items():
        group[name] = {name}
        for other in index.query(signature(text)):
            if other in group[name]:
                continue
            ours, theirs = _shingles(text), _shingles(texts[other])
            common = len(np.intersect1d(ours, theirs, assume_unique=True))
            if common >= SIMILAR * (len(ours) + len(theirs) - common):
                smaller, larger = sorted((group[name], group[other]), key=len)
                larger |= smaller
                group |= dict.fromkeys(smaller, larger)
        first = min(group[name])
        if indexed.get(first, 0) < INDEXED_PER_GROUP:
            index.insert(name, signature(text))
            indexed[first] = indexed.get(first, 0) + 1
    return list({id(names): names for names in group.values() if len(names) > 1}.values())


def _shingles(text: str) -> np.ndarray:
    """Return the sorted hashes of a text's shingles; a shorter text is one shingle."""
    characters = comparable(text).encode("utf-32-le", "replace")
    codes = np.frombuffer(characters, dtype=np.uint32).astype(np.uint64)
    count = max(1, len(codes) - SHINGLE + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(min(SHINGLE, len(codes))):  # modulo 2**64
        hashes = (hashes + codes[offset : offset + count]) * np.uint64(0x9E3779B97F4A7C15)
    return np.unique(hashes)
