"""Compare the training speed of several methods on the same questions, in one process.

python -m benchmarks.training --data KorQuAD_v1.0_dev.json     the demo's base model, real questions
python -m benchmarks.training --model EEVE-10.8B --article 1000 --questions_per_article 5
                                                               random weights and articles
python -m benchmarks.training --growth --plot growth.svg       1, 2, 4, 8, 16 questions per article
python -m benchmarks.training --model FOLDER --job job.json    write a job for benchmarks.peers

Methods: (a) seed: batch 1, loss on the whole sequence, as in the published notebooks. (b) trl: loss
on answers, grouped by length, at its fastest batch size. (c) read_once: dandap. Also unsloth and
llamafactory, if installed. The last line is JSON.
"""

import sys
from pathlib import Path

# For `python benchmarks/NAME.py`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dandap.cli  # noqa: F401

# isort: split
import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, field, replace

import torch
from transformers import PreTrainedTokenizerBase
from trl import SFTTrainer

from benchmarks.machine import describe_machine, matmul_flops, peak_memory
from benchmarks.material import (
    GROWTH,
    Material,
    add_comparison_options,
    add_material_options,
    counted_tokens,
    load_material,
    made_up,
    make_examples,
    ratio,
)
from benchmarks.peers import TRAINERS, run_peers
from dandap.cli import Parser, parse, positive
from dandap.data.encode import Example
from dandap.errors import InputError
from dandap.model.adapter import add_adapter
from dandap.model.memory import MemoryEstimate, Plan
from dandap.recipe import Recipe
from dandap.training.batching import StepSampler, count_tokens
from dandap.training.trainer import make_trainer, supervised
from dandap.tree.attention import why_no_flex

TRL_BATCHES = (1, 2, 4, 8)


def main(argv: list[str] | None = None) -> dict:
    """Parse the arguments, run, and return the printed result or the job of --job."""
    arguments = parse(command_line(), argv)
    if arguments.job and (arguments.growth or not Path(arguments.model).is_dir()):
        raise InputError(
            f"--job: got --model {arguments.model}{' --growth' if arguments.growth else ''}, "
            "expected a model folder and no --growth."
        )
    with tempfile.TemporaryDirectory() as folder:
        return run(arguments, prepare(arguments, folder))


def run(arguments: argparse.Namespace, setting: "Setting") -> dict:
    """Compare the methods, run --growth, or write the job of --job, and return the result."""
    print(describe_machine(setting.plan.device))
    if arguments.growth:
        return growth(arguments, setting)
    examples = make_examples(arguments, setting.tokenizer, setting.recipe)
    if arguments.job:
        job = peer_job(setting, examples, setting.trl_batch or 1)
        Path(arguments.job).write_text(json.dumps(job))
        print(f"{arguments.job}: {len(examples)} questions, batch {job['batch']}")
        return job
    result = compare(setting, examples, arguments.rounds)
    print(json.dumps(result))
    return result


def command_line() -> Parser:
    """Return the argument parser."""
    parser = Parser(__doc__)
    add_material_options(parser)
    add_comparison_options(parser)
    parser.add_argument(
        "--questions_per_step",
        metavar="N",
        type=positive,
        default=16,
        help="questions per step, for all methods (default: 16)",
    )
    parser.add_argument(
        "--tokens_per_batch",
        metavar="N",
        type=positive,
        default=4096,
        help="for dandap (default: 4096)",
    )
    parser.add_argument(
        "--attention",
        choices=["auto", "flex", "sdpa", "eager"],
        default="auto",
        help="for dandap (default: auto)",
    )
    parser.add_argument("--gradient_checkpointing", action="store_true", help="for all methods")
    parser.add_argument(
        "--trl_batch",
        metavar="N",
        type=positive,
        help="TRL's batch size (default: the fastest of 1, 2, 4, 8)",
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="with --growth: write a chart (.svg or .png)"
    )
    parser.add_argument(
        "--job",
        metavar="FILE",
        help="write a job for benchmarks.peers and exit; its batch is --trl_batch (default: 1)",
    )
    return parser


@dataclass
class Setting:
    """The model with its adapter, the plan and the tokenizer that all methods share."""

    recipe: Recipe
    plan: Plan
    tokenizer: PreTrainedTokenizerBase
    model: torch.nn.Module
    model_name: str
    folder: str
    trl_batch: int | None


