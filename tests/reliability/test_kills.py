"""Test that training killed at random moments, also while saving, resumes bitwise equal."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

import fine_tune
from dandap.runs.folder import RunFolder, list_runs
from dandap.training.checkpoints import newest_valid
from tests.conftest import ROOT, read_lines, same_adapters, write_small_train


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Train without interruption, with a checkpoint at every step and an evaluation every 6."""
    folder = tmp_path_factory.mktemp("kills")
    write_small_train(folder / "train.csv", articles=14)
    fine_tune.main([*options(folder, "whole"), "--run_name", "run"])
    return folder


def options(folder, output):
    paths = f"--train_file {folder}/train.csv --output_dir {folder}/{output}"
    settings = "--validation_fraction 0.1 --questions_per_step 4 --save_steps 1 --evaluate_every 6 "
    settings += "--max_new_tokens 4"
    return f"--recipe demo --epochs 2 {paths} {settings}".split()


def train_until_done(folder, output, kills, rng):
    """Start or resume in a subprocess that is killed up to `kills` times; return how often."""
    killed = 0
    for _ in range(kills + 5):
        runs = [run for run in list_runs(folder / output) if newest_valid(run.checkpoints)[0]]
        more = ["--resume", str(runs[0].path)] if runs else ["--run_name", f"run{killed}"]
        command = [sys.executable, "fine_tune.py", *options(folder, output), *more]
        before = newest_change(folder / output)
        with (folder / f"{output}.log").open("ab") as log:
            child = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        if killed < kills:
            while child.poll() is None and newest_change(folder / output) == before:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.5))
            if child.poll() is None:
                os.kill(child.pid, signal.SIGKILL)
                killed += 1
        if child.wait() == 0:
            break
    return killed


def newest_change(folder):
    """Return the time of the last change in any checkpoint folder."""
    folders = [run.checkpoints for run in list_runs(folder) if run.checkpoints.is_dir()]
    return max((path.stat().st_mtime_ns for path in folders), default=0)


def history(run):
    """Return losses, gradient norms, evaluations and the validation score."""
    return [{k: line[k] for k in line if k != "seconds"} for line in read_lines(run.metrics_file)]


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 20])
def test_resume_after_kills(work, kills):
    output = f"killed-{kills}"
    assert train_until_done(work, output, kills, random.Random(kills)) > 0
    run = next(run for run in list_runs(work / output) if run.finished)
    full_run = RunFolder(work / "whole" / "run")
    assert same_adapters(run, full_run)
    assert history(run) == history(full_run)
    assert not (run.checkpoints / ".saving").exists()
