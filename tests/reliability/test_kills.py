"""Kill training at random moments, saving included, and resume it until it is done.

It must end with the same bits as uninterrupted.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

import fine_tune
from dandap.runs.folder import RunFolder, list_runs
from dandap.training.checkpoints import newest_valid
from tests.conftest import HEADER, ROOT


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Train without interruption, a checkpoint after each step, an evaluation every sixth."""
    folder = tmp_path_factory.mktemp("kills")
    lines = [",".join(HEADER)]
    for number in range(60):
        question = ("매출은?", "본사는?")[number % 2]
        lines.append(
            f"TRAIN_{number:04d},한빛전자 {number // 2}호는 본사가 부산에 있다.,{question},부산"
        )
    (folder / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    fine_tune.main([*options(folder, "whole"), "--run_name", "run"])
    return folder


def options(folder, output):
    paths = [
        "--train_file",
        str(folder / "train.csv"),
        "--output_dir",
        str(folder / output),
        "--validation_fraction",
        "0.1",
    ]
    how = [
        "--questions_per_step",
        "4",
        "--epochs",
        "2",
        "--save_steps",
        "1",
        "--evaluate_every",
        "6 steps",
    ]
    return ["--recipe", "demo", *paths, *how]


def train_until_done(folder, output, kills, rng):
    """Start or resume in a process of its own; kill it some seconds after its first step is saved.

    Return how often it was killed.
    """
    killed = 0
    for _ in range(kills + 5):
        resumable = [run for run in list_runs(folder / output) if newest_valid(run.checkpoints)[0]]
        more = ["--resume", str(resumable[0].path)] if resumable else ["--run_name", f"run{killed}"]
        command = [sys.executable, "fine_tune.py", *options(folder, output), *more]
        with (folder / f"{output}.log").open("ab") as log:
            child = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        if killed < kills:
            wait_for_step(folder / output, child)
            time.sleep(rng.uniform(0, 0.5))
        else:
            child.wait()
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
            killed += 1
        if child.wait() == 0:
            break
    return killed


def wait_for_step(folder, child):
    """Until the child has written something of a checkpoint."""
    before = newest_change(folder)
    while child.poll() is None and newest_change(folder) == before:
        time.sleep(0.01)


def newest_change(folder):
    checkpoints = [
        path for run in list_runs(folder) if run.checkpoints.is_dir() for path in [run.checkpoints]
    ]
    return max((path.stat().st_mtime_ns for path in checkpoints), default=0)


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_run_ends_as_if_it_never_had_been(work, kills):
    output = f"killed-{kills}"
    assert train_until_done(work, output, kills, random.Random(kills)) > 0
    run = next(run for run in list_runs(work / output) if run.finished)
    expected, got = (
        load_file(path / "adapter_model.safetensors")
        for path in (RunFolder(work / "whole" / "run").adapter, run.adapter)
    )
    assert all(expected[name].equal(got[name]) for name in expected)
    assert not (run.checkpoints / ".saving").exists()
    assert history(run) == history(RunFolder(work / "whole" / "run")), (
        "losses, gradients, evaluations and the validation score"
    )


def history(run):
    """Return what the run's metrics say, but for the time."""
    lines = map(json.loads, run.metrics_file.read_text(encoding="utf-8").splitlines())
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]
