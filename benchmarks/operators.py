"""Profile which operators training and answering spend their time in.

python -m benchmarks.operators --model FOLDER --data FILE           a base model, real questions
python -m benchmarks.operators --model tiny-llama --article 300     random weights and articles

A training step is the forward and backward pass of one article's questions; --compile also profiles
it with compiled layers. Answering generates 16
tokens from trees, prefill included: for one question, one article, and all questions. Each is
profiled with NF4 weights and with dequantized ones. Shares are of the time in operators (kernels on
a GPU); Python's own time is excluded. "attention" is fused kernels only: attention by bmm
(soft-capped scores, grouped queries of branches) counts as products. The last line is JSON.
"""

import sys
from pathlib import Path

# For `python benchmarks/NAME.py`. A file named profile.py here would shadow the standard library's
# `profile`, which torch loads through cProfile.
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

from benchmarks.inference import decodings, tree_method
from benchmarks.machine import describe_machine
from benchmarks.material import Material, add_material_options, load_material, make_examples
from benchmarks.training import given_plan, quiet
from dandap.cli import Parser, parse, run_script
from dandap.data.encode import Example
from dandap.model.adapter import add_adapter, for_answering
from dandap.model.device import free_memory
from dandap.model.load import dequantize
from dandap.training.compiled import compile_layers
from dandap.training.trainer import make_trainer

# Names of CPU operators and CUDA kernels; FlexAttention's are Triton templates.
ATTENTION = re.compile("attention|flash|fmha|sdpa|triton_tem")
PRODUCTS = re.compile("(mm|mv|matmul)_?$|gem[mv]|cutlass|xmma|nvjet|splitK")
OTHERS = 8  # number of other operators to report, largest first
TOKENS_PER_BATCH = 16384  # 48 questions of KorQuAD are 4,446 tokens when each article is read once


def main(argv: list[str] | None = None) -> dict:
    """Parse the arguments, run, and print the result as JSON on the last line."""
    parser = Parser(__doc__)
    add_material_options(parser)
    parser.add_argument(
        "--compile", action="store_true", help="also profile a step with compiled layers"
    )
    parser.set_defaults(questions=48)
    arguments = parse(parser, argv)
    rows = measure(arguments, dequantized=False)
    if arguments.quantization == "nf4":
        rows += measure(arguments, dequantized=True)
    print("\n| weights | work | seconds | products | attention | largest others |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        # Names of CUDA kernels contain up to 500 characters of template arguments.
        others = (f"{name[:60]} {share:.1%}" for name, share in row["others"].items())
        shares = f"{row['products']:.0%} | {row['attention']:.0%} | {', '.join(others)}"
        print(f"| {row['weights']} | {row['work']} | {row['seconds']} | {shares} |")
    result = {"model": arguments.model, "rows": rows}
    print(json.dumps(result))
    return result


def measure(arguments: argparse.Namespace, dequantized: bool) -> list[dict]:
    """Return one row per workload, with NF4 or dequantized weights."""
    free_memory()  # release the previous model
    # A step must fit all questions of an article.
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
    if arguments.compile:
        step = training_step(material, article, compiled=True)
        rows.append({"work": "training step, compiled"} | shares(step, material))
    for_answering(material.model, merged=False)
    # 16 tokens: the profiler's events of 64 tokens and 18 layers took 2 GB.
    decoding = decodings(material, examples)["forced"]
    for name, batch in (("", examples[:1]), (" of an article", article), (" together", examples)):
        answer = partial(tree_method(material, batch, TOKENS_PER_BATCH).answer, decoding)
        rows.append({"work": f"answering {len(batch)}{name}"} | shares(answer, material))
    weights = "dequantized" if dequantized else arguments.quantization
    return [{"weights": weights} | row for row in rows]


def training_step(
    material: Material, examples: list[Example], compiled: bool = False
) -> Callable[[], torch.Tensor]:
    """Return a function that runs the trainer's forward and backward pass on these examples."""
    plan = given_plan(material, TOKENS_PER_BATCH, checkpointing=False)
    recipe, model = material.recipe, material.model
    with tempfile.TemporaryDirectory() as folder:
        trainer = quiet(make_trainer(recipe, plan, material.tokenizer, examples, model, folder))
        # Trainer.train() wraps the model in autocast.
        trainer.args.max_steps = 1
        trainer.train()
    step = trainer.batching.collate_step(examples)
    targets = step["labels"].numel()
    if compiled:
        batches = list(step["packed"].on(material.device))
        with trainer.compute_loss_context_manager():
            print(compile_layers(trainer.model, trainer.compute_loss, batches, faster=False))
    return partial(trainer.training_step, trainer.model_wrapped, step, targets)


def shares(work: Callable[[], object], material: Material) -> dict:
    """Profile `work` and return its seconds in operators, and the share of each group."""
    work()  # warm up
    with profile() as profiler:
        work()
    # Kernels of a replayed CUDA graph belong to no operator, so count kernels on a GPU.
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
