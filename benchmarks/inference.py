"""Measure how fast answering is, the ways side by side in one process on the same questions.

python -m benchmarks.inference --data KorQuAD_v1.0_dev.json     the demo's base on real data
python -m benchmarks.inference --model EEVE-10.8B --article 500 --questions_per_article 5
                                                                a true shape, random weights
python -m benchmarks.inference --growth                         1, 2, 4, 8, 16 questions on an
                                                                article

The ways: (a) loop: one prompt at a time. (b) batched: generate on prompts of similar length, at its
fastest batch size. (c) continuous: transformers' generate_batch. (d) tree: ours. vLLM where it is
installed. Each is measured with answers that stop as the model likes (random weights do not), and
with 16 forced tokens. The last line is JSON, for forced tokens.
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
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from benchmarks.machine import describe_machine, peak_memory
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
from benchmarks.peers import ANSWERERS, run_peers
from dandap.answering.answer import Decoding
from dandap.answering.generate import generate_answers
from dandap.answering.tree_decoder import answer_examples
from dandap.cli import Parser, parse, positive
from dandap.data.encode import Encoder, Example
from dandap.model.adapter import add_adapter
from dandap.model.device import autocast_for

BATCHES = (1, 4, 8, 32)
# With forced tokens all ways generate as much, whatever the model says: their speeds compare.
FORCED = 16
Answers = dict[int, list[int]]  # index of the example -> token ids


def main(argv: list[str] | None = None) -> dict:
    """Run the command line; return the JSON of the last line."""
    arguments = parse(command_line(), argv)
    material = load_material(arguments, {})
    if not arguments.no_adapter:
        material.model = add_adapter(material.model, material.recipe)
    material.model.eval()
    print(describe_machine(material.device))
    if arguments.growth:
        result = growth(arguments, material)
    else:
        result = compare(
            arguments, material, make_examples(arguments, material.tokenizer, material.recipe)
        )
    print(json.dumps(result))
    return result


def command_line() -> Parser:
    """Return the options: model, questions, and how each way is measured."""
    parser = Parser(__doc__)
    add_material_options(parser)
    add_comparison_options(parser)
    parser.add_argument("--no_adapter", action="store_true", help="the base alone")
    parser.add_argument(
        "--tokens_per_batch",
        metavar="N",
        type=positive,
        default=16384,
        help="ours (default: 16384)",
    )
    parser.add_argument(
        "--batch",
        metavar="N",
        type=positive,
        help="generate's batch size (default: the fastest of 1, 4, 8, 32)",
    )
    parser.add_argument(
        "--samples", metavar="N", type=positive, default=8, help="timed against one (default: 8)"
    )
    parser.add_argument(
        "--no_continuous",
        action="store_true",
        help="leave generate_batch out (on a CPU it takes very long)",
    )
    return parser


@dataclass
class Way:
    """Hold one way of answering the same questions, and what was measured of it."""

    name: str
    answer: Callable[[Decoding], Answers]
    seconds: list[float] = field(default_factory=list)
    tokens: int = 0  # forwarded in a round, padding included
    peak_mb: float = 0.0
    answers: Answers = field(default_factory=dict)

    def run(self, material: Material, decoding: Decoding) -> None:
        """Answer every question once, and measure this round."""
        with counted_tokens(material.model) as counted, peak_memory(material.device) as peak:
            started = time.perf_counter()
            self.answers = self.answer(decoding)
            # CUDA computes behind Python's back; the clock must wait for it.
            if material.device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - started)
        self.tokens, self.peak_mb = counted[0], max(self.peak_mb, peak[0])


def tree_way(
    material: Material, examples: list[Example], tokens_per_batch: int, name: str = "tree"
) -> Way:
    """Return our way: an article's questions are answered from one tree of tokens."""

    def answer(decoding: Decoding) -> Answers:
        found = answer_examples(material.model, examples, decoding, tokens_per_batch)
        return {index: samples[0].token_ids for index, samples in found}

    return Way(name, answer)


def batched_way(material: Material, examples: list[Example], rows: int) -> Way:
    """Return the way of `generate` on `rows` prompts of similar length."""
    prompts = [list(example.prompt_ids) for example in examples]
    # By length, so that little is padded; the longest first, so that what does not fit into memory
    # fails at once.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))

    def answer(decoding: Decoding) -> Answers:
        answers: Answers = {}
        for start in range(0, len(order), rows):
            batch = order[start : start + rows]
            found = generate_answers(
                material.model,
                [prompts[index] for index in batch],
                decoding,
                # `rows` alone decide the batch.
                tokens_per_batch=2**60,
            )
            answers |= {batch[index]: answer.token_ids for index, answer in found}
        return answers

    return Way(f"batched, {rows} rows", answer)


