"""Batch questions for answering, and halve batches after out-of-memory errors."""

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
Pairs = list[tuple[Sequence[int], Sequence[int]]]  # (prompt ids, answer ids)


class QuestionBatches(Protocol[Batch]):
    """Splits questions, given by index, into batches of at most `tokens` tokens."""

    def batches(self, indices: list[int], tokens: int) -> list[Batch]:
        """Return the batches, largest first."""

    def members(self, batch: Batch) -> list[int]:
        """Return a batch's questions."""

    def size(self, batch: Batch) -> int:
        """Return a batch's tokens, including padding and new tokens."""


def run_batches(
    batching: QuestionBatches[Batch],
    count: int,
    tokens: int,
    work: Callable[[Batch], dict[int, T]],
    done: Container[int],
) -> Iterator[tuple[int, T]]:
    """Yield (index of the question, result) batch by batch; skip questions in `done`.

    Halves the remaining batches after an out-of-memory error. Batches do not depend on `done` or on
    the number of processes, because other padding rounds differently.
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
            # Half of this batch, which may be far below the limit.
            failed = min(tokens, size)
            tokens = failed // 2
            print(f"out of memory with {failed} tokens per batch: continuing with {tokens}")
            indices = [index for batch in left for index in batching.members(batch)]
            left = batching.batches(sorted(indices), tokens)
            continue
        left.pop(0)
        for index, result in results.items():
            if index not in done:
                yield index, result


class TreeBatches:
    """Batches trees, one per article.

    `sequences` returns a question's (prompt, answer) pairs; each question gets `new` more tokens.
    """

    def __init__(self, examples: list[Example], sequences: Callable[[int], Pairs], new: int):
        self.examples, self.sequences, self.new = examples, sequences, new

    def batches(self, indices: list[int], tokens: int) -> list[list[Part]]:
        """Return batches of trees, largest first."""
        articles = by_article(self.examples[index].row.article for index in indices)
        groups = [[indices[i] for i in article] for article in articles]
        return pack(groups, self._tree_of, lambda batch: self.size(batch) <= tokens)

    def members(self, batch: list[Part]) -> list[int]:
        """Return a batch's questions in tree order."""
        return [index for part in batch for index in part.members]

    def size(self, batch: list[Part]) -> int:
        """Return a batch's tokens; rows are padded to the longest tree and the most branches."""
        longest = max(len(part.tree) for part in batch)
        return len(batch) * (longest + max(len(part.members) for part in batch) * self.new)

    def _tree_of(self, indices: list[int]) -> TokenTree:
        return grow(pair for index in indices for pair in self.sequences(index))


def out_of_memory(what: str) -> str:
    """Return the error message for a batch that cannot be split."""
    return (
        f"out of memory while answering {what}. Free the GPU (see nvidia-smi), or lower "
        "max_length, samples or beams."
    )
