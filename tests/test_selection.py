"""Test evaluation during training, the selection of the adapter, resuming and trackers."""

from unittest import mock

import pytest
from transformers import TrainerCallback, TrainerControl, TrainerState

import fine_tune
from dandap.data.encode import Example
from dandap.data.rows import Row
from dandap.errors import InputError, Stopped
from dandap.recipe import load_recipe, make_recipe
from dandap.runs.folder import RunFolder
from dandap.training import callbacks
from dandap.training import run as training_run
from dandap.training.checkpoints import best_step, load_state, select_step
from dandap.training.evaluate import Evaluate, sample_examples, steps_between
from tasks import TASKS
from tests.conftest import read_lines, same_adapters, write_small_train
from tests.interrupting import at_step, send


def test_evaluations_every_so_many_steps_or_epochs():
    for written, steps in {"200": 200, "none": None, ".36 epochs": 4, "0.01 epochs": 1}.items():
        recipe = make_recipe({"evaluate_every": written, "questions_per_step": 10}, "test")
        assert steps_between(recipe, questions=100) == steps, written
    with pytest.raises(InputError, match="evaluate_every: got"):
        make_recipe({"evaluate_every": "0 epochs"}, "test")


def test_a_sample_of_questions_has_whole_articles_in_any_order():
    every = [
        Example(Row(f"{article}-{i}", f"기사 {article}", "?"), [], [])
        for article, size in enumerate((3, 2, 4, 2, 3))
        for i in range(size)
    ]
    chosen = sample_examples(every, 8)
    assert 5 <= len(chosen) <= 8
    ids, articles = ({getattr(e.row, name) for e in chosen} for name in ("id", "article"))
    assert {e.row.id for e in every if e.row.article in articles} == ids
    assert {e.row.id for e in sample_examples(every[::-1], 8)} == ids
    assert len(sample_examples(every[:3], 2)) == 2, "one article larger than the limit"


def play(folder, f1s, every=1, patience=None, max_steps=None):
    """Simulate a run; return (evaluated steps, saved steps, best step, last step)."""
    values, evaluated, saved = iter(f1s), [], []
    state = TrainerState(max_steps=max_steps or len(f1s) * every, epoch=0.5)

    class Played(Evaluate):
        def __init__(self):
            self.every, self.patience, self.trackers, self.examples = every, patience, [], []
            self.model, self.run = mock.Mock(), mock.Mock(metrics_file=folder / "metrics.jsonl")
            self.task = TASKS["economic_qa"]

        def _score(self, answers):
            evaluated.append(state.global_step)
            value = next(values)
            scores = {"char_f1": value, "char_f1_interval": (value, value), "exact_match": 0.5}
            return scores, {"evaluation": value, "each": [value] * 3, "articles": ["a", "b", "c"]}

    callback = Played()
    for step in range(1, state.max_steps + 1):
        state.global_step, control = step, TrainerControl()
        callback.on_log(None, state, control, logs={"loss": 1.0})
        if control.should_save:
            saved.append(step)
        if control.should_training_stop:
            break
    return evaluated, saved, best_step(state), step


def test_when_a_run_evaluates_saves_and_stops(tmp_path):
    # The best is saved; of equals the last one.
    assert play(tmp_path, [0.2, 0.5, 0.4, 0.5, 0.3]) == ([1, 2, 3, 4, 5], [1, 2, 4], 4, 5)
    # The last step is always evaluated, and not twice in a row.
    assert play(tmp_path, [0.1] * 9, every=4, max_steps=9)[0] == [4, 9]
    assert play(tmp_path, [0.1] * 9, every=40, max_steps=3)[0] == [3]
    # Patience ends training.
    rising = [0.2, 0.5, 0.4, 0.5, 0.6, 0.7]
    assert play(tmp_path, rising, patience=2) == ([1, 2, 3, 4], [1, 2, 4], 4, 4)


def state_of(*evaluations):
    """Return a state after evaluations, each with the F1 of six questions on three articles."""
    history = [
        {"step": step, "evaluation": sum(each) / 6, "each": each, "articles": list("aabbcc")}
        for step, each in enumerate(evaluations, 1)
    ]
    return TrainerState(log_history=history, global_step=len(history))


def test_an_earlier_adapter_is_selected_only_if_it_is_better_in_pairs():
    last, surely, by_one_article = [0.5] * 6, [0.6] * 6, [1.0, 1.0, 0.4, 0.5, 0.5, 0.5]
    assert select_step(state_of(surely, last)) == 1
    assert best_step(state_of(by_one_article, last)) == 1, "the higher mean"
    assert select_step(state_of(by_one_article, last)) == 2
    assert select_step(state_of(last, surely)) == 2
    assert select_step(TrainerState()) is None
    other = state_of(by_one_article, last)
    other.log_history[0] |= {"each": [0.9] * 4, "articles": list("abcd")}
    assert select_step(other) == 1, "other questions, after --resume_anyway"


