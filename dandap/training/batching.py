"""Optimizer steps of whole articles, and their micro-batches of trees.

How an epoch's articles (A, B, ...; numbers are questions) come to the model, here with 4 questions
a step and 2 processes:

    articles        A: 1 2 3     B: 4 5     C: 6 7 8 9 10 11     D: 12      12 questions, 3 steps

    deal            _split C, which has more than 4, into halves, and shuffle the pieces:
                    B 4 5 | C 6 8 10 | D 12 | A 1 2 3 | C 7 9 11
                    fill steps from the right, up to questions left / steps left (12 / 3 = 4):
                    step 1  C 7 9 11            3 (with A it would be 6: farther from 4)
                    step 2  A 1 2 3 | D 12      4 (9 / 2 = 4.5)
                    step 3  C 6 8 10 | B 4 5    5 (5 / 1; the last step takes all)

    share           each piece of a step to the process with the fewest tokens to read:
                    step 2  process 0  A 1 2 3          process 1  D 12
                    step 1  has one piece for two processes: it is halved, and C is read twice
                            process 0  C 7 11           process 1  C 9

    micro_batches   one tree an article, packed into batches of at most `tokens_per_batch` tokens;
                    gradients add up over them, and the optimizer steps once.

The order of an epoch depends on the seed and the epoch's number alone, so every process deals the
same steps without asking the others, and a resumed run deals them again.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from dandap.data.encode import Example
from dandap.data.rows import by_article
from dandap.model.memory import Plan
from dandap.training.sharing import Piece, TreeTokens, share
from dandap.tree.masks import ALIGNED, BLOCK
from dandap.tree.packing import Part, pack
from dandap.tree.token_tree import TokenTree, collate_all, grow

SIMILAR = 0.9  # the shortest tree of a padded micro-batch, as a share of the longest


@dataclass(frozen=True)
class Batching:
    """Makes micro-batches of at most `tokens_per_batch` unique tokens of a step's questions.

    They have rows of one tree each, of similar size, because padding is computed too and a masked
    row of several trees costs more than the trees alone (SDPA, eager); or one row with everything
    in it, whose empty blocks FlexAttention skips.
    """

    tokens_per_batch: int
    one_row: bool
    pad_id: int
    # One tree a micro-batch: on a CPU larger ones take more memory and no less time.
    alone: bool = False

    def collate_step(self, examples: list[Example]) -> dict:
        """Return a step as the dataloader's item: its micro-batches, and the questions themselves.

        Trainer counts the step's answer tokens by the labels, which are as many.
        """
        batches = [self._trees(batch) for batch in self.micro_batches(examples)]
        packed = collate_all(batches, self.pad_id, self._multiple())
        targets = sum(shapes["target_ids"][0] for shapes in packed.shapes)
        labels = torch.zeros(targets, dtype=torch.long)
        # Trainer counts labels without a row's first, which nothing predicts; ours are targets
        # alone, and as shift_labels all of them are counted.
        item = {"packed": packed, "labels": labels, "shift_labels": labels}
        return item | {"examples": examples, "batching": self}

    def micro_batches(self, examples: list[Example]) -> list[list[Part]]:
        """Return micro-batches of articles' questions with their trees, the largest first.

        An article too large for a batch is split.
        """
        groups = by_article(example.row.article for example in examples)
        return pack([[examples[index] for index in group] for group in groups], _grow, self._fits)

    def size(self, batch: list[Part]) -> int:
        """Return the tokens of a micro-batch, padding included."""
        lengths = [len(part.tree) for part in batch]
        return sum(lengths) if self.one_row else len(lengths) * max(lengths)

    def _fits(self, batch: list[Part]) -> bool:
        if self.size(batch) > self.tokens_per_batch:
            return False
        lengths = [len(part.tree) for part in batch]  # the longest first
        alike = not self.alone and lengths[-1] >= SIMILAR * lengths[0]
        return self.one_row or len(batch) == 1 or alike

    def _multiple(self) -> int:
        """Return what a row's length is a multiple of."""
        if self.one_row:
            return BLOCK
        return 1 if self.alone else ALIGNED

    def _trees(self, batch: list[Part]) -> list[TokenTree]:
        """Return a micro-batch's rows."""
        if self.one_row:
            # One tree of all articles, which share the instruction before them.
            return [_grow([member for part in batch for member in part.members])]
        return [part.tree for part in batch]


def make_batching(plan: Plan, pad_id: int) -> Batching:
    """Return the layout that suits the plan's kernel and device."""
    return Batching(
        plan.tokens_per_batch, one_row=plan.flex, pad_id=pad_id, alone=plan.device.type == "cpu"
    )


def _grow(examples: list[Example]) -> TokenTree:
    return grow((example.prompt_ids, example.answer_ids) for example in examples)


class Key(NamedTuple):
    """Names a question of a step.

    One that is not learned is read without its answer, and adds nothing to the loss.
    """

    index: int
    learned: bool = True


class Questions(Sequence):
    """Holds the examples as the dataloader's dataset, asked by `Key`."""

    def __init__(self, examples: list[Example]):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: Key) -> Example:
        example = self.examples[key.index]
        return example if key.learned else replace(example, answer_ids=[])


class StepSampler:
    """Yields one process's keys of `Questions` for each optimizer step of an epoch.

    All epochs have as many steps. `step` tells how many steps have been taken: a resumed run asks
    it, and so has the order of an uninterrupted one.
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
        self.count = len(examples)
        self.tokens = TreeTokens(examples, self.articles) if processes > 1 else None
        self.questions_per_step, self.seed, self.step = questions_per_step, seed, step
        self.process, self.processes = process, processes

    def __len__(self) -> int:
        return math.ceil(self.count / self.questions_per_step)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.step() // len(self)
        rng = random.Random(f"{self.seed} {epoch}")
        for step in deal(self.articles, self.questions_per_step, rng):
            mine = share(step, self.tokens, self.processes)[self.process]
            # All processes take part in every step, or the exchange of gradients would wait for
            # ever: one that got no question reads one without learning it.
            keys = [Key(index) for piece in mine for index in piece]
            yield keys or [Key(step[0][0], learned=False)]


def deal(articles: list[Piece], questions_per_step: int, rng: random.Random) -> list[list[Piece]]:
    """Return an epoch's steps: whole articles in random order (drawn at the top of this file).

    There are ceil(questions / questions_per_step) steps of about `questions_per_step` questions
    each, and at least one question. An article with more questions than a step is split.
    """
    pieces: list[Piece] = []
    for article in articles:
        pieces += _split(article, questions_per_step, rng)
    rng.shuffle(pieces)
    left = sum(map(len, pieces))
    steps = []
    for steps_left in range(math.ceil(left / questions_per_step), 0, -1):
        # The mean of what is left: a step that came out large makes the later ones smaller.
        step, size, goal = [], 0, left / steps_left
        # One piece at least, and at least one left for each later step; pieces no larger than a
        # step are always enough. A piece is taken if it brings the step nearer to its goal.
        while not step or (
            len(pieces) >= steps_left and abs(size + len(pieces[-1]) - goal) <= abs(size - goal)
        ):
            step.append(pieces.pop())
            size += len(step[-1])
        left -= size
        steps.append(step)
    return steps


def _split(article: Piece, most: int, rng: random.Random) -> list[Piece]:
    """Return the article's questions in as few pieces of at most `most` as possible.

    The pieces are of nearly equal size, and other ones in every epoch.
    """
    count = math.ceil(len(article) / most)
    if count == 1:
        return [article]
    shuffled = rng.sample(article, len(article))
    return [shuffled[number::count] for number in range(count)]
