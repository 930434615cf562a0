"""Measure how the time to a training's first step and the memory grow with the questions.

python -m benchmarks.data                     1,000 to 100,000 questions, five on an article
python -m benchmarks.data --most 1000000 --plot benchmarks/data.svg

fine_tune.py is started with the demo's recipe and stopped after its first step. Its lines show when
the file was read, the data split and checked (torch is loaded meanwhile), and the questions
encoded. The second run finds the cache of the first. CPU seconds are those of all cores. The peak
is that of all its processes together; pages that they share count once.
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


# A part has ended with the line that holds this.
PARTS = {
    "read": " questions on ",
    "split and check": "attention: ",
    "encode": " training examples, ",
    "first step": "step ",
}
EVERY = 1.0  # seconds between two looks at the memory: each takes some milliseconds a gigabyte
CHANGED = 0.05  # of the parent's part: a look during which it changed by more is left out


def start(file: Path, folder: Path) -> dict[str, float]:
    """Return seconds by part of a training up to its first step, and its peak in GB."""
    command = [sys.executable, "-u", "fine_tune.py", "--recipe", "demo", "--train_file", str(file)]
    command += ["--output_dir", str(folder / "runs"), "--evaluate_every", "none"]
    began, seconds, parts = time.perf_counter(), {}, iter(PARTS.items())
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"HF_HOME": str(folder)}
    )
    peak = Peak(process.pid)
    name, mark = next(parts)
    for line in process.stdout:
        if mark in line:
            seconds[name] = round(time.perf_counter() - began - sum(seconds.values()), 1)
            name, mark = next(parts, (None, None))
            if name is None:
                break
    times = peak.process.cpu_times()
    cpu = times.user + times.system + times.children_user + times.children_system
    process.kill()
    process.wait()
    if name is not None:
        raise SystemExit(f"fine_tune.py ended before its line with {mark!r}")
    total = round(sum(seconds.values()), 1)
    return seconds | {"total": total, "CPU": round(cpu, 1), "peak, GB": peak.stop()}


def used(process: psutil.Process) -> int | None:
    """Return the bytes of a process and those below it, or None where they cannot be told.

    A page counts in parts to those that share it. Where a process comes or goes while they are
    looked at, its pages would count twice; then the part of the first one changes.
    """
    children = process.children(recursive=True)
    looked_at = [process, *children, process]
    own, *others, again = (each.memory_full_info().pss for each in looked_at)
    return own + sum(others) if abs(again - own) < CHANGED * own else None


class Peak:
    """Looks at the memory of a process and those below it, until it is stopped."""

    def __init__(self, pid: int):
        self.process, self.most, self.stopped = psutil.Process(pid), 0, threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self) -> None:
        while not self.stopped.wait(EVERY):
            with suppress(psutil.NoSuchProcess):
                self.most = max(self.most, used(self.process) or 0)

    def stop(self) -> float:
        """Return the most that was seen, in GB."""
        self.stopped.set()
        self.thread.join()
        return round(self.most / 1e9, 2)


def measure(most: int) -> list[dict]:
    """Return a line for each size and start, and print it."""
    lines = []
    print("| questions | run | read | split and check | encode | first step | total | CPU | GB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for questions in [size for size in (1000, 10_000, 100_000, 1_000_000) if size <= most]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "train.csv"
            make_file(file, questions)
            for time_of in ("first", "second"):
                found = start(file, Path(folder) / "cache")
                lines.append({"questions": questions, "run": time_of, **found})
                print(f"| {' | '.join(map(str, lines[-1].values()))} |", flush=True)
    return lines


def draw(lines: list[dict], path: Path) -> None:
    """Draw seconds (on a logarithmic scale) and memory against the number of questions."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for time_of in ("first", "second"):
        mine = [line for line in lines if line["run"] == time_of]
        sizes = [line["questions"] for line in mine]
        left.loglog(sizes, [line["total"] for line in mine], marker="o", label=f"{time_of} run")
        right.semilogx(sizes, [line["peak, GB"] for line in mine], marker="o")
    left.set(title="seconds to the first step", xlabel="questions")
    right.set(title="peak memory, GB", xlabel="questions")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.xaxis.set_major_formatter("{x:,.0f}")
    left.yaxis.set_major_formatter("{x:,.0f}")
    left.legend()
    figure.savefig(path)


def main(argv: list[str] | None = None) -> dict:
    """Run the command line; return what its last line prints as JSON."""
    parser = Parser(__doc__)
    parser.add_argument("--most", type=int, default=100_000, help="questions of the largest file")
    parser.add_argument("--plot", metavar="FILE", help="where to draw the growth")
    arguments = parser.parse_args(argv)
    found = {"lines": measure(arguments.most)}
    if arguments.plot:
        draw(found["lines"], Path(arguments.plot))
    print(json.dumps(found))
    return found


if __name__ == "__main__":
    run_script(main)