def test_the_mean_of_each_tasks_scores_is_its_headline():
    for name, gold, predictions in (
        ("economic_qa", ("부산", "3억 원", "없다"), ["부산", "3억", "서울"]),
        ("dialogue_inference", ("A", "B", "C"), ["A", "C", "C"]),
        ("wallpaper_qa", ("벽지를 말린다", "환기한다", "물"), ["벽지", "환기", "불"]),
    ):
        task, fields = TASKS[name], {"category": "원인"}
        rows = [Row(str(n), str(n), "?", (text,), fields=fields) for n, text in enumerate(gold)]
        mean = sum(task.score_each(rows, predictions)) / 3
        assert mean == pytest.approx(task.score(rows, predictions)[task.headline[0]])


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Return a folder with twelve articles of two questions; three are for validation."""
    folder = tmp_path_factory.mktemp("selection")
    write_small_train(folder / "train.csv", articles=12)
    return folder


def train(folder, name, more=""):
    fixed = "--recipe demo --validation_fraction 0.3 --questions_per_step 4 --epochs 2 "
    fixed += "--max_new_tokens 4"
    paths = f"--train_file {folder}/train.csv --output_dir {folder}/outputs --run_name {name}"
    fine_tune.main(f"{fixed} {paths} --evaluate_every 2 {more}".split())
    return RunFolder(folder / "outputs" / name)


def replace_scores(monkeypatch, f1s):
    """Replace the score of each evaluation; `f1s` maps steps to scores."""
    real_evaluate, real_score, steps = Evaluate._evaluate, Evaluate._score, []

    def evaluate(self, args, state, control, loss=""):
        steps.append(state.global_step)
        real_evaluate(self, args, state, control, loss)

    def score(self, answers):
        scores, record = real_score(self, answers)
        f1 = f1s[steps[-1]]
        each = [f1] * len(record["each"])
        return scores | {"char_f1": f1}, record | {"evaluation": f1, "each": each}

    monkeypatch.setattr(Evaluate, "_evaluate", evaluate)
    monkeypatch.setattr(Evaluate, "_score", score)


def test_the_adapter_of_the_best_evaluation_is_selected(work, monkeypatch, capsys):
    replace_scores(monkeypatch, {2: 0.1, 4: 0.9, 6: 0.2, 8: 0.3, 10: 0.2})
    run = train(work, "best", "--save_steps 1")
    assert "Selected the adapter of step 4" in capsys.readouterr().out
    steps = sorted(int(path.name[11:]) for path in run.checkpoints.iterdir())
    last = load_state(run.checkpoints / f"checkpoint-{steps[-1]}").max_steps
    assert steps == [4, last - 1, last], "the best and the two newest"
    selected = run.weights.read_bytes()
    best, final = (
        (run.checkpoints / f"checkpoint-{step}" / run.weights.name).read_bytes()
        for step in (4, last)
    )
    assert selected == best != final


def test_a_damaged_best_is_reported_and_the_last_one_selected(work, monkeypatch, capsys):
    replace_scores(monkeypatch, {2: 0.9, **dict.fromkeys(range(3, 20), 0.1)})
    real = training_run.selected_checkpoint

    def damage(run, state):
        (run.checkpoints / "checkpoint-2" / "adapter_model.safetensors").write_bytes(b"")
        return real(run, state)

    monkeypatch.setattr(training_run, "selected_checkpoint", damage)
    assert train(work, "lost").finished
    assert "the best adapter, of step 2, is unusable" in capsys.readouterr().out


def history(run):
    return [{k: line[k] for k in line if k != "seconds"} for line in read_lines(run.metrics_file)]


def test_an_interrupted_run_evaluates_and_selects_the_same(work, monkeypatch):
    """Step 2 is evaluated even if the run is interrupted there."""
    whole = train(work, "whole")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        at_step(patch, 2, send)
        train(work, "interrupted")
    run = RunFolder(work / "outputs" / "interrupted")
    fine_tune.main(["--resume", str(run.path)])
    assert history(run) == history(whole)
    assert same_adapters(run, whole)
    assert run.validation_record.read_bytes() == whole.validation_record.read_bytes()


def test_evaluating_changes_no_training(work):
    """Losses and gradient norms equal those of a run without evaluations."""
    losses = []
    for every in ("none", "1"):
        more = f"--epochs 1 --lora_dropout 0.1 --evaluate_every {every}"
        run = train(work, f"every-{every}", more)
        lines = [line for line in read_lines(run.metrics_file) if "loss" in line]
        losses.append([(line["loss"], line["grad_norm"]) for line in lines])
    assert losses[0] == losses[1]


class Recorder(TrainerCallback):
    """A fake tracker that records its logs. With `away`, it fails to start, as MLflow can."""

    def __init__(self, away=False):
        self.sent, self.away = [], away

    def on_train_begin(self, args, state, control, **kwargs):
        if self.away:
            raise ConnectionError("http://localhost:5000 is away\nand more")

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.sent.append((state.global_step, logs))


def test_a_tracker_gets_the_steps_and_the_evaluations(work, monkeypatch):
    recorder = Recorder()
    monkeypatch.setitem(callbacks.INTEGRATION_TO_CALLBACK, "trackio", lambda: recorder)
    monkeypatch.setattr(training_run, "check_trackers", str)
    run = train(work, "tracked", "--report_to trackio")
    for record in read_lines(run.metrics_file):
        sent = [logs for step, logs in recorder.sent if step == record.get("step")]
        if "loss" in record:
            assert record["loss"] in [logs.get("loss") for logs in sent]
        if "evaluation" in record:
            assert record["evaluation"]["char_f1"] in [logs.get("eval_char_f1") for logs in sent]


def test_trackers_that_cannot_be_used(work, monkeypatch):
    assert load_recipe("demo", {"report_to": "wandb, mlflow"}).report_to == ["wandb", "mlflow"]
    with pytest.raises(InputError, match="wandb is not installed. Run pip install wandb"):
        train(work, "untracked", "--report_to wandb")
    assert not (work / "outputs" / "untracked").exists()
    monkeypatch.setitem(callbacks.INTEGRATION_TO_CALLBACK, "mlflow", lambda: Recorder(away=True))
    monkeypatch.setattr(training_run, "check_trackers", str)
    with pytest.raises(InputError, match=r"mlflow could not be started .*is away\)"):
        train(work, "untracked", "--report_to mlflow")
