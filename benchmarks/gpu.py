"""Check and measure a GPU: python -m benchmarks.gpu

Parts: 4-bit products against float32, the FlexAttention probe for every recipe, training steps with
planned and measured memory, answers from trees and by generate, float16 overflow, and Ctrl-C and
--resume with a paged optimizer. Random weights. No part starts after --minutes; the last line is
JSON.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/gpu.py`

import dandap.cli  # noqa: F401

# isort: split
import argparse
import gc
import json
import math
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import ClassVar
from unittest import mock

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from transformers import PreTrainedModel

from benchmarks.machine import describe_machine, random_model
from benchmarks.material import made_up, named_config
from dandap import ROOT
from dandap.answering import cuda_graph, tree_decoder
from dandap.answering.answer import Decoding
from dandap.answering.branch_check import why_no_tree
from dandap.answering.generate import generate_answers
from dandap.answering.tree_decoder import answer_examples
from dandap.cli import Parser, parse, run_script
from dandap.data.encode import Example
from dandap.errors import InputError, first_line
from dandap.model.adapter import add_adapter, for_answering
from dandap.model.device import pick_compute_dtype, pick_device, why_no_gpu
from dandap.model.load import load_tokenizer
from dandap.model.memory import GB, Footprint, make_plan
from dandap.model.plans import NAMES, SHAPES, make_config
from dandap.recipe import Recipe, load_recipe
from dandap.training.trainer import make_trainer
from dandap.tree.attention import head_size, why_no_flex

SCRIPT = [sys.executable, "fine_tune.py"]
ROWS = (1, 20, 2048)  # a token, the branches of a few articles, a micro-batch
DECODING = Decoding(stop_ids=[2], pad_id=0, max_new_tokens=16, min_new_tokens=16)


def main(argv: list[str] | None = None) -> dict:
    """Parse the arguments, run, and print the result as JSON on the last line."""
    arguments = parse(command_line(), argv)
    if reason := why_no_gpu():
        raise InputError(f"benchmarks.gpu needs a GPU: {reason}.")
    device = pick_device()
    print(describe_machine(device), flush=True)
    results = run_parts(arguments, device, arguments.parts.split(","))
    print(json.dumps(results))
    return results


def command_line() -> Parser:
    """Return the argument parser."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--parts",
        metavar="NAMES",
        default=",".join(PARTS),
        help=f"comma-separated parts of {','.join(PARTS)} (default: all)",
    )
    shapes = ", ".join(NAMES)
    parser.add_argument(
        "--model",
        metavar="SHAPE",
        default="EEVE-10.8B",
        help=f"model shape for training and answers: {shapes} (default: EEVE-10.8B)",
    )
    parser.add_argument(
        "--minutes", metavar="N", type=float, default=9, help="limit to start a part (default: 9)"
    )
    return parser


def run_parts(arguments: argparse.Namespace, device: torch.device, names: list[str]) -> dict:
    """Run the parts in turn; a failed part is reported and does not stop the others."""
    if unknown := [name for name in names if name not in PARTS]:
        raise InputError(f"--parts: got {unknown[0]!r}; expected some of {', '.join(PARTS)}.")
    started, results = time.perf_counter(), {"gpu": torch.cuda.get_device_name(device)}
    for name in names:
        spent = time.perf_counter() - started
        if spent > 60 * arguments.minutes:
            results[name] = f"skipped after {spent:.0f} s"
        else:
            try:
                results[name] = PARTS[name](arguments, device)
            # One part's failure must not hide the others.
            except Exception as error:  # noqa: BLE001
                results[name] = {"error": first_line(error)}
            gc.collect()
            torch.cuda.empty_cache()
        print(f"{name} ({time.perf_counter() - started:.0f} s): {results[name]}", flush=True)
    return results


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the relative error in norm."""
    return round(((got.float() - expected).norm() / expected.norm()).item(), 5)


def products(arguments: argparse.Namespace, device: torch.device) -> dict:
    """Return the relative errors of an NF4 layer, forward and backward, against float32."""
    config = named_config(arguments.model)
    dtype, found = pick_compute_dtype(Recipe(), device), {}
    torch.manual_seed(0)
    size = (config.intermediate_size, config.hidden_size)
    layer = Linear4bit(*reversed(size), bias=False, compute_dtype=dtype, quant_type="nf4")
    weight = torch.randn(size) * 0.02
    layer.weight = Params4bit(weight, requires_grad=False, quant_type="nf4").to(device)
    dequantized = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    found["quantized"] = {"weight": relative(dequantized.cpu(), weight)}  # NF4 itself: 0.09
    for rows in ROWS:
        inputs = torch.randn(rows, config.hidden_size, device=device, dtype=dtype)
        inputs.requires_grad_()
        out = layer(inputs)
        upstream = torch.randn_like(out)
        (gradient,) = torch.autograd.grad(out, inputs, upstream)
        found[f"{rows} rows"] = {
            "forward": relative(out, inputs.detach().float() @ dequantized.T),
            "backward": relative(gradient, upstream.float() @ dequantized),
        }
    return found


def probes(arguments: argparse.Namespace, device: torch.device) -> dict:
    """Probe FlexAttention for every recipe's heads; return the result or why it cannot be used."""
    found = {}
    for name, shape in SHAPES.items():
        config = make_config(shape).get_text_config()
        kv_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        capped = " capped" if getattr(config, "attn_logit_softcapping", None) else ""
        key = f"{config.num_attention_heads}/{kv_heads} x {head_size(config)}{capped}"
        if key in found:
            continue
        started = time.perf_counter()
        reason = why_no_flex(Recipe(), config, device, pick_compute_dtype(Recipe(), device))
        found[key] = reason or f"works ({time.perf_counter() - started:.0f} s, {name})"
        print(f"  {key}: {found[key]}", flush=True)
    return found


