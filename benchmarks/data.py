"""Measure how the time to a training's first step and the memory grow with the questions.

python -m benchmarks.data                     1,000 to 100,000 questions, five on an article
python -m benchmarks.data --most 1000000 --plot benchmarks/data.svg

Each size is a process of its own: the file is read, split, checked and encoded as fine_tune.py does
it with the demo's recipe, and the first step is dealt. The second start finds the encoded questions
where the first one kept them.
"""

import dandap.start  # noqa: F401

import argparse
import csv
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt

import prompts
from dandap.base.model import load_tokenizer
from dandap.command_line import Parser, run_script
from dandap.data.checks import check_data
from dandap.data.encoded import encode_kept
from dandap.data.lengths import answer_share
from dandap.data.rows import split_by_article
from dandap.recipe import load_recipe
from dandap.training.steps import StepSampler
from tasks import get_task

QUESTIONS, CHARACTERS = 5, 420  # on an article; of it


def make_file(path: Path, questions: int) -> None:
    """Write a file of made-up articles, of the words of the demo's."""
    rng = random.Random(0)
    text = Path("data/sample/train.csv").read_text(encoding="utf-8")
    words = [word for word in text.split() if '"' not in word]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "context", "question", "answer"])
        for article in range(questions // QUESTIONS):
            context = " ".join(rng.choices(words, k=CHARACTERS // 3))[:CHARACTERS]
            said = context.split()
            for number in range(QUESTIONS):
                asked = " ".join(rng.choices(words, k=6)) + "?"
                writer.writerow([f"{article}-{number}", context, asked, rng.choice(said)])


def start(file: str) -> dict[str, float]:
    """Return seconds by part, and the peak in GB, from the file to the first step's questions."""
    seconds, began = {}, time.perf_counter()

    def done(part: str) -> None:
        seconds[part] = round(abs(time.perf_counter() - began - sum(seconds.values())), 1)

    recipe = load_recipe("demo", {"train_file": file})
    task = get_task(recipe.task)
    table = task.read_train(recipe)
    done("read")
    train, validation = split_by_article(table.rows, recipe.validation_fraction)
    check_data({"train": train, "validation": validation, "test": []})
    done("split and check")
    template = prompts.get_template(recipe.template, recipe.task)
    encoder = prompts.make_encoder(recipe, template, load_tokenizer(recipe))
    examples = encode_kept(encoder, train, recipe.prompt_limit, True, recipe.on_overflow)
    done("encode")
    answer_share(examples)
    sampler = StepSampler(examples, recipe.questions_per_step, 0, process=0, processes=1, step=int)
    next(iter(sampler))
    done("first step")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return seconds | {"in all": round(sum(seconds.values()), 1), "peak, GB": round(peak, 2)}


def in_a_process(file: Path, kept: Path) -> dict[str, float]:
    """Return what `start` measures in a process of its own, which keeps its files in `kept`."""
    command = [sys.executable, "-m", "benchmarks.data", "--file", str(file)]
    environment = os.environ | {"HF_HOME": str(kept)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def measure(most: int) -> list[dict]:
    """Return a line for each size and start, and print it."""
    lines = []
    print("| questions | start | read | split and check | encode | first step | in all | GB |")
    print("|---|---|---|---|---|---|---|---|")
    for questions in [size for size in (1000, 10_000, 100_000, 1_000_000) if size <= most]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "train.csv"
            make_file(file, questions)
            for time_of in ("first", "second"):
                found = in_a_process(file, Path(folder) / "kept")
                lines.append({"questions": questions, "start": time_of, **found})
                print(f"| {' | '.join(map(str, lines[-1].values()))} |", flush=True)
    return lines


def draw(lines: list[dict], path: Path) -> None:
    """Draw seconds and memory against the number of questions, both on logarithmic scales."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for time_of in ("first", "second"):
        mine = [line for line in lines if line["start"] == time_of]
        sizes = [line["questions"] for line in mine]
        left.loglog(sizes, [line["in all"] for line in mine], marker="o", label=f"{time_of} start")
        right.loglog(sizes, [line["peak, GB"] for line in mine], marker="o")
    left.set(title="seconds to the first step", xlabel="questions")
    right.set(title="peak memory, GB", xlabel="questions")
    left.legend()
    figure.savefig(path)


def main(argv: list[str] | None = None) -> dict:
    """Run the command line; return what its last line prints as JSON."""
    parser = Parser(__doc__)
    parser.add_argument("--most", type=int, default=100_000, help="questions of the largest file")
    parser.add_argument("--plot", metavar="FILE", help="where to draw the growth")
    parser.add_argument("--file", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.file:
        found = start(arguments.file)
    else:
        found = {"lines": measure(arguments.most)}
        if arguments.plot:
            draw(found["lines"], Path(arguments.plot))
    print(json.dumps(found))
    return found


if __name__ == "__main__":
    run_script(main)
