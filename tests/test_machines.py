"""Two machines, played by two network namespaces that see each other over one cable."""

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
    """Return two namespaces' names; skip where they may not be made (root on Linux may)."""
    names = [f"dandap{os.getpid()}{side}" for side in "ab"]
    cables = [f"dd{os.getpid() % 10**6}{side}" for side in "ab"]  # 15 characters at most
    orders = [["netns", "add", name] for name in names]
    orders.append(["link", "add", cables[0], "type", "veth", "peer", "name", cables[1]])
    for name, cable, address in zip(names, cables, ADDRESSES, strict=True):
        orders.append(["link", "set", cable, "netns", name])
        orders.append(["-n", name, "address", "add", f"{address}/24", "dev", cable])
        orders += [["-n", name, "link", "set", device, "up"] for device in (cable, "lo")]
    try:
        for order in orders:
            done = subprocess.run(["ip", *order], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"ip {' '.join(order)}: {done.stderr.strip()}")
        yield list(zip(names, cables, strict=True))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def launch(machines, *command):
    """Start one process on each machine, as recipes/accelerate/multi_node.yaml says."""
    started = []
    for rank, (name, cable) in enumerate(machines):
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
        launcher += ["recipes/accelerate/multi_node.yaml", "--num_processes", "2"]
        launcher += ["--machine_rank", str(rank), "--main_process_ip", ADDRESSES[0]]
        started.append(
            subprocess.Popen(
                ["ip", "netns", "exec", name, *launcher, *command],
                cwd=ROOT,
                env=os.environ | {"GLOO_SOCKET_IFNAME": cable},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        outs = [machine.communicate(timeout=300)[0] for machine in started]
    finally:
        for machine in started:
            machine.kill()
    for machine, out in zip(started, outs, strict=True):
        assert machine.returncode == 0, out[-3000:]
    return outs


@pytest.mark.slow
def test_two_machines_train_and_answer_as_one(machines, tmp_path):
    table = str(write_small_train(tmp_path / "train.csv", articles=12))
    how = ["--recipe", "demo", "--optim", "sgd", "--learning_rate", "0.05"]
    how += ["--questions_per_step", "8", "--tokens_per_batch", "200", "--max_new_tokens", "8"]
    how += ["--train_file", table, "--test_file", table, "--output_dir", str(tmp_path)]
    fine_tune.main([*how, "--run_name", "one"])
    outs = launch(machines, "fine_tune.py", *how, "--run_name", "two")
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