def training(arguments: argparse.Namespace, device: torch.device) -> dict:
    """Train four steps with this GPU's plan, and time the last three.

    The planned peak is that of the largest batch that ran.
    """
    recipe, config = Recipe(questions_per_step=16), named_config(arguments.model)
    plan = make_plan(recipe, config, device, training=True)
    print(f"  {plan}", flush=True)
    model = add_adapter(random_model(config, recipe, device, plan.compute_dtype), recipe)
    examples = made_up(1000, 5, 16 * 4)
    seconds, forwarded = [], []
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = load_tokenizer(load_recipe("demo", {}))
        trainer = make_trainer(recipe, plan, tokenizer, examples, model, folder)
        trainer.args.save_strategy = "no"
        step, loss_of = trainer.training_step, trainer.compute_loss

        def timed(*inputs, **named):
            torch.cuda.synchronize()
            started = time.perf_counter()
            loss = step(*inputs, **named)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
            return loss

        def counted(model, inputs, **named):
            forwarded.append((inputs["input_ids"].numel(), inputs["predicts"].numel()))
            return loss_of(model, inputs, **named)

        trainer.training_step, trainer.compute_loss = timed, counted
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    tokens, predicting = max(forwarded)
    footprint = Footprint(recipe, config, device, plan.compute_dtype, plan.flex)
    estimate = footprint.training(tokens, plan.gradient_checkpointing, predicting / tokens)
    return {
        "peak_gb": round(torch.cuda.max_memory_allocated() / GB, 2),
        "reserved_gb": round(torch.cuda.max_memory_reserved() / GB, 2),
        "planned_gb": round((estimate.total - GB) / GB, 2),
        "tokens": tokens,
        "seconds_a_step": round(statistics.median(seconds[1:]), 3),
        "questions_a_second": round(16 / statistics.median(seconds[1:]), 1),
        "flex": plan.flex,
        "finite": all(map(math.isfinite, losses)),
    }


def answers(arguments: argparse.Namespace, device: torch.device) -> dict:
    """Answer by generate and from trees: adapter cast or merged, with and without CUDA graphs.

    With random weights, 16-bit rounding changes the top token, so trees are not compared with
    generate but verified by the branch check of their logits, as in inference.py.
    """
    recipe, config = Recipe(), named_config(arguments.model)
    plan, found = make_plan(recipe, config, device, training=False), {}
    dtype, tokens = plan.compute_dtype, plan.tokens_per_batch
    for form in ["cast", *(["merged"] if plan.merged else [])]:
        plain = recipe.model_copy(update={"quantization": "none"} if form == "merged" else {})
        model = add_adapter(random_model(config, plain, device, dtype), recipe).eval()
        model = for_answering(model, form == "merged")
        found[f"{form}, generate"], _ = timed_answers(by_generate, model, min(tokens, 16384))
        found |= answers_by_trees(model, form, tokens)
        del model
        gc.collect()
        torch.cuda.empty_cache()
    return found


def answers_by_trees(model: PreTrainedModel, form: str, tokens: int) -> dict:
    """Answer with CUDA graphs and eagerly, and count equal answers."""
    trial = why_no_tree(model, DECODING) or "passed"
    by_graph, replayed = timed_answers(by_trees, model, tokens)
    by_graph |= seconds_of_steps(model, tokens)
    # The same kernels on the same shapes, so answers are bit-identical.
    with mock.patch.object(cuda_graph, "capture", return_value=None):
        by_kernel, launched = timed_answers(by_trees, model, tokens)
        by_kernel |= seconds_of_steps(model, tokens)
    same = sum(replayed[index] == launched[index] for index in launched)
    compared = {"trial": trial, "as_without_graphs": f"{same} of {len(launched)}"}
    return {form: by_graph | compared, f"{form}, without graphs": by_kernel}


