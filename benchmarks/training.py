"""Measure how fast training is, the ways side by side in one process on the same questions.

python -m benchmarks.training --data KorQuAD_v1.0_dev.json     the demo's base on real data
python -m benchmarks.training --model EEVE-10.8B --article 1000 --questions_per_article 5
                                                               a true shape, random weights
python -m benchmarks.training --growth --plot growth.svg       1, 2, 4, 8, 16 questions on an
                                                               article
python -m benchmarks.training --model FOLDER --job job.json    nothing is measured: the job of
                                                               benchmarks.peers

The ways: (a) seed: batch 1, loss on the whole sequence, as the published notebooks train. (b) trl:
loss on answers, grouped by length, at its fastest batch size. (c) read_once: ours. unsloth and
llamafactory where they are installed. The last line is JSON.
"""

import sys
from pathlib import Path

# So that `python benchmarks/NAME.py` works like `python -m benchmarks.NAME`.
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
    """Run the command line; return the JSON of the last line, or what --job has written."""
    arguments = parse(command_line(), argv)
    if arguments.job and (arguments.growth or not Path(arguments.model).is_dir()):
        raise InputError(
            f"--job: got --model {arguments.model}{' --growth' if arguments.growth else ''}, "
            "expected a model folder (peers load no shape) and no --growth."
        )
    with tempfile.TemporaryDirectory() as folder:
        return run(arguments, prepare(arguments, folder))


def run(arguments: argparse.Namespace, setting: "Setting") -> dict:
    """Measure what the options ask for: how cost grows, or the ways on one set of questions.

    With --job nothing is measured: what a peer would train on is written to that file.
    """
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
    """Return the options: model, questions, and how each way is measured."""
    parser = Parser(__doc__)
    add_material_options(parser)
    add_comparison_options(parser)
    parser.add_argument(
        "--questions_per_step",
        metavar="N",
        type=positive,
        default=16,
        help="of every way (default: 16)",
    )
    parser.add_argument(
        "--tokens_per_batch", metavar="N", type=positive, default=4096, help="ours (default: 4096)"
    )
    parser.add_argument(
        "--attention",
        choices=["auto", "flex", "sdpa", "eager"],
        default="auto",
        help="ours (default: auto)",
    )
    parser.add_argument("--gradient_checkpointing", action="store_true", help="for every way")
    parser.add_argument(
        "--trl_batch",
        metavar="N",
        type=positive,
        help="TRL's batch size (default: the fastest of 1, 2, 4, 8)",
    )
    parser.add_argument("--plot", metavar="FILE", help="with --growth: draw it (.svg or .png)")
    parser.add_argument(
        "--job",
        metavar="FILE",
        help="write the job of benchmarks.peers and stop; its batch is --trl_batch (default: 1)",
    )
    return parser


@dataclass
class Setting:
    """Hold what all ways share: one model with one adapter, one plan."""

    recipe: Recipe
    plan: Plan
    tokenizer: PreTrainedTokenizerBase
    model: torch.nn.Module
    model_name: str
    folder: str
    trl_batch: int | None


def prepare(arguments: argparse.Namespace, folder: str) -> Setting:
    """Load the model, or make one of a true shape with random weights, and add an adapter."""
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
    """Return the plan of these options, and print which attention it has."""
    reason = why_no_flex(base.recipe, base.model.config, base.device, base.dtype)
    print(f"attention of ours: {'flex' if reason is None else f'the plain kernel ({reason})'}")
    # The plan is given by the options, so the estimate that would pick one is left empty.
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
class Way:
    """Hold one way of training the same questions, and what was measured of it."""

    name: str
    trainer: SFTTrainer
    seconds: list[float] = field(default_factory=list)
    tokens: int = 0  # forwarded in a round, padding included
    peak_mb: float = 0.0

    def run(self, setting: Setting) -> None:
        """Train an epoch of the questions, optimizer steps included, and measure this round."""
        setting.model.train()
        with counted_tokens(setting.model) as counted, peak_memory(setting.plan.device) as peak:
            started = time.perf_counter()
            self.trainer.train()
            # CUDA computes behind Python's back; the clock must wait for it.
            if setting.plan.device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - started)
        self.tokens, self.peak_mb = counted[0], max(self.peak_mb, peak[0])


