"""Decode trees of prompts: read the prompts once, then feed one token per live branch and step.

The prompts of an article are one tree in a row of the batch. A new token sees its prompt's tokens
in the row's keys and values (the trunk) and its own branch's tokens, which are stored separately:

    trunk (one row)           own (one slot per branch)
    article | q 1 | q 2       answer 1: 2 steps so far, and room for more
                              answer 2: 2 steps so far, and room for more

A CUDA graph has fixed shapes: room is allocated for several steps, and stopped branches are removed
only when it is used up. On a CPU both happen at every step.

Answers equal those of `generate` (dandap/answering/generate.py), token by token in float32; in 16
bits, ties may differ.
"""

import hashlib
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from peft import PeftModel
from transformers import DynamicCache, PreTrainedModel

from dandap.answering.answer import Answer, Decoding
from dandap.answering.batches import Pairs, TreeBatches, run_batches
from dandap.answering.cuda_graph import CapturedStep, can_capture
from dandap.answering.generate import penalized
from dandap.answering.grounding import Grounding
from dandap.data.encode import Example
from dandap.model.device import autocast_for
from dandap.model.memory import READ_TOKENS, expected_length
from dandap.tree.attention import Branched, branching
from dandap.tree.logits import logits_at
from dandap.tree.masks import ALIGNED, additive, sliding_windows, tree_masks
from dandap.tree.mixers import BranchStates, mixers_of
from dandap.tree.token_tree import Part, collate, send

FIRST_TRIED = 16  # most probable tokens to try first in a grounded answer


@dataclass
class Branch:
    """A growing answer, and its position in the batch."""

    index: int  # of its example
    sample: int
    row: int  # of the batch
    slot: int  # within the row
    # Its log-probability is a sum until all answers are finished.
    answer: Answer = field(default_factory=Answer)


def answer_examples(
    model: PreTrainedModel | PeftModel,
    examples: list[Example],
    decoding: Decoding,
    tokens_per_batch: int,
    grounding: Grounding | None = None,
    done: Container[int] = (),
) -> Iterator[tuple[int, list[Answer]]]:
    """Yield (index of the example, its samples) as batches finish; skip indices in `done`.

    A batch has at most `tokens_per_batch` tokens, with padding and some new tokens.
    """
    model.eval()

    def sequences(index: int) -> Pairs:
        # A one-token answer makes the prompt's last token a predictor.
        return [(examples[index].prompt_ids, decoding.stop_ids[:1])]

    def work(batch: list[Part]) -> dict[int, list[Answer]]:
        return TreeDecoder(model, batch, examples, decoding, grounding).run()

    new = decoding.samples * expected_length(decoding.max_new_tokens)
    batching = TreeBatches(examples, sequences, new)
    yield from run_batches(batching, len(examples), tokens_per_batch, work, done)


class TreeCache(DynamicCache):
    """Keys and values of trees and, separately, of branches (see dandap/tree/attention.py)."""

    def __init__(self, rows: int, length: int, device: torch.device):
        # Without a config: sliding layers would drop keys by index, not by position.
        super().__init__()
        self.rows, self.length = rows, length
        # The rows of the trees to read; None while decoding branches.
        self.reading: slice | None = None
        self.trunk: dict[int, tuple[torch.Tensor, ...]] = {}  # per layer: keys, values
        self.own: dict[int, tuple[torch.Tensor, ...]] = {}
        self.recurrent = BranchStates()  # of layers without attention
        # The column of `own` for new tokens; on the device, for CUDA graphs.
        self.step = torch.full((1,), -1, device=device)

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        """Store keys and values of new tokens, and return those to attend to.

        Both are (rows, kv_heads, tokens, size). Trees attend to themselves, branches to `Branched`.
        """
        new = (key_states, value_states)
        if self.reading:
            if layer_idx not in self.trunk:
                # Allocate all rows at once, to avoid copies.
                self.trunk[layer_idx] = tuple(
                    x.new_zeros(self.rows, x.shape[1], self.length, x.shape[3]) for x in new
                )
            for whole, states in zip(self.trunk[layer_idx], new, strict=True):
                whole[self.reading, :, : states.shape[2]] = states
            return new
        # A row's tokens are branches here: (rows, kv_heads, branches, 1 step, size).
        for whole, states in zip(self.own[layer_idx], new, strict=True):
            whole.index_copy_(3, self.step, states[:, :, :, None])
        return tuple(map(Branched, self.trunk[layer_idx], self.own[layer_idx]))

    def make_room(self, branches: int, steps: int) -> None:
        """Allocate more steps for every branch; they are zero and masked."""
        for number, layer in self.trunk.items():
            room = tuple(x.new_zeros(*x.shape[:2], branches, steps, x.shape[3]) for x in layer)
            if number in self.own:
                pairs = zip(self.own[number], room, strict=True)
                self.own[number] = tuple(torch.cat(pair, dim=3) for pair in pairs)
            else:
                self.own[number] = room

    def keep_branches(self, row: torch.Tensor, slot: torch.Tensor) -> None:
        """Move branches: [r, w] becomes [row[r, w], slot[r, w]]."""
        for number, layer in self.own.items():  # layer by layer, to avoid a second cache
            self.own[number] = tuple(states[row, :, slot].transpose(1, 2) for states in layer)

    def keep_trees(self, rows: torch.Tensor) -> None:
        """Drop the trees of other rows."""
        for number, layer in self.trunk.items():
            self.trunk[number] = tuple(states[rows] for states in layer)


