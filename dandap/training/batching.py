"""Group questions into optimizer steps by article, and steps into micro-batches of trees.

Example with articles A, B, ... (numbers are questions), 4 questions per step and 2 processes:

    articles        A: 1 2 3     B: 4 5     C: 6 7 8 9 10 11     D: 12      12 questions, 3 steps

    deal            split C, which has more than 4, into halves, and shuffle the pieces:
                    B 4 5 | C 6 8 10 | D 12 | A 1 2 3 | C 7 9 11
                    fill steps from the right, up to questions left / steps left (12 / 3 = 4):
                    step 1  C 7 9 11            3 (with A 6, which is farther from 4)
                    step 2  A 1 2 3 | D 12      4 (9 / 2 = 4.5)
                    step 3  C 6 8 10 | B 4 5    5 (5 / 1; the last step gets the rest)

    share           assign each piece of a step to the process with the fewest tokens:
                    step 2  process 0  A 1 2 3          process 1  D 12
                    step 1  has one piece for two processes: halve it, C is read twice
                            process 0  C 7 11           process 1  C 9

    micro_batches   one tree per article, packed into batches of at most `tokens_per_batch` tokens;
                    gradients accumulate over them.

The order depends only on the seed and the epoch, so all processes and resumed runs agree on it.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from torch.utils.data import Dataset

from dandap.data.encode import Example
from dandap.data.rows import by_article
from dandap.model.memory import Plan
from dandap.recipe import Recipe
from dandap.tree.masks import ALIGNED, BLOCK
from dandap.tree.token_tree import Part, TokenTree, collate_all, grow, pack

SIMILAR = 0.9  # the shortest tree of a padded micro-batch, as a share of the longest
# Questions of one article to process together, as indices of examples.
Piece = list[int]


def grow_examples(examples: list[Example]) -> TokenTree:
    """Return the token tree of examples."""
    return grow((example.prompt_ids, example.answer_ids) for example in examples)


def densest_tree(examples: list[Example]) -> TokenTree:
    """Return the tree of the article with the most questions per token.

    It needs the most memory per token in models with mixers.
    """
    groups = by_article(example.row.article for example in examples)
    densest = max(groups, key=lambda group: len(group) / _length(examples[group[0]]))
    return grow_examples([examples[index] for index in densest])


@dataclass(frozen=True)
class Batching:
    """Splits a step's questions into micro-batches of at most `tokens_per_batch` unique tokens.

    FlexAttention, which skips empty blocks, gets all trees in one row (`one_row`). SDPA and eager,
    which compute padding, get one row per tree of similar size. On a CPU every tree is `alone`:
    larger batches are no faster.
    """

    tokens_per_batch: int
    one_row: bool
    pad_id: int
    alone: bool = False
    has_mixers: bool = False

    @classmethod
    def for_plan(cls, plan: Plan, pad_id: int, has_mixers: bool) -> "Batching":
        """Return the layout for the plan's attention kernel and device."""
        alone = plan.device.type == "cpu"
        return cls(plan.tokens_per_batch, plan.flex, pad_id, alone, has_mixers)

    def collate_step(self, examples: list[Example]) -> dict:
        """Return a step as a dataloader item: its micro-batches and its examples.

        Trainer counts the answer tokens by `labels`, which has one element per target.
        """
        trees = []
        for batch in self.micro_batches(examples):
            if self.one_row:  # one tree: articles share the instruction
                trees.append([grow_examples([e for part in batch for e in part.members])])
            else:
                trees.append([part.tree for part in batch])
        multiple = BLOCK if self.one_row else 1 if self.alone else ALIGNED
        segments = "train" if self.has_mixers else None
        packed = collate_all(trees, self.pad_id, multiple, segments)
        targets = sum(shapes["target_ids"][0] for shapes in packed.shapes)
        labels = torch.zeros(targets, dtype=torch.long)
        # Without shift_labels, Trainer does not count a row's first label.
        item = {"packed": packed, "labels": labels, "shift_labels": labels}
        return item | {"examples": examples, "batching": self}

    def micro_batches(self, examples: list[Example]) -> list[list[Part]]:
        """Return micro-batches of trees, largest first; split articles that are too large."""
        groups = by_article(example.row.article for example in examples)
        return pack(
            [[examples[index] for index in group] for group in groups], grow_examples, self._fits
        )

    def size(self, batch: list[Part]) -> int:
        """Return the tokens of a micro-batch, padding included."""
        lengths = [len(part.tree) for part in batch]
        return sum(lengths) if self.one_row else len(lengths) * max(lengths)

    def _fits(self, batch: list[Part]) -> bool:
        if self.size(batch) > self.tokens_per_batch:
            return False
        lengths = [len(part.tree) for part in batch]  # the longest first
        similar = not self.alone and lengths[-1] >= SIMILAR * lengths[0]
        return self.one_row or len(batch) == 1 or similar


