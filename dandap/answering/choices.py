"""Select answers from a list by the log-probability of each choice."""

from collections.abc import Container, Iterator

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from dandap.answering.batches import Pairs, TreeBatches, run_batches
from dandap.data.encode import Encoder, Example
from dandap.model.device import autocast_for
from dandap.model.memory import READ_TOKENS
from dandap.recipe import Recipe
from dandap.tree.logits import logits_at
from dandap.tree.masks import tree_masks
from dandap.tree.mixers import mixers_of
from dandap.tree.token_tree import Part, collate


def score_choices(
    model: PreTrainedModel | PeftModel,
    examples: list[Example],
    choices: list[list[list[int]]],
    pad_id: int,
    tokens_per_batch: int,
    done: Container[int] = (),
) -> Iterator[tuple[int, list[float]]]:
    """Yield (index of the example, log-probabilities of its choices); skip indices in `done`.

    choices[index] are token ids. A log-probability is summed over a choice's tokens.
    """
    model.eval()
    mixers = mixers_of(model)

    def sequences(index: int) -> Pairs:
        return [(examples[index].prompt_ids, ids) for ids in choices[index]]

    @torch.inference_mode()
    def score(batch: list[Part]) -> dict[int, list[float]]:
        tensors = collate(
            [part.tree for part in batch],
            pad_id,
            device=next(model.parameters()).device,
            segments="train" if mixers else None,
        )
        if mixers:
            mixers.read_next(tensors)
        with autocast_for(model), logits_at(model, tensors["predicts"]):
            logits = model(
                input_ids=tensors["input_ids"],
                position_ids=tensors["position_ids"],
                attention_mask=tree_masks(model.config, tensors, model.dtype, flex=False),
                use_cache=False,
            ).logits
        logits = logits.float()
        predictor = tensors["predictor"]
        # log_softmax would be a second (positions, vocab) tensor.
        each = logits[predictor, tensors["target_ids"]] - logits.logsumexp(-1)[predictor]
        # Targets are ordered by question, then by choice.
        owners = [index for part in batch for index in part.members]
        lengths = [len(ids) for index in owners for ids in choices[index]]
        sums = iter([float(piece.sum()) for piece in each.cpu().split(lengths)])
        return {index: [next(sums) for _ in choices[index]] for index in owners}

    batching = TreeBatches(examples, sequences, new=0)
    yield from run_batches(batching, len(examples), min(tokens_per_batch, READ_TOKENS), score, done)


def choices_of(example: Example, recipe: Recipe) -> tuple[str, ...]:
    """Return the question's choices, or the recipe's; empty for free text."""
    return example.row.choices or tuple(recipe.choices)


def encode_choices(
    encoder: Encoder, examples: list[Example], recipe: Recipe
) -> list[list[list[int]]]:
    """Return the token ids of every example's choices, or their distinct prefixes."""
    encoded = []
    for e in examples:
        choices = choices_of(e, recipe)
        encoded.append([encoder.encode_answer(e.context, e.row, c, e.prompt_ids) for c in choices])
    return encoded if recipe.choices_by == "whole" else [_distinct_prefixes(ids) for ids in encoded]


def _distinct_prefixes(ids: list[list[int]]) -> list[list[int]]:
    """Return the shortest distinct prefixes of equal length, usually one token."""
    longest = max(map(len, ids), default=0)
    for count in range(1, longest + 1):
        if len({tuple(choice[:count]) for choice in ids}) == len(ids):
            return [choice[:count] for choice in ids]
    return [choice[:longest] for choice in ids]  # duplicate choices
