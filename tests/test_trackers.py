"""Experiment trackers get what metrics.jsonl contains."""

import pytest
from transformers import TrainerCallback

import fine_tune
from dandap.errors import InputError
from dandap.recipe import load_recipe
from dandap.training import callbacks
from dandap.training import run as training_run
from tests.conftest import read_lines


class Recorder(TrainerCallback):
    """Records what a tracker would send."""

    def __init__(self):
        self.sent = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.name = args.run_name

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.sent.append((state.global_step, logs))


class Away(Recorder):
    """A tracker whose server cannot be reached."""

    def on_train_begin(self, args, state, control, **kwargs):
        raise ConnectionError("http://localhost:5000 is away\nand more")


def train(folder, tracker):
    options = "--recipe demo --epochs 0.1 --evaluate_every 2 --run_name tracked"
    fine_tune.main(f"{options} --output_dir {folder} --report_to {tracker}".split())


def test_a_tracker_gets_the_steps_and_the_evaluations(tmp_path, monkeypatch):
    recorder = Recorder()
    monkeypatch.setitem(callbacks.INTEGRATION_TO_CALLBACK, "trackio", lambda: recorder)
    monkeypatch.setattr(training_run, "check_trackers", str)
    train(tmp_path, "trackio")
    assert recorder.name == "tracked"
    for record in read_lines(tmp_path / "tracked" / "metrics.jsonl"):
        sent = [logs for step, logs in recorder.sent if step == record.get("step")]
        if "loss" in record:
            assert record["loss"] in [logs.get("loss") for logs in sent]
        if "evaluation" in record:
            assert record["evaluation"]["char_f1"] in [logs.get("eval_char_f1") for logs in sent]
    assert any("eval_char_f1" in logs for _, logs in recorder.sent)


def test_trackers_that_cannot_be_used(tmp_path, monkeypatch):
    assert load_recipe("demo", {"report_to": "wandb, mlflow"}).report_to == ["wandb", "mlflow"]
    with pytest.raises(InputError, match="wandb is not installed. Run pip install wandb"):
        train(tmp_path, "wandb")
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(callbacks.INTEGRATION_TO_CALLBACK, "mlflow", Away)
    monkeypatch.setattr(training_run, "check_trackers", str)
    with pytest.raises(InputError, match=r"mlflow could not be started .*is away\)"):
        train(tmp_path, "mlflow")
