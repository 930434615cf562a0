"""Checkpoints that appear whole or not at all, are found again, and survive what disks do."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

import fine_tune
from dandap.cli import run_script
from dandap.errors import InputError, Stopped
from dandap.files import fault, locked, seal
from dandap.model.adapter import load_adapter
from dandap.model.load import load_base
from dandap.model.memory import MemoryEstimate, Plan, lower_memory
from dandap.recipe import Recipe
from dandap.runs.folder import RunFolder
from dandap.training import checkpoints
from dandap.training import run as training_run
from dandap.training.callbacks import StopSignals
from dandap.training.checkpoints import check_space, newest_valid
from tests.conftest import LAUNCH, ROOT, process_of, write_small_train


def make_checkpoint(folder, step):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "adapter_model.safetensors").write_bytes(bytes(range(200)))
    (path / "optimizer.pt").write_bytes(b"moments")
    seal(path)
    return path


def test_a_sealed_folder_is_valid(tmp_path):
    assert fault(make_checkpoint(tmp_path, 1)) is None


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "missing": lambda path: path.unlink(),
    "one bit flipped": flip,
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "manifest.json"])
def test_damage_is_found_and_the_one_before_is_taken(tmp_path, kind, name):
    old, new = make_checkpoint(tmp_path, 9), make_checkpoint(tmp_path, 10)
    DAMAGE[kind](new / name)
    found, skipped = newest_valid(tmp_path)
    assert found == old
    assert len(skipped) == 1
    assert skipped[0].startswith("checkpoint-10 is skipped: ")


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"files": {}}', '{"files": 3}', '{"files": {"a": 1}}', "null", "\udcff"]
)
def test_a_manifest_of_nonsense_counts_as_damage(tmp_path, text):
    path = make_checkpoint(tmp_path, 1)
    (path / "manifest.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    assert fault(path)


def test_nothing_valid(tmp_path):
    assert newest_valid(tmp_path) == (None, [])
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-other").mkdir()
    assert newest_valid(tmp_path)[0] is None


def test_a_full_disk_is_refused_before_training(tmp_path, monkeypatch):
    check_space(tmp_path, 1000)
    monkeypatch.setattr(
        checkpoints.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 10**7)
    )
    with pytest.raises(
        InputError, match=r"has 10 MB free; 4 more checkpoints of 121 MB need to fit.*--output_dir"
    ):
        check_space(tmp_path, 10_000_000)


def test_a_folder_in_use_is_refused_and_a_dead_owner_is_not(tmp_path):
    hold = (
        "import time; from pathlib import Path; from dandap.files import locked\n"
        f"with locked(Path({str(tmp_path)!r})):\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", hold + " print(1, flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE,
    )
    owner.stdout.readline()
    with pytest.raises(InputError, match=f"in use by process {owner.pid}\\."), locked(tmp_path):
        pass
    owner.kill()
    owner.wait()
    with locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """One uninterrupted run of 12 steps."""
    folder = tmp_path_factory.mktemp("work")
    write_small_train(folder / "train.csv", articles=12)
    fine_tune.main([*options(folder), "--run_name", "whole"])
    return folder


def options(folder, *more):
    fixed = "--recipe demo --validation_fraction 0 --questions_per_step 4 --epochs 2 --save_steps 1"
    paths = ["--train_file", str(folder / "train.csv"), "--output_dir", str(folder / "outputs")]
    return [*fixed.split(), *paths, *more]


def adapter(folder, name):
    return load_file(RunFolder(folder / "outputs" / name).adapter / "adapter_model.safetensors")


def losses(folder, name):
    lines = RunFolder(folder / "outputs" / name).metrics_file.read_text().splitlines()
    return [
        (record["step"], record["loss"], record["grad_norm"]) for record in map(json.loads, lines)
    ]


def assert_as_uninterrupted(folder, name):
    """Bitwise: every adapter tensor, every step's loss and gradient."""
    expected, got = adapter(folder, "whole"), adapter(folder, name)
    assert all(torch.equal(expected[tensor], got[tensor]) for tensor in expected)
    assert losses(folder, name) == losses(folder, "whole")
    assert not list((folder / "outputs" / name / "checkpoints").glob(".saving"))


