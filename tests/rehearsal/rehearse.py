"""Run jobs on a fake GPU in a separate process.

    python -m tests.rehearsal.rehearse GPU JSON

GPU is one of fake_gpu.KINDS, with the suffix "-dry" for shapes without data. JSON is a list
of jobs: {"what": a function below, "mutant": one of MUTANTS (optional), ...arguments}. The last
line of the output is the JSON list of results; an error is {"error": message}. test_rehearsal.py
checks the results.
"""

import json
import sys

from tests.rehearsal import fake_gpu

GPU, JOBS = sys.argv[1], json.loads(sys.argv[2])
gpu = fake_gpu.install(GPU.removesuffix("-dry"), dry=GPU.endswith("-dry"))

import contextlib
import functools
import gc
import signal
import tempfile
import traceback
from pathlib import Path
from unittest import mock
from dataclasses import replace

import torch
from pytest import MonkeyPatch
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
from dandap.model.load import decoder_layers, load_tokenizer
from dandap.model.plans import SHAPES, make_config
from benchmarks.material import named_config
from dandap.errors import InputError
from dandap.recipe import load_recipe, make_recipe
from dandap.training import trainer as trainers
from dandap.tree import attention

ON_A_FAKE_GPU = """
import sys
from tests.rehearsal import fake_gpu
fake_gpu.install(sys.argv.pop(1))
import fine_tune
from dandap.answering import cuda_graph
from dandap.cli import run_script
cuda_graph.capture = lambda work: work
run_script(fine_tune.main)
"""
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
# A replay runs the same kernels.
cuda_graph.capture = lambda work: work
trainers.CHECKED_STEPS = 2  # of 3


def fit(recipe, plan, examples, model):
    """Train without checkpoints; return the trainer and the recorded GPU activity."""
    tokenizer = load_tokenizer(load_recipe("demo", {}))
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainers.make_trainer(recipe, plan, tokenizer, examples, model, folder)
        trainer.args.save_strategy = "no"
        with gpu.watched() as seen:
            trainer.train()
    return trainer, seen


def make_plan(device, dtype, tokens: int, **options) -> Plan:
    return replace(Plan(device, dtype, tokens, False, MemoryEstimate(0, 0, 0, 0), None), **options)


def questions(article: int, count: int, total: int) -> list:
    """Return examples without answers."""
    examples = made_up(article, count, total)
    for example in examples:
        example.answer_ids.clear()
    return examples


def graph_breaks() -> int:
    return sum(counters["graph_break"].values())


def waits(seen) -> dict[str, int]:
    return {f"{what} {line}": count for (what, line), count in seen.waits.items()}


def training(kind: str, plan: dict | None = None, compile: bool = False) -> dict:
    """Train a random model on the CPU and the GPU; return losses and recorded GPU activity."""
    if (plan or {}).get("flex") or compile:
        trace_flex()
    losses = []
    for device in (CPU, pick_device()):
        options = {"max_length": 256, "max_new_tokens": 16, "learning_rate": 1e-3}
        options |= {"compute_dtype": "float32"} if device == CPU else {"compile": compile}
        recipe = make_recipe(options, "rehearse")
        dtype = pick_compute_dtype(recipe, device)
        # Create and quantize on the host, so that both devices have the same weights.
        base = random_model(named_config(kind), recipe, CPU, torch.float32)
        if device != CPU:
            base = base.to(dtype).to(device)
        model = add_adapter(base, recipe)
        how = make_plan(device, dtype, 512, **({} if device == CPU else plan or {}))
        trainer, seen = fit(recipe, how, made_up(60, 5, 16 * 3), model)
        log = trainer.state.log_history
        losses.append([record["loss"] for record in log if "loss" in record])
    return {
        "expected": losses[0],
        "losses": losses[1],
        "scaler": trainer.accelerator.scaler is not None,
        "adapters": sorted({str(p.dtype) for p in trainer.model.parameters() if p.requires_grad}),
        "waits": waits(seen),
        "breaks": graph_breaks(),
        "graphs": counters["stats"]["unique_graphs"],
        "compiled": isinstance(decoder_layers(trainer.model)[0].forward, functools.partial),
    }


def trace_flex() -> None:
    """Trace FlexAttention with Dynamo but run it eagerly, because there is no GPU compiler."""
    compile_before = torch.compile

    def compile(function, **options):
        return compile_before(function, **(options | {"backend": "eager"}))

    if torch.compile.__module__ != __name__:
        torch.compile = compile
    for made in (attention._compiled, attention._capped):
        made.cache_clear()
    torch._dynamo.reset()
    counters.clear()


