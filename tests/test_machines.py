"""Test training on two machines, simulated by two connected network namespaces."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import fine_tune
import inference
from dandap.runs.folder import RunFolder
from tests.conftest import ROOT, write_small_train

pytestmark = pytest.mark.skipif(shutil.which("ip") is None, reason="needs `ip` (iproute2)")
ADDRESSES = ("10.123.45.1", "10.123.45.2")


@pytest.fixture(scope="module")
def machines():
    """Return (namespace, interface) of two machines; skip without root on Linux."""
    names = [f"dandap{os.getpid()}{side}" for side in "ab"]
    interfaces = [f"dd{os.getpid() % 10**6}{side}" for side in "ab"]  # at most 15 characters
    commands = [["netns", "add", name] for name in names]
    commands.append(["link", "add", interfaces[0], "type", "veth", "peer", "name", interfaces[1]])
    for name, interface, address in zip(names, interfaces, ADDRESSES, strict=True):
        commands.append(["link", "set", interface, "netns", name])
        commands.append(["-n", name, "address", "add", f"{address}/24", "dev", interface])
        commands += [["-n", name, "link", "set", device, "up"] for device in (interface, "lo")]
    try:
        for command in commands:
            done = subprocess.run(["ip", *command], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"ip {' '.join(command)}: {done.stderr.strip()}")
        yield list(zip(names, interfaces, strict=True))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def launch(machines, *command):
    """Run one process per machine with recipes/accelerate/multi_node.yaml; return the outputs."""
    processes = []
    for rank, (name, interface) in enumerate(machines):
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
        launcher += ["recipes/accelerate/multi_node.yaml", "--num_processes", "2"]
        launcher += ["--machine_rank", str(rank), "--main_process_ip", ADDRESSES[0]]
        processes.append(
            subprocess.Popen(
                ["ip", "netns", "exec", name, *launcher, *command],
                cwd=ROOT,
                env=os.environ | {"GLOO_SOCKET_IFNAME": interface},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        outs = [machine.communicate(timeout=300)[0] for machine in processes]
    finally:
        for machine in processes:
            machine.kill()
    for machine, out in zip(processes, outs, strict=True):
        assert machine.returncode == 0, out[-3000:]
    return outs


@pytest.mark.slow
def test_two_machines_equal_one(machines, tmp_path):
    table = str(write_small_train(tmp_path / "train.csv", articles=12))
    options = ["--recipe", "demo", "--optim", "sgd", "--learning_rate", "0.05"]
    options += ["--questions_per_step", "8", "--tokens_per_batch", "200", "--max_new_tokens", "8"]
    options += ["--train_file", table, "--test_file", table, "--output_dir", str(tmp_path)]
    fine_tune.main([*options, "--run_name", "one"])
    outs = launch(machines, "fine_tune.py", *options, "--run_name", "two")
    assert [out.count("validation: char F1") for out in outs] == [1, 0]
    runs = [RunFolder(tmp_path / name) for name in ("one", "two")]
    one, two = (load_file(run.adapter / "adapter_model.safetensors") for run in runs)
    for name in one:
        assert (one[name] - two[name]).norm() <= 1e-5 * one[name].norm()

    result = inference.main(["--run", str(runs[0].path)])
    out = launch(machines, "inference.py", "--json", "--run", str(runs[0].path))[0]
    theirs = json.loads(out.strip().splitlines()[-1])
    assert theirs["submission"] != result["submission"]
    ours, theirs = (Path(each["submission"]).read_bytes() for each in (result, theirs))
    assert ours == theirs
