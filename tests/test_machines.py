"""Two machines, simulated by two network namespaces with a virtual link."""

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
    """Yield (namespace, device) of each machine; skip without permission to create them."""
    names = [f"dandap{os.getpid()}{side}" for side in "ab"]
    devices = [f"dd{os.getpid() % 10**6}{side}" for side in "ab"]  # 15 characters at most
    commands = [["netns", "add", name] for name in names]
    commands.append(["link", "add", devices[0], "type", "veth", "peer", "name", devices[1]])
    for name, device, address in zip(names, devices, ADDRESSES, strict=True):
        commands.append(["link", "set", device, "netns", name])
        commands.append(["-n", name, "address", "add", f"{address}/24", "dev", device])
        commands += [["-n", name, "link", "set", each, "up"] for each in (device, "lo")]
    try:
        for arguments in commands:
            done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
        yield list(zip(names, devices, strict=True))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def launch(machines, *command):
    """Run a command on both machines by recipes/accelerate/multi_node.yaml."""
    started = []
    for rank, (name, device) in enumerate(machines):
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
        launcher += ["recipes/accelerate/multi_node.yaml", "--num_processes", "2"]
        launcher += ["--machine_rank", str(rank), "--main_process_ip", ADDRESSES[0]]
        started.append(
            subprocess.Popen(
                ["ip", "netns", "exec", name, *launcher, *command],
                cwd=ROOT,
                env=os.environ | {"GLOO_SOCKET_IFNAME": device},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        outputs = [machine.communicate(timeout=300)[0] for machine in started]
    finally:
        for machine in started:
            machine.kill()
    for machine, out in zip(started, outputs, strict=True):
        assert machine.returncode == 0, out[-3000:]
    return outputs


@pytest.mark.slow
def test_two_machines_train_and_answer_as_one(machines, tmp_path):
    train = str(write_small_train(tmp_path / "train.csv", articles=12))
    options = ["--recipe", "demo", "--optim", "sgd", "--learning_rate", "0.05"]
    options += ["--questions_per_step", "8", "--tokens_per_batch", "200", "--max_new_tokens", "8"]
    options += ["--train_file", train, "--test_file", train, "--output_dir", str(tmp_path)]
    fine_tune.main([*options, "--run_name", "one"])
    outputs = launch(machines, "fine_tune.py", *options, "--run_name", "two")
    assert [out.count("validation: char F1") for out in outputs] == [1, 0]
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
