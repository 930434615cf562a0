"""The examples for SLURM and SkyPilot start what they say, beside stand-ins for the clusters."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import fine_tune
import inference
from dandap.cli import parse
from dandap.runs.folder import RunFolder
from tests.conftest import HEADER, ROOT

SLURM, SKYPILOT = "recipes/launch/slurm.sbatch", "recipes/launch/skypilot.yaml"
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then printf '127.0.0.1\\n10.0.0.2\\n'; else echo "$@" >>"$TOLD"; fi
"""
SRUN = '#!/bin/bash\n[ "$1" = --kill-on-bad-exit=1 ] && shift\nSLURM_NODEID=0 exec "$@"\n'
ACCELERATE = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["TOLD"], "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
"""


@pytest.fixture
def cluster(tmp_path):
    """Return the environment of a job, in which commands are stand-ins; TOLD holds their calls."""
    for name, text in {"scontrol": SCONTROL, "srun": SRUN, "accelerate": ACCELERATE}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2"}
    cloud = {"SKYPILOT_NUM_GPUS_PER_NODE": "8", "RUN": "mine", "OPTIONS": "--recipe eeve-10.8b"}
    environment = os.environ | job | cloud | {"SLURM_GPUS_ON_NODE": "8"}
    path = os.pathsep.join((str(tmp_path), os.environ["PATH"]))
    return environment | {"PATH": path, "TOLD": str(tmp_path / "told")}


def calls(cluster):
    return [json.loads(line) for line in Path(cluster["TOLD"]).read_text().splitlines()]


def assert_understood(call):
    """Parse a call as accelerate and the script would; return the options of both."""
    from accelerate.commands.launch import launch_command_parser

    launcher = launch_command_parser().parse_args(call[1:])
    assert Path(launcher.config_file).is_file()
    script = {"fine_tune.py": fine_tune, "inference.py": inference}[launcher.training_script]
    return launcher, parse(script.command_line(), launcher.training_script_args)


def test_slurm_starts_training_and_answering_on_all_gpus(cluster):
    done = subprocess.run(["bash", SLURM, "--recipe", "eeve-10.8b"], env=cluster, cwd=ROOT)
    assert done.returncode == 0
    (training, trained), (answering, answered) = map(assert_understood, calls(cluster))
    for launcher in (training, answering):
        assert (launcher.num_processes, launcher.num_machines, launcher.machine_rank) == (16, 2, 0)
        assert launcher.main_process_ip == "127.0.0.1"
    assert (trained.recipe, trained.run_name) == ("eeve-10.8b", f"slurm-{os.getpid()}")
    assert answered.run == f"outputs/slurm-{os.getpid()}"


def test_skypilot_starts_training_and_answering(cluster):
    task = yaml.safe_load(Path(SKYPILOT).read_text())
    subprocess.run(["bash", "-c", task["run"]], env=cluster, cwd=ROOT, check=True)
    (training, trained), (_, answered) = map(assert_understood, calls(cluster))
    assert training.num_processes == 8
    assert (trained.recipe, trained.run_name, trained.output_dir) == ("eeve-10.8b", "mine", "/runs")
    assert answered.run == "/runs/mine"


@pytest.mark.slow
def test_a_slurm_job_that_is_cut_off_goes_on_after_its_requeue(cluster, tmp_path):
    """SIGTERM to the batch shell, as at the time limit; then the same job once more."""
    (tmp_path / "accelerate").unlink()
    run = RunFolder(ROOT / "outputs" / f"slurm-{os.getpid()}")
    job = cluster | {"SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2"}
    lines = [",".join(HEADER)]
    for number in range(200):
        article = f"한빛전자 {number // 4}호는 {number // 4 + 100}억 원을 벌었다."
        lines.append(f"Q{number},{article},{number % 4}: 얼마를 벌었나?,{number // 4 + 100}억 원")
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    how = ["--recipe", "demo", "--epochs", "20", "--evaluate_every", "none", "--save_steps", "1000"]
    how += ["--train_file", str(tmp_path / "train.csv"), "--test_file", str(tmp_path / "train.csv")]
    command = ["bash", SLURM, *how]
    try:
        first = subprocess.Popen(command, env=job, cwd=ROOT)
        while not run.metrics_file.is_file():
            assert first.poll() is None
            time.sleep(0.1)
        first.send_signal(signal.SIGTERM)
        assert first.wait(timeout=600) == 0
        assert Path(cluster["TOLD"]).read_text() == f"requeue {os.getpid()}\n"
        assert not run.finished
        assert len(list(run.checkpoints.glob("checkpoint-*"))) == 1
        assert subprocess.run(command, env=job, cwd=ROOT, timeout=1800).returncode == 0
        assert run.finished
        assert len(list(run.answers.glob("*/submission.csv"))) == 1
    finally:
        shutil.rmtree(run.path, ignore_errors=True)