def probe(kind: str, dtype: str) -> dict:
    """Run the project's probe of FlexAttention."""
    trace_flex()
    attention.probe(named_config(kind), CUDA, getattr(torch, dtype))
    return {"breaks": graph_breaks()}


def flex(kind: str) -> dict:
    """Count the graphs of the compiled attention for trees of different lengths."""
    from dandap.tree.masks import BLOCK, tree_masks
    from dandap.tree.token_tree import collate, grow

    trace_flex()
    config, kinds = named_config(kind), set()
    options = {"softcap": getattr(config, "attn_logit_softcapping", None), "scaling": 32**-0.5}
    for article in (300, 500, 900, 200, 1400):
        sequences = [([*range(9, 9 + article), question], [1, 2]) for question in range(4)]
        batch = collate([grow(sequences)], 0, BLOCK, CUDA)
        masks = tree_masks(config, batch, torch.float32, flex=True)
        masks = masks if isinstance(masks, dict) else {"": masks}
        kinds |= set(masks)
        size = (batch["input_ids"].shape[1], 32)
        for mask in masks.values():
            inputs = [torch.randn(1, n, *size, device=CUDA, requires_grad=True) for n in (4, 2, 2)]
            out = attention.tree_attention(torch.nn.Module(), *inputs, mask, **options)[0]
            torch.autograd.grad(out.sum(), inputs)
    graphs = counters["stats"]["unique_graphs"]
    return {"graphs": graphs, "breaks": graph_breaks(), "kinds": len(kinds)}


class _EvenTokens:
    """A fake grounding that allows only even token ids."""

    def pick(self, token_ids, context, stop_ids, left, likeliest):
        return next((token for token in likeliest if token % 2 == 0), None)


def answering(kind: str, way: str) -> dict:
    """Compare answers with the CPU token by token, and count syncs."""
    config = named_config(kind)
    config.initializer_range = 0.2
    torch.manual_seed(0)
    recipe = make_recipe({"quantization": "none"}, "rehearse")
    model = add_adapter(random_model(config, recipe, CPU, torch.float32), recipe).eval()
    examples = questions(40, 3, 9)
    options = {
        "samples": {"samples": 3, "temperature": 0.7},
        "penalty": {"repetition_penalty": 1.3},
    }.get(way, {})
    decoding = Decoding([2], pad_id=0, max_new_tokens=8, min_new_tokens=8, **options)

    def answers():
        if way == "generate":
            prompts = [example.prompt_ids for example in examples]
            return {i: [a.token_ids] for i, a in generate_answers(model, prompts, decoding, 4096)}
        if way == "choices":
            choices = [[[5, 6], [7], [8, 9, 10]] for _ in examples]
            scored = score_choices(model, examples, choices, 0, 4096, ())
            return {i: [round(score, 3) for score in scores] for i, scores in scored}
        grounding = _EvenTokens() if way == "grounded" else None
        found = answer_examples(model, examples, decoding, 4096, grounding)
        return {i: [answer.token_ids for answer in samples] for i, samples in found}

    expected = answers()
    model.to(CUDA)
    with gpu.watched() as seen:
        got = answers()
    return {
        "equal": got == expected,
        "waits_a_token": seen.waits_in("answering/") / decoding.max_new_tokens,
        "waits": waits(seen),
    }


class _FlexMemory(torch.autograd.Function):
    """Allocates what the FlexAttention kernels save and need, for a dry run."""

    @staticmethod
    def forward(ctx, query, key, value):
        out = torch.empty_like(query)  # same memory layout as the query, as in Inductor
        sums = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, _out, sums = ctx.saved_tensors
        work = torch.empty_like(sums)  # per row: the output times its gradient
        gradients = tuple(map(torch.empty_like, (query, key, value)))
        del work
        return gradients


def _flex_memory(query, key, value, *others, **more):
    return _FlexMemory.apply(query, key, value)


def _dry_model(name: str, options: dict, dequantized: bool = False):
    """Return (recipe, config, dtype, model with adapter) of a recipe in full size."""
    recipe = load_recipe(name, options)
    config, device = make_config(SHAPES[recipe.model]), pick_device()
    dtype = pick_compute_dtype(recipe, device)
    plain = {"quantization": "none"} if dequantized else {}
    base = random_model(config, recipe.model_copy(update=plain), device, dtype)
    return recipe, config, dtype, add_adapter(base, recipe)


