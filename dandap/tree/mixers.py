"""Run recurrent and convolutional layers on token trees, segment by segment.

A mixer (gated DeltaNet, Mamba 2, a short convolution) reads tokens in order, so that branches of a
tree in depth-first order would read each other. A segment is a chain of tokens without branching:

    level 0    article                one call per length
    level 1    q 1 a | q 2 b b        one call for all leaves of similar length, right-padded

A segment starts from the state at its parent's end: the last inputs of the convolution and the
recurrent state, which transformers' mixers request from a `Cache`. Gradients flow through states.
Padding would change a state, so only leaves are padded. A single token updates a state in place and
without gradients: in training, a segment of one token is read again with each of its children.

Mamba 1 has no scan that starts from a state, and cannot branch.
"""

import inspect
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from transformers import PreTrainedModel


class State(NamedTuple):
    """States of segments or branches; the first dimension counts them."""

    conv: torch.Tensor  # the last inputs of the convolution, (count, channels, kernel size - 1)
    recurrent: torch.Tensor | None  # (count, ...); None if the mixer is only a convolution

    def at(self, index: torch.Tensor) -> "State":
        """Return the states with these numbers."""
        return State(self.conv[index], None if self.recurrent is None else self.recurrent[index])


def joined(states: Sequence[State]) -> State:
    """Concatenate states."""
    convs, recurrents = zip(*states, strict=True)
    return State(torch.cat(convs), None if recurrents[0] is None else torch.cat(recurrents))


class Segment(NamedTuple):
    """A chain of tokens that a mixer reads from the state at its parent's end."""

    tokens: list[int]  # indices
    parent: int  # the number of a segment, -1 for none
    level: int


class Call(NamedTuple):
    """Segments that a mixer reads in one call."""

    tokens: torch.Tensor  # (segments, length): indices in the flattened batch
    parent: torch.Tensor | None  # (segments,): among the states of the level above
    has_children: bool


class Levels(NamedTuple):
    """The segments of a batch of trees."""

    calls: list[list[Call]]  # by level
    order: torch.Tensor  # (tokens,): index of each token in the concatenated outputs


def segments_of(subtree_end: list[int], stops: Collection[int] | None) -> list[Segment]:
    """Split a tree into segments; each of `stops` also ends one (None in training)."""
    segments: list[Segment] = []
    path: list[int] = []  # segments from the root to the current token
    for index, end in enumerate(subtree_end):
        # An only child continues its parent's segment.
        if index and subtree_end[index - 1] == end and index - 1 not in (stops or ()):
            segments[-1].tokens.append(index)
            continue
        while path and subtree_end[segments[path[-1]].tokens[-1]] < index:
            path.pop()
        tokens, parent = [index], path[-1] if path else -1
        if stops is None and parent >= 0 and segments[parent].parent >= 0:
            above = segments[parent]
            if len(above.tokens) == 1:
                tokens, parent = [*above.tokens, index], above.parent
        path.append(len(segments))
        level = segments[parent].level + 1 if parent >= 0 else 0
        segments.append(Segment(tokens, parent, level))
    return segments