def loop_way(material: Material, examples: list[Example]) -> Way:
    """Return the way of one prompt at a time."""
    return replace(batched_way(material, examples, 1), name="loop")


def continuous_way(material: Material, examples: list[Example]) -> Way:
    """Return the way of transformers' generate_batch, its batching continuous."""
    # It shares what finished requests have read, so each article's first question goes ahead of
    # the others.
    seen: set[str] = set()
    first, others = [], []
    for index, example in enumerate(examples):
        (others if example.row.article in seen else first).append(index)
        seen.add(example.row.article)
    waves = [first, others]

    def answer(decoding: Decoding) -> Answers:
        config = GenerationConfig(
            max_new_tokens=decoding.max_new_tokens,
            # It knows no min_new_tokens: with a stop id outside the vocabulary answers run to
            # their full length.
            eos_token_id=-1 if decoding.min_new_tokens else decoding.stop_ids,
            pad_token_id=decoding.pad_id,
            do_sample=False,
        )
        answers: Answers = {}
        for wave in filter(None, waves):
            with autocast_for(material.model):
                results = material.model.generate_batch(
                    [list(examples[index].prompt_ids) for index in wave],
                    generation_config=config,
                    continuous_batching_config=ContinuousBatchingConfig(page_size=32),
                    persistent_manager=True,
                )
            # Results come as they end; the number at the end of a key is the prompt's place.
            in_order = sorted(results, key=lambda key: int(key.rsplit("_", 1)[-1]))
            said = [results[key].generated_tokens for key in in_order]
            answers |= dict(zip(wave, said, strict=True))
        # The manager lived from wave to wave, so that what was read was still there. It takes its
        # pages beforehand (9.0 GB with the demo's base), which nothing else could use.
        material.model.destroy_cached_continuous_batching_manager()
        return answers

    return Way("continuous", answer)


def decodings(material: Material, examples: list[Example]) -> dict[str, Decoding]:
    """Return how answers end: "natural", at the model's stops, and "forced", at FORCED tokens.

    Random weights have no stops of their own.
    """
    tokenizer = material.tokenizer
    stop_ids = Encoder(tokenizer, {"prompt": "{context}{question}"}).stop_ids(
        material.model.generation_config
    )
    natural = Decoding(stop_ids, tokenizer.pad_token_id, material.recipe.max_new_tokens)
    forced = replace(natural, max_new_tokens=FORCED, min_new_tokens=FORCED)
    return ({} if material.is_random else {"natural": natural}) | {"forced": forced}


def compare(arguments: argparse.Namespace, material: Material, examples: list[Example]) -> dict:
    """Run the ways in turn with both kinds of stops, and print what each came to.

    The result is that of forced tokens, with that of natural stops, if any, under "natural".
    """
    articles = len({example.row.article for example in examples})
    tokens = sum(len(example.prompt_ids) for example in examples)
    print(
        f"{arguments.model}, {arguments.quantization}: {len(examples)} questions "
        f"on {articles} articles, {tokens:,} prompt tokens"
    )
    results = {}
    for name, decoding in decodings(material, examples).items():
        print(f"{name} stops, at most {decoding.max_new_tokens} tokens")
        ways = make_ways(arguments, material, examples, decoding)
        # Ours was not run yet; its first round, in which kernels load, does not count.
        ways[-1].run(material, decoding)
        ways[-1].seconds.clear()
        # In turn, because machines are shared: other work on them slows all ways alike.
        for _ in range(arguments.rounds):
            for way in ways:
                way.run(material, decoding)
        if not arguments.no_continuous:
            ways.append(continuous_way(material, examples))
            # One round on a CPU, where it is far slower (0.6 questions/s against 4.8 of the tree).
            for _ in range(1 + arguments.rounds if material.device.type == "cuda" else 1):
                ways[-1].run(material, decoding)
        for way in ways:
            report(way, ways[0], len(examples))
        results[name] = summary(ways, examples)
    result = results.pop("forced") | results | {"articles": articles}
    result["samples_cost"] = samples_cost(arguments, material, examples)
    print(f"{arguments.samples} samples per question cost {result['samples_cost']} times one")
    result["questions_per_second"] |= run_peers(ANSWERERS, peer_job(arguments, examples))
    return result