def planned_training_memory(recipe: str) -> dict:
    """Trace a step with the plan for this GPU and the longest articles that the recipe allows."""
    chosen = load_recipe(recipe, {})
    config = make_config(SHAPES[chosen.model])
    dtype, flex = pick_compute_dtype(chosen, CUDA), gpu.kind.capability >= (8, 0)
    try:
        plan = fit_plan(Footprint(chosen, config, CUDA, dtype, flex), gpu.kind.memory, True)
    except InputError as error:
        return {"refused": str(error)}
    how = {"flex": plan.flex, "gradient_checkpointing": plan.gradient_checkpointing}
    # The longest prompt minus what made_up adds: 35 tokens of question and 6 of answer.
    article = chosen.max_length - 41
    found = training_memory(recipe, plan.tokens_per_batch, how, (article, 5, 6))
    return found | {"tokens": plan.tokens_per_batch, **how}


def training_memory(
    recipe: str,
    tokens: int,
    plan: dict | None = None,
    shape: tuple[int, int, int] = (1000, 5, 6),
    options: dict | None = None,
) -> dict:
    """Trace a training step in full size; return its peak memory and the estimate.

    `shape` is (tokens per article, questions per article, tokens per answer).
    """
    chosen, config, dtype, model = _dry_model(recipe, options or {})
    article, count, answer = shape
    # Two steps, because the optimizer state exists from the second step on.
    examples = made_up(article, count, 2 * chosen.questions_per_step)
    for number, example in enumerate(examples):
        example.answer_ids[:] = [*range(10 + number, 9 + number + answer), 1]
    how, forwarded = make_plan(CUDA, dtype, tokens, **(plan or {})), []
    compute_loss = trainers.ReadOnceTrainer.compute_loss

    def record(self, model, inputs, **others):
        forwarded.append((inputs["input_ids"].numel(), inputs["predicts"].numel()))
        return compute_loss(self, model, inputs, **others)

    with (
        mock.patch.object(trainers.ReadOnceTrainer, "compute_loss", record),
        mock.patch.object(attention, "_compiled", lambda: _flex_memory),
    ):
        _, seen = fit(chosen, how, examples, model)
    size, predicting = max(forwarded)
    footprint = Footprint(chosen, config, CUDA, dtype, how.flex)
    estimate = footprint.training(size, how.gradient_checkpointing, predicting / size)
    return {
        "traced": seen.peak,
        "planned": estimate.total - GB,
        "parts": str(estimate),
        "forwarded": forwarded,
    }


