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
import gc
import signal
import tempfile
import traceback
from pathlib import Path
from unittest import mock
from dataclasses import replace

import torch
from torch._dynamo.utils import counters

from benchmarks.machine import random_model
from benchmarks.material import made_up
from dandap.answering import cuda_graph
from dandap.answering.answer import Decoding
from dandap.answering.choices import score_choices
from dandap.answering.generate import generate_answers
from dandap.answering.tree_decoder import TreeDecoder, answer_examples
from dandap.model import memory
from dandap.model.adapter import add_adapter, for_answering
from dandap.model.device import pick_compute_dtype, pick_device
from dandap.model.memory import GB, Footprint, MemoryEstimate, Plan, fit_plan
from dandap.model.load import load_tokenizer
from dandap.model.shapes import SHAPES, make_config, named_config
from dandap.errors import InputError
from dandap.recipe import load_recipe, make_recipe
from dandap.training import trainer as training_module
from dandap.training.job import Job
from dandap.training.plain import make_trainer
from dandap.training.trainer import make_read_once_trainer
from dandap.tree import attention

ON_A_PRETENDED_GPU = """
import sys
from tests.rehearsal import pretended_gpu
pretended_gpu.install(sys.argv.pop(1))
import fine_tune
from dandap.cli import run_script
run_script(fine_tune.main)
"""
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def _done_again(work):
    """Stand for a capture: a replay does the same work, kernel by kernel."""
    return work


cuda_graph.captured = _done_again


def trained(config, device, options: dict, plan: dict, steps: int = 3):
    """Return the losses of a training of random weights, what was seen, and its trainer."""
    recipe = make_recipe(
        {"max_length": 256, "max_new_tokens": 16, "learning_rate": 1e-3} | options, "rehearse"
    )
    dtype = pick_compute_dtype(recipe, device)
    # The same weights everywhere: made and quantized on the host.
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


class _FlexMemory(torch.autograd.Function):
    """Stands for FlexAttention in a dry run: what its kernels keep and need, without numbers."""

    @staticmethod
    def forward(ctx, query, key, value):
        out = torch.empty_like(query)  # in the order of the query's memory, as Inductor lays it out
        sums = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, _out, sums = ctx.saved_tensors
        work = torch.empty_like(sums)  # of each row: the output times its gradient
        gradients = tuple(map(torch.empty_like, (query, key, value)))
        del work
        return gradients


def _flex_memory(query, key, value, *others, **more):
    return _FlexMemory.apply(query, key, value)


def _dry_model(name: str, options: dict, dequantized: bool = False):
    """Return (recipe, config, dtype, model with adapter) of a recipe's true shape."""
    recipe = load_recipe(name, options)
    config, device = make_config(SHAPES[recipe.model]), pick_device()
    dtype = pick_compute_dtype(recipe, device)
    plain = {"quantization": "none"} if dequantized else {}
    base = random_model(config, recipe.model_copy(update=plain), device, dtype)
    return recipe, config, dtype, add_adapter(base, recipe)


def chosen_training_memory(recipe: str) -> dict:
    """Trace a step as it would be planned for this GPU, on articles as long as the recipe takes."""
    chosen = load_recipe(recipe, {})
    config = make_config(SHAPES[chosen.model])
    dtype, flex = pick_compute_dtype(chosen, CUDA), gpu.kind.capability >= (8, 0)
    try:
        plan = fit_plan(Footprint(chosen, config, CUDA, dtype, flex), gpu.kind.memory, True)
    except InputError as error:
        return {"refused": str(error)}
    how = {"flex": plan.flex, "gradient_checkpointing": plan.gradient_checkpointing}
    # The longest prompt, less what made_up adds: a question of 35 tokens and an answer of 6.
    article = chosen.max_length - 41
    found = training_memory(recipe, plan.tokens_per_batch, how, (article, 5, 6))
    return found | {"tokens": plan.tokens_per_batch, **how}


def training_memory(
    recipe: str,
    tokens: int,
    plan: dict | None = None,
    questions: tuple[int, int, int] = (1000, 5, 6),
    options: dict | None = None,
) -> dict:
    """Trace a step of true shape: bytes at most against the estimate, for what was forwarded.

    `questions` are the tokens of an article, its questions, and the tokens of an answer.
    """
    chosen, config, dtype, model = _dry_model(recipe, options or {})
    article, count, answer = questions
    # Two steps: the optimizer's moments are there from the second on.
    examples = made_up(article, count, 2 * chosen.questions_per_step)
    for number, example in enumerate(examples):
        example.answer_ids[:] = [*range(10 + number, 9 + number + answer), 1]
    before = torch.ops.pretended.memory()[0]
    whole = Plan(CUDA, dtype, tokens, False, MemoryEstimate(0, 0, 0, 0), None)
    job_plan = replace(whole, **(plan or {}))
    tokenizer = load_tokenizer(load_recipe("demo", {}))
    forwarded = []
    real = training_module.ReadOnceTrainer.compute_loss

    def compute_loss(self, model, inputs, **others):
        forwarded.append((inputs["input_ids"].numel(), inputs["predicts"].numel()))
        return real(self, model, inputs, **others)

    with tempfile.TemporaryDirectory() as folder:
        job = Job(chosen, job_plan, tokenizer, examples)
        trainer = make_read_once_trainer(job, model, folder, [])
        trainer.args.save_strategy = "no"
        with (
            mock.patch.object(training_module.ReadOnceTrainer, "compute_loss", compute_loss),
            mock.patch.object(attention, "_compiled", lambda: _flex_memory),
            gpu.watched() as seen,
        ):
            trainer.train()
    size, predicting = max(forwarded)
    footprint = Footprint(chosen, config, CUDA, dtype, job_plan.flex)
    estimate = footprint.training(size, job_plan.gradient_checkpointing, predicting / size)
    return {
        "traced": seen.peak,
        "planned": estimate.total - GB,
        "parts": str(estimate),
        "base": before,
        "forwarded": forwarded,
        "launches": dict(seen.launches.most_common(12)),
    }


