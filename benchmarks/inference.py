"""Compare the answering speed of several methods on the same questions, in one process.

python -m benchmarks.inference --data KorQuAD_v1.0_dev.json     the demo's base model, real data
python -m benchmarks.inference --model EEVE-10.8B --article 500 --questions_per_article 5
                                                                random weights and articles
python -m benchmarks.inference --growth                         1, 2, 4, 8, 16 questions per article

Methods: (a) loop: one prompt at a time. (b) batched: generate on prompts of similar length, at its
fastest batch size. (c) continuous: transformers' generate_batch. (d) tree: dandap. Also vLLM, if
installed. Each runs twice: answers end at the model's stop tokens (not with random weights), and
answers have exactly 16 tokens. The last line is JSON, for 16 tokens.
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
FORCED = 16  # tokens per answer, so that all methods generate the same amount
Answers = dict[int, list[int]]  # index of the example -> token ids


def main(argv: list[str] | None = None) -> dict:
    """Parse the arguments, run, and print the result as JSON on the last line."""
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
    """Return the argument parser."""
    parser = Parser(__doc__)
    add_material_options(parser)
    add_comparison_options(parser)
    parser.add_argument("--no_adapter", action="store_true", help="use the base model only")
    parser.add_argument(
        "--tokens_per_batch",
        metavar="N",
        type=positive,
        default=16384,
        help="for dandap (default: 16384)",
    )
    parser.add_argument(
        "--batch",
        metavar="N",
        type=positive,
        help="generate's batch size (default: the fastest of 1, 4, 8, 32)",
    )
    parser.add_argument(
        "--samples",
        metavar="N",
        type=positive,
        default=8,
        help="samples per question, compared with one (default: 8)",
    )
    parser.add_argument(
        "--no_continuous",
        action="store_true",
        help="skip generate_batch, which is very slow on a CPU",
    )
    return parser


@dataclass
class Method:
    """One answering method and its measurements."""

    name: str
    answer: Callable[[Decoding], Answers]
    seconds: list[float] = field(default_factory=list)
    tokens: int = 0  # tokens forwarded in a round, padding included
    peak_mb: float = 0.0
    answers: Answers = field(default_factory=dict)

    def run(self, material: Material, decoding: Decoding) -> None:
        """Answer every question once and measure it."""
        with counted_tokens(material.model) as counted, peak_memory(material.device) as peak:
            started = time.perf_counter()
            self.answers = self.answer(decoding)
            if material.device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - started)
        self.tokens, self.peak_mb = counted[0], max(self.peak_mb, peak[0])


def tree_method(
    material: Material, examples: list[Example], tokens_per_batch: int, name: str = "tree"
) -> Method:
    """Return dandap's method: answer an article's questions from one token tree."""

    def answer(decoding: Decoding) -> Answers:
        found = answer_examples(material.model, examples, decoding, tokens_per_batch)
        return {index: samples[0].token_ids for index, samples in found}

    return Method(name, answer)


def batched_method(material: Material, examples: list[Example], rows: int) -> Method:
    """Return `generate` on batches of `rows` prompts of similar length."""
    prompts = [list(example.prompt_ids) for example in examples]
    # Sorting by length avoids padding; the longest first fails at once if memory is too small.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))

    def answer(decoding: Decoding) -> Answers:
        answers: Answers = {}
        for start in range(0, len(order), rows):
            batch = order[start : start + rows]
            found = generate_answers(
                material.model,
                [prompts[index] for index in batch],
                decoding,
                # Only `rows` limits the batch.
                tokens_per_batch=2**60,
            )
            answers |= {batch[index]: answer.token_ids for index, answer in found}
        return answers

    return Method(f"batched, {rows} rows", answer)


def loop_method(material: Material, examples: list[Example]) -> Method:
    """Return the method that calls `generate` on one prompt at a time."""
    return replace(batched_method(material, examples, 1), name="loop")


def continuous_method(material: Material, examples: list[Example]) -> Method:
    """Return transformers' generate_batch, with continuous batching."""
    # Only finished requests share their prefix, so each article's first question runs first.
    seen: set[str] = set()
    first, others = [], []
    for index, example in enumerate(examples):
        (others if example.row.article in seen else first).append(index)
        seen.add(example.row.article)
    waves = [first, others]

    def answer(decoding: Decoding) -> Answers:
        config = GenerationConfig(
            max_new_tokens=decoding.max_new_tokens,
            # It has no min_new_tokens; a stop id outside the vocabulary forces full length.
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
            # Results arrive as they finish; keys end in the prompt's index.
            in_order = sorted(results, key=lambda key: int(key.rsplit("_", 1)[-1]))
            generated = [results[key].generated_tokens for key in in_order]
            answers |= dict(zip(wave, generated, strict=True))
        # The manager keeps prefixes between waves, and preallocates pages (9.0 GB for the demo).
        material.model.destroy_cached_continuous_batching_manager()
        return answers

    return Method("continuous", answer)


def decodings(material: Material, examples: list[Example]) -> dict[str, Decoding]:
    """Return the decoding options: "natural" ends at stop tokens, "forced" after FORCED tokens.

    Models with random weights have no "natural".
    """
    tokenizer = material.tokenizer
    stop_ids = Encoder(tokenizer, {"prompt": "{context}{question}"}).stop_ids(
        material.model.generation_config
    )
    natural = Decoding(stop_ids, tokenizer.pad_token_id, material.recipe.max_new_tokens)
    forced = replace(natural, max_new_tokens=FORCED, min_new_tokens=FORCED)
    return ({} if material.is_random else {"natural": natural}) | {"forced": forced}


def compare(arguments: argparse.Namespace, material: Material, examples: list[Example]) -> dict:
    """Run the methods in turn with both decoding options, and print their measurements.

    Return the result for forced length; its "natural" is the result for natural stops, if any.
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
        methods = make_methods(arguments, material, examples, decoding)
        # Warm up the tree method, which has not run yet.
        methods[-1].run(material, decoding)
        methods[-1].seconds.clear()
        # Alternate, so that other jobs on the machine slow all methods alike.
        for _ in range(arguments.rounds):
            for method in methods:
                method.run(material, decoding)
        if not arguments.no_continuous:
            methods.append(continuous_method(material, examples))
            # One round on a CPU: 0.6 questions/s, compared with 4.8 for the tree.
            for _ in range(1 + arguments.rounds if material.device.type == "cuda" else 1):
                methods[-1].run(material, decoding)
        for method in methods:
            report(method, methods[0], len(examples))
        results[name] = summary(methods, examples)
    result = results.pop("forced") | results | {"articles": articles}
    result["samples_cost"] = samples_cost(arguments, material, examples)
    print(f"{arguments.samples} samples per question take {result['samples_cost']}x as long as one")
    result["questions_per_second"] |= run_peers(ANSWERERS, peer_job(arguments, examples))
    return result


def peer_job(arguments: argparse.Namespace, examples: list[Example]) -> dict:
    """Return the job for benchmarks.peers: prompts and answer length."""
    prompts = [list(example.prompt_ids) for example in examples]
    return {
        "model": arguments.model,
        "quantization": arguments.quantization,
        "prompts": prompts,
        "longest": max(map(len, prompts)),
        "new_tokens": FORCED,
    }


def make_methods(
    arguments: argparse.Namespace, material: Material, examples: list[Example], decoding: Decoding
) -> list[Method]:
    """Return loop, `generate` at its fastest batch size, and tree, in this order."""
    sizes = [arguments.batch] if arguments.batch else BATCHES
    batched = [batched_method(material, examples, rows) for rows in sizes]
    # Warm up: kernels load and allocators grow.
    batched[0].run(material, decoding)
    batched[0].seconds.clear()
    for method in batched if len(batched) > 1 else []:
        method.run(material, decoding)
        print(
            f"  trying {method.name}: {len(examples) / method.seconds[0]:.1f} questions/s, "
            f"{method.tokens:,} tokens with padding"
        )
    fastest = min(batched, key=lambda method: method.seconds or [0])
    fastest.seconds.clear()
    return [
        loop_method(material, examples),
        fastest,
        tree_method(material, examples, arguments.tokens_per_batch),
    ]


def summary(methods: list[Method], examples: list[Example]) -> dict:
    """Return speedups, medians, and the share of tree answers equal to the loop's."""
    loop, batched, tree = methods[:3]
    equal = sum(tree.answers[index] == loop.answers[index] for index in range(len(examples)))
    names = {method.name: method.name.split(",")[0] for method in methods}
    return {
        "speedup_vs_loop": ratio(loop.seconds, tree.seconds),
        "speedup_vs_batched": ratio(batched.seconds, tree.seconds),
        "answers_equal": equal / len(examples),
        "questions_per_second": {
            names[w.name]: round(len(examples) / statistics.median(w.seconds), 2) for w in methods
        },
        "peak_memory_mb": {names[method.name]: round(method.peak_mb) for method in methods},
        "forwarded_tokens": {names[method.name]: method.tokens for method in methods},
        "batched": batched.name,
        "questions": len(examples),
    }


def samples_cost(
    arguments: argparse.Namespace, material: Material, examples: list[Example]
) -> float:
    """Return the relative time of --samples samples per question to one, at forced length."""
    forced = decodings(material, examples)["forced"]
    one, many = (
        tree_method(material, examples, arguments.tokens_per_batch, name)
        for name in ("one", "many")
    )
    many.run(material, replace(forced, temperature=0.7, samples=arguments.samples))
    many.seconds.clear()
    for _ in range(arguments.rounds):
        one.run(material, replace(forced, temperature=0.7))
        many.run(material, replace(forced, temperature=0.7, samples=arguments.samples))
    return ratio(many.seconds, one.seconds)


def report(method: Method, loop: Method, questions: int) -> None:
    """Print a method's speed, tokens, peak memory and share of answers equal to the loop's."""
    equal = sum(method.answers[n] == loop.answers[n] for n in range(questions)) / questions
    length = statistics.mean(len(ids) for ids in method.answers.values())
    print(
        f"{method.name:<16} {questions / statistics.median(method.seconds):>7.1f} questions/s  "
        f"{method.tokens:>9,} tokens  peak {method.peak_mb:>7,.0f} MB  {length:.1f} tokens/answer  "
        f"{equal:.1%} equal to loop"
    )


def growth(arguments: argparse.Namespace, material: Material) -> dict:
    """Print and return questions/s for 1 to 16 questions per article of --article tokens."""
    arguments.article, arguments.no_continuous = arguments.article or 300, True
    rows = []
    for count in GROWTH:
        # A multiple of 16, which every count in GROWTH divides.
        questions = max(arguments.questions // 16, 1) * 16
        rows.append(
            {"questions_per_article": count}
            | compare(arguments, material, made_up(arguments.article, count, questions))
        )
    print(
        f"\n| questions on an article of {arguments.article} tokens | loop | batched | tree "
        "| vs loop | vs batched |"
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
