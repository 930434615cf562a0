"""A trial that tells whether a model's prompts can branch."""

from dataclasses import replace

import torch
from transformers import PreTrainedModel

from dandap.answering.answer import Decoding
from dandap.answering.batches import out_of_memory
from dandap.answering.tree_decoder import TreeDecoder
from dandap.base.device import computing
from dandap.data.encoding import Example
from dandap.data.rows import Row
from dandap.errors import InputError, first_line
from dandap.tree.packing import Part
from dandap.tree.token_tree import grow

# Of a log-probability; 16-bit rounding is a tenth of that, a wrong mask ten times.
TRIAL_TOLERANCE = 0.1


def why_no_tree(model: PreTrainedModel, decoding: Decoding) -> str | None:
    """Return why a model's prompts cannot branch, or None if they can.

    It is tried on two short prompts that share a beginning. What the tree says its answers'
    log-probabilities are must be what plain forwards say. A model that ignores masks, or keeps
    another kind of cache than keys and values, is far off. (The prompts are shorter than real
    sliding windows.)
    """
    # Every vocabulary has these ids; what they mean does not matter.
    shared = [decoding.pad_id, *range(3, 20)]
    examples = [Example(Row(str(end), "trial", ""), [*shared, end], []) for end in (7, 11)]
    trial = replace(
        decoding,
        max_new_tokens=3,
        min_new_tokens=3,  # else a stop at once would try nothing
        samples=1,
        temperature=0.0,
        repetition_penalty=1.0,
    )
    part = Part([0, 1], grow((example.prompt_ids, decoding.stop_ids[:1]) for example in examples))
    try:
        answers = TreeDecoder(model.eval(), [part], examples, trial, None).run()
    except torch.OutOfMemoryError as error:
        raise InputError(out_of_memory("a trial of 20 tokens")) from error
    except InputError as error:
        return str(error)
    # Whatever a model's code raises about masks or cache, it cannot branch.
    except Exception as error:  # noqa: BLE001
        return f"{model.config.model_type}: {first_line(error)}"
    for index, (answer,) in answers.items():
        plain = _plain_log_probability(model, examples[index].prompt_ids, answer.token_ids)
        if abs(plain - answer.log_probability) > TRIAL_TOLERANCE * max(1, abs(plain)):
            return (
                f"a trial tree of {model.config.model_type} gave {answer.log_probability:.3f} "
                f"instead of {plain:.3f}"
            )
    return None


@torch.inference_mode()
def _plain_log_probability(
    model: PreTrainedModel, prompt_ids: list[int], answer_ids: list[int]
) -> float:
    """Return an answer's mean log-probability a token, by a forward over prompt and answer."""
    ids = torch.tensor([prompt_ids + answer_ids], device=next(model.parameters()).device)
    with computing(model):
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt_ids) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, ids[0, len(prompt_ids) :, None]).mean().item()