@dataclass(frozen=True)
class Key:
    """A question of a step, without its answer unless it is trained on."""

    index: int
    learned: bool = True


class Questions(Dataset):
    """The examples as the dataloader's dataset, indexed by `Key`."""

    def __init__(self, examples: list[Example]):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: Key) -> Example:
        example = self.examples[key.index]
        return example if key.learned else replace(example, answer_ids=[])


class StepSampler:
    """Yields one process's keys of `Questions` for each optimizer step of an epoch.

    Every epoch has the same number of steps. `step` returns the number of finished steps, so that a
    resumed run has the same order as an uninterrupted one.
    """

    def __init__(
        self,
        examples: list[Example],
        questions_per_step: int,
        seed: int,
        step: Callable[[], int],
        process: int = 0,
        processes: int = 1,
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
            pieces = step
            if self.tokens:
                pieces = share(step, self.tokens, self.processes)[self.process]
            # Every process must join the gradient exchange: one without a question reads one
            # without training on it.
            keys = [Key(index) for piece in pieces for index in piece]
            yield keys or [Key(step[0][0], learned=False)]


def deal(articles: list[Piece], questions_per_step: int, rng: random.Random) -> list[list[Piece]]:
    """Return an epoch's steps: whole articles in random order (see the module's example).

    There are ceil(questions / questions_per_step) steps of about `questions_per_step` questions. An
    article with more questions is split.
    """
    pieces: list[Piece] = []
    for article in articles:
        count = math.ceil(len(article) / questions_per_step)
        # Pieces of nearly equal size, different in every epoch.
        shuffled = rng.sample(article, len(article)) if count > 1 else article
        pieces += [shuffled[number::count] for number in range(count)]
    rng.shuffle(pieces)
    left = sum(map(len, pieces))
    steps = []
    for steps_left in range(math.ceil(left / questions_per_step), 0, -1):
        # The mean of the remaining steps.
        step: list[Piece] = []
        size, goal = 0, left / steps_left
        # Add pieces that bring the step closer to its goal; leave at least one per later step.
        while not step or (
            len(pieces) >= steps_left and abs(size + len(pieces[-1]) - goal) <= abs(size - goal)
        ):
            step.append(pieces.pop())
            size += len(step[-1])
        left -= size
        steps.append(step)
    return steps


class TreeTokens:
    """Counts the tokens of a piece's tree: the prefix shared by all questions, and the rest.

    A prefix shared by only some questions is counted repeatedly.
    """

    def __init__(self, examples: list[Example], articles: list[Piece]):
        self.shared, self.own = [0] * len(examples), [0] * len(examples)
        for article in articles:
            columns = zip(*(examples[index].prompt_ids for index in article), strict=False)
            shared = sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, columns))
            for index in article:
                self.shared[index] = shared
                self.own[index] = _length(examples[index]) - shared

    def __call__(self, piece: Piece) -> int:
        return self.shared[piece[0]] + sum(self.own[index] for index in piece)


def share(step: list[Piece], tokens: Callable[[Piece], int], processes: int) -> list[list[Piece]]:
    """Distribute a step's pieces across processes, balancing tokens."""
    pieces = list(step)
    # Halves read an article twice, but in parallel instead of idling.
    while len(pieces) < processes and (largest := max(pieces, key=len))[1:]:
        pieces.remove(largest)
        pieces += [largest[::2], largest[1::2]]
    shares: list[list[Piece]] = [[] for _ in range(processes)]
    load = [0] * processes
    # The longest first, each to the least loaded process.
    for piece in sorted(pieces, key=lambda piece: -tokens(piece)):
        process = load.index(min(load))
        shares[process].append(piece)
        load[process] += tokens(piece)
    return shares


def count_tokens(examples: list[Example], recipe: Recipe) -> tuple[int, int]:
    """Return an epoch's tokens without and with shared prefixes."""
    articles = by_article(example.row.article for example in examples)
    tokens = TreeTokens(examples, articles)
    steps = deal(articles, recipe.questions_per_step, random.Random(recipe.seed))
    once = sum(tokens(piece) for step in steps for piece in step)
    return sum(map(_length, examples)), once - len(examples)  # last tokens are not read


def _length(example: Example) -> int:
    return len(example.prompt_ids) + len(example.answer_ids)
