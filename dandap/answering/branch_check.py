"""Check whether a model's prompts can branch, on a small tree."""

import inspect
import sys
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
from dandap.tree.logits import logits_at, summed_cross_entropy
from dandap.tree.masks import tree_masks
from dandap.tree.mixers import Mixers, mixers_of
from dandap.tree.token_tree import Part, collate, grow

# Limits on the relative difference of centered logits. On Gemma 3 270M rounding to bfloat16 gives
# at most 0.053, a branch that sees its sibling at least 0.22 (0.11 on the demo's base). Rounding to
# float32 gives 0.00001.
LIMIT_16_BITS, LIMIT_FLOAT32 = 0.1, 0.001
# Some models round more: 48 NF4 layers with random weights gave 0.10 on an H200. Twice the
# difference of a single-prompt tree, in which nothing can leak, passes up to this limit.
MOST_ROUNDING = 0.2
STEPS = 3


def why_no_tree(model: PreTrainedModel | PeftModel, decoding: Decoding) -> str | None:
    """Return why a model's prompts cannot branch, or None if they can.

    Compares the logits of a tree of two short prompts, and of three decoding steps, with separate
    forward passes. Models that ignore masks or have no key-value cache fail. Prompts are shorter
    than real sliding windows.
    """
    # Ids within every vocabulary; eight tokens per branch make a leak visible.
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
    limit = LIMIT_16_BITS if rough else LIMIT_FLOAT32
    try:
        together = _differences(model, examples, check)
        # Not `any(... > ...)`: a NaN must fail.
        if all(d <= limit for d in together):
            return None
        if rough and all(d <= MOST_ROUNDING for d in together):
            alone = [_differences(model, [example], check)[0] for example in examples]
            if all(two <= 2 * one for two, one in zip(together, alone, strict=True)):
                return None
    except torch.OutOfMemoryError as error:
        raise InputError(out_of_memory("a check of 40 tokens")) from error
    except OverflowError as error:
        for name, weight in model.named_parameters():
            if weight.is_floating_point() and not weight.isfinite().all():
                reason = f"{name} contains NaN or infinity. Download the base model again."
                raise InputError(reason) from error
        raise InputError(
            f"{error}: its logits are not finite. Use --compute_dtype float32, or bfloat16 if the "
            "GPU supports it."
        ) from error
    except InputError as error:
        return str(error)
    # A model's code may raise anything about masks or cache.
    except Exception as error:  # noqa: BLE001
        return f"{model.config.model_type}: {first_line(error)}"
    ids = torch.tensor([examples[0].prompt_ids], device=model.device)
    with torch.inference_mode(), autocast_for(model):
        passes = (model(input_ids=part, use_cache=False) for part in (ids, ids[:, :-1]))
        whole, start = (output.logits[0] for output in passes)
    if (whole[:-1] - start).norm() > limit * start.norm():
        raise InputError(
            f"{model.config.model_type} is not causal: its tokens attend to later ones. Choose a "
            "causal language model."
        )
    shares = " and ".join(f"{each:.2f}" for each in together)
    return f"the logits of a small tree of {model.config.model_type} were off by {shares}"


def why_other_gradients(model: PeftModel, pad_id: int) -> str | None:
    """Return why the gradients of a small tree differ from those of its sequences, or None.

    Checks models with mixers: an installed kernel may not differentiate an initial state. Then
    transformers' reference functions replace the kernels.
    """
    if not (mixers := mixers_of(model)):
        return None
    limit = LIMIT_FLOAT32 if model.dtype is torch.float32 else LIMIT_16_BITS
    for _ in range(2):
        if (off := _gradient_difference(model, mixers, pad_id)) <= limit:
            return None
        reason = f"the gradients of a small tree of {model.config.model_type} were off by {off:.2f}"
        if not (names := use_reference_functions(model)):
            break
        print(f"using transformers' reference {', '.join(names)}: {reason}")
    return reason


def use_reference_functions(model: torch.nn.Module) -> list[str]:
    """Replace the kernels of packages (fla, causal-conv1d) by transformers' reference functions.

    They stay replaced in this process, in every model of this type. Returns their names.
    """
    replaced = []
    for module in {sys.modules[type(part).__module__] for part in model.modules()}:
        for name, function in list(vars(module).items()):
            # transformers' wrapper of a kernel keeps the reference function.
            if (
                inspect.isfunction(function)
                and function.__module__ == module.__name__
                and hasattr(function, "__wrapped__")
            ):
                setattr(module, name, inspect.unwrap(function))
                replaced.append(name)
    return sorted(replaced)


def _gradient_difference(model: PeftModel, mixers: Mixers, pad_id: int) -> float:
    """Return the relative difference of a small tree's gradients from its sequences'."""
    device = next(model.parameters()).device
    shared = [pad_id, *range(3, 20)]
    pairs = [([*shared, *range(20, 28)], [28, 29, 30]), ([*shared, *range(40, 48)], [48, 49])]
    gradients = []
    for trees in ([pairs], [[pair] for pair in pairs]):
        model.zero_grad()
        for tree in trees:
            batch = collate([grow(tree)], pad_id, device=device, segments="train")
            if len(tree) > 1:
                mixers.read_next(batch)
            masks = tree_masks(model.config, batch, model.dtype, flex=False)
            with autocast_for(model), logits_at(model, batch["predicts"]):
                inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
                logits = model(**inputs, attention_mask=masks, use_cache=False).logits
            targets = batch["predictor"], batch["target_ids"], batch["times"]
            (128 * summed_cross_entropy(logits, *targets)).backward()  # against underflow
        found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        gradients.append(torch.cat(found).float())
    model.zero_grad()
    return ((gradients[0] - gradients[1]).norm() / gradients[1].norm()).item()


def _differences(
    model: PreTrainedModel | PeftModel, examples: list[Example], check: Decoding
) -> list[float]:
    """Return each prompt's largest relative difference of tree logits from a plain forward."""
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
        # Centered, because softmax ignores the mean.
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
        # All branches end together, in the examples' order. Clone: a replay overwrites the logits.
        self.logits.append(logits.clone())
        return super()._take_tokens(live, logits, step)