def prepare(arguments: argparse.Namespace, folder: str) -> Setting:
    """Load the model, or build one with random weights, and add an adapter."""
    options = {
        "questions_per_step": arguments.questions_per_step,
        "attention": arguments.attention,
        "warmup_steps": 0,
    }
    base = load_material(arguments, options)
    plan = given_plan(base, arguments.tokens_per_batch, arguments.gradient_checkpointing)
    model = add_adapter(base.model, base.recipe)
    return Setting(
        base.recipe, plan, base.tokenizer, model, arguments.model, folder, arguments.trl_batch
    )


def given_plan(base: Material, tokens_per_batch: int, checkpointing: bool) -> Plan:
    """Return a plan with these options, and print its attention."""
    reason = why_no_flex(base.recipe, base.model.config, base.device, base.dtype)
    print(f"dandap's attention: {'flex' if reason is None else f'plain kernel ({reason})'}")
    # The options fix the plan, so no estimate is needed.
    return Plan(
        base.device,
        base.dtype,
        tokens_per_batch,
        checkpointing,
        MemoryEstimate(0, 0, 0, 0),
        None,
        reason is None,
    )


@dataclass
class Method:
    """One training method and its measurements."""

    name: str
    trainer: SFTTrainer
    seconds: list[float] = field(default_factory=list)
    tokens: int = 0  # tokens forwarded in a round, padding included
    peak_mb: float = 0.0

    def run(self, setting: Setting) -> None:
        """Train one epoch, optimizer steps included, and measure it."""
        setting.model.train()
        with counted_tokens(setting.model) as counted, peak_memory(setting.plan.device) as peak:
            started = time.perf_counter()
            self.trainer.train()
            if setting.plan.device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - started)
        self.tokens, self.peak_mb = counted[0], max(self.peak_mb, peak[0])


def make_methods(setting: Setting, examples: list[Example]) -> list[Method]:
    """Return the seed method, TRL at its fastest batch size, and dandap, in this order."""
    seed = Method("seed", make_seed_trainer(setting, examples))
    # Batches must divide a step, so that all methods have equal steps.
    batches = (
        [setting.trl_batch]
        if setting.trl_batch
        else [b for b in TRL_BATCHES if setting.recipe.questions_per_step % b == 0]
    )
    trl = [
        Method(f"trl, batch {batch}", make_trl_trainer(setting, examples, batch))
        for batch in batches
    ]
    # Warm up: kernels load and allocators grow.
    trl[0].run(setting)
    trl[0].seconds.clear()
    if len(trl) > 1:
        for method in trl:
            method.run(setting)
            print(
                f"  trying {method.name}: {len(examples) / method.seconds[0]:.1f} questions/s, "
                f"{method.tokens:,} tokens with padding"
            )
    # A single batch size has no timing and needs none.
    fastest = min(trl, key=lambda method: method.seconds or [0])
    fastest.seconds.clear()
    return [seed, fastest, Method("read_once", trainer_of(setting, setting.plan, examples, True))]


def trainer_of(
    setting: Setting, plan: Plan, examples: list[Example], read_once: bool
) -> SFTTrainer:
    """Return a trainer of the setting's model without checkpoints and logging."""
    recipe = setting.recipe.model_copy(update={"read_once": read_once})
    return quiet(
        make_trainer(recipe, plan, setting.tokenizer, examples, setting.model, setting.folder)
    )


def _label_whole_sequence(row: dict) -> dict:
    return {"labels": row["input_ids"]}


def make_trl_trainer(setting: Setting, examples: list[Example], batch: int) -> SFTTrainer:
    """Return TRL's trainer with the loss on answers and batches grouped by length."""
    longest = max(len(example.prompt_ids) + len(example.answer_ids) for example in examples)
    # make_trainer derives the batch size from tokens_per_batch and the longest example.
    plan = replace(setting.plan, tokens_per_batch=batch * longest, flex=False)
    trainer = trainer_of(setting, plan, examples, read_once=False)
    trainer.args.train_sampling_strategy = "group_by_length"
    return trainer


def make_seed_trainer(setting: Setting, examples: list[Example]) -> SFTTrainer:
    """Return a trainer with batch 1, random order, and the loss on prompt and answer."""
    plan = replace(setting.plan, tokens_per_batch=1, flex=False)
    trainer = trainer_of(setting, plan, examples, read_once=False)
    trainer.train_dataset = trainer.train_dataset.map(_label_whole_sequence)
    return trainer


