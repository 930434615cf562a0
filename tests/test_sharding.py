"""A base sharded among two processes trains, answers, saves and resumes as one process does.

By gloo on CPUs, launched by recipes/accelerate/fsdp.yaml; on GPUs only the device is another.
"""

import json
import re
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

import fine_tune
import inference
from dandap.base import memory
from dandap.recipe import Recipe
from dandap.runs.folder import RunFolder
from tests.conftest import HEADER, ROOT, SHARDED

# fine_tune.py, which tells how many 4-bit weights are sharded and how often a process padded.
TELLING = """
import os, sys
sys.path.insert(0, os.getcwd())
import fine_tune
from bitsandbytes.nn import Linear4bit
from torch.distributed.tensor import DTensor
from dandap.command_line import run_script
from dandap.training import session
from dandap.training.read_once import ReadOnceTrainer

empty, train = ReadOnceTrainer._empty_batches, session.train
padded = []

def counted(self, count):
    padded.append(count)
    return empty(self, count)

def told(run, job, model, *others):
    best = train(run, job, model, *others)
    weights = [module.weight for module in model.modules() if isinstance(module, Linear4bit)]
    sharded = [each for each in weights if isinstance(each, DTensor)]
    half = [each for each in sharded if each.to_local().numel() * 2 == each.numel()]
    adapter = [name for name, each in model.named_parameters() if each.requires_grad]
    whole = [name for name in adapter if not isinstance(model.get_parameter(name), DTensor)]
    sys.stderr.write(f"told {len(weights)} {len(half)} {sum(padded)} {len(adapter) - len(whole)};")
    return best

ReadOnceTrainer._empty_batches, session.train = counted, told
run_script(fine_tune.main)
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Make a file of eight articles with one to four questions, and a run of one process."""
    folder = tmp_path_factory.mktemp("work")
    lines = [",".join(HEADER)]
    for number in range(20):
        place = "부산 대구 광주 대전 울산 수원 춘천 제주".split()[number % 8]
        article = f"한빛전자 {number % 8}호는 {place}에 있다. " + "매출은 늘었다. " * (number % 8)
        lines.append(f"TRAIN_{number:04d},{article},본사는 어디인가? {number},{place}")
    (folder / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    fine_tune.main(options(folder, "one"))
    return folder


def options(folder, name, *more):
    what = ["--recipe", "demo", "--train_file", folder / "train.csv", "--test_file"]
    what += [folder / "train.csv", "--output_dir", folder / "outputs", "--run_name", name]
    # By SGD: AdamW's first steps turn the rounding of gradients near zero into whole steps.
    how = ["--optim", "sgd", "--learning_rate", "0.05", "--epochs", "2", "--save_steps", "1"]
    how += ["--questions_per_step", "8", "--validation_fraction", "0.3", "--max_new_tokens", "8"]
    return [*map(str, what), *how, "--evaluate_every", "3 steps", *more]


def launch(*command):
    done = subprocess.run(
        [*SHARDED, *command], capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def sharded(work):
    """Train as `one`, sharded; return the run and what was told."""
    script = work / "telling.py"
    script.write_text(TELLING)
    done = launch(str(script), *options(work, "sharded"))
    return RunFolder(work / "outputs" / "sharded"), done


def records(run):
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


def weights_of(run):
    return load_file(run.adapter / "adapter_model.safetensors")


def test_all_of_the_base_is_sharded_and_none_of_the_adapter(sharded):
    _, done = sharded
    each = [
        tuple(map(int, told)) for told in re.findall(r"told (\d+) (\d+) (\d+) (\d+);", done.stderr)
    ]
    assert len(each) == 2
    for layers, half, _, sharded_adapters in each:
        assert layers == half > 20
        assert sharded_adapters == 0
    assert sum(padded for _, _, padded, _ in each) > 0, "else waiting was not tried"


def test_a_sharded_base_trains_as_a_whole_one(work, sharded):
    """Losses to six digits, gradients' lengths, evaluations and the adapter."""
    run, one = sharded[0], RunFolder(work / "outputs" / "one")
    assert len(records(run)) == len(records(one))
    for ours, theirs in zip(records(run), records(one), strict=True):
        assert ours.keys() == theirs.keys()
        assert ours.get("evaluation") == theirs.get("evaluation")
        assert ours.get("validation") == theirs.get("validation")
        for name in ("loss", "grad_norm"):
            assert ours.get(name, 0) == pytest.approx(theirs.get(name, 0), rel=2e-6)
    expected, got = weights_of(one), weights_of(run)
    for name, weights in expected.items():
        assert weights.norm() > 0
        assert (weights - got[name]).norm() <= 1e-5 * weights.norm()


def test_checkpoints_hold_the_adapter_alone(work, sharded):
    run, one = sharded[0], RunFolder(work / "outputs" / "one")
    (newest, *_), (theirs, *_) = (
        sorted(r.checkpoints.glob("checkpoint-*"), reverse=True) for r in (run, one)
    )
    assert newest.name == theirs.name
    names = {path.name for path in newest.iterdir()}
    assert names - {"rng_state_0.pth", "rng_state_1.pth"} == {
        path.name for path in theirs.iterdir()
    } - {"rng_state.pth"}
    # The optimizer's tensors, as those of one process.
    ours, expected = (
        torch.load(folder / "optimizer.pt", weights_only=True)["state"]
        for folder in (newest, theirs)
    )
    assert ours.keys() == expected.keys()


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_a_sharded_run_resumes_bit_for_bit(work, sharded, checkpointing):
    """By AdamW, whose moments are restored, too; checkpointing forwards every layer twice."""
    how = ["--optim", "adamw_torch_fused", "--gradient_checkpointing", checkpointing]
    launch("fine_tune.py", *options(work, f"whole-{checkpointing}", *how))
    whole = RunFolder(work / "outputs" / f"whole-{checkpointing}")
    cut = RunFolder(work / "outputs" / f"cut-{checkpointing}")
    shutil.copytree(whole.path, cut.path)
    shutil.rmtree(cut.adapter)
    newest = max(cut.checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    shutil.rmtree(newest)
    launch("fine_tune.py", "--resume", str(cut.path), "--output_dir", str(work / "outputs"))
    expected, got = weights_of(whole), weights_of(cut)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.slow
def test_a_sharded_run_goes_on_in_one_process(work, sharded):
    cut = RunFolder(work / "outputs" / "cut-one")
    shutil.copytree(sharded[0].path, cut.path)
    shutil.rmtree(cut.adapter)
    newest = max(cut.checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    shutil.rmtree(newest)
    fine_tune.main(["--resume", str(cut.path), "--output_dir", str(work / "outputs")])
    expected, got = weights_of(sharded[0]), weights_of(cut)
    for name, weights in expected.items():
        assert (weights - got[name]).norm() <= 1e-5 * weights.norm()


@pytest.mark.slow
def test_a_sharded_base_answers_as_a_whole_one(work, sharded):
    named = ["--run", str(work / "outputs" / "one"), "--output_dir", str(work / "outputs")]
    inference.main(named)
    launch("inference.py", *named)
    texts = []
    for file in (work / "outputs" / "one" / "answers").glob("*/predictions.jsonl"):
        lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
        texts.append({line["id"]: line["prediction"] for line in lines})
        assert not list(file.parent.glob("predictions-*"))
    assert len(texts) == 2
    assert texts[0] == texts[1]
    assert len(texts[0]) == 20


def test_a_process_plans_for_its_part(monkeypatch):
    """EEVE's NF4 base, 5.5 GB, and embeddings on four cards."""
    recipe = Recipe()
    config = memory.empty_model(AutoConfig.for_model("llama", **SOLAR))
    whole, _ = memory._weights(recipe, config, 2)
    monkeypatch.setattr(memory, "is_sharded", lambda: True)
    monkeypatch.setattr(memory, "process_count", lambda: 4)
    part, _ = memory._weights(recipe, config, 2)
    assert whole / 4 < part < whole / 2


SOLAR = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 40960,
}
