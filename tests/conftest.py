"""Fixtures and helpers for all tests: offline by default, small files written on the fly."""

import os
import signal
import sys

# Only `pytest -m hub` may use the network. Its xdist workers do not see the argument.
if "hub" in sys.argv:
    os.environ["DANDAP_TEST_HUB"] = "1"
if "DANDAP_TEST_HUB" not in os.environ:
    os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["LC_ALL"] = "C.UTF-8"  # otherwise messages are in the tester's language
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the other cores belong to other workers

import csv
import json
import shutil
from pathlib import Path

import hypothesis
import pytest

# Background runners (nohup, &) pass on ignored signals, but tests send these signals.
for _name, _default in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    if getattr(signal, _name, None) and signal.getsignal(getattr(signal, _name)) is signal.SIG_IGN:
        signal.signal(getattr(signal, _name), _default)

hypothesis.settings.register_profile("ours", deadline=None)  # a busy machine must not fail a test
hypothesis.settings.load_profile("ours")

ROOT = Path(__file__).parent.parent


def copy_project(target):
    """Copy the project's files without user data and outputs, and return the target."""
    target.mkdir()
    parts = ("dandap", "tasks", "tools", "benchmarks", "recipes", "data/sample", "data/demo_model")
    for name in parts:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, target / name, ignore=ignore)
    files = [*ROOT.glob("*.py"), *ROOT.glob("requirements*.txt"), *ROOT.glob("notebooks/*.ipynb")]
    for path in [*files, *(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE"))]:
        copy = target / path.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
    return target


@pytest.fixture(autouse=True)
def _run_in_project_root(monkeypatch):
    """Run each test in the project root, where scripts find recipes/ and data/."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def write_csv(tmp_path):
    """Write rows (lists of cells, the header first) to tmp_path/NAME and return the path."""

    def write(rows, name="train.csv", encoding="utf-8"):
        path = tmp_path / name
        with path.open("w", encoding=encoding, newline="") as file:
            csv.writer(file).writerows(rows)
        return path

    return write


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """Return a folder of random tiny models, one per family in tiny_models plus `experts`."""
    import torch
    from tiny_models import EXPERTS, FAMILIES
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("bases")
    for name, config in {**FAMILIES, "experts": EXPERTS}.items():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def browser():
    """Return a headless Chromium, or skip if it is not installed."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is missing")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("chromium is missing")
    flags = (
        "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
        "--disable-background-networking --disable-component-update"
    )
    with api.sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=chromium, args=flags.split())
        yield instance
        instance.close()


# Two processes as in the README. `--cpu --num_processes 2` would start only one.
LAUNCH = [
    *(sys.executable, "-m", "accelerate.commands.launch"),
    *("--config_file", "recipes/accelerate/ddp.yaml"),
]


def process_of(launcher, rank):
    """Return the process id of a launcher's rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().split()[3])
            if f"RANK={rank}".encode() in environment and parent == launcher:
                return int(folder.name)
        except (OSError, PermissionError):
            continue
    raise AssertionError(f"no process of rank {rank}")


HEADER = ["id", "context", "question", "answer"]


def write_small_train(path, articles=10):
    """Write articles with two questions each, and return the path."""
    rows = [HEADER]
    for number in range(articles):
        article = small_article(number)
        rows.append([f"TRAIN_{2 * number:05d}", article, "매출은?", f"{100 + number}억 원"])
        rows.append([f"TRAIN_{2 * number + 1:05d}", article, "본사는 어디인가?", "부산"])
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def small_article(number):
    """Return an article of two sentences."""
    return f"한빛전자 {number}호는 지난해 매출 {100 + number}억 원을 기록했다. 본사는 부산에 있다."


def read_lines(path):
    """Return the records of a .jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def same_adapters(*runs):
    """Return whether the adapters of two runs are bitwise equal."""
    from safetensors.torch import load_file

    one, other = (load_file(run.weights) for run in runs)
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.fixture
def small_train(tmp_path):
    """Write ten articles with two questions each, and return the path."""
    return write_small_train(tmp_path / "train.csv")
