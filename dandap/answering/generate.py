"""Answer with transformers' generate, in batches sorted by length, without shared prefixes."""

from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel

from dandap.answering.answer import Answer, Decoding
from dandap.answering.batches import run_batches
from dandap.model.device import autocast_for
from dandap.tree.token_tree import send


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel | PeftModel,
    prompts: list[list[int]],
    decoding: Decoding,
    tokens_per_batch: int,
    done: Container[int] = (),
) -> Iterator[tuple[int, Answer]]:
    """Yield (index of the prompt, Answer) as batches finish; skip indices in `done`."""
    model.eval()

    def work(batch: list[int]) -> dict[int, Answer]:
        answers = _generate(model, [prompts[index] for index in batch], decoding)
        return dict(zip(batch, answers, strict=True))

    yield from run_batches(
        PromptBatches(prompts, decoding), len(prompts), tokens_per_batch, work, done
    )


class PromptBatches:
    """Batches prompts of similar length, with padding."""

    def __init__(self, prompts: list[list[int]], decoding: Decoding):
        self.prompts, self.decoding = prompts, decoding

    def batches(self, indices: list[int], tokens: int) -> list[list[int]]:
        """Return the prompts in batches, longest first."""
        left, batches = sorted(indices, key=lambda index: -len(self.prompts[index])), []
        while left:
            rows = max(1, tokens // self._room(left[0]))
            batches.append(left[:rows])
            left = left[rows:]
        return batches

    def members(self, batch: list[int]) -> list[int]:
        """Return a batch's questions: the batch itself."""
        return batch

    def size(self, batch: list[int]) -> int:
        """Return a batch's tokens; rows are padded to the first one."""
        return len(batch) * self._room(batch[0])

    def _room(self, index: int) -> int:
        # All beams of a row, with new tokens.
        return self.decoding.beams * (len(self.prompts[index]) + self.decoding.max_new_tokens)


@contextmanager
def _no_generation_defaults(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Disable the model's generation_config (sampling, penalties) for generate."""
    # PEFT's wrapper and the base each have one.
    owners: set[Any] = {model}
    if isinstance(model, PeftModel):
        owners.add(model.get_base_model())
    before = {owner: owner.generation_config for owner in owners}
    for owner in owners:
        owner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for owner, config in before.items():
            owner.generation_config = config


def penalized(logits: torch.Tensor, seen: list[list[int]], penalty: float) -> torch.Tensor:
    """Apply the repetition penalty (Keskar et al., 2019) for the tokens in each row.

    logits are (rows, vocab); `seen` includes the prompts.
    """
    # Padded with each row's last token: one transfer per step.
    distinct = [sorted(set(ids)) for ids in seen]
    width = max(map(len, distinct))
    at = send([ids + ids[-1:] * (width - len(ids)) for ids in distinct], logits.device)
    values = logits.gather(1, at)
    # A penalty above 1 lowers positive logits by division, negative ones by multiplication.
    return logits.scatter(1, at, torch.where(values < 0, values * penalty, values / penalty))


class _Penalty(LogitsProcessor):
    """`penalized` for generate, whose own penalty counts padding."""

    def __init__(self, prompts: list[list[int]], decoding: Decoding):
        self.start = [max(map(len, prompts)) - len(prompt) for prompt in prompts]
        self.decoding = decoding

    def __call__(self, input_ids, scores):
        seen = []
        for row, ids in enumerate(input_ids.tolist()):
            prompt = row // self.decoding.beams  # beams are adjacent rows
            seen.append(ids[self.start[prompt] :])
        return penalized(scores, seen, self.decoding.repetition_penalty)


def _generate(model: Any, prompts: list[list[int]], decoding: Decoding) -> list[Answer]:
    """Return the answers of one call of `generate` on left-padded prompts."""
    device = next(model.parameters()).device
    length = max(map(len, prompts))
    ids = torch.tensor(
        [[decoding.pad_id] * (length - len(prompt)) + prompt for prompt in prompts], device=device
    )
    mask = torch.tensor(
        [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device
    )
    penalize = [_Penalty(prompts, decoding)] if decoding.repetition_penalty != 1 else None
    with autocast_for(model), _no_generation_defaults(model):
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=decoding.max_new_tokens,
            min_new_tokens=decoding.min_new_tokens or None,
            do_sample=False,
            num_beams=decoding.beams,
            logits_processor=penalize,
            eos_token_id=decoding.stop_ids,
            pad_token_id=decoding.pad_id,
            return_dict_in_generate=True,
            output_logits=decoding.beams == 1,
            output_scores=decoding.beams > 1,
        )
    if decoding.beams > 1:  # a beam search's scores are log-probabilities
        steps = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices)
    else:  # scores are logits with masked stop tokens
        steps = model.compute_transition_scores(out.sequences, out.logits, normalize_logits=True)
    answers = []
    generated = out.sequences[:, length:].tolist()
    for new, log_probabilities in zip(generated, steps.float().tolist(), strict=True):
        # Padding follows the first stop token.
        stops = [position for position, token in enumerate(new) if token in decoding.stop_ids]
        count = stops[0] + 1 if stops else len(new)
        mean = sum(log_probabilities[:count]) / count
        answers.append(Answer(new[:count], bool(stops), mean))
    return answers