def segment_arrays(
    trees: list, length: int, until_prompt_end: bool
) -> dict[str, tuple[tuple[int, ...], list[int]]]:
    """Return arrays of a batch's segments for `levels_of`, each as its shape and flat values.

    Segments for training, or segments until the prompts' ends, whose states `end_state` numbers.
    """
    found: list[Segment] = []  # of all trees, with tokens of the flattened batch
    ends: list[int] = []  # tokens at which prompts end
    for row, tree in enumerate(trees):
        first, start = len(found), row * length
        stops = set(tree.prompt_end) if until_prompt_end else None
        for tokens, parent, level in segments_of(tree.subtree_end, stops):
            tokens = [start + token for token in tokens]
            found.append(Segment(tokens, parent + first if parent >= 0 else -1, level))
        ends += [start + end for end in tree.prompt_end]
    parents = {segment.parent for segment in found}
    # By level: calls by whether states are needed, and by length. Other segments are padded to at
    # most twice their length.
    levels: dict[int, dict[tuple[bool, int], list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, segment in enumerate(found):
        needed, size = until_prompt_end or number in parents, len(segment.tokens)
        levels[segment.level][needed, size if needed else size.bit_length()].append(number)
    arrays: dict[str, tuple[tuple[int, ...], list[int]]] = {}
    order = [0] * (len(trees) * length)
    state_of: dict[int, int] = {}  # the state index of a segment
    state_after: dict[int, int] = {}
    above = here = outputs = 0  # the first state of the level above and of this one
    for level, calls in sorted(levels.items()):
        for call, ((needed, _), members) in enumerate(sorted(calls.items())):
            # A single token has no gradients if it has a parent.
            longest = max(len(found[number].tokens) for number in members)
            longest = max(longest, 1 if needed or not level else 2)
            index: list[int] = []
            for number in members:
                tokens = found[number].tokens
                for place, token in enumerate(tokens):
                    order[token] = outputs + place
                outputs += longest
                index += tokens + tokens[-1:] * (longest - len(tokens))
                if needed:
                    state_of[number] = state_after[tokens[-1]] = len(state_of)
            kind = "inner" if needed else "leaf"
            arrays[f"segments.{level}.{call}.{kind}"] = ((len(members), longest), index)
            if level:
                parents_of = [state_of[found[number].parent] - above for number in members]
                arrays[f"parents.{level}.{call}"] = ((len(members),), parents_of)
        above, here = here, len(state_of)
    arrays["segment_order"] = ((len(order),), order)
    if until_prompt_end:
        arrays["end_state"] = ((len(ends),), [state_after[end] for end in ends])
    return arrays


def levels_of(batch: dict[str, torch.Tensor]) -> Levels:
    """Return the segments of a batch collated with `segment_arrays`."""
    calls: list[list[Call]] = []
    for name, index in batch.items():
        if name.startswith("segments."):
            _, level, number, kind = name.split(".")
            if int(level) == len(calls):
                calls.append([])
            parent = batch.get(f"parents.{level}.{number}")
            calls[-1].append(Call(index, parent, kind == "inner"))
    return Levels(calls, batch["segment_order"])


class SegmentCache:
    """The part of transformers' Cache that mixers call, for the segments of one call."""

    def __init__(self, start: State | None):
        self.start, self.recurrent = start, start and start.recurrent
        self.inputs: torch.Tensor | None = None
        self.window = 0

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        return self.start and self.start.conv

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        return self.recurrent

    def is_recording_past(self, layer_idx: int) -> bool:
        return False

    def update_conv_state(
        self, conv_states: torch.Tensor, layer_idx: int, conv_kernel_size: int, **_: Any
    ) -> torch.Tensor:
        """Return the segment's inputs, after those before it."""
        if self.start:
            conv_states = torch.cat([self.start.conv, conv_states], dim=-1)
        self.inputs, self.window = conv_states, conv_kernel_size - 1
        return conv_states

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, **_: Any
    ) -> torch.Tensor:
        """Store the state after the segment."""
        self.recurrent = recurrent_states
        return recurrent_states

    def end(self) -> State:
        """Return the state after the segments."""
        if self.inputs is None:  # a single token, which updated the state in place
            assert self.start
            return State(self.start.conv, self.recurrent)
        missing = max(0, self.window - self.inputs.shape[-1])
        inputs = torch.nn.functional.pad(self.inputs, (missing, 0))
        return State(inputs[..., inputs.shape[-1] - self.window :], self.recurrent)


class BranchStates:
    """The mixers' part of the cache of trees and branches (dandap/answering/tree_decoder.py)."""

    def __init__(self) -> None:
        self.levels: Levels | None = None  # of the trees to read; None while decoding branches
        self.ends: torch.Tensor | None = None  # (prompts,): number of the state at a prompt's end
        self.read: dict[int, list[State]] = defaultdict(list)  # by layer: of all prompts read
        self.own: dict[int, State] = {}  # by layer: of the branches, flat (rows x slots)

    def read_next(self, batch: dict[str, torch.Tensor]) -> None:
        """Read a batch of trees, collated with segments until the prompts' ends."""
        self.levels, self.ends = levels_of(batch), batch["end_state"]

    def branch_off(self, owner: torch.Tensor) -> None:
        """Copy each branch's state from its prompt; `owner` is (branches,), in reading order."""
        self.levels = None
        self.own = {layer: joined(states).at(owner) for layer, states in self.read.items()}
        self.read.clear()

    def keep_branches(self, index: torch.Tensor) -> None:
        """Move branches: [b] becomes [index[b]]."""
        self.own = {layer: state.at(index) for layer, state in self.own.items()}


class Mixers:
    """The recurrent and convolutional mixers of a model.

    They read trees in the forward pass after `read_next`, and with a cache of trees. Gradient
    checkpointing repeats layers after that pass, so its levels stay until the next one.
    """

    def __init__(self, model: Any):
        self.levels: Levels | None = None
        self.next: Levels | None = None
        self.count = 0
        names = inspect.signature(model.forward).parameters
        self.cache_name = "cache_params" if "cache_params" in names else "past_key_values"
        model.base_model.register_forward_pre_hook(self._begin)
        for module in model.modules():
            forward: Any = inspect.unwrap(type(module).forward)
            code = getattr(forward, "__code__", None)
            if code and "get_conv_state" in code.co_names and hasattr(module, "layer_idx"):
                names = inspect.signature(forward).parameters
                (cache,) = {"cache_params", "past_key_values"} & set(names)
                module.forward = partial(  # type: ignore[method-assign]
                    self._forward, module.layer_idx, module.forward, cache
                )
                self.count += 1

    def read_next(self, batch: dict[str, torch.Tensor]) -> None:
        """Read a batch of trees, collated with segments, in the next forward pass."""
        self.next = levels_of(batch)

    def _begin(self, *_: Any) -> None:
        self.levels, self.next = self.next, None

    def _forward(self, layer: int, forward: Callable, name: str, hidden_states, *args, **options):
        cache = options.get(name)
        branches: BranchStates | None = getattr(cache, "recurrent", None)
        levels = branches.levels if branches else self.levels if cache is None else None
        if not branches and not levels:
            return forward(hidden_states, *args, **options)
        options = {n: value for n, value in options.items() if n not in (name, "attention_mask")}
        mixer = partial(forward, **options)
        if levels:
            output, states = _read(mixer, name, hidden_states, levels)
            if branches:
                assert branches.ends is not None
                branches.read[layer].append(joined(states).at(branches.ends))
            return output
        assert branches
        return _step(mixer, name, hidden_states, branches.own[layer])


def _read(
    mixer: Callable, name: str, hidden_states: torch.Tensor, levels: Levels
) -> tuple[torch.Tensor, list[State]]:
    """Return the output of a batch of trees, (rows, length, hidden), and the states by level."""
    flat = hidden_states.flatten(0, 1)
    outputs: list[torch.Tensor] = []
    states: list[State] = []
    for calls in levels.calls:
        ends = []
        for call in calls:
            cache = SegmentCache(None if call.parent is None else states[-1].at(call.parent))
            outputs.append(mixer(flat[call.tokens], **{name: cache}).flatten(0, 1))
            if call.has_children:
                ends.append(cache.end())
        if ends:
            states.append(joined(ends))
    return torch.cat(outputs)[levels.order].view(hidden_states.shape), states


def _step(mixer: Callable, name: str, hidden_states: torch.Tensor, own: State) -> torch.Tensor:
    """Feed one token per branch, (rows, slots, hidden), and update the branches' states."""
    cache = SegmentCache(own)
    output = mixer(hidden_states.flatten(0, 1)[:, None], **{name: cache})
    after = cache.end()
    # In place, for CUDA graphs.
    own.conv.copy_(after.conv)
    if own.recurrent is not None and after.recurrent is not None:
        own.recurrent.copy_(after.recurrent)
    return output.view(hidden_states.shape)


def mixers_of(model: PreTrainedModel | PeftModel) -> Mixers | None:
    """Return a model's mixers, prepared for trees, or None if it has only attention."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if not hasattr(base, "tree_mixers"):
        base.tree_mixers = Mixers(base)
    return base.tree_mixers if base.tree_mixers.count else None
