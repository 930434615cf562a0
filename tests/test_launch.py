"""Test the SLURM and SkyPilot examples with fake cluster commands."""

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
from tests.conftest import ROOT, write_small_train

SLURM = "recipes/launch/slurm.sbatch"
COMMANDS = {
    "scontrol": """#!/bin/bash
if [ "$1" = show ]; then printf '127.0.0.1\\n10.0.0.2\\n'; else echo "$@" >>"$CALLS"; fi
""",
    "srun": '#!/bin/bash\n[ "$1" = --kill-on-bad-exit=1 ] && shift\nSLURM_NODEID=0 exec "$@"\n',
    "accelerate": f"""#!{sys.executable}
import json, os, sys
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
""",
}


@pytest.fixture
def cluster(tmp_path):
    """Return the environment of a job with fake commands, which log their calls to $CALLS."""
    for name, text in COMMANDS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2"}
    cloud = {"SKYPILOT_NUM_GPUS_PER_NODE": "8", "RUN": "mine", "OPTIONS": "--recipe eeve-10.8b"}
    path = os.pathsep.join((str(tmp_path), os.environ["PATH"]))
    variables = {"SLURM_GPUS_ON_NODE": "8", "PATH": path, "CALLS": str(tmp_path / "calls")}
    return os.environ | job | cloud | variables


def parsed_calls(cluster):
    """Yield each call of accelerate, parsed as (launcher options, script options)."""
    from accelerate.commands.launch import launch_command_parser

    for line in Path(cluster["CALLS"]).read_text().splitlines():
        launcher = launch_command_parser().parse_args(json.loads(line)[1:])
        assert Path(launcher.config_file).is_file()
        script = {"fine_tune.py": fine_tune, "inference.py": inference}[launcher.training_script]
        yield launcher, parse(script.command_line(), launcher.training_script_args)


def test_slurm_and_skypilot_train_and_answer_on_all_gpus(cluster):
    subprocess.run(["bash", SLURM, "--recipe", "eeve-10.8b"], env=cluster, check=True)
    task = yaml.safe_load(Path("recipes/launch/skypilot.yaml").read_text())
    subprocess.run(["bash", "-c", task["run"]], env=cluster, check=True)
    calls = list(parsed_calls(cluster))
    machines = [(each.num_processes, each.num_machines) for each, _ in calls[:2]]
    assert machines == [(16, 2)] * 2 and calls[2][0].num_processes == 8
    assert (calls[0][0].main_process_ip, calls[0][0].machine_rank) == ("127.0.0.1", 0)
    for place, folder, name in ((0, "outputs", f"slurm-{os.getpid()}"), (2, "/runs", "mine")):
        trained, answered = calls[place][1], calls[place + 1][1]
        assert (trained.recipe, trained.run_name) == ("eeve-10.8b", name)
        assert answered.run == f"{folder}/{name}"


@pytest.mark.slow
def test_requeued_slurm_job_resumes(cluster, tmp_path):
    """SIGTERM to the batch shell, as at the time limit, then the same job again."""
    (tmp_path / "accelerate").unlink()
    run = RunFolder(ROOT / "outputs" / f"slurm-{os.getpid()}")
    job = cluster | {"SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2"}
    train = write_small_train(tmp_path / "train.csv", articles=100)
    options = "--recipe demo --epochs 20 --evaluate_every none --save_steps 1000"
    options += f" --train_file {train} --test_file {train}"
    command = ["bash", SLURM, *options.split()]
    try:
        first = subprocess.Popen(command, env=job)
        while not run.metrics_file.is_file():
            assert first.poll() is None
            time.sleep(0.1)
        first.send_signal(signal.SIGTERM)
        assert first.wait(timeout=600) == 0
        assert Path(cluster["CALLS"]).read_text() == f"requeue {os.getpid()}\n"
        assert not run.finished
        assert len(list(run.checkpoints.glob("checkpoint-*"))) == 1
        assert subprocess.run(command, env=job, timeout=1800).returncode == 0
        assert run.finished
        assert len(list(run.answers.glob("*/submission.csv"))) == 1
    finally:
        shutil.rmtree(run.path, ignore_errors=True)
