"""Measure the speedup of two processes over one, with one thread each, on the demo.

python -m benchmarks.processes --run RUN       RUN is a finished run of the demo

Each round trains an epoch and answers the questions with one process, then with two. Loading and
saving are not timed. CPU seconds per process estimate the wall-clock time of an idle machine. The
last line is JSON.
"""

import sys
from pathlib import Path

# For `python benchmarks/NAME.py`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time

from benchmarks.material import DEMO_DATA
from dandap import ROOT
from dandap.cli import Parser, parse, positive, run_script
from dandap.errors import InputError
from dandap.model.distributed import only_main_prints, process_rank
from dandap.recipe import load_recipe

LAUNCH = [
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
    *("--num_processes", "2"),
]


def main(argv: list[str] | None = None) -> dict:
    """Parse the arguments, run, and print the result as JSON on the last line."""
    arguments = parse(command_line(), argv)
    if arguments.measured:
        return measured(arguments)
    seconds: dict[str, list[dict]] = {}
    for number in range(arguments.rounds):
        for work in ("train", "answer"):
            for processes in (1, 2):
                times = run(arguments, work, processes)
                seconds.setdefault(f"{work}_{processes}", []).append(times)
                print(f"round {number + 1}: {work}, {processes} processes: {times}", flush=True)
    result = {work: compare(seconds[f"{work}_1"], seconds[f"{work}_2"]) for work in WORK}
    print(json.dumps(result))
    return result


def command_line() -> Parser:
    """Return the argument parser."""
    parser = Parser(__doc__)
    parser.add_argument("--run", metavar="RUN", required=True, help="finished run to answer with")
    parser.add_argument(
        "--data",
        metavar="FILE",
        default=DEMO_DATA,
        help=f"questions to train on and to answer (default: {DEMO_DATA})",
    )
    parser.add_argument("--rounds", metavar="N", type=positive, default=3, help="(default: 3)")
    parser.add_argument(
        "--questions_per_step", metavar="N", type=positive, default=64, help="(default: 64)"
    )
    parser.add_argument("--measured", metavar="WORK", choices=WORK, help="internal: one process")
    parser.add_argument("--into", metavar="FOLDER", help="with --measured: output folder")
    return parser


def run(arguments: argparse.Namespace, work: str, processes: int) -> dict:
    """Return the wall-clock seconds of the work, and the CPU seconds of each process."""
    with tempfile.TemporaryDirectory() as folder:
        options = [f"--{name}={getattr(arguments, name)}" for name in ("run", "data")]
        options += [f"--questions_per_step={arguments.questions_per_step}"]
        launch = LAUNCH if processes == 2 else []
        command = [sys.executable, *launch, "benchmarks/processes.py", *options]
        done = subprocess.run(
            [*command, f"--measured={work}", f"--into={folder}"],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise InputError(f"{work} failed: {done.stderr[-2000:]}")
        each = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("seconds.*"))]
    return {"wall": max(one["wall"] for one in each), "cpu": [one["cpu"] for one in each]}


def compare(one: list[dict], two: list[dict]) -> dict:
    """Return the medians of seconds and of each round's speedup."""
    pairs = list(zip(one, two, strict=True))
    return {
        "one": {"wall": middle(o["wall"] for o in one), "cpu": middle(o["cpu"][0] for o in one)},
        "two": {
            "wall": middle(t["wall"] for t in two),
            "cpu": [middle(t["cpu"][number] for t in two) for number in (0, 1)],
        },
        "gain_wall": middle(o["wall"] / t["wall"] for o, t in pairs),
        # The slower process determines the time.
        "gain_cpu": middle(o["cpu"][0] / max(t["cpu"]) for o, t in pairs),
    }


def middle(values) -> float:
    """Return the median, rounded to two digits."""
    return round(statistics.median(values), 2)


def measured(arguments: argparse.Namespace) -> dict:
    """Do the work of one process and write its seconds to a file named by its rank."""
    started: list[float] = []

    def begin() -> None:
        started.extend((time.perf_counter(), time.process_time()))

    def end() -> None:
        wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
        target = Path(arguments.into) / f"seconds.{process_rank()}"
        target.write_text(json.dumps({"wall": round(wall, 2), "cpu": round(cpu, 2)}))

    WORK[arguments.measured](arguments, begin, end)
    return {}


def train(arguments: argparse.Namespace, begin, end) -> None:
    """Train the demo for an epoch without evaluation, and time its steps.

    The first step, which loads kernels, and saving are excluded.
    """
    from dandap.training.run import train
    from dandap.training.trainer import ReadOnceTrainer

    one_step = ReadOnceTrainer.training_step

    def timed(self, *args):
        if self.state.global_step == 1:
            begin()
        loss = one_step(self, *args)
        if self.state.global_step == self.state.max_steps - 1:
            end()
        return loss

    ReadOnceTrainer.training_step = timed
    options = {
        "train_file": arguments.data,
        "evaluate_every": "none",
        "questions_per_step": arguments.questions_per_step,
        "validation_fraction": 0,
        "output_dir": arguments.into,
    }
    with only_main_prints():
        train(load_recipe("demo", options))


def answer(arguments: argparse.Namespace, begin, end) -> None:
    """Answer the questions and time this process's share."""
    from dandap.answering import run

    leave = run.end_other_processes

    class TimedModel(run.OpenModel):
        def predict(self, *args):
            begin()
            yield from super().predict(*args)

    def timed_leave():
        end()
        leave()

    run.OpenModel, run.end_other_processes = TimedModel, timed_leave
    run.answer(run.find_source(arguments.run), arguments.data, answers_dir=arguments.into)


WORK = {"train": train, "answer": answer}


if __name__ == "__main__":
    run_script(main)
