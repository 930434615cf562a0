"""Check whether a model's prompts can branch, on a small tree."""

from dataclasses import replace

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from dandap.answering.answer import Decoding
from dandap.answering.batches import out_of_memory
from dandap.answering.tree_decoder import TreeDecoder
from dandap.data.encode import Example
from dandap.data.rows import Row
from dandap.errors import InputError, first_line
from dandap.model.device import autocast_for
from dandap.tree.token_tree import Part, grow

# The largest difference of centered logits, as a share of their norm. On Gemma 3 270M rounding to
# bfloat16 gave at most 0.053 (0.2 of a log-probability); a branch that sees another's tokens at
# least 0.22, on the demo's base 0.11. In float32 rounding gives 0.00001.
LIMIT_16_BITS, LIMIT_FLOAT32 = 0.1, 0.001
# Some models round more in 16 bits: 48 layers of random weights in NF4 gave 0.10 on an H200. A
# tree of one prompt, in which nothing can leak, shows how much: twice that passes, up to this.
MOST_ROUNDING = 0.2
STEPS = 3


def why_no_tree(model: PreTrainedModel | PeftModel, decoding: Decoding) -> str | None:
    """Return why a model's prompts cannot branch, or None if they can.

    Two short prompts share a prefix. The logits of their tree, and of what grows from it, must be
    those of plain forwards: a model that ignores masks, or has another cache than keys and values,
    is far off. (The prompts are shorter than real sliding windows.)
    """
    # Every vocabulary has these ids. A branch has eight tokens, so that a leak shows.
    shared = [decoding.pad_id, *range(3, 20)]
    ends = (range(20, 28), range(40, 48))
    examples = [
        Example(Row(str(number), "check", ""), [*shared, *end], [])
        for number, end in enumerate(ends)
    ]
    check = replace(
        decoding,
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,  # an immediate stop would check nothing
        samples=1,
        temperature=0.0,
        repetition_penalty=1.0,
    )
    rough = model.dtype is not torch.float32
    try:
        together = _differences(model, examples, check)
        # Not `any(... > ...)`, here and below: a NaN must not pass.
        if all(d <= (LIMIT_16_BITS if rough else LIMIT_FLOAT32) for d in together):
            return None
        if rough and all(d <= MOST_ROUNDING for d in together):
            alone = [_differences(model, [example], check)[0] for example in examples]
            if all(two <= 2 * one for two, one in zip(together, alone, strict=True)):
                return None
    except torch.OutOfMemoryError as error:
        raise InputError(out_of_memory("a check of 40 tokens")) from error
    except OverflowError as error:
        raise InputError(
            f"{error}: its logits are not finite. Use --compute_dtype float32, or bfloat16 if the "
            "GPU supports it."
        ) from error
    except InputError as error:
        return str(error)
    # Whatever a model's code raises about masks or cache, it cannot branch.
    except Exception as error:  # noqa: BLE001
        return f"{model.config.model_type}: {first_line(error)}"
    shares = " and ".join(f"{each:.2f}" for each in together)
    return f"the logits of a small tree of {model.config.model_type} were off by {shares}"


def _differences(
    model: PreTrainedModel | PeftModel, examples: list[Example], check: Decoding
) -> list[float]:
    """Return each prompt's largest difference of tree logits from plain forwards'."""
    tree = grow((example.prompt_ids, check.stop_ids[:1]) for example in examples)
    part = Part(list(range(len(examples))), tree)
    decoder = _RecordingDecoder(model.eval(), [part], examples, check, None)
    answers = decoder.run()
    by_branch = torch.stack(decoder.logits, dim=1)  # (branches, steps, vocab)
    differences = []
    for index, example in enumerate(examples):
        ids = torch.tensor([[*example.prompt_ids, *answers[index][0].token_ids]])
        with torch.inference_mode(), autocast_for(model):
            plain = model(input_ids=ids.to(by_branch.device), use_cache=False).logits
        if not plain.isfinite().all():
            raise OverflowError(f"{model.dtype} overflows in this base")
        plain = plain[0, len(example.prompt_ids) - 1 : -1].float()  # (steps, vocab)
        # Centered: a softmax does not change with the mean of its logits.
        expected = plain - plain.mean(-1, keepdim=True)
        off = by_branch[index] - by_branch[index].mean(-1, keepdim=True) - expected
        differences.append((off.norm(dim=-1) / expected.norm(dim=-1)).max().item())
    return differences


class _RecordingDecoder(TreeDecoder):
    """Records the logits of every step, (branches, vocab)."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.logits: list[torch.Tensor] = []

    def _take_tokens(self, live, logits, step):
        # All branches end together, so these are in the order of the examples. A copy: the next
        # replay overwrites them.
        self.logits.append(logits.clone())
        return super()._take_tokens(live, logits, step)