class TreeDecoder:
    """Decodes a batch of trees, one per row; a branch has a slot in its row: (rows, slots)."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        batch: list[Part],
        examples: list[Example],
        decoding: Decoding,
        grounding: Grounding | None,
    ):
        self.model, self.examples = model, examples
        self.decoding, self.grounding = decoding, grounding
        self.device = next(model.parameters()).device
        self.windows = sliding_windows(model.config)
        self.mixers = mixers_of(model)
        self.parts = batch
        self.multiple = ALIGNED if self.device.type == "cuda" else 1
        longest = max(len(part.tree) for part in batch)
        length = -(-longest // self.multiple) * self.multiple  # as `collate` pads
        self.cache = TreeCache(len(batch), length, self.device)
        self.captures = can_capture(self.device)
        # Steps to allocate at a time.
        self.room = expected_length(decoding.max_new_tokens) if self.captures else 1

    @torch.inference_mode()
    def run(self) -> dict[int, list[Answer]]:
        """Return the samples of every example in the batch, by index."""
        with branching(self.model):
            return self._run()

    def _run(self) -> dict[int, list[Answer]]:
        logits = self._read()
        branches = live = self._branch_off()
        for step in range(self.decoding.max_new_tokens):
            chosen = self._take_tokens(live, logits, step)
            growing = [branch for branch in live if not branch.answer.stopped]
            if not growing or step + 1 == self.decoding.max_new_tokens:
                break
            # Remove stopped branches, with CUDA graphs only when room must be allocated anyway.
            if step % self.room == 0 and len(growing) < len(live):
                left = [number for number, branch in enumerate(live) if not branch.answer.stopped]
                chosen = chosen[self._sent(left)]
                live = growing
                self._regroup(live)
            logits = self._feed(chosen, step)
        answers: dict[int, list[Answer]] = {}
        for branch in branches:
            branch.answer.log_probability /= len(branch.answer.token_ids)
            answers.setdefault(branch.index, []).append(branch.answer)
        return answers

    def _read(self) -> torch.Tensor:
        """Read the trees in chunks and return logits (branches, vocab)."""
        # One by one on a CPU, where padding takes time.
        rows = 1 if self.device.type == "cpu" else max(1, READ_TOKENS // self.cache.length)
        logits = []
        for first in range(0, len(self.parts), rows):
            self.cache.reading = slice(first, first + rows)
            batch = self._collate(self.parts[first : first + rows])
            mask = tree_masks(self.model.config, batch, self.model.dtype, flex=False)
            if self.mixers:
                self.cache.recurrent.read_next(batch)
            predicted = self._forward(
                batch["input_ids"], batch["position_ids"], mask, batch["predicts"]
            )
            # `predictor` has an entry per question, in the order of the branches; equal prompts
            # share a position.
            owner = batch["predictor"]
            if self.decoding.samples > 1:
                owner = owner.repeat_interleave(
                    self.decoding.samples, output_size=len(owner) * self.decoding.samples
                )
            logits.append(predicted[owner])
        self.cache.reading = None
        return torch.cat(logits)

    def _collate(self, parts: list[Part]) -> dict[str, torch.Tensor]:
        trees = [part.tree for part in parts]
        segments = "read" if self.mixers else None
        return collate(trees, self.decoding.pad_id, self.multiple, self.device, segments)

    def _branch_off(self) -> list[Branch]:
        """Return one branch per sample; set `sees`, the visible trunk columns, and `position`.

        `sees` is (rows, slots, columns); `position`, of a branch's last token, is (rows, slots).
        """
        branches = []
        samples = self.decoding.samples
        for row, part in enumerate(self.parts):
            owners = [(index, sample) for index in part.members for sample in range(samples)]
            for slot, (index, sample) in enumerate(owners):
                branches.append(Branch(index, sample, row, slot))
        # Index of each branch's last prompt token; 0 in empty slots, whose results are dropped.
        width = 1 + max(branch.slot for branch in branches)
        ends = torch.zeros(len(self.parts), width, dtype=torch.long)
        for row, part in enumerate(self.parts):
            row_ends = torch.tensor(part.tree.prompt_end).repeat_interleave(samples)
            ends[row, : len(row_ends)] = row_ends
        ends = self._sent(ends)
        self._find_slots(branches, width)
        owner = torch.zeros(ends.numel(), dtype=torch.long)  # of each slot's prompt
        for number, branch in enumerate(branches):
            owner[branch.row * width + branch.slot] = number // samples
        self.cache.recurrent.branch_off(self._sent(owner))
        batch = self._collate(self.parts)
        self.column_position = batch["position_ids"]
        # A branch sees its prompt's last token and that token's ancestors.
        column = torch.arange(self.cache.length, device=self.device)
        end = ends[:, :, None]
        self.sees = (column <= end) & (end <= batch["subtree_end"][:, None])
        self.position = self.column_position.gather(1, ends)
        return branches

    def _regroup(self, live: list[Branch]) -> None:
        """Remove stopped branches from tensors and cache, and renumber `live`."""
        rows = sorted({branch.row for branch in live})
        # Removing empty rows copies the cache, so do it only if half are empty.
        if len(rows) > len(self.sees) / 2:
            rows = list(range(len(self.sees)))
        number = {row: new for new, row in enumerate(rows)}
        members: list[list[int]] = [[] for _ in rows]
        for branch in live:
            members[number[branch.row]].append(branch.slot)
            branch.row, branch.slot = number[branch.row], len(members[number[branch.row]]) - 1
        # slot[r, w] is the old slot of the branch now at [r, w]; shorter rows are padded with 0.
        width = max(map(len, members))
        slot = self._sent([slots + [0] * (width - len(slots)) for slots in members])
        left = self._sent(rows)
        row = left[:, None].expand_as(slot)
        flat = row * self.position.shape[1] + slot
        self.sees, self.position = self.sees[row, slot], self.position[row, slot]
        self.cache.keep_branches(row, slot)
        self.cache.recurrent.keep_branches(flat.flatten())
        if len(rows) < len(self.column_position):
            self.column_position = self.column_position[left]
            self.cache.keep_trees(left)
        self._find_slots(live, width)

    def _find_slots(self, live: list[Branch], width: int) -> None:
        """Set the flat slots of the live branches."""
        self.slots = self._sent([branch.row * width + branch.slot for branch in live])

    def _sent(self, numbers: list | torch.Tensor) -> torch.Tensor:
        return send(numbers, self.device)

    def _feed(self, chosen: torch.Tensor, step: int) -> torch.Tensor:
        """Feed the selected tokens of all live branches, and return logits (branches, vocab)."""
        if step % self.room == 0:
            self.cache.make_room(self.position.shape[1], self.room)
            self.columns = step + self.room  # of own tokens
            self.captured = CapturedStep()
        return self.captured(self._step, chosen) if self.captures else self._step(chosen)

    def _step(self, chosen: torch.Tensor) -> torch.Tensor:
        """Do one step; only tensor contents depend on the step, for CUDA graphs."""
        ids = torch.full_like(self.position, self.decoding.pad_id)
        ids.view(-1).index_copy_(0, self.slots, chosen)
        self.position += 1
        self.cache.step += 1
        masks = {
            kind: additive(self._sees_within(window), self.model.dtype)
            for kind, window in self.windows.items()
        }
        return self._forward(ids, self.position, masks.get("", masks), self.slots)

    def _sees_within(self, window: int | None) -> torch.Tensor:
        """Return the visibility of trunk and own tokens, (rows, slots, columns + steps)."""
        # Steps since each own token was fed, oldest first; negative for future steps.
        age = self.cache.step - torch.arange(self.columns, device=self.device)
        age = age.expand(*self.position.shape, -1)
        if window is None:
            return torch.cat([self.sees, age >= 0], dim=-1)
        near = self.position[:, :, None] - self.column_position[:, None] < window
        return torch.cat([self.sees & near, (age >= 0) & (age < window)], dim=-1)

    def _forward(self, ids, positions, mask, at) -> torch.Tensor:
        """Return float32 logits at some positions, (positions, vocab)."""
        cache_name = self.mixers.cache_name if self.mixers else "past_key_values"
        with autocast_for(self.model), logits_at(self.model, at):
            outputs = self.model(
                input_ids=ids,
                position_ids=positions,
                attention_mask=mask,
                use_cache=True,
                **{cache_name: self.cache},
            )
        return outputs.logits.float()

    def _take_tokens(self, live: list[Branch], logits: torch.Tensor, step: int) -> torch.Tensor:
        """Append each branch's next token, and return the tokens, (branches)."""
        # `allowed` selects tokens; log-probabilities are of the model's `logits`.
        stop_ids = self.decoding.stop_ids
        allowed = logits
        if self.decoding.repetition_penalty != 1:
            seen = [
                [*self.examples[branch.index].prompt_ids, *branch.answer.token_ids]
                for branch in live
            ]
            allowed = penalized(logits, seen, self.decoding.repetition_penalty)
        if step < self.decoding.min_new_tokens:
            allowed = allowed.index_fill(1, self._sent(stop_ids), -torch.inf)
        if self.grounding:
            return self._take_grounded(live, logits, self._perturbed(live, allowed, step))
        if self.decoding.temperature > 0:
            chosen = self._sampled(live, allowed, step)
        else:
            chosen = allowed.argmax(-1)
        (tokens,), (log_probabilities,) = _fetched(chosen[None], logits)
        for branch, token, log_probability in zip(live, tokens, log_probabilities, strict=True):
            self._append(branch, token, log_probability)
        return chosen

    def _append(self, branch: Branch, token: int, log_probability: float) -> None:
        if branch.answer.stopped:
            return
        branch.answer.token_ids.append(token)
        branch.answer.log_probability += log_probability
        branch.answer.stopped = token in self.decoding.stop_ids

    def _take_grounded(
        self, live: list[Branch], logits: torch.Tensor, scores: torch.Tensor
    ) -> torch.Tensor:
        """Append the most probable tokens that extend spans, and return them."""
        chosen = []
        top = scores.topk(min(FIRST_TRIED, scores.shape[1])).indices
        tokens, log_probabilities = _fetched(top.T, logits)  # (tried, branches)
        for number, branch in enumerate(live):
            if branch.answer.stopped:
                chosen.append(self.decoding.stop_ids[0])
                continue
            context = self.examples[branch.index].context
            left = self.decoding.max_new_tokens - len(branch.answer.token_ids)
            assert self.grounding
            pick = partial(
                self.grounding.pick, branch.answer.token_ids, context, self.decoding.stop_ids, left
            )
            first = [tried[number] for tried in tokens]
            token = pick(first)
            if token is None:
                token = pick(scores[number].argsort(descending=True).tolist())
            # An empty article has no span: stop.
            token = self.decoding.stop_ids[0] if token is None else token
            if token in first:
                log_probability = log_probabilities[first.index(token)][number]
            else:
                log_probability = logits[number].log_softmax(-1)[token].item()
            self._append(branch, token, log_probability)
            chosen.append(token)
        return self._sent(chosen)

    def _sampled(self, live: list[Branch], logits: torch.Tensor, step: int) -> torch.Tensor:
        """Sample tokens from the softmax at the decoding's temperature (inverse CDF)."""
        # The upper 24 of the seed's 56 bits: in [0, 1), exact in float32.
        drawn = [(self._seed(branch, step) >> 32) / 2**24 for branch in live]
        reached = self._tempered(logits).softmax(-1).cumsum(-1)
        # The sum may not be exactly 1.
        at = self._sent(drawn)[:, None] * reached[:, -1:]
        return torch.searchsorted(reached, at, right=True)[:, 0].clamp(max=logits.shape[1] - 1)

    def _perturbed(self, live: list[Branch], logits: torch.Tensor, step: int) -> torch.Tensor:
        """Add Gumbel noise to the logits; at temperature 0, return them unchanged.

        The maximum over any subset is then a sample of its softmax (Gumbel, 1954), so grounding can
        try tokens in order.
        """
        if not self.decoding.temperature:
            return logits
        noise = torch.empty_like(logits)
        for row, branch in zip(noise, live, strict=True):
            row.exponential_(
                generator=torch.Generator(self.device).manual_seed(self._seed(branch, step))
            )
        return self._tempered(logits) - noise.log()  # -log of an exponential is Gumbel noise

    def _tempered(self, logits: torch.Tensor) -> torch.Tensor:
        """Return logits / temperature with a maximum of 0, finite at any temperature."""
        return (logits - logits.amax(-1, keepdim=True)) / self.decoding.temperature

    def _seed(self, branch: Branch, step: int) -> int:
        """Return a 56-bit seed from question, sample and step, independent of the batch."""
        name = f"{self.decoding.seed} {self.examples[branch.index].row.id} {branch.sample} {step}"
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")


def _fetched(
    tokens: torch.Tensor, logits: torch.Tensor
) -> tuple[list[list[int]], list[list[float]]]:
    """Return tokens (n, branches) and their log-probabilities with a single synchronization.

    logits are (branches, vocab) in float32, in which token ids are exact up to 2**24.
    """
    log_probabilities = logits.gather(1, tokens.T).T - logits.logsumexp(-1)
    both = torch.stack([tokens.float(), log_probabilities]).tolist()
    return [list(map(int, row)) for row in both[0]], both[1]
