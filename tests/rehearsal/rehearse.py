"""Rehearsals on a pretended GPU, in a process of their own.

    python -m tests.rehearsal.rehearse GPU JSON

GPU is a kind of pretended_gpu.KINDS, with "-dry" behind it for shapes without numbers. JSON is a
list of jobs, each {"what": a function below, "mutant": one of MUTANTS or nothing, ...arguments}.
The last line is the list of their results as JSON, an error being {"error": its text}.
test_rehearsal.py starts this and says what must hold.
"""

import json
import sys

from tests.rehearsal import pretended_gpu

GPU, JOBS = sys.argv[1], json.loads(sys.argv[2])
gpu = pretended_gpu.install(GPU.removesuffix("-dry"), dry=GPU.endswith("-dry"))

import contextlib
import tempfile
from unittest import mock
from dataclasses import replace

import torch
from torch._dynamo.utils import counters

from benchmarks.machine import random_model
from benchmarks.material import made_up
from dandap.answering.answer import Decoding
from dandap.answering.choices import score_choices
from dandap.answering.generate import generate_answers
from dandap.answering.tree_decoder import TreeDecoder, answer_examples
from dandap.base.adapter import add_adapter
from dandap.base.device import pick_compute_dtype, pick_device
from dandap.base.memory import MemoryEstimate, Plan
from dandap.base.model import load_tokenizer
from dandap.base.shapes import named_config
from dandap.recipe import load_recipe, make_recipe
from dandap.training import read_once
from dandap.training.job import Job
from dandap.training.plain import make_trainer
from dandap.training.read_once import make_read_once_trainer
from dandap.tree import attention

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def trained(config, device, options: dict, plan: dict, steps: int = 3):
    """Return the losses of a training of random weights, what was seen, and its trainer."""
    recipe = make_recipe(
        {"max_length": 256, "max_new_tokens": 16, "learning_rate": 1e-3} | options, "rehearse"
    )
    dtype = pick_compute_dtype(recipe, device)
    # The same weights everywhere: made and quantised on the host.
    base = random_model(config, recipe, CPU, torch.float32)
    if device.type == "cuda":
        base = base.to(dtype).to(device)
    model = add_adapter(base, recipe)
    whole = Plan(device, dtype, 512, False, MemoryEstimate(0, 0, 0, 0), None)
    examples = made_up(60, 5, 16 * steps)
    tokenizer = load_tokenizer(load_recipe("demo", {}))
    make = make_read_once_trainer if recipe.read_once else make_trainer
    with tempfile.TemporaryDirectory() as folder:
        job = Job(recipe, replace(whole, **plan), tokenizer, examples)
        trainer = make(job, model, folder, [])
        trainer.args.save_strategy = "no"
        with gpu.watched() as seen:
            trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    return losses, seen, trainer


def training(kind: str, options: dict | None = None, plan: dict | None = None) -> dict:
    """Compare losses with the CPU's, and say what the GPU saw."""
    config, options, plan = named_config(kind), options or {}, plan or {}
    if plan.get("flex"):
        trace_flex()
    expected, _, _ = trained(config, CPU, options | {"compute_dtype": "float32"}, {})
    got, seen, trainer = trained(config, pick_device(), options, plan)
    return {
        "expected": expected,
        "losses": got,
        "scaler": trainer.accelerator.scaler is not None,
        "adapters": sorted({str(p.dtype) for p in trainer.model.parameters() if p.requires_grad}),
        "micro_batches": seen.launches["micro-batch"],
        "waits": {f"{what} {line}": n for (what, line), n in seen.waits.items()},
        "waits_of_training": seen.waits_in("dandap/training/"),
        "launches": sum(seen.launches.values()),
        "breaks": sum(counters["graph_break"].values()),
        "graphs": counters["stats"]["unique_graphs"],
    }


def trace_flex() -> None:
    """Let FlexAttention be traced by Dynamo and computed by its formula: no compiler is here."""
    real = torch.compile

    def compile(function, **options):
        return real(function, **(options | {"backend": "eager"}))

    if torch.compile.__module__ != __name__:
        torch.compile = compile
    for made in (attention._compiled, attention._capped):
        made.cache_clear()
    torch._dynamo.reset()
    counters.clear()


def probe(kind: str, dtype: str) -> dict:
    """Run the project's probe; its compiler is replaced as above."""
    trace_flex()
    attention.probe(named_config(kind), CUDA, getattr(torch, dtype))
    return {"breaks": sum(counters["graph_break"].values())}


