"""Test that checkpoints are atomic and verified, and that resumed runs are bitwise equal."""

import math
import os
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fine_tune
from dandap.data.rows import Table
from dandap.errors import InputError, Stopped
from dandap.files import write_json
from dandap.model.adapter import load_adapter
from dandap.model.load import load_base
from dandap.recipe import Recipe
from dandap.runs.folder import RunFolder, describe_environment
from dandap.training import checkpoints
from dandap.training.callbacks import StopSignals
from dandap.training.checkpoints import AtomicCheckpoints, newest_valid
from dandap.training.resume import check_unchanged
from tests.conftest import LAUNCH, ROOT, process_of, read_lines, same_adapters, write_small_train
from tests.interrupting import at_step, change_trainer, send

CPU = torch.device("cpu")
FIXED = "--recipe demo --validation_fraction 0 --questions_per_step 4 --epochs 2 --save_steps 1"


def options(folder, name, more=""):
    """Return options for a run of 12 steps that saves after every step."""
    paths = f"--train_file {folder}/train.csv --output_dir {folder}/outputs --run_name {name}"
    return f"{FIXED} {paths} {more}".split()


def train(folder, name, more=""):
    fine_tune.main(options(folder, name, more))
    return RunFolder(folder / "outputs" / name)


def resume(run, more=""):
    fine_tune.main(["--resume", str(run.path), *more.split()])


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    write_small_train(folder / "train.csv", articles=12)
    return folder


@pytest.fixture(scope="module")
def full_run(work):
    """Return a run that was not interrupted."""
    return train(work, "whole")


def copy_unfinished(full_run, name):
    """Return a copy of a run without its adapter."""
    run = RunFolder(full_run.path.with_name(name))
    shutil.copytree(full_run.path, run.path)
    shutil.rmtree(run.adapter)
    return run


def interrupt(folder, monkeypatch, name, step=3, action=send, more="", error=Stopped):
    """Train, run `action` at a step, and return the run and the error that stopped it."""
    with monkeypatch.context() as patch, pytest.raises(error) as raised:
        at_step(patch, step, action)
        train(folder, name, more)
    return RunFolder(folder / "outputs" / name), raised.value


def equal_runs(run, full_run):
    """Return whether adapters, losses and gradient norms are bitwise equal, without leftovers."""
    histories = [
        [(line["step"], line["loss"], line["grad_norm"]) for line in read_lines(each.metrics_file)]
        for each in (run, full_run)
    ]
    has_leftovers = (run.checkpoints / checkpoints.STAGING).exists()
    return same_adapters(run, full_run) and histories[0] == histories[1] and not has_leftovers


def newest_of(run):
    return newest_valid(run.checkpoints)[0]


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


CHECKPOINT_FILES = (
    "adapter_config.json adapter_model.safetensors manifest.json optimizer.pt rng_state.pth "
    "scheduler.pt trainer_state.json"
).split()  # no pickle of arguments
DAMAGE = (
    lambda path: path.write_bytes(path.read_bytes()[:-1]),
    lambda path: path.unlink(),
    flip_bit,
    *(partial(Path.write_bytes, data=text) for text in (b"", b"[]", b'{"files": {}}', b"\xff")),
)


def test_damage_to_any_checkpoint_file_is_found(full_run, tmp_path):
    """transformers resumes silently if the optimizer, scheduler or RNG state is missing."""
    names = sorted(path.name for path in full_run.checkpoints.iterdir())
    assert names == ["checkpoint-11", "checkpoint-12"]
    assert sorted(path.name for path in newest_of(full_run).iterdir()) == CHECKPOINT_FILES
    shutil.copytree(full_run.checkpoints, tmp_path / "c")
    found, skipped = newest_valid(tmp_path / "c", "another")
    assert found is None and "checkpoint-12 is skipped: it belongs to another run" in skipped
    for name in CHECKPOINT_FILES:
        file = tmp_path / "c" / "checkpoint-12" / name
        content = file.read_bytes()
        for damage in DAMAGE:
            damage(file)
            found, (skipped,) = newest_valid(tmp_path / "c")
            file.write_bytes(content)
            assert found == tmp_path / "c" / "checkpoint-11"
            assert skipped.startswith("checkpoint-12 is skipped: ")
            # A flipped bit in the manifest may look like damage to another file.
            assert name in skipped or name == "manifest.json"


@pytest.mark.parametrize(
    ("number", "code", "step"),
    [
        (signal.SIGTERM, 143, 8),
        pytest.param(signal.SIGINT, 130, 12, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, 9, marks=pytest.mark.slow),
    ],
)
def test_resume_after_a_signal(work, full_run, monkeypatch, capsys, number, code, step):
    name, more = f"signal-{number}", "--save_steps 100"
    run, stopped = interrupt(work, monkeypatch, name, step, lambda: send(number), more)
    assert stopped.code == code
    assert f"after step {step} of 12. Continue with" in str(stopped)
    assert not run.finished
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    resume(run)
    assert f"from checkpoint-{step}" in capsys.readouterr().out
    assert equal_runs(run, full_run)