def make_ways(setting: Setting, examples: list[Example]) -> list[Way]:
    """Return the seeds' way, TRL at its fastest batch size, and ours, in this order."""
    seed = Way("seed", make_seed_trainer(setting, examples))
    # A step must be whole batches, so that every way takes steps of as many questions.
    batches = (
        [setting.trl_batch]
        if setting.trl_batch
        else [b for b in TRL_BATCHES if setting.recipe.questions_per_step % b == 0]
    )
    trl = [
        Way(f"trl, batch {batch}", make_trl_trainer(setting, examples, batch)) for batch in batches
    ]
    # In the first round kernels load and allocators grow, so it does not count.
    trl[0].run(setting)
    trl[0].seconds.clear()
    if len(trl) > 1:
        for way in trl:
            way.run(setting)
            print(
                f"  trying {way.name}: {len(examples) / way.seconds[0]:.1f} questions/s, "
                f"{way.tokens:,} tokens with padding"
            )
    # A single batch size was not timed; it is the fastest of one.
    fastest = min(trl, key=lambda way: way.seconds or [0])
    fastest.seconds.clear()
    return [seed, fastest, Way("read_once", trainer_of(setting, setting.plan, examples, True))]


def trainer_of(
    setting: Setting, plan: Plan, examples: list[Example], read_once: bool
) -> SFTTrainer:
    """Return a trainer of the setting's model, quiet."""
    recipe = setting.recipe.model_copy(update={"read_once": read_once})
    return quiet(
        make_trainer(recipe, plan, setting.tokenizer, examples, setting.model, setting.folder)
    )


def _learned_whole(row: dict) -> dict:
    return {"labels": row["input_ids"]}


def make_trl_trainer(setting: Setting, examples: list[Example], batch: int) -> SFTTrainer:
    """Return TRL's trainer with the loss on answers, its batches grouped by length."""
    longest = max(len(example.prompt_ids) + len(example.answer_ids) for example in examples)
    # make_trainer chooses as many rows as fit the longest example into tokens_per_batch.
    plan = replace(setting.plan, tokens_per_batch=batch * longest, flex=False)
    trainer = trainer_of(setting, plan, examples, read_once=False)
    trainer.args.train_sampling_strategy = "group_by_length"
    return trainer


def make_seed_trainer(setting: Setting, examples: list[Example]) -> SFTTrainer:
    """Return a trainer with batch 1 in random order, the loss on prompt and answer alike."""
    plan = replace(setting.plan, tokens_per_batch=1, flex=False)
    trainer = trainer_of(setting, plan, examples, read_once=False)
    trainer.train_dataset = trainer.train_dataset.map(_learned_whole)
    return trainer


def quiet(trainer: SFTTrainer) -> SFTTrainer:
    """Return the trainer without checkpoints and log lines, which would be measured, too."""
    trainer.args.save_strategy = "no"
    trainer.args.logging_strategy = "no"
    return trainer


def steps_of(setting: Setting, examples: list[Example]) -> list[list[Example]]:
    """Return the steps of the first epoch, as ours takes them."""
    recipe = setting.recipe
    sampler = StepSampler(examples, recipe.questions_per_step, recipe.seed, step=lambda: 0)
    return [[examples[key.index] for key in keys] for keys in sampler]


@torch.no_grad()
def loss_difference(setting: Setting, trl: Way, ours: Way, examples: list[Example]) -> float:
    """Return the largest relative difference between the two ways' losses of a step.

    It is taken over all steps, at the same weights.
    """
    # Without dropout, which draws differently where an article is read once.
    setting.model.eval()
    largest = 0.0
    for step in steps_of(setting, examples):
        trees = ours.trainer.batching.collate_step(step)
        # One row a batch, so that no padding takes part in the loss that is expected.
        rows = [trl.trainer.data_collator([row]) for row in supervised(step)]
        got = summed_loss(
            ours.trainer, trees["packed"].on(ours.trainer.args.device), trees["labels"].numel()
        )
        expected = summed_loss(trl.trainer, rows, trees["labels"].numel())
        largest = max(largest, abs(got - expected) / expected)
    return largest


def summed_loss(trainer: SFTTrainer, batches: list[dict], targets: int) -> float:
    """Return the loss of a step from its batches, in the trainer's precision.

    `targets` is the number of answer tokens of the whole step, by which each batch is divided.
    """
    total = 0.0
    for batch in batches:
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(
                trainer.model, trainer._prepare_inputs(batch), num_items_in_batch=targets
            )
        total += loss.item()
    return total


def gradient_difference(setting: Setting, trl: Way, ours: Way, examples: list[Example]) -> float:
    """Return how far the two ways' gradients of one step are apart, over the norm of TRL's.

    It is the step with the longest article, and the adapter's whole gradient.
    """
    step = max(
        steps_of(setting, examples),
        key=lambda step: max(len(example.prompt_ids) for example in step),
    )
    trees = ours.trainer.batching.collate_step(step)
    packed = trees["packed"].on(ours.trainer.args.device)
    rows = [trl.trainer.data_collator([row]) for row in supervised(step)]
    # In training mode, in which checkpointing works; the benchmarks' recipes have no dropout.
    setting.model.train()
    got = summed_gradient(ours.trainer, packed, trees["labels"].numel())
    expected = summed_gradient(trl.trainer, rows, trees["labels"].numel())
    return ((got - expected).norm() / expected.norm()).item()


