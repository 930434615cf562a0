"""Measure which operators training and answering spend their time in, by torch's profiler.

python -m benchmarks.operators --model FOLDER --data FILE           a base on real questions
python -m benchmarks.operators --model tiny-llama --article 300     a shape, random weights

A training step is forward and backward of one article's questions. Answering is 16 tokens by trees,
reading included, for one question, for the article's, and for all together. Each is done with the
NF4 weights as they are and dequantized once. Shares are of the time inside operators (on a GPU
inside kernels), which Python's own is not. "attention" is fused kernels: what attention multiplies
by bmm (soft-capped scores, branches of grouped queries) is in products. The last line is JSON.
"""

import sys
from pathlib import Path

# So that `python benchmarks/NAME.py` works like `python -m benchmarks.NAME`. Named profile.py this
# file would break them all: cProfile, which torch loads, would take it for Python's own `profile`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dandap.cli  # noqa: F401

# isort: split
import argparse
import json
import re
import tempfile
from collections.abc import Callable
from functools import partial

import torch
from torch.autograd import DeviceType
from torch.profiler import profile

from benchmarks.inference import decodings, tree_way
from benchmarks.machine import describe_machine
from benchmarks.material import Material, add_material_options, load_material, make_examples
from benchmarks.training import given_plan, quiet
from dandap.cli import Parser, parse, run_script
from dandap.data.encode import Example
from dandap.model.adapter import add_adapter, for_answering
from dandap.model.device import free_memory
from dandap.model.load import dequantize
from dandap.training.trainer import make_trainer

# By the names of CPU operators and of CUDA kernels; FlexAttention's are Triton templates.
ATTENTION = re.compile("attention|flash|fmha|sdpa|triton_tem")
PRODUCTS = re.compile("(mm|mv|matmul)_?$|gem[mv]|cutlass|xmma|nvjet|splitK")
OTHERS = 8  # of the other operators, the largest that are told
TOKENS_PER_BATCH = 16384  # 48 questions of KorQuAD, read once, are 4,446


def main(argv: list[str] | None = None) -> dict:
    """Run the command line; return the JSON of the last line."""
    parser = Parser(__doc__)
    add_material_options(parser)
    parser.set_defaults(questions=48)
    arguments = parse(parser, argv)
    rows = measure(arguments, dequantized=False)
    if arguments.quantization == "nf4":
        rows += measure(arguments, dequantized=True)
    print("\n| weights | work | seconds | products | attention | largest others |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        # Names of CUDA kernels may be 500 characters of template arguments.
        others = (f"{name[:60]} {share:.1%}" for name, share in row["others"].items())
        shares = f"{row['products']:.0%} | {row['attention']:.0%} | {', '.join(others)}"
        print(f"| {row['weights']} | {row['work']} | {row['seconds']} | {shares} |")
    result = {"model": arguments.model, "rows": rows}
    print(json.dumps(result))
    return result


def measure(arguments: argparse.Namespace, dequantized: bool) -> list[dict]:
    """Return a row for every piece of work, with the weights in one of their two forms."""
    free_memory()  # of the model before, or there would be two
    # As many as there are of an article are one step.
    material = load_material(arguments, {"questions_per_step": arguments.questions})
    if dequantized:
        dequantize(material.model)
    else:
        print(describe_machine(material.device))
    material.model = add_adapter(material.model, material.recipe)
    examples = make_examples(arguments, material.tokenizer, material.recipe)
    article = [e for e in examples if e.row.article == examples[0].row.article]

    step = training_step(material, article)
    rows = [{"work": f"training step, {len(article)} of an article"} | shares(step, material)]
    for_answering(material.model, merged=False)
    # Of 16 tokens: the profiler's events of 64, of a base of 18 layers, took 2 GB.
    decoding = decodings(material, examples)["forced"]
    for name, asked in (("", examples[:1]), (" of an article", article), (" together", examples)):
        answer = partial(tree_way(material, asked, TOKENS_PER_BATCH).answer, decoding)
        rows.append({"work": f"answering {len(asked)}{name}"} | shares(answer, material))
    weights = "dequantized" if dequantized else arguments.quantization
    return [{"weights": weights} | row for row in rows]


def training_step(material: Material, examples: list[Example]) -> Callable[[], torch.Tensor]:
    """Return what runs one step on these examples forwards and backwards, as a trainer would."""
    plan = given_plan(material, TOKENS_PER_BATCH, checkpointing=False)
    recipe, model = material.recipe, material.model
    with tempfile.TemporaryDirectory() as folder:
        trainer = quiet(make_trainer(recipe, plan, material.tokenizer, examples, model, folder))
        # The trainer puts the model under autocast when it begins to train.
        trainer.args.max_steps = 1
        trainer.train()
    step = trainer.batching.collate_step(examples)
    targets = step["labels"].numel()
    return partial(trainer.training_step, trainer.model_wrapped, step, targets)


def shares(work: Callable[[], object], material: Material) -> dict:
    """Return the seconds of some work in operators, and what share of them is in which.

    It is done once before, in which kernels load.
    """
    work()
    with profile() as profiler:
        work()
    # A kernel of a replayed graph belongs to no operator, so that on a GPU kernels are counted.
    on_gpu = material.device.type == "cuda"
    kind, spent = (DeviceType.CUDA if on_gpu else DeviceType.CPU), {}
    for event in profiler.key_averages():
        if event.device_type == kind and not event.is_user_annotation:
            micros = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            spent[event.key.removeprefix("aten::")] = micros
    total = sum(spent.values())
    groups = {"products": 0.0, "attention": 0.0, "others": {}}
    for name in sorted(spent, key=spent.get, reverse=True):
        share = spent[name] / total
        if ATTENTION.search(name):
            groups["attention"] += share
        elif PRODUCTS.search(name):
            groups["products"] += share
        elif len(groups["others"]) < OTHERS:
            groups["others"][name] = round(share, 4)
    groups |= {name: round(groups[name], 4) for name in ("products", "attention")}
    return {"seconds": round(total / 1e6, 3)} | groups


if __name__ == "__main__":
    run_script(main)