def quiet(trainer: SFTTrainer) -> SFTTrainer:
    """Disable checkpoints and logging, which would be timed, and return the trainer."""
    trainer.args.save_strategy = "no"
    trainer.args.logging_strategy = "no"
    return trainer


def steps_of(setting: Setting, examples: list[Example]) -> list[list[Example]]:
    """Return the examples of each step of dandap's first epoch."""
    recipe = setting.recipe
    sampler = StepSampler(examples, recipe.questions_per_step, recipe.seed, step=lambda: 0)
    return [[examples[key.index] for key in keys] for keys in sampler]


@torch.no_grad()
def loss_difference(setting: Setting, trl: Method, ours: Method, examples: list[Example]) -> float:
    """Return the largest relative difference of a step's loss, over all steps at equal weights."""
    # No dropout: the methods would draw different masks.
    setting.model.eval()
    largest = 0.0
    for step in steps_of(setting, examples):
        trees = ours.trainer.batching.collate_step(step)
        # One row per batch, so that the expected loss has no padding.
        rows = [trl.trainer.data_collator([row]) for row in supervised(step)]
        got = summed_loss(
            ours.trainer, trees["packed"].on(ours.trainer.args.device), trees["labels"].numel()
        )
        expected = summed_loss(trl.trainer, rows, trees["labels"].numel())
        largest = max(largest, abs(got - expected) / expected)
    return largest


def summed_loss(trainer: SFTTrainer, batches: list[dict], targets: int) -> float:
    """Return the loss of a step, summed over its batches.

    Each batch's loss is divided by `targets`, the number of answer tokens in the step.
    """
    total = 0.0
    for batch in batches:
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(
                trainer.model, trainer._prepare_inputs(batch), num_items_in_batch=targets
            )
        total += loss.item()
    return total


def gradient_difference(
    setting: Setting, trl: Method, ours: Method, examples: list[Example]
) -> float:
    """Return the relative difference of the adapter's gradients, in norm.

    It is measured on the step with the longest article.
    """
    step = max(
        steps_of(setting, examples),
        key=lambda step: max(len(example.prompt_ids) for example in step),
    )
    trees = ours.trainer.batching.collate_step(step)
    packed = trees["packed"].on(ours.trainer.args.device)
    rows = [trl.trainer.data_collator([row]) for row in supervised(step)]
    # Gradient checkpointing needs training mode; these recipes have no dropout.
    setting.model.train()
    got = summed_gradient(ours.trainer, packed, trees["labels"].numel())
    expected = summed_gradient(trl.trainer, rows, trees["labels"].numel())
    return ((got - expected).norm() / expected.norm()).item()


def summed_gradient(trainer: SFTTrainer, batches: list[dict], targets: int) -> torch.Tensor:
    """Return the adapter's gradient of a step as one vector."""
    trainer.model.zero_grad()
    for batch in batches:
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(
                trainer.model, trainer._prepare_inputs(batch), num_items_in_batch=targets
            )
        loss.backward()
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    gradient = torch.cat([parameter.grad.flatten().float() for parameter in trained])
    trainer.model.zero_grad()
    return gradient


def compare(setting: Setting, examples: list[Example], rounds: int) -> dict:
    """Run the methods in turn, print their measurements, and return the result."""
    total, once = count_tokens(examples, setting.recipe)
    articles = len({example.row.article for example in examples})
    print(
        f"{setting.model_name}, {setting.recipe.quantization}: {len(examples)} questions "
        f"on {articles} articles, "
        f"{total:,} tokens, read once {once:,} ({total / once:.2f}x fewer)"
    )
    methods = make_methods(setting, examples)
    seed, trl, ours = methods
    # Warm up.
    ours.run(setting)
    ours.seconds.clear()
    # Before the rounds: once the questions are memorized, rounding dominates the tiny loss.
    differences = {
        "max_loss_difference": loss_difference(setting, trl, ours, examples),
        "gradient_difference": gradient_difference(setting, trl, ours, examples),
    }
    # Alternate, so that other jobs on the machine slow all methods alike.
    for _ in range(rounds):
        for method in methods:
            method.run(setting)
    for method in methods:
        report(setting, method, len(examples))
    peers = run_peers(
        TRAINERS, peer_job(setting, examples, trl.trainer.args.per_device_train_batch_size)
    )
    return {
        "speedup_vs_trl": ratio(trl.seconds, ours.seconds),
        "speedup_vs_seed": ratio(seed.seconds, ours.seconds),
        "token_ratio": round(total / once, 3),
        **differences,
        "questions_per_second": {
            w.name.split(",")[0]: round(len(examples) / statistics.median(w.seconds), 2)
            for w in methods
        }
        | peers,
        "peak_memory_mb": {method.name.split(",")[0]: round(method.peak_mb) for method in methods},
        "forwarded_tokens": {method.name.split(",")[0]: method.tokens for method in methods},
        "trl_batch": trl.trainer.args.per_device_train_batch_size,
        "questions": len(examples),
        "articles": articles,
    }