def summed_gradient(trainer: SFTTrainer, batches: list[dict], targets: int) -> torch.Tensor:
    """Return the adapter's gradient of a step from its batches, in one vector."""
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
    """Run the ways in turn, print what each came to, and return the result."""
    every_time, once = count_tokens(examples, setting.recipe)
    articles = len({example.row.article for example in examples})
    print(
        f"{setting.model_name}, {setting.recipe.quantization}: {len(examples)} questions "
        f"on {articles} articles, "
        f"{every_time:,} tokens, read once {once:,} ({every_time / once:.2f}x fewer)"
    )
    ways = make_ways(setting, examples)
    seed, trl, ours = ways
    # The first round of ours, in which kernels load, does not count.
    ours.run(setting)
    ours.seconds.clear()
    # Before the rounds, after which a few questions are known by heart: of a loss of nearly nothing
    # rounding is a large part.
    differences = {
        "max_loss_difference": loss_difference(setting, trl, ours, examples),
        "gradient_difference": gradient_difference(setting, trl, ours, examples),
    }
    # In turn, because machines are shared: other work on them slows all ways alike.
    for _ in range(rounds):
        for way in ways:
            way.run(setting)
    for way in ways:
        report(setting, way, len(examples))
    peers = run_peers(
        TRAINERS, peer_job(setting, examples, trl.trainer.args.per_device_train_batch_size)
    )
    return {
        "speedup_vs_trl": ratio(trl.seconds, ours.seconds),
        "speedup_vs_seed": ratio(seed.seconds, ours.seconds),
        "token_ratio": round(every_time / once, 3),
        **differences,
        "questions_per_second": {
            w.name.split(",")[0]: round(len(examples) / statistics.median(w.seconds), 2)
            for w in ways
        }
        | peers,
        "peak_memory_mb": {way.name.split(",")[0]: round(way.peak_mb) for way in ways},
        "forwarded_tokens": {way.name.split(",")[0]: way.tokens for way in ways},
        "trl_batch": trl.trainer.args.per_device_train_batch_size,
        "questions": len(examples),
        "articles": articles,
    }


def peer_job(setting: Setting, examples: list[Example], batch: int) -> dict:
    """Return what a peer needs to train the same."""
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


def report(setting: Setting, way: Way, questions: int) -> None:
    """Print a way's speed, tokens and memory, and on a GPU the share of its ceiling."""
    seconds = statistics.median(way.seconds)
    line = (
        f"{way.name:<14} {questions / seconds:>7.1f} questions/s  {way.tokens:>9,} tokens  "
        f"peak {way.peak_mb:>7,.0f} MB"
    )
    if setting.plan.device.type == "cuda":
        head = setting.model.get_output_embeddings()
        linear = sum(
            m.in_features * m.out_features
            for m in setting.model.modules()
            if _is_base_linear(m) and m is not head
        )
        # A weight costs a token 2 FLOP forwards and 2 backwards, because the frozen base has no
        # gradient of its own; checkpointing goes forwards once more. Attention, the head and the
        # adapter are left out.
        flops = (6 if setting.plan.gradient_checkpointing else 4) * linear * way.tokens
        line += f"  {flops / seconds / matmul_flops():.0%} of the bf16 matmul ceiling"
    print(line)


def _is_base_linear(module: torch.nn.Module) -> bool:
    """Say whether a module is a linear layer of the base and none of an adapter.

    An adapter's layers are (features, rank): what has a side of at most 64 is taken for one.
    """
    return isinstance(module, torch.nn.Linear) and min(module.in_features, module.out_features) > 64


def growth(arguments: argparse.Namespace, setting: Setting) -> dict:
    """Print and return questions/s of TRL and ours at 1 to 16 questions on an article.

    The article has --article tokens.
    """
    rows = []
    for count in GROWTH:
        length = arguments.article or 300
        # A multiple of 16, so that every count in GROWTH divides it and no article has fewer.
        examples = made_up(length, count, max(arguments.questions // 16, 1) * 16)
        result = compare(setting, examples, arguments.rounds)
        rows.append({"questions_per_article": count, **result})
    print(
        f"\n| questions on an article of {length} tokens | TRL, questions/s "
        "| read once, questions/s | times | token ratio |"
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
    """Draw questions a second against questions on an article, for TRL and for ours."""
    import matplotlib

    # Without a window, which a server has none of; set before pyplot is loaded.
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