def answering_memory(
    recipe: str,
    tokens: int,
    shape: tuple[int, int] = (1000, 5),
    merged: bool | None = None,
    options: dict | None = None,
) -> dict:
    """Trace answering batches in full size; return their peak memory and the estimate.

    `shape` is (tokens per article, questions per article). With `merged` None, the adapter stays
    as trained.
    """
    chosen, config, dtype, model = _dry_model(recipe, options or {}, dequantized=bool(merged))
    if merged is not None:
        model = for_answering(model, merged)
    article, count = shape
    new, samples = chosen.max_new_tokens, chosen.samples
    decoding = Decoding([2], pad_id=0, max_new_tokens=new, samples=samples)
    articles = max(1, tokens // (article + count * 50))
    examples = questions(article, count, articles * count)
    with gpu.watched() as seen:
        list(answer_examples(model.eval(), examples, decoding, tokens))
    footprint = Footprint(chosen, config, CUDA, dtype)
    before = footprint.answering(tokens)
    # Estimate for the actual number of branches. A plan assumes more: prompts that share no prefix.
    each = tokens / len(examples) - samples * memory.expected_length(new)
    with mock.patch.object(memory, "QUESTION_TOKENS", each):
        estimate = footprint.answering(tokens)
    if merged:
        estimate = replace(estimate, weights=estimate.parameters * dtype.itemsize)
    return {
        "traced": seen.peak,
        "planned": estimate.total - GB,
        "planned_before": before.total - GB,
        "parts": str(estimate),
        "launches_a_token": sum(seen.launches.values()) / new,
    }


def gpu_benchmark(parts: str) -> dict:
    """Run benchmarks.gpu on a tiny model."""
    from benchmarks import gpu as benchmark

    trace_flex()
    # The script that it starts must use the fake GPU too.
    script = [sys.executable, "-c", ON_A_FAKE_GPU, GPU]
    with mock.patch.object(benchmark, "SCRIPT", script):
        return benchmark.main(["--model", "tiny-llama", "--parts", parts])


def scripts(optimizers: list[str]) -> dict:
    """Run fine_tune.py with each optimizer; interrupt a run, resume it, and answer with it."""
    import fine_tune
    import inference
    from dandap.errors import Stopped
    from dandap.files import read_json_lines
    from dandap.runs.folder import RunFolder
    from dandap.training.callbacks import StopSignals

    def stop_after_two(self, args, state, control, **kwargs):
        if state.global_step == 2 and not self.received:
            self.received = signal.SIGTERM
            control.should_save = control.should_training_stop = True

    with tempfile.TemporaryDirectory() as folder:

        def train(options):
            fine_tune.main([*options.split(), "--output_dir", folder])

        def losses(name):
            lines = read_json_lines(RunFolder(Path(folder) / name).metrics_file)
            return [line["loss"] for line in lines if "loss" in line]

        demo = "--recipe demo --evaluate_every none --questions_per_step 8 "
        demo += "--validation_fraction 0.9 --warmup_steps 0 --run_name "
        found = {}
        for optimizer in optimizers:
            train(f"{demo} by-{optimizer} --optim {optimizer}")
            found[optimizer] = losses(f"by-{optimizer}")
        with mock.patch.object(StopSignals, "on_step_end", stop_after_two):
            try:
                train(f"{demo} stopped")
            except Stopped as stopped:
                found["stopped"] = stopped.code
        train("--resume stopped")
        found["resumed"] = losses("stopped")
        answers = inference.main(["--run", "stopped", "--output_dir", folder])
        return found | {"answered": answers["char_f1"]}


def gpu_tests() -> dict:
    """Run the tests of `pytest -m gpu` on tiny models."""
    from tests import capturing, test_gpu

    trace_flex()
    for name in test_gpu.TINY:
        test_gpu.test_the_probe_passes_at_every_head_size(name)
        test_gpu.test_flex_has_the_plain_kernels_loss_and_gradients(name)
        with (
            mock.patch.object(cuda_graph, "capture", capturing.Capturing()),
            MonkeyPatch.context() as patch,
        ):
            test_gpu.test_answers_from_trees_equal_generate(patch, name, 100)
    return {}


def run_benchmark(benchmark: str) -> dict:
    """Run the training or inference benchmark on a tiny model."""
    from benchmarks import inference, training

    options = "--model tiny-llama --article 40 --rounds 1 --questions 16"
    if benchmark == "training":
        return training.main(f"{options} --trl_batch 4".split())
    return inference.main(f"{options} --no_continuous --batch 4 --samples 2".split())


# ---- Faults that the tests must detect. Each patches the project.

tree_masks, feed = trainers.tree_masks, TreeDecoder._feed


def _host_mask(*arguments, **options):
    return tree_masks(*arguments, **options).cpu()


def _bool_mask(config, batch, dtype, flex):
    return tree_masks(config, batch, dtype, flex=False) == 0


@contextlib.contextmanager
def _bfloat16_adapters(model):
    """Leave the adapters in bfloat16, to which SFTTrainer casts those of a 4-bit model."""
    yield
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()


def _wait(decoder, chosen, step):
    assert chosen.max().item() >= 0
    return feed(decoder, chosen, step)


def _float_in_a_closure(softcap, device):
    def score_mod(score, row, head, query, key):
        return softcap * torch.tanh(score / softcap)

    return score_mod


_float_in_a_closure.cache_clear = lambda: None
MUTANTS = {
    "a tensor without device=": (trainers, "tree_masks", _host_mask),
    "a bool mask for flex": (trainers, "tree_masks", _bool_mask),
    "16-bit adapters": (trainers, "float32_adapters", _bfloat16_adapters),
    "a wait in the decoding loop": (TreeDecoder, "_feed", _wait),
    "a graph break": (attention, "_capped", _float_in_a_closure),
}


def run(what: str, mutant: str | None = None, **arguments) -> dict:
    """Run one job, with a fault if one is named."""
    fault = mock.patch.object(*MUTANTS[mutant]) if mutant else contextlib.nullcontext()
    try:
        with fault:
            return globals()[what](**arguments)
    except Exception as error:  # noqa: BLE001 (the test decides)
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:2000]}
    finally:
        gc.collect()  # trainers have reference cycles, and the next job measures memory


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        results = [run(**job) for job in JOBS]
    print(json.dumps(results))