class At(TrainerCallback):
    """Calls a function at the end of a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


def interrupt(folder, monkeypatch, step, action, *more):
    """Train in this process and do something at the end of a step."""
    real = training_run.make_trainer

    def make(*args, **kwargs):
        trainer = real(*args, **kwargs)
        trainer.callback_handler.callbacks.insert(0, At(step, action))
        return trainer

    monkeypatch.setattr(training_run, "make_trainer", make)
    try:
        fine_tune.main([*options(folder), *more])
    finally:
        monkeypatch.setattr(training_run, "make_trainer", real)


SIGNALS = {
    (number, step): code
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130))
    for step in (1, 8, 12)
}
QUICK = {(signal.SIGTERM, 8), (signal.SIGINT, 12)}


@pytest.mark.parametrize(
    ("number", "code", "step"),
    [
        pytest.param(*(key[0], code, key[1]), marks=[] if key in QUICK else pytest.mark.slow)
        for key, code in SIGNALS.items()
    ],
)
def test_a_signal_ends_the_step_saves_and_the_run_continues_bitwise(
    work, monkeypatch, capsys, number, code, step
):
    name = f"signal-{number}-{step}"
    with pytest.raises(
        Stopped, match=f"after step {step} of 12. Continue with python fine_tune.py --resume"
    ) as stopped:
        interrupt(
            work,
            monkeypatch,
            step,
            lambda: os.kill(os.getpid(), number),
            "--run_name",
            name,
            "--save_steps",
            "100",
        )
    assert stopped.value.code == code
    run = RunFolder(work / "outputs" / name)
    assert not run.finished
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    fine_tune.main(["--resume", str(run.path)])
    assert f"from checkpoint-{step}" in capsys.readouterr().out
    assert_as_uninterrupted(work, name)


def test_a_second_signal_stops_at_once(work, monkeypatch):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupt(work, monkeypatch, 3, twice, "--run_name", "twice")
    assert kept(work, "twice").name == "checkpoint-2", "nothing of the step at hand is saved"
    fine_tune.main(["--resume", str(work / "outputs" / "twice")])
    assert_as_uninterrupted(work, "twice")


def kept(folder, name):
    return newest_valid(RunFolder(folder / "outputs" / name).checkpoints)[0]


def test_checkpoints_hold_the_adapter_and_no_pickle_of_arguments(work):
    names = {path.name for path in kept(work, "whole").rglob("*") if path.is_file()}
    assert names == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "trainer_state.json",
    }
    assert [
        path.name
        for path in checkpoints.list_checkpoints(RunFolder(work / "outputs" / "whole").checkpoints)
    ] == [
        "checkpoint-12",
        "checkpoint-11",
    ]


def test_a_damaged_newest_checkpoint_is_told_and_the_run_ends_the_same(work, capsys):
    cut = RunFolder(work / "outputs" / "damaged")
    shutil.copytree(work / "outputs" / "whole", cut.path)
    shutil.rmtree(cut.adapter)
    flip(cut.checkpoints / "checkpoint-12" / "optimizer.pt")
    fine_tune.main(["--resume", str(cut.path)])
    out = capsys.readouterr().out
    assert "checkpoint-12 is skipped: optimizer.pt is damaged" in out
    assert "from checkpoint-11" in out
    assert_as_uninterrupted(work, "damaged")


CHECKPOINT_FILES = (
    *("adapter_config.json", "adapter_model.safetensors", "manifest.json", "optimizer.pt"),
    *("rng_state.pth", "scheduler.pt", "trainer_state.json"),
)


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_every_file_of_a_real_checkpoint_counts(work, tmp_path, name, kind):
    """transformers resumes without a word where optimizer, scheduler or RNG are gone or changed."""
    shutil.copytree(RunFolder(work / "outputs" / "whole").checkpoints, tmp_path / "c")
    DAMAGE[kind](tmp_path / "c" / "checkpoint-12" / name)
    found, skipped = newest_valid(tmp_path / "c")
    assert found == tmp_path / "c" / "checkpoint-11"
    assert skipped[0].startswith("checkpoint-12 is skipped: ")
    assert (
        name in skipped[0] or name == "manifest.json"
    )  # whose flipped bit may read as another file's damage


def test_a_half_written_checkpoint_is_no_checkpoint(work):
    """transformers writes in place and trusts the highest number."""
    cut = RunFolder(work / "outputs" / "half")
    shutil.copytree(work / "outputs" / "whole", cut.path)
    shutil.rmtree(cut.adapter)
    half = cut.checkpoints / ".saving" / "checkpoint-12"
    shutil.move(cut.checkpoints / "checkpoint-12", half)
    (half / "manifest.json").unlink()
    fine_tune.main(["--resume", str(cut.path)])
    assert_as_uninterrupted(work, "half")


def test_batch_sizes_are_never_found_by_trying(work):
    """auto_find_batch_size starts again at step 0 with weights that have changed already."""
    from dandap.training.trainer import training_config

    plan = Plan(torch.device("cpu"), torch.float32, 100, False, None, None)
    assert training_config(Recipe(), plan, str(work / "c"), 10, 1, 1).auto_find_batch_size is False


def test_steps_that_a_float16_scaler_skips_are_no_error(work, monkeypatch):
    """A scale that overflows float16 is halved until gradients fit.

    Those steps change nothing and are no reason to stop.
    """
    real = training_run.make_trainer

    def make(*args, **kwargs):
        trainer = real(*args, **kwargs)
        accelerator = trainer.accelerator
        monkeypatch.setitem(accelerator.state._shared_state, "_mixed_precision", "fp16")
        accelerator.native_amp, accelerator.scaler = (
            True,
            torch.amp.GradScaler("cpu", init_scale=2.0**18),
        )
        return trainer

    monkeypatch.setattr(training_run, "make_trainer", make)
    fine_tune.main([*options(work), "--run_name", "scaled"])
    records = [
        json.loads(line)
        for line in RunFolder(work / "outputs" / "scaled").metrics_file.read_text().splitlines()
    ]
    skipped = [record["grad_norm"] is None for record in records]
    assert skipped[0]
    assert not all(skipped)
    tensors = adapter(work, "scaled")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name), (
        "nothing was learned"
    )


def test_a_second_process_on_a_run_is_refused(work):
    """End to end: the first trains on, the second names it and changes nothing."""
    run = RunFolder(work / "outputs" / "shared")
    command = [
        sys.executable,
        "fine_tune.py",
        *options(work),
        "--run_name",
        "shared",
        "--epochs",
        "50",
    ]
    first = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: newest_valid(run.checkpoints)[0], first)
        saved = run.recipe_file.read_bytes()
        with pytest.raises(InputError, match=f"shared is in use by process {first.pid}"):
            fine_tune.main(["--resume", str(run.path), "--learning_rate", "0.5", "--resume_anyway"])
        assert run.recipe_file.read_bytes() == saved
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()


def wait_until(is_so, process):
    while not is_so():
        assert process.poll() is None, "the process ended early"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(work, rank):
    run = RunFolder(work / "outputs" / f"two-{rank}")
    more = ["--run_name", run.path.name, "--epochs", "50", "--save_steps", "1000"]
    both = subprocess.Popen(
        [*LAUNCH, "fine_tune.py", *options(work), *more],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    wait_until(lambda: run.metrics_file.is_file(), both)
    os.kill(process_of(both.pid, rank), signal.SIGTERM)
    out = both.communicate(timeout=120)[0].decode()
    assert both.returncode != 0
    assert out.count("stopped: SIGTERM after step") == 1, out[-3000:]
    checkpoint = newest_valid(run.checkpoints)[0]
    assert f"after step {checkpoints.step_of(checkpoint)} of" in out
    assert not run.finished
    fine_tune.main(["--resume", str(run.path), "--epochs", "1", "--resume_anyway"])
    assert run.finished


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_not_a_number_is_never_saved(work, monkeypatch, kind):
    """In step 5: only the checkpoints before it are there, and the questions are named."""
    real = training_run.make_trainer

    def make(*args, **kwargs):
        trainer = real(*args, **kwargs)

        def spoil():
            weights = next(p for n, p in trainer.model.named_parameters() if "lora_A" in n)
            if kind == "gradient":
                weights.register_hook(lambda gradient: gradient * math.nan)
            else:
                monkeypatch.setattr(
                    type(trainer),
                    "_get_grad_norm",
                    lambda self, model, grad_norm=None: torch.tensor(1.0),
                )
                compute = trainer.compute_loss
                monkeypatch.setattr(
                    trainer, "compute_loss", lambda *a, **k: compute(*a, **k) * math.inf
                )

        trainer.callback_handler.callbacks.insert(0, At(4, spoil))
        return trainer

    monkeypatch.setattr(training_run, "make_trainer", make)
    with pytest.raises(
        InputError,
        match=r"(the loss|grad_norm) is (nan|inf) in step 5 \(questions TRAIN_.*nothing more",
    ):
        fine_tune.main([*options(work), "--run_name", f"nan-{kind}"])
    assert kept(work, f"nan-{kind}").name == "checkpoint-4"


def test_other_data_and_another_recipe_need_insistence(work, capsys):
    cut = RunFolder(work / "outputs" / "changed")
    shutil.copytree(work / "outputs" / "whole", cut.path)
    shutil.rmtree(cut.adapter)
    with pytest.raises(InputError, match=r"lora_alpha=32\.0 \(now 8\.0\).*--resume_anyway"):
        fine_tune.main(["--resume", str(cut.path), "--lora_alpha", "8"])
    other = work / "train.csv"
    before = other.read_bytes()
    other.write_bytes(before.replace("부산".encode(), "울산".encode()))
    try:
        with pytest.raises(
            InputError, match="the data .* changed since .* was started.*--resume_anyway"
        ):
            fine_tune.main(["--resume", str(cut.path)])
        fine_tune.main(["--resume", str(cut.path), "--lora_alpha", "8", "--resume_anyway"])
    finally:
        other.write_bytes(before)
    assert "another recipe (--resume_anyway): lora_alpha" in capsys.readouterr().out
    assert cut.load_recipe().lora_alpha == 8
    assert cut.finished


LIMITED = """
import resource, sys
import fine_tune
from dandap.cli import run_script
from dandap.training.checkpoints import CrashProof
save = CrashProof._save_checkpoint

