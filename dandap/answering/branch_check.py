"""A trial that tells whether a model's prompts can branch."""

from dataclasses import replace

import torch
from transformers import PreTrainedModel

from dandap.answering.answer import Decoding
from dandap.answering.batches import out_of_memory
from dandap.answering.tree_decoder import TreeDecoder
from dandap.data.encode import Example
from dandap.data.rows import Row
from dandap.errors import InputError, first_line
from dandap.model.device import computing
from dandap.tree.packing import Part
from dandap.tree.token_tree import grow

# How far logits may be off, as a share of their length, centred. On Gemma 3 270M rounding to
# bfloat16 came to 0.053 at most (0.2 of a log-probability); a branch that sees another's tokens to
# 0.22 at least, on the demo's base to 0.11. In float32 rounding comes to 0.00001.
LIMIT_16_BITS, LIMIT_FLOAT32 = 0.1, 0.001
# Some models round more in 16 bits: 48 layers of random weights in NF4 came to 0.10 on an H200. A
# tree of one prompt, in which nothing can leak, tells how much: up to twice as much passes, if it
# is less than this.
MOST_ROUNDING = 0.2
STEPS = 3


def why_no_tree(model: PreTrainedModel, decoding: Decoding) -> str | None:
    """Return why a model's prompts cannot branch, or None if they can.

    It is tried on two short prompts that share a beginning. The logits of a tree and of what grows
    from it must be what plain forwards give. A model that ignores masks, or keeps another kind of
    cache than keys and values, is far off. (The prompts are shorter than real sliding windows.)
    """
    # Every vocabulary has these ids; what they mean does not matter. A branch has eight tokens, so
    # that another that sees them is far off.
    shared = [decoding.pad_id, *range(3, 20)]
    ends = (range(20, 28), range(40, 48))
    examples = [
        Example(Row(str(number), "trial", ""), [*shared, *end], [])
        for number, end in enumerate(ends)
    ]
    trial = replace(
        decoding,
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,  # else a stop at once would try nothing
        samples=1,
        temperature=0.0,
        repetition_penalty=1.0,
    )
    try:
        together = _differences(model, examples, trial)
        if _within(together, model, examples, trial):
            return None
    except torch.OutOfMemoryError as error:
        raise InputError(out_of_memory("a trial of 40 tokens")) from error
    except InputError as error:
        return str(error)
    # Whatever a model's code raises about masks or cache, it cannot branch.
    except Exception as error:  # noqa: BLE001
        return f"{model.config.model_type}: {first_line(error)}"
    return (
        f"the logits of a trial tree of {model.config.model_type} were off by "
        f"{' and '.join(f'{each:.2f}' for each in together)} of their length"
    )


def _within(
    together: list[float], model: PreTrainedModel, examples: list[Example], trial: Decoding
) -> bool:
    """Say whether differences are what rounding does."""
    is_rough = model.dtype is not torch.float32
    limit = LIMIT_16_BITS if is_rough else LIMIT_FLOAT32
    # Not `any(... > ...)` here and below: a NaN must not pass.
    if all(difference <= limit for difference in together):
        return True
    if not is_rough or not all(difference <= MOST_ROUNDING for difference in together):
        return False
    alone = [_differences(model, [example], trial)[0] for example in examples]
    return all(two <= 2 * one for two, one in zip(together, alone, strict=True))


def _differences(model: PreTrainedModel, examples: list[Example], trial: Decoding) -> list[float]:
    """Return how far the logits of a tree of these prompts are from plain forwards', at most."""
    part = Part(
        list(range(len(examples))),
        grow((example.prompt_ids, trial.stop_ids[:1]) for example in examples),
    )
    decoder = _RememberingDecoder(model.eval(), [part], examples, trial, None)
    answers = decoder.run()
    by_branch = torch.stack(decoder.logits, dim=1)  # (branches, steps, vocab)
    differences = []
    for index, example in enumerate(examples):
        (answer,) = answers[index]
        plain = _plain_logits(model, example.prompt_ids, answer.token_ids)
        differences.append(_distance(by_branch[index], plain))
    return differences


class _RememberingDecoder(TreeDecoder):
    """Keeps the logits of every step, (branches, vocab)."""

    def _take_tokens(self, live, logits, step):
        # A trial ends for all branches at once, so these are in the order of the examples. A copy:
        # the next replay writes over them.
        self.logits = [*getattr(self, "logits", []), logits.clone()]
        return super()._take_tokens(live, logits, step)


def _distance(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the length of the difference as a share of the expected length, at the worst step.

    Both are (steps, vocab) and centred: a softmax does not change with the mean of its logits.
    """
    centred = expected - expected.mean(-1, keepdim=True)
    off = logits - logits.mean(-1, keepdim=True) - centred
    return (off.norm(dim=-1) / centred.norm(dim=-1)).max().item()


@torch.inference_mode()
def _plain_logits(
    model: PreTrainedModel, prompt_ids: list[int], answer_ids: list[int]
) -> torch.Tensor:
    """Return the logits that predict an answer's tokens, (tokens, vocab), by one forward."""
    ids = torch.tensor([[*prompt_ids, *answer_ids]], device=next(model.parameters()).device)
    with computing(model):
        return model(input_ids=ids, use_cache=False).logits[0, len(prompt_ids) - 1 : -1].float()
