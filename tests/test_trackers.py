"""Experiment trackers get what metrics.jsonl holds."""

import json

import pytest
from transformers import TrainerCallback

import fine_tune
from dandap.errors import InputError
from dandap.recipe import load_recipe
from dandap.training import callbacks
from dandap.training import run as training_run

LEARNED = ["--recipe", "demo", "--epochs", "0.1", "--evaluate_every", "2 steps"]


class Recorder(TrainerCallback):
    """Keeps what a tracker would send."""

    def __init__(self):
        self.sent = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.name = args.run_name

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.sent.append((state.global_step, logs))


def test_a_tracker_gets_the_steps_and_the_evaluations(tmp_path, monkeypatch):
    made = []

    def make():
        made.append(Recorder())
        return made[-1]

    monkeypatch.setitem(callbacks.INTEGRATION_TO_CALLBACK, "trackio", make)
    monkeypatch.setattr(training_run, "check_trackers", str)
    options = ["--output_dir", str(tmp_path), "--run_name", "tracked", "--report_to", "trackio"]
    fine_tune.main([*LEARNED, *options])
    (recorder,) = made
    assert recorder.name == "tracked"
    lines = (tmp_path / "tracked/metrics.jsonl").read_text().splitlines()
    for record in map(json.loads, lines):
        sent = [logs for step, logs in recorder.sent if step == record.get("step")]
        if "loss" in record:
            assert record["loss"] in [logs.get("loss") for logs in sent]
        if "evaluation" in record:
            assert record["evaluation"]["char_f1"] in [logs.get("eval_char_f1") for logs in sent]
    assert any("eval_char_f1" in logs for _, logs in recorder.sent)


def test_a_tracker_that_cannot_be_started_is_told_without_a_traceback(tmp_path, monkeypatch):
    """As MLflow's where its server is away."""

    class Away(Recorder):
        def setup(self, args, state, model):
            raise ConnectionError("http://localhost:5000 is away\nand more")

        def on_train_begin(self, args, state, control, model=None, **kwargs):
            self.setup(args, state, model)

    monkeypatch.setitem(callbacks.INTEGRATION_TO_CALLBACK, "mlflow", Away)
    monkeypatch.setattr(training_run, "check_trackers", str)
    options = ["--output_dir", str(tmp_path), "--report_to", "mlflow"]
    with pytest.raises(InputError, match=r"mlflow could not be started .*is away\)\. Correct"):
        fine_tune.main([*LEARNED, *options])


def test_a_tracker_that_is_not_installed_is_refused_at_once(tmp_path):
    with pytest.raises(InputError, match="wandb is not installed. Run pip install wandb"):
        fine_tune.main([*LEARNED, "--output_dir", str(tmp_path), "--report_to", "wandb"])
    assert not list(tmp_path.iterdir())


def test_trackers_are_named_with_commas():
    recipe = load_recipe("demo", {"report_to": "tensorboard, wandb"})
    assert recipe.report_to == ["tensorboard", "wandb"]
    assert load_recipe("demo", {"report_to": None}).report_to == []
    with pytest.raises(InputError, match="report_to"):
        load_recipe("demo", {"report_to": "neptun"})
