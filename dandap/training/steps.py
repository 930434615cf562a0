"""Optimizer steps of whole articles, and their micro-batches of trees."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from dandap.base.memory import Plan
from dandap.data.encoding import Example
from dandap.data.rows import by_article
from dandap.tree.masks import BLOCK
from dandap.tree.packing import Part, pack
from dandap.tree.token_tree import TokenTree, collate, grow

SIMILAR = 0.9  # the shortest tree of a padded micro-batch, as a share of the longest
Piece = list[
    int
]  # questions of one article that go through the model together, as indices of examples


@dataclass(frozen=True)
class Batching:
    """How a step's questions become micro-batches of at most `tokens_per_batch` unique tokens.

    Rows of one tree each, of similar size, because padding is computed too and a masked row of several trees costs more
    than the trees alone (SDPA, eager); or one row with everything in it, whose empty blocks FlexAttention skips.
    """

    tokens_per_batch: int
    one_row: bool
    pad_id: int
    alone: bool = (
        False  # one tree a micro-batch: on a CPU larger ones take more memory and no less time
    )

    def collate_step(self, examples: list[Example]) -> dict:
        """The dataloader's collate: micro-batches, and labels by which Trainer counts the step's answer tokens."""
        batches = [self._collate(batch) for batch in self.micro_batches(examples)]
        labels = torch.cat([batch["target_ids"] for batch in batches])
        ids = [example.row.id for example in examples]
        return {
            "batches": batches,
            "labels": labels,
            "shift_labels": labels,
            "ids": ids,
        }  # shift_labels are counted unshifted

    def micro_batches(self, examples: list[Example]) -> list[list[Part]]:
        """Questions that share an article, with their tree, the largest first; an article too large for a batch is split."""
        groups = by_article(example.row.article for example in examples)
        return pack([[examples[index] for index in group] for group in groups], _grow, self._fits)

    def _fits(self, batch: list[Part]) -> bool:
        lengths = [len(part.tree) for part in batch]  # the longest first
        if self.one_row:
            return sum(lengths) <= self.tokens_per_batch
        alike = len(batch) == 1 or (not self.alone and lengths[-1] >= SIMILAR * lengths[0])
        return alike and len(batch) * lengths[0] <= self.tokens_per_batch

    def _collate(self, batch: list[Part]) -> dict[str, torch.Tensor]:
        if self.one_row:  # articles share the instruction before them
            return collate(
                [_grow([e for part in batch for e in part.members])], self.pad_id, multiple_of=BLOCK
            )
        return collate([part.tree for part in batch], self.pad_id)


def make_batching(plan: Plan, pad_id: int) -> Batching:
    """The layout that suits the plan's kernel and device."""
    return Batching(
        plan.tokens_per_batch, one_row=plan.flex, pad_id=pad_id, alone=plan.device.type == "cpu"
    )


def _grow(examples: list[Example]) -> TokenTree:
    return grow((example.prompt_ids, example.answer_ids) for example in examples)


class Key(NamedTuple):
    """Names a question of a step; one that is not learned is read without its answer, and adds nothing to the loss."""

    index: int
    learned: bool = True


class Questions(Sequence):
    """The dataloader's dataset, asked by `Key`."""

    def __init__(self, examples: list[Example]):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: Key) -> Example:
        example = self.examples[key.index]
        return example if key.learned else replace(example, answer_ids=[])


class StepSampler:
    """Yields one process's keys of `Questions` for each optimizer step of an epoch; all epochs have as many steps.

    `step` tells how many steps have been taken: a resumed run asks it, and so has the order of an uninterrupted one.
    """

    def __init__(
        self,
        examples: list[Example],
        questions_per_step: int,
        seed: int,
        process: int,
        processes: int,
        step: Callable[[], int],
    ):
        self.articles = by_article(example.row.article for example in examples)
        self.cost = [len(example.prompt_ids) for example in examples]
        self.questions_per_step, self.seed, self.step = questions_per_step, seed, step
        self.process, self.processes = process, processes

    def __len__(self) -> int:
        return math.ceil(len(self.cost) / self.questions_per_step)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.step() // len(self)
        rng = random.Random(f"{self.seed} {epoch}")
        for step in deal(self.articles, self.questions_per_step, rng):
            mine = share(step, self.cost, self.processes)[self.process]
            # All processes take part in every step: one that got no question reads one without learning it.
            yield [Key(index) for index in mine] or [Key(step[0][0], learned=False)]


def deal(articles: list[Piece], questions_per_step: int, rng: random.Random) -> list[list[Piece]]:
    """An epoch's steps: whole articles in random order, about `questions_per_step` questions in each, at least one.

    ceil(questions / questions_per_step) steps. An article with more questions than a step is split.
    """
    pieces = [piece for article in articles for piece in _split(article, questions_per_step, rng)]
    rng.shuffle(pieces)
    left = sum(map(len, pieces))
    steps = []
    for steps_left in range(math.ceil(left / questions_per_step), 0, -1):
        step, size, goal = [], 0, left / steps_left
        # One piece at least, and at least one left for each later step; pieces no larger than a step are always enough.
        while not step or (
            len(pieces) >= steps_left and abs(size + len(pieces[-1]) - goal) <= abs(size - goal)
        ):
            step.append(pieces.pop())
            size += len(step[-1])
        left -= size
        steps.append(step)
    return steps


def _split(article: Piece, most: int, rng: random.Random) -> list[Piece]:
    """The article's questions in as few pieces of at most `most` as possible, of nearly equal size."""
    count = math.ceil(len(article) / most)
    if count == 1:
        return [article]
    shuffled = rng.sample(article, len(article))
    return [shuffled[number::count] for number in range(count)]


def share(step: list[Piece], cost: list[int], processes: int) -> list[list[int]]:
    """A step's questions for each process, dealt so that the longest share is short; the same on every process."""
    pieces = list(step)
    while len(pieces) < processes and (largest := max(pieces, key=len))[1:]:
        pieces.remove(largest)
        pieces += [largest[::2], largest[1::2]]
    shares: list[list[int]] = [[] for _ in range(processes)]
    load = [0] * processes
    for piece in sorted(pieces, key=lambda piece: -cost[piece[0]]):
        process = load.index(min(load))
        shares[process] += piece
        load[process] += cost[piece[0]]
    return shares