def peer_job(arguments: argparse.Namespace, examples: list[Example]) -> dict:
    """Return what a peer needs to answer the same prompts with as many tokens."""
    prompts = [list(example.prompt_ids) for example in examples]
    return {
        "model": arguments.model,
        "quantization": arguments.quantization,
        "prompts": prompts,
        "longest": max(map(len, prompts)),
        "new_tokens": FORCED,
    }


def make_ways(
    arguments: argparse.Namespace, material: Material, examples: list[Example], decoding: Decoding
) -> list[Way]:
    """Return the loop, `generate` at its fastest batch size, and ours, in this order."""
    sizes = [arguments.batch] if arguments.batch else BATCHES
    batched = [batched_way(material, examples, rows) for rows in sizes]
    # In the first round kernels load and allocators grow, so it does not count.
    batched[0].run(material, decoding)
    batched[0].seconds.clear()
    for way in batched if len(batched) > 1 else []:
        way.run(material, decoding)
        print(
            f"  trying {way.name}: {len(examples) / way.seconds[0]:.1f} questions/s, "
            f"{way.tokens:,} tokens with padding"
        )
    fastest = batched[0] if len(batched) == 1 else min(batched, key=lambda way: way.seconds[0])
    fastest.seconds.clear()
    return [
        loop_way(material, examples),
        fastest,
        tree_way(material, examples, arguments.tokens_per_batch),
    ]


def summary(ways: list[Way], examples: list[Example]) -> dict:
    """Return ratios of the rounds, medians, and the share of our answers that are the loop's."""
    loop, batched, tree = ways[:3]
    equal = sum(tree.answers[index] == loop.answers[index] for index in range(len(examples)))
    names = {way.name: way.name.split(",")[0] for way in ways}
    return {
        "speedup_vs_loop": ratio(loop.seconds, tree.seconds),
        "speedup_vs_batched": ratio(batched.seconds, tree.seconds),
        "answers_equal": equal / len(examples),
        "questions_per_second": {
            names[w.name]: round(len(examples) / statistics.median(w.seconds), 2) for w in ways
        },
        "peak_memory_mb": {names[way.name]: round(way.peak_mb) for way in ways},
        "forwarded_tokens": {names[way.name]: way.tokens for way in ways},
        "batched": batched.name,
        "questions": len(examples),
    }


def samples_cost(
    arguments: argparse.Namespace, material: Material, examples: list[Example]
) -> float:
    """Return the time of several samples per question over that of one, with forced tokens.

    It is the median of rounds that are run in turn.
    """
    forced = decodings(material, examples)["forced"]
    one, many = (
        tree_way(material, examples, arguments.tokens_per_batch, name) for name in ("one", "many")
    )
    many.run(material, replace(forced, temperature=0.7, samples=arguments.samples))
    many.seconds.clear()
    for _ in range(arguments.rounds):
        one.run(material, replace(forced, temperature=0.7))
        many.run(material, replace(forced, temperature=0.7, samples=arguments.samples))
    return ratio(many.seconds, one.seconds)


def report(way: Way, loop: Way, questions: int) -> None:
    """Print a way's speed, tokens and memory, and how many of its answers are the loop's."""
    equal = sum(way.answers[index] == loop.answers[index] for index in range(questions)) / questions
    length = statistics.mean(len(ids) for ids in way.answers.values())
    print(
        f"{way.name:<16} {questions / statistics.median(way.seconds):>7.1f} questions/s  "
        f"{way.tokens:>9,} tokens  peak {way.peak_mb:>7,.0f} MB  {length:4.1f} tokens an answer  "
        f"{equal:.1%} as the loop"
    )


def growth(arguments: argparse.Namespace, material: Material) -> dict:
    """Print and return questions/s at 1 to 16 questions on an article of --article tokens."""
    arguments.article, arguments.no_continuous = arguments.article or 300, True
    rows = []
    for count in GROWTH:
        # A multiple of 16, so that every count in GROWTH divides it and no article has fewer.
        questions = max(arguments.questions // 16, 1) * 16
        rows.append(
            {"questions_per_article": count}
            | compare(arguments, material, made_up(arguments.article, count, questions))
        )
    print(
        f"\n| questions on an article of {arguments.article} tokens | loop | batched | tree "
        "| against loop | against batched |"
    )
    print("|---|---|---|---|---|---|")
    for row in rows:
        speed = row["questions_per_second"]
        cells = [
            row["questions_per_article"],
            *(speed[name] for name in ("loop", "batched", "tree")),
        ]
        print(
            "| "
            + " | ".join(map(str, [*cells, row["speedup_vs_loop"], row["speedup_vs_batched"]]))
            + " |"
        )
    return {"growth": rows}


if __name__ == "__main__":
    main()
