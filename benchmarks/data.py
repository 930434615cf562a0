"""Measure time to the first training step and peak memory by number of questions.

python -m benchmarks.data                     1,000 to 100,000 questions, five per article
python -m benchmarks.data --most 1000000 --plot benchmarks/data.svg

Each run of fine_tune.py with the demo recipe is stopped after its first step, and its output is
timed. Torch loads while the file is read. The second run uses the first run's cache. CPU seconds
are summed over all cores. Peak memory includes child processes, with shared pages counted once.
"""

import dandap.cli  # noqa: F401

# isort: split
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import matplotlib
import psutil

matplotlib.use("svg")

import matplotlib.pyplot as plt

from dandap.cli import Parser, run_script

QUESTIONS, CHARACTERS = 5, 420  # per article


def make_file(path: Path, questions: int) -> None:
    """Write a CSV of random articles and questions, using words of the sample data."""
    rng = random.Random(0)
    text = Path("data/sample/train.csv").read_text(encoding="utf-8")
    words = [word for word in text.split() if '"' not in word]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "context", "question", "answer"])
        for article in range(questions // QUESTIONS):
            context = " ".join(rng.choices(words, k=CHARACTERS // 3))[:CHARACTERS]
            answers = context.split()
            for number in range(QUESTIONS):
                question = " ".join(rng.choices(words, k=6)) + "?"
                writer.writerow([f"{article}-{number}", context, question, rng.choice(answers)])


# Each phase ends with the output line that contains this text.
PHASES = {
    "read": " questions on ",
    "split and check": "attention: ",
    "encode": " training examples, ",
    "first step": "step ",
}
INTERVAL = 1.0  # seconds between samples; each takes a few milliseconds per gigabyte
MAX_CHANGE = 0.05  # a sample is dropped if the parent's share changes by more meanwhile


def time_run(file: Path, folder: Path) -> dict[str, float]:
    """Return the seconds of each phase up to the first step, and peak memory in GB."""
    command = [sys.executable, "-u", "fine_tune.py", "--recipe", "demo", "--train_file", str(file)]
    command += ["--output_dir", str(folder / "runs"), "--evaluate_every", "none"]
    began, seconds, phases = time.perf_counter(), {}, iter(PHASES.items())
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"HF_HOME": str(folder)}
    )
    peak = Peak(process.pid)
    name, mark = next(phases)
    for line in process.stdout:
        if mark in line:
            seconds[name] = round(time.perf_counter() - began - sum(seconds.values()), 1)
            name, mark = next(phases, (None, None))
            if name is None:
                break
    times = peak.process.cpu_times()
    cpu = times.user + times.system + times.children_user + times.children_system
    process.kill()
    process.wait()
    if name is not None:
        raise SystemExit(f"fine_tune.py ended before it printed {mark!r}.")
    total = round(sum(seconds.values()), 1)
    return seconds | {"total": total, "CPU": round(cpu, 1), "peak, GB": peak.stop()}


def used(process: psutil.Process) -> int | None:
    """Return the bytes used by a process and its children, or None if the sample is unreliable.

    PSS divides a shared page among its processes. If one starts or exits during sampling,
    pages would count twice; the parent's share then changes.
    """
    children = process.children(recursive=True)
    sampled = [process, *children, process]
    own, *others, again = (each.memory_full_info().pss for each in sampled)
    return own + sum(others) if abs(again - own) < MAX_CHANGE * own else None


class Peak:
    """Samples the memory of a process and its children in a thread, until stopped."""

    def __init__(self, pid: int):
        self.process, self.most, self.stopped = psutil.Process(pid), 0, threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()

    def _sample(self) -> None:
        while not self.stopped.wait(INTERVAL):
            with suppress(psutil.NoSuchProcess):
                self.most = max(self.most, used(self.process) or 0)

    def stop(self) -> float:
        """Stop sampling and return the peak in GB."""
        self.stopped.set()
        self.thread.join()
        return round(self.most / 1e9, 2)


def measure(most: int) -> list[dict]:
    """Print and return one row per file size and run."""
    lines = []
    print("| questions | run | read | split and check | encode | first step | total | CPU | GB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for questions in [size for size in (1000, 10_000, 100_000, 1_000_000) if size <= most]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "train.csv"
            make_file(file, questions)
            for run in ("first", "second"):
                measured = time_run(file, Path(folder) / "cache")
                lines.append({"questions": questions, "run": run, **measured})
                print(f"| {' | '.join(map(str, lines[-1].values()))} |", flush=True)
    return lines


def draw(lines: list[dict], path: Path) -> None:
    """Draw seconds (on a logarithmic scale) and memory against the number of questions."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for run in ("first", "second"):
        rows = [line for line in lines if line["run"] == run]
        sizes = [line["questions"] for line in rows]
        left.loglog(sizes, [line["total"] for line in rows], marker="o", label=f"{run} run")
        right.semilogx(sizes, [line["peak, GB"] for line in rows], marker="o")
    left.set(title="seconds to the first step", xlabel="questions")
    right.set(title="peak memory, GB", xlabel="questions")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.xaxis.set_major_formatter("{x:,.0f}")
    left.yaxis.set_major_formatter("{x:,.0f}")
    left.legend()
    figure.savefig(path)


def main(argv: list[str] | None = None) -> dict:
    """Parse the arguments, run, and print the result as JSON on the last line."""
    parser = Parser(__doc__)
    parser.add_argument("--most", type=int, default=100_000, help="questions in the largest file")
    parser.add_argument("--plot", metavar="FILE", help="write a chart to FILE")
    arguments = parser.parse_args(argv)
    result = {"lines": measure(arguments.most)}
    if arguments.plot:
        draw(result["lines"], Path(arguments.plot))
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    run_script(main)