def limited(self, model, trial):
    if self.state.global_step == 3:
        import signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    save(self, model, trial)

CrashProof._save_checkpoint = limited
run_script(lambda: fine_tune.main(sys.argv[1:]))
"""


def test_a_disk_that_fills_up_keeps_the_last_good_checkpoint(work):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *options(work), "--run_name", "full"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=200,
    )
    assert done.returncode == 2
    assert "the checkpoint of step 3 could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(
        path.name for path in Path(work / "outputs" / "full" / "checkpoints").iterdir()
    ) == [
        "checkpoint-1",
        "checkpoint-2",
    ]
    fine_tune.main(["--resume", str(work / "outputs" / "full")])
    assert_as_uninterrupted(work, "full")


def test_signals_are_given_back(work):
    before = signal.getsignal(signal.SIGINT)
    with StopSignals():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def interrupted(folder, monkeypatch, name):
    """Return a run that was stopped after its third step."""
    with pytest.raises(Stopped):
        interrupt(
            folder, monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM), "--run_name", name
        )
    return RunFolder(folder / "outputs" / name)


@pytest.mark.parametrize("change", [["--lora_r", "4"], ["--lora_target_modules", "q_proj,v_proj"]])
def test_another_adapter_cannot_go_on_and_the_run_stays_as_it_was(work, monkeypatch, change):
    run = interrupted(work, monkeypatch, change[0][2:].replace("_", "-"))
    before = run.recipe_file.read_text()
    with pytest.raises(
        InputError,
        match="the recipe's adapter is not that of .*checkpoint-.* cannot change in a run",
    ):
        fine_tune.main(["--resume", str(run.path), "--resume_anyway", *change])
    assert run.recipe_file.read_text() == before


def test_what_a_kill_left_of_the_last_save_is_cleared(work, monkeypatch):
    run = interrupted(work, monkeypatch, "left")
    (run.checkpoints / ".saving").mkdir()
    fine_tune.main(["--resume", str(run.path)])
    assert not (run.checkpoints / ".saving").exists()


def test_an_adapter_that_was_emptied_gives_way_to_the_one_that_is_saved(work, monkeypatch):
    run = interrupted(work, monkeypatch, "emptied")
    run.adapter.mkdir()
    run.weights.touch()
    fine_tune.main(["--resume", str(run.path)])
    assert run.finished
    assert [path.name[:16] for path in run.path.glob("adapter-damaged-*")] == ["adapter-damaged-"]


def test_out_of_memory_in_training_says_what_to_lower(work, monkeypatch):
    def make(*args, **kwargs):
        trainer = real(*args, **kwargs)

        def full(*args, **kwargs):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(trainer, "compute_loss", full)
        return trainer

    real = training_run.make_trainer
    monkeypatch.setattr(training_run, "make_trainer", make)
    with pytest.raises(
        InputError,
        match=r"out of memory in training.*--gradient_checkpointing true.*--resume_anyway",
    ):
        fine_tune.main([*options(work), "--run_name", "oom"])
    # Smaller batches were tried; TRL's way and several processes try none.
    with pytest.raises(InputError, match=r"train with --max_length 1024"):
        fine_tune.main([*options(work), "--run_name", "oom2", "--gradient_checkpointing", "true"])
    plan = Plan(torch.device("cpu"), torch.float32, 4096, True, MemoryEstimate(0, 0, 0, 0), None)
    assert "--tokens_per_batch 2048" in lower_memory(Recipe(read_once=False), plan)
    with monkeypatch.context() as context:
        context.setenv("WORLD_SIZE", "2")
        assert "--tokens_per_batch 2048" in lower_memory(Recipe(), plan)
    small = [
        "--gradient_checkpointing",
        "true",
        "--tokens_per_batch",
        "1000",
        "--max_length",
        "1200",
    ]
    with pytest.raises(InputError, match=r"--max_length 600"):
        fine_tune.main([*options(work), "--run_name", "oom3", *small])


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("no"), 2, "error: no"),
        (Stopped("so", 143), 143, "stopped: so"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_how_scripts_end(error, code, said, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        run_script(main)
    assert end.value.code == code
    assert capsys.readouterr().err.strip() == said


def test_the_plain_path_stops_at_a_bad_step(work, monkeypatch):
    real = training_run.make_trainer

    def make(*args, **kwargs):
        trainer = real(*args, **kwargs)
        weights = next(p for n, p in trainer.model.named_parameters() if "lora_A" in n)
        weights.register_hook(lambda gradient: gradient * math.nan)
        return trainer

    monkeypatch.setattr(training_run, "make_trainer", make)
    with pytest.raises(InputError, match=r"grad_norm is nan in step 1: nothing more is saved"):
        fine_tune.main([*options(work), "--run_name", "plain", "--read_once", "false"])


def test_a_run_that_was_killed_in_its_validation_gets_its_report(work):
    """kill -9 after the adapter was in place once left a run without a report.

    It could not be resumed either.
    """
    run = RunFolder(work / "outputs" / "unvalidated")
    few = [
        "--validation_fraction",
        "0.2",
        "--evaluate_every",
        "none",
        "--epochs",
        "0.3",
        "--run_name",
        "unvalidated",
    ]
    fine_tune.main([*options(work), *few])
    weights = (run.adapter / "adapter_model.safetensors").read_bytes()
    for file in (run.report_file, run.validation_file, run.validation_record):
        file.unlink(missing_ok=True)
    fine_tune.main(["--resume", str(run.path)])
    assert run.report_file.is_file()
    assert run.validation_record.is_file()
    assert (run.adapter / "adapter_model.safetensors").read_bytes() == weights
    with pytest.raises(InputError, match="has finished training; nothing is left to resume"):
        fine_tune.main(["--resume", str(run.path)])


def test_a_finished_adapter_is_sealed_and_names_no_path(work):
    run = RunFolder(work / "outputs" / "whole")
    assert fault(run.adapter) is None
    said = "".join(file.read_text(encoding="utf-8") for file in run.adapter.glob("*.json"))
    assert str(Path.cwd()) not in said
    assert not (run.adapter / "README.md").exists()
    assert not list(run.path.glob(".adapter*"))


def test_an_adapter_whose_tensors_fit_nothing_is_refused(work):
    """It answered as the bare base does, and only a warning said so."""
    run = RunFolder(work / "outputs" / "renamed")
    shutil.copytree(work / "outputs" / "whole", run.path)
    file = run.adapter / "adapter_model.safetensors"
    save_file(
        {name.replace("layers.", "layerz."): tensor for name, tensor in load_file(file).items()},
        file,
    )
    (run.adapter / "manifest.json").unlink()
    recipe = run.load_recipe()
    with pytest.raises(
        InputError,
        match=r"is not this base's: \d+ tensors are not in the model .* are missing",
    ):
        load_adapter(load_base(recipe, torch.device("cpu")), run.adapter)