def test_second_signal_stops_immediately(work, full_run, monkeypatch):
    def twice():
        send(signal.SIGINT)
        send(signal.SIGINT)

    run, _ = interrupt(work, monkeypatch, "double", action=twice, error=KeyboardInterrupt)
    assert newest_of(run).name == "checkpoint-2", "nothing of the current step is saved"
    resume(run)
    assert equal_runs(run, full_run)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_sighup_stops_training_except_under_nohup():
    before = signal.getsignal(signal.SIGHUP)
    for handler, received in ((signal.SIG_DFL, signal.SIGHUP), (signal.SIG_IGN, None)):
        signal.signal(signal.SIGHUP, handler)
        with StopSignals() as stop:
            send(signal.SIGHUP)
        assert stop.received is received
    signal.signal(signal.SIGHUP, before)


def wait_until(condition, process):
    while not condition():
        assert process.poll() is None, "the process ended early"
        time.sleep(0.05)


def test_running_run_cannot_be_resumed(work, monkeypatch):
    """The error names the process that is training, and the run is unchanged."""
    run, rejected = RunFolder(work / "outputs" / "shared"), []

    def resume_it():
        saved = run.recipe_file.read_bytes()
        with pytest.raises(InputError, match=f"shared is in use by process {os.getpid()}"):
            resume(run, "--learning_rate 0.5 --resume_anyway")
        rejected.append(run.recipe_file.read_bytes() == saved)

    at_step(monkeypatch, 1, resume_it)
    train(work, "shared", "--epochs 0.3")
    assert rejected == [True] and run.finished


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_signal_to_one_process_stops_both(work, rank):
    run = RunFolder(work / "outputs" / f"two-{rank}")
    command = options(work, run.path.name, "--epochs 50 --save_steps 1000")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    launcher = subprocess.Popen([*LAUNCH, "fine_tune.py", *command], cwd=ROOT, **pipes)
    wait_until(run.metrics_file.is_file, launcher)
    os.kill(process_of(launcher.pid, rank), signal.SIGTERM)
    out = launcher.communicate(timeout=120)[0].decode()
    assert launcher.returncode != 0
    assert out.count("stopped: SIGTERM after step") == 1, out[-3000:]
    assert f"after step {checkpoints.step_of(newest_of(run))} of" in out
    assert not run.finished
    resume(run, "--epochs 1 --resume_anyway")
    assert run.finished


@pytest.mark.parametrize("how", ["damaged", "half-written"])
def test_unusable_newest_checkpoint_is_skipped(full_run, capsys, how):
    """transformers trusts the highest number. A run with an empty adapter is not finished."""
    run = copy_unfinished(full_run, how)
    newest = run.checkpoints / "checkpoint-12"
    if how == "damaged":
        flip_bit(newest / "optimizer.pt")
        run.adapter.mkdir()
        run.weights.touch()
    else:
        (newest / "manifest.json").unlink()
        shutil.move(newest, run.checkpoints / checkpoints.STAGING / newest.name)
    resume(run)
    out = capsys.readouterr().out
    assert ("checkpoint-12 is skipped: optimizer.pt is damaged" in out) == (how == "damaged")
    assert "from checkpoint-11" in out
    assert equal_runs(run, full_run)


def test_full_disk_keeps_the_last_good_checkpoint(work, full_run, monkeypatch):
    """Files are limited to 100,000 bytes from step 3."""
    resource = pytest.importorskip("resource")
    real, limits = AtomicCheckpoints._save_checkpoint, resource.getrlimit(resource.RLIMIT_FSIZE)

    def save(self, model, trial):
        if self.state.global_step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        real(self, model, trial)

    monkeypatch.setattr(AtomicCheckpoints, "_save_checkpoint", save)
    try:
        with pytest.raises(InputError, match="the checkpoint of step 3 could not be written"):
            train(work, "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    run = RunFolder(work / "outputs" / "full")
    names = sorted(path.name for path in run.checkpoints.iterdir())
    assert names == ["checkpoint-1", "checkpoint-2"]
    resume(run)
    assert equal_runs(run, full_run)


def test_resume_after_kill_during_validation(work):
    """Regression: a run killed after saving its adapter had no report and could not be resumed."""
    run = train(work, "unvalidated", "--validation_fraction 0.2 --evaluate_every none --epochs 0.3")
    weights, trainers = run.weights.read_bytes(), (run.report_file, run.validation_record)
    for file in (*trainers, run.validation_file):
        file.unlink()
    resume(run)
    assert all(file.is_file() for file in trainers)
    assert run.weights.read_bytes() == weights


def test_adapter_with_unknown_tensors_is_rejected(full_run, tmp_path):
    """Regression: only a warning was printed, and the untuned base model answered."""
    shutil.copytree(full_run.adapter, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name.replace("layers.", "layerz."): tensors[name] for name in tensors}, file)
    (tmp_path / "adapter" / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"got nothing for .*layers.*tensors differ"):
        load_adapter(load_base(full_run.load_recipe(), CPU), tmp_path / "adapter")


