"""Batches of questions that are answered together, halved where memory runs out."""

from collections.abc import Callable, Container, Iterator
from functools import partial
from typing import Protocol, TypeVar

from dandap.data.encode import Example
from dandap.data.rows import by_article
from dandap.errors import InputError
from dandap.model.device import unless_out_of_memory
from dandap.model.distributed import dealt
from dandap.tree.packing import Part, pack
from dandap.tree.token_tree import TokenTree, grow

T, Batch = TypeVar("T"), TypeVar("Batch")
Sequences = list[tuple[list[int], list[int]]]  # (prompt, answer) pairs of a question


class Batching(Protocol[Batch]):
    """Describes how questions, known by their numbers, are put into batches of so many tokens."""

    def batches(self, indices: list[int], tokens: int) -> list[Batch]:
        """Return the batches, the largest first, so that memory peaks at the start."""

    def members(self, batch: Batch) -> list[int]:
        """Return a batch's questions."""

    def size(self, batch: Batch) -> int:
        """Return a batch's tokens, padding and those that are still to come included."""


def run_batches(
    batching: Batching[Batch],
    count: int,
    tokens: int,
    work: Callable[[Batch], dict[int, T]],
    done: Container[int],
) -> Iterator[tuple[int, T]]:
    """Yield (number of the question, result) batch by batch.

    Where memory runs out, the batches that are left are halved; InputError is raised if a single
    question is too large. Questions that are `done` are left out; the others keep their batches,
    so that their answers stay the same to the bit. Of several processes each does its share of the
    batches that one would do, so that these stay the same, too; all must know the same `done`.
    """
    batches = batching.batches(list(range(count)), tokens)
    # A batch is skipped only as a whole: another padding rounds differently.
    left = dealt([b for b in batches if not all(index in done for index in batching.members(b))])
    while left:
        members = batching.members(left[0])
        run = partial(work, left[0])
        results = unless_out_of_memory(run)
        if results is None:
            size = batching.size(left[0])
            if len(members) == 1:
                raise InputError(out_of_memory(f"one question of {size} tokens"))
            # Half of what was tried, which may be far below the limit: half of the limit could be
            # the same batch once more.
            too_many, tokens = min(tokens, size), min(tokens, size) // 2
            print(f"out of memory with {too_many} tokens in a batch: going on with {tokens}")
            indices: list[int] = []
            for batch in left:
                indices += batching.members(batch)
            left = batching.batches(sorted(indices), tokens)
            continue
        left.pop(0)
        for index, result in results.items():
            if index not in done:
                yield index, result


class TreeBatching:
    """Puts questions into trees, one an article, and trees into batches.

    `sequences` gives a question's (prompt, answer) pairs; each question needs room for `new`
    further tokens.
    """

    def __init__(self, examples: list[Example], sequences: Callable[[int], Sequences], new: int):
        self.examples, self.sequences, self.new = examples, sequences, new

    def batches(self, indices: list[int], tokens: int) -> list[list[Part]]:
        """Return batches of articles' trees, the largest first."""
        articles = by_article(self.examples[index].row.article for index in indices)
        groups = [[indices[i] for i in article] for article in articles]

        def fits(batch: list[Part]) -> bool:
            return self.size(batch) <= tokens

        return pack(groups, self._tree_of, fits)

    def members(self, batch: list[Part]) -> list[int]:
        """Return a batch's questions, tree by tree."""
        return [index for part in batch for index in part.members]

    def size(self, batch: list[Part]) -> int:
        """Return a batch's tokens, padding and the new ones included."""
        # Tensors are rectangles: every row is as long as the longest tree, and has as many slots
        # for branches as the row with the most questions.
        longest = max(len(part.tree) for part in batch)
        return len(batch) * (longest + max(len(part.members) for part in batch) * self.new)

    def _tree_of(self, indices: list[int]) -> TokenTree:
        return grow(pair for index in indices for pair in self.sequences(index))


def out_of_memory(what: str) -> str:
    """Return the message that memory ran out on what cannot be made smaller."""
    way_out = "Free the GPU (nvidia-smi shows who uses it), or lower max_length, samples or beams."
    return f"out of memory while answering {what}. {way_out}"