def flex(kind: str) -> dict:
    """Count the graphs of the compiled attention as trees change their length."""
    from dandap.tree.masks import BLOCK, tree_masks
    from dandap.tree.token_tree import collate, grow

    trace_flex()
    config = named_config(kind)
    softcap = getattr(config, "attn_logit_softcapping", None)
    kinds = set()
    for article in (300, 500, 900, 200, 1400):
        sequences = [([*range(9, 9 + article), question], [1, 2]) for question in range(4)]
        batch = collate([grow(sequences)], 0, BLOCK, CUDA)
        masks = tree_masks(config, batch, torch.float32, flex=True)
        masks = masks if isinstance(masks, dict) else {"": masks}
        kinds |= set(masks)
        for mask in masks.values():
            length = batch["input_ids"].shape[1]
            inputs = [
                torch.randn(1, n, length, 32, device=CUDA, requires_grad=True) for n in (4, 2, 2)
            ]
            out = attention.tree_attention(
                torch.nn.Module(), *inputs, mask, scaling=32**-0.5, softcap=softcap
            )[0]
            torch.autograd.grad(out.sum(), inputs)
    breaks = sum(counters["graph_break"].values())
    return {"graphs": counters["stats"]["unique_graphs"], "breaks": breaks, "kinds": len(kinds)}


class _Grounding:
    """Lets an answer be any run of the article's characters; ids stand for characters here."""

    def pick(self, said, context, stop_ids, left, order):
        return next((token for token in order if token % 2 == 0), None)


def answering(kind: str, way: str) -> dict:
    """Compare answers with the CPU's, token by token, and count waits and launches."""
    config = named_config(kind)
    config.initializer_range = 0.2
    torch.manual_seed(0)
    recipe = make_recipe({"quantization": "none"}, "rehearse")
    host = add_adapter(random_model(config, recipe, CPU, torch.float32), recipe).eval()
    examples = made_up(40, 3, 9)
    for example in examples:
        example.answer_ids.clear()
    ways = {
        "likeliest": {},
        "samples": {"samples": 3, "temperature": 0.7},
        "penalty": {"repetition_penalty": 1.3},
    }
    decoding = Decoding(
        stop_ids=[2], pad_id=0, max_new_tokens=8, min_new_tokens=8, **ways.get(way, {})
    )

    def answers(model):
        if way == "generate":
            prompts = [example.prompt_ids for example in examples]
            return {i: [a.token_ids] for i, a in generate_answers(model, prompts, decoding, 4096)}
        if way == "choices":
            choices = [[[5, 6], [7], [8, 9, 10]] for _ in examples]
            scored = score_choices(model, examples, choices, 0, 4096, ())
            return {i: [round(score, 3) for score in scores] for i, scores in scored}
        grounding = _Grounding() if way == "grounded" else None
        found = answer_examples(model, examples, decoding, 4096, grounding)
        return {i: [answer.token_ids for answer in several] for i, several in found}

    expected = answers(host)
    model = host.to(CUDA)
    with gpu.watched() as seen:
        got = answers(model)
    return {
        "equal": got == expected,
        "waits_a_token": seen.waits_in("answering/") / decoding.max_new_tokens,
        "launches_a_token": sum(seen.launches.values()) / decoding.max_new_tokens,
        "waits": {f"{what} {line}": n for (what, line), n in seen.waits.items()},
    }


def command(*lines: list[str]) -> dict:
    """Run the scripts as a user does, one after the other in this process."""
    import fine_tune
    import inference

    results = []
    for script, *options in lines:
        main = {"fine_tune": fine_tune.main, "inference": inference.main}[script]
        results.append(main(options))
    return {"results": results}


# ---- Faults that a rehearsal must catch: each is a patch of the project.


def _mask_of_the_host(*arguments, **options):
    return _real_masks(*arguments, **options).cpu()


def _mask_of_bools(config, batch, dtype, flex):
    return _real_masks(config, batch, dtype, flex=False) == 0


@contextlib.contextmanager
def _adapters_of_16_bits(model):
    """Leave the adapters in what SFTTrainer casts those of a 4-bit model to."""
    yield
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()


def _waits(decoder, chosen, step):
    assert chosen.max().item() >= 0
    return _real_feed(decoder, chosen, step)


def _float_in_a_closure(softcap, device):
    def score_mod(score, row, head, query, key):
        return softcap * torch.tanh(score / softcap)

    return score_mod


_float_in_a_closure.cache_clear = lambda: None
_real_masks, _real_feed = read_once.tree_masks, TreeDecoder._feed
MUTANTS = {
    "a tensor without device=": (read_once, "tree_masks", _mask_of_the_host),
    "a bool mask for flex": (read_once, "tree_masks", _mask_of_bools),
    "16-bit adapters": (read_once, "float32_adapters", _adapters_of_16_bits),
    "a wait in the decoding loop": (TreeDecoder, "_feed", _waits),
    "a graph break": (attention, "_capped", _float_in_a_closure),
}


def run(what: str, mutant: str | None = None, **arguments) -> dict:
    """Do one job, with a fault in the project where one is named."""
    fault = mock.patch.object(*MUTANTS[mutant]) if mutant else contextlib.nullcontext()
    try:
        with fault:
            return globals()[what](**arguments)
    except Exception as error:  # noqa: BLE001 (whatever it is, the test decides)
        return {"error": f"{type(error).__name__}: {error}"[:2000]}


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        results = [run(**job) for job in JOBS]
    print(json.dumps(results))