def test_changed_data_or_recipe_needs_resume_anyway(work, full_run, capsys):
    run, data = copy_unfinished(full_run, "changed"), work / "train.csv"
    with pytest.raises(InputError, match=r"lora_alpha=32\.0 \(now 8\.0\).*--resume_anyway"):
        resume(run, "--lora_alpha 8")
    before = data.read_bytes()
    data.write_bytes(before.replace("부산".encode(), "울산".encode()))
    try:
        with pytest.raises(InputError, match="the data .* changed since .*--resume_anyway"):
            resume(run)
        resume(run, "--lora_alpha 8 --resume_anyway")
    finally:
        data.write_bytes(before)
    assert "changed options (--resume_anyway): lora_alpha" in capsys.readouterr().out
    assert run.load_recipe().lora_alpha == 8
    assert run.finished


def test_resume_with_another_adapter_is_rejected(work, monkeypatch):
    run, _ = interrupt(work, monkeypatch, "adapter")
    before = run.recipe_file.read_text()
    with pytest.raises(InputError, match="does not fit: got .*start a new run"):
        resume(run, "--resume_anyway --lora_r 4")
    assert run.recipe_file.read_text() == before


def test_training_starts_from_another_adapter(work, full_run, capsys):
    start = f"--epochs 0.3 --init_adapter {full_run.path}"
    further = train(work, "further", f"{start} --learning_rate 1e-12")
    ours, theirs = load_file(further.weights), load_file(full_run.weights)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-8) for name in theirs)
    assert f"starting from the adapter {full_run.adapter}" in capsys.readouterr().out
    for more, message in (
        ("--lora_alpha 8", "Use --lora_alpha 32"),
        ("--lora_r 4", "does not fit: got "),
        (f"--init_adapter {work}", "init_adapter: got .* expected a finished run"),
    ):
        with pytest.raises(InputError, match=message):
            train(work, "rejected", f"{start} {more}")
    further.update_environment(base=further.environment()["base"] | {"files": "0"})
    with pytest.raises(InputError, match="has another base"):
        train(work, "rejected", f"--init_adapter {further.path}")


def test_resume_reports_changed_versions(tmp_path, capsys):
    table, base = Table(Path("train.csv"), [], "hash", []), {"model": "m", "files": "f"}
    run, started = RunFolder(tmp_path), describe_environment([table]) | {"base": base}
    packages = started["packages"] | {"transformers": "4.0.0"}
    write_json(run.environment_file, started | {"packages": packages, "commit": "deadbeef"})
    check_unchanged(run, Recipe(), table, base, False)
    printed = capsys.readouterr().out
    assert "was 4.0.0" in printed and "was at deadbeef" in printed


@pytest.mark.parametrize("kind", ["loss", "gradient", "gradient by TRL's own path"])
def test_nan_is_never_saved(work, monkeypatch, kind):
    """Training stops in step 5, names the questions, and keeps the checkpoint of step 4."""

    def make_nan(trainer):
        if kind == "loss":
            one, compute = torch.tensor(1.0), trainer.compute_loss
            monkeypatch.setattr(type(trainer), "_get_grad_norm", lambda *_, **__: one)
            infinite = lambda *args, **kwargs: compute(*args, **kwargs) * math.inf  # noqa: E731
            monkeypatch.setattr(trainer, "compute_loss", infinite)
        else:
            weights = next(p for n, p in trainer.model.named_parameters() if "lora_A" in n)
            weights.register_hook(lambda gradient: gradient * math.nan)

    trainers = []
    change_trainer(monkeypatch, trainers.append)
    at_step(monkeypatch, 4, lambda: make_nan(trainers[-1]))
    name, own = kind.replace(" ", "-").replace("'", ""), "TRL" in kind
    questions = "" if own else r" \(questions TRAIN_.*\)"
    expected = rf"^(the loss|grad_norm) is (nan|inf) in step 5{questions}: training stopped"
    with pytest.raises(InputError, match=expected):
        train(work, name, "--read_once false" if own else "")
    assert newest_of(RunFolder(work / "outputs" / name)).name == "checkpoint-4"


@pytest.mark.slow
def test_steps_skipped_by_the_float16_scaler_are_allowed(work, monkeypatch):
    """The scaler halves its scale until gradients fit, and skips steps that overflow."""

    def scale(trainer):
        accelerator = trainer.accelerator
        monkeypatch.setitem(accelerator.state._shared_state, "_mixed_precision", "fp16")
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18)

    change_trainer(monkeypatch, scale)
    run = train(work, "scaled")
    skipped = [record["grad_norm"] is None for record in read_lines(run.metrics_file)]
    assert skipped[0] and not all(skipped)
    tensors = load_file(run.weights)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert any(tensors[name].any() for name in tensors if "lora_B" in name), "nothing was learned"


def test_out_of_memory_in_training_suggests_options(work, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    change_trainer(monkeypatch, lambda t: monkeypatch.setattr(t, "compute_loss", fail))
    with pytest.raises(InputError, match=r"out of memory.*--gradient_checkpointing true.*--resume"):
        train(work, "memory")