def answering_memory(
    recipe: str,
    tokens: int,
    questions: tuple[int, int] = (1000, 5),
    merged: bool | None = None,
    options: dict | None = None,
) -> dict:
    """Trace batches of answers of true shape: bytes at most against the estimate.

    `merged` None leaves the adapter as it was trained.
    """
    chosen, config, dtype, model = _dry_model(recipe, options or {}, dequantized=bool(merged))
    if merged is not None:
        model = for_answering(model, merged)
    article, count = questions
    decoding = Decoding(
        stop_ids=[2], pad_id=0, max_new_tokens=chosen.max_new_tokens, samples=chosen.samples
    )
    articles = max(1, tokens // (article + count * 50))
    examples = made_up(article, count, articles * count)
    for example in examples:
        example.answer_ids.clear()
    with gpu.watched() as seen:
        for _ in answer_examples(model.eval(), examples, decoding, tokens):
            pass
    footprint = Footprint(chosen, config, CUDA, dtype)
    before = footprint.answering(tokens)
    # For as many branches as there were; a plan is for prompts that share nothing, with more.
    new = memory.expected_length(chosen.max_new_tokens)
    each = tokens / len(examples) - chosen.samples * new
    with mock.patch.object(memory, "QUESTION_TOKENS", each):
        estimate = footprint.answering(tokens)
    if merged:
        estimate = replace(estimate, weights=estimate.parameters * dtype.itemsize)
    return {
        "traced": seen.peak,
        "planned": estimate.total - GB,
        "planned_before": (before.total - GB) / GB,
        "parts": str(estimate),
        "launches_a_token": sum(seen.launches.values()) / chosen.max_new_tokens,
        "launches": dict(seen.launches.most_common(25)),
    }


def ask_the_gpu(parts: str) -> dict:
    """Run benchmarks.gpu on a small shape."""
    from benchmarks import gpu as questions

    trace_flex()
    # What it starts as a script must find the pretended GPU, too.
    script = [sys.executable, "-c", ON_A_PRETENDED_GPU, GPU]
    with mock.patch.object(questions, "SCRIPT", script):
        return questions.main(["--model", "tiny-llama", "--parts", parts])


def scripts(optimizers: list[str]) -> dict:
    """Train by fine_tune.py with each optimizer; stop a run, resume it, and answer by it."""
    import fine_tune
    import inference
    from dandap.errors import Stopped
    from dandap.files import read_json_lines
    from dandap.runs.folder import RunFolder
    from dandap.training.stop import StopSignals

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        common = ["--output_dir", folder, "--evaluate_every", "none", "--questions_per_step", "8"]
        common += ["--validation_fraction", "0.9", "--warmup_steps", "0"]

        def losses(name):
            lines = read_json_lines(RunFolder(Path(folder) / name).metrics_file)
            return [line["loss"] for line in lines if "loss" in line]

        for optimizer in optimizers:
            name = f"by-{optimizer}"
            fine_tune.main(["--recipe", "demo", *common, "--optim", optimizer, "--run_name", name])
            found[optimizer] = losses(name)

        def stop_after_two(self, args, state, control, **kwargs):
            if state.global_step == 2 and not self.received:
                self.received = signal.SIGTERM
                control.should_save = control.should_training_stop = True

        with mock.patch.object(StopSignals, "on_step_end", stop_after_two):
            try:
                fine_tune.main(["--recipe", "demo", *common, "--run_name", "cut"])
            except Stopped as stopped:
                found["stopped"] = stopped.code
        fine_tune.main(["--resume", "cut", "--output_dir", folder])
        found["resumed"] = losses("cut")
        found["answered"] = inference.main(["--run", "cut", "--output_dir", folder])["char_f1"]
    return found


def tests_for_a_gpu() -> dict:
    """Run what `pytest -m gpu` runs on a real card, on tiny shapes."""
    from tests import capturing, test_gpu

    trace_flex()
    for name in test_gpu.TINY:
        test_gpu.test_the_probe_passes_at_every_head_size(name)
        test_gpu.test_flex_has_the_plain_kernels_loss_and_gradients(name)
        with mock.patch.object(cuda_graph, "captured", capturing.Capturing()):
            test_gpu.test_answers_from_trees_are_those_of_generate(name, 100)
    return {"passed": list(test_gpu.TINY)}


def compare_ways(benchmark: str) -> dict:
    """Run one of the two comparisons on a small shape."""
    from benchmarks import inference, training

    shape = ["--model", "tiny-llama", "--article", "40", "--rounds", "1", "--questions", "16"]
    if benchmark == "training":
        return training.main([*shape, "--trl_batch", "4"])
    return inference.main([*shape, "--no_continuous", "--batch", "4", "--samples", "2"])


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
_real_masks, _real_feed = training_module.tree_masks, TreeDecoder._feed
MUTANTS = {
    "a tensor without device=": (training_module, "tree_masks", _mask_of_the_host),
    "a bool mask for flex": (training_module, "tree_masks", _mask_of_bools),
    "16-bit adapters": (training_module, "float32_adapters", _adapters_of_16_bits),
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
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:2000]}
    finally:
        gc.collect()  # a trainer holds its model in circles, and the next job's memory is counted


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        results = [run(**job) for job in JOBS]
    print(json.dumps(results))