def peer_job(setting: Setting, examples: list[Example], batch: int) -> dict:
    """Return the job for benchmarks.peers: rows, batch sizes and adapter settings."""
    recipe = setting.recipe
    return {
        "model": setting.model_name,
        "rows": supervised(examples).to_list(),
        "longest": max(len(example.prompt_ids) + len(example.answer_ids) for example in examples),
        "batch": batch,
        "questions_per_step": recipe.questions_per_step,
        "quantization": recipe.quantization,
        "lora_r": recipe.lora_r,
        "lora_alpha": recipe.lora_alpha,
        "gradient_checkpointing": setting.plan.gradient_checkpointing,
    }


def report(setting: Setting, method: Method, questions: int) -> None:
    """Print a method's speed, tokens and peak memory, and on a GPU its share of peak FLOP/s."""
    seconds = statistics.median(method.seconds)
    line = (
        f"{method.name:<14} {questions / seconds:>7.1f} questions/s  {method.tokens:>9,} tokens  "
        f"peak {method.peak_mb:>7,.0f} MB"
    )
    if setting.plan.device.type == "cuda":
        head = setting.model.get_output_embeddings()
        linear = sum(
            m.in_features * m.out_features
            for m in setting.model.modules()
            if _is_base_linear(m) and m is not head
        )
        # Each weight costs 2 FLOP per token forward and 2 backward (a frozen weight has no
        # gradient); checkpointing adds a forward pass. Attention, head and adapter are excluded.
        flops = (6 if setting.plan.gradient_checkpointing else 4) * linear * method.tokens
        line += f"  {flops / seconds / matmul_flops():.0%} of the bf16 matmul ceiling"
    print(line)


def _is_base_linear(module: torch.nn.Module) -> bool:
    """Return whether a module is a linear layer of the base model.

    A layer with a dimension of at most 64 is assumed to belong to the adapter, (features, rank).
    """
    return isinstance(module, torch.nn.Linear) and min(module.in_features, module.out_features) > 64


def growth(arguments: argparse.Namespace, setting: Setting) -> dict:
    """Print and return questions/s of TRL and dandap for 1 to 16 questions per article."""
    rows = []
    for count in GROWTH:
        length = arguments.article or 300
        # A multiple of 16, which every count in GROWTH divides.
        examples = made_up(length, count, max(arguments.questions // 16, 1) * 16)
        result = compare(setting, examples, arguments.rounds)
        rows.append({"questions_per_article": count, **result})
    print(
        f"\n| questions on an article of {length} tokens | TRL, questions/s "
        "| read once, questions/s | speedup | token ratio |"
    )
    print("|---|---|---|---|---|")
    for row in rows:
        speed = row["questions_per_second"]
        cells = (
            row["questions_per_article"],
            speed["trl"],
            speed["read_once"],
            row["speedup_vs_trl"],
            row["token_ratio"],
        )
        print("| " + " | ".join(map(str, cells)) + " |")
    if arguments.plot:
        draw(rows, Path(arguments.plot))
    print(json.dumps({"growth": rows}))
    return {"growth": rows}


def draw(rows: list[dict], path: Path) -> None:
    """Plot questions per second against questions per article, for TRL and dandap."""
    import matplotlib

    # Must precede the import of pyplot.
    matplotlib.use("Agg")
    from matplotlib import pyplot

    counts = [row["questions_per_article"] for row in rows]
    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    for name, label in (("read_once", "read once"), ("trl", "TRL, answer-only, grouped by length")):
        axes.plot(
            counts, [row["questions_per_second"][name] for row in rows], marker="o", label=label
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, counts)
    axes.set_xlabel("questions on one article")
    axes.set_ylabel("questions trained per second")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
