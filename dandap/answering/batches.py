"""Batches of questions that are answered together, halved where memory runs out."""

from collections.abc import Callable, Container, Iterator, Sequence
from functools import partial
from typing import Protocol, TypeVar

from dandap.data.encode import Example
from dandap.data.rows import by_article
from dandap.errors import InputError
from dandap.model.device import unless_out_of_memory
from dandap.model.distributed import process_rank, world_size
from dandap.tree.token_tree import Part, TokenTree, grow, pack

T = TypeVar("T")
Batch = TypeVar("Batch")
Pairs = list[tuple[Sequence[int], Sequence[int]]]  # prompts and answers of a question


class QuestionBatches(Protocol[Batch]):
    """How questions, given by their numbers, are put into batches of so many tokens."""

    def batches(self, indices: list[int], tokens: int) -> list[Batch]:
        """Return the batches, the largest first, so that memory peaks at the start."""

    def members(self, batch: Batch) -> list[int]:
        """Return a batch's questions."""

    def size(self, batch: Batch) -> int:
        """Return a batch's tokens, with padding and the tokens still to be generated."""


def run_batches(
    batching: QuestionBatches[Batch],
    count: int,
    tokens: int,
    work: Callable[[Batch], dict[int, T]],
    done: Container[int],
) -> Iterator[tuple[int, T]]:
    """Yield (number of the question, result) batch by batch; questions in `done` are skipped.

    Where memory runs out, the remaining batches are halved. Skipped questions stay in their batches
    and each process works on whole batches: another padding would round differently.
    """
    batches = batching.batches(list(range(count)), tokens)
    left = [b for b in batches if not all(index in done for index in batching.members(b))]
    left = left[process_rank() :: world_size()]
    while left:
        members, size = batching.members(left[0]), batching.size(left[0])
        results = unless_out_of_memory(partial(work, left[0]))
        if results is None:
            if len(members) == 1:
                raise InputError(out_of_memory(f"one question of {size} tokens"))
            # The batch may be far below the limit; half of the limit could be the same again.
            failed = min(tokens, size)
            tokens = failed // 2
            print(f"out of memory with {failed} tokens in a batch: continuing with {tokens}")
            indices = [index for batch in left for index in batching.members(batch)]
            left = batching.batches(sorted(indices), tokens)
            continue
        left.pop(0)
        for index, result in results.items():
            if index not in done:
                yield index, result


class TreeBatches:
    """Puts questions into trees, one an article, and trees into batches.

    `sequences` returns a question's (prompt, answer) pairs; every question needs room for `new`
    further tokens.
    """

    def __init__(self, examples: list[Example], sequences: Callable[[int], Pairs], new: int):
        self.examples, self.sequences, self.new = examples, sequences, new

    def batches(self, indices: list[int], tokens: int) -> list[list[Part]]:
        """Return batches of articles' trees, the largest first."""
        articles = by_article(self.examples[index].row.article for index in indices)
        groups = [[indices[i] for i in article] for article in articles]
        return pack(groups, self._tree_of, lambda batch: self.size(batch) <= tokens)

    def members(self, batch: list[Part]) -> list[int]:
        """Return a batch's questions, tree by tree."""
        return [index for part in batch for index in part.members]

    def size(self, batch: list[Part]) -> int:
        """Return a batch's tokens: every row is padded to the longest tree and most branches."""
        longest = max(len(part.tree) for part in batch)
        return len(batch) * (longest + max(len(part.members) for part in batch) * self.new)

    def _tree_of(self, indices: list[int]) -> TokenTree:
        return grow(pair for index in indices for pair in self.sequences(index))


def out_of_memory(what: str) -> str:
    """Return the message that memory ran out on what cannot be made smaller."""
    return (
        f"out of memory while answering {what}. Free the GPU (nvidia-smi shows who uses it), or "
        "lower max_length, samples or beams."
    )