class TimedDecoder(tree_decoder.TreeDecoder):
    """Records the seconds of each step, synchronizing after it."""

    seconds: ClassVar[list[float]] = []

    def _feed(self, chosen, step):
        started = time.perf_counter()
        logits = super()._feed(chosen, step)
        torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - started)
        return logits


def seconds_of_steps(model: PreTrainedModel, tokens: int) -> dict:
    """Return the seconds of the first step, of the second (capture), and of later ones."""
    TimedDecoder.seconds.clear()
    with mock.patch.object(tree_decoder, "TreeDecoder", TimedDecoder):
        by_trees(model, tokens)
    first, second, *later = TimedDecoder.seconds
    named = {"first_step": first, "second": second, "a_step": statistics.median(later)}
    return {name: round(seconds, 4) for name, seconds in named.items()}


def timed_answers(
    answer: Callable[[PreTrainedModel, int], dict[int, list[int]]],
    model: PreTrainedModel,
    tokens: int,
) -> tuple[dict, dict[int, list[int]]]:
    """Return tokens/s of the second round, the peak memory, and the answers."""
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):  # the first round is a warmup
        started = time.perf_counter()
        answers = answer(model, tokens)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    peak = round(torch.cuda.max_memory_allocated() / GB, 2)
    speed = sum(map(len, answers.values())) / seconds
    return {"tokens_a_second": round(speed, 1), "peak_gb": peak}, answers


def by_trees(model: PreTrainedModel, tokens: int) -> dict[int, list[int]]:
    """Return the token ids of the trees' answers, by question index."""
    found = answer_examples(model, questions(), DECODING, tokens)
    return {index: samples[0].token_ids for index, samples in found}


def by_generate(model: PreTrainedModel, tokens: int) -> dict[int, list[int]]:
    """Return the token ids of generate's answers, by question index."""
    prompts = [list(example.prompt_ids) for example in questions()]
    found = generate_answers(model, prompts, DECODING, tokens)
    return {index: answer.token_ids for index, answer in found}


def questions() -> list[Example]:
    """Return 40 questions on articles of 1,000 tokens, five per article."""
    examples = made_up(1000, 5, 40)
    for example in examples:
        example.answer_ids.clear()
    return examples


def float16(arguments: argparse.Namespace, device: torch.device) -> dict:
    """Train in float16, as a T4 requires; return losses and the final scale."""
    recipe = Recipe(compute_dtype="float16", questions_per_step=8)
    name = "Gemma-2-9B" if arguments.model in ("EEVE-10.8B", "Llama-3-8B") else arguments.model
    config = named_config(name)
    plan = make_plan(recipe, config, device, training=True)
    model = add_adapter(random_model(config, recipe, device, torch.float16), recipe)
    with tempfile.TemporaryDirectory() as folder:
        examples = made_up(500, 4, 24)
        tokenizer = load_tokenizer(load_recipe("demo", {}))
        trainer = make_trainer(recipe, plan, tokenizer, examples, model, folder)
        trainer.args.save_strategy = "no"
        trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    scale = trainer.accelerator.scaler.get_scale()
    return {"model": name, "losses": [round(loss, 3) for loss in losses], "scale": scale}


def interrupted(arguments: argparse.Namespace, device: torch.device) -> dict:
    """Train the demo with a paged optimizer, interrupt it, and resume."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--output_dir", folder, "--optim", "paged_adamw_32bit"]
        begin = [*SCRIPT, "--recipe", "demo", *options]
        first = subprocess.Popen(
            [*begin, "--run_name", "paged"], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for line in first.stdout:
            if line.startswith("step "):
                first.send_signal(signal.SIGINT)
                break
        first.stdout.read()
        resume = [*SCRIPT, "--output_dir", folder, "--resume"]
        second = subprocess.run(resume, cwd=ROOT, capture_output=True, text=True)
        last = second.stdout.strip().splitlines()[-1:] or second.stderr.strip().splitlines()[-1:]
    return {"interrupted": first.wait(), "resumed": second.returncode, "said": last}


PARTS: dict[str, Callable[[argparse.Namespace, torch.device], dict]] = {
    "products": products,
    "probes": probes,
    "training": training,
    "answers": answers,
    "float16": float16,
    "interrupted": interrupted,
}


if __name__ == "__main__":
    run_script(main)
