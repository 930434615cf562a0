"""Test the validation that decides: what is evaluated when, and which adapter is kept.

A resumed run must decide the same.
"""

import json
import os
import shutil
import signal
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState

import fine_tune
from dandap.data.encode import Example
from dandap.data.rows import Row
from dandap.errors import InputError, Stopped
from dandap.recipe import make_recipe
from dandap.runs.folder import RunFolder
from dandap.training import run as training_run
from dandap.training.checkpoints import best_step, select_step
from dandap.training.evaluate import Evaluate, sample_examples, steps_between
from tasks import TASKS
from tests.conftest import write_small_train
from tests.test_checkpoints import At


@pytest.mark.parametrize(
    ("written", "steps"),
    [
        *[("200 steps", 200), ("200", 200), ("1 step", 1), ("none", None)],
        *[
            ("0.25 epochs", 2),
            (".36 epochs", 4),
            ("1 epoch", 10),
            ("2 epochs", 20),
            ("0.01 epochs", 1),
        ],
    ],
)
def test_every_so_many_steps_or_epochs(written, steps):
    recipe = make_recipe({"evaluate_every": written, "questions_per_step": 10}, "test")
    assert steps_between(recipe, questions=100) == steps


@pytest.mark.parametrize(
    "written", ["often", "0", "0 epochs", "-1 steps", "1.5 steps", "1.5", "epochs"]
)
def test_other_words_are_refused(written):
    with pytest.raises(InputError, match="expected a number of steps or epochs above 0"):
        make_recipe({"evaluate_every": written}, "test")


def examples(*sizes):
    rows = [
        Row(f"{article}-{i}", f"기사 {article}", "?")
        for article, size in enumerate(sizes)
        for i in range(size)
    ]
    return [Example(row, [], []) for row in rows]


def test_a_part_of_the_questions_is_whole_articles_whatever_their_order():
    every = examples(3, 2, 4, 2, 3)
    chosen = sample_examples(every, 8)
    assert 5 <= len(chosen) <= 8
    ids = {e.row.id for e in chosen}
    assert all(
        len({e.row.id for e in every if e.row.article == c.row.article} - ids) == 0 for c in chosen
    )
    assert {e.row.id for e in sample_examples(every[::-1], 8)} == ids
    assert sample_examples(every, 100) == every
    assert len(sample_examples(examples(5), 3)) == 3, "one article larger than the limit"


def play(folder, f1s, every=1, patience=None, max_steps=None):
    """Return (steps evaluated, steps saved, best step, last step) of a made-up run."""
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
            record = {"evaluation": value, "each": [value] * 3, "articles": ["a", "b", "c"]}
            return scores, record

    callback = Played()
    for step in range(1, state.max_steps + 1):
        state.global_step, control = step, TrainerControl()
        callback.on_log(None, state, control, logs={"loss": 1.0})
        if control.should_save:
            saved.append(step)
        if control.should_training_stop:
            break
    return evaluated, saved, best_step(state), step


def test_the_best_is_saved_and_equals_go_to_the_last(tmp_path):
    assert play(tmp_path, [0.2, 0.5, 0.4, 0.5, 0.3]) == ([1, 2, 3, 4, 5], [1, 2, 4], 4, 5)


def test_the_last_step_is_always_evaluated_and_not_twice_in_a_row(tmp_path):
    assert play(tmp_path, [0.1] * 9, every=4, max_steps=9)[0] == [4, 9]
    assert play(tmp_path, [0.1] * 9, every=4, max_steps=10)[0] == [4, 8, 10]
    assert play(tmp_path, [0.1] * 9, every=40, max_steps=3)[0] == [3]


def state_of(*evaluations):
    """Return a state after evaluations of (F1 of each question), on three articles."""
    history = [
        {"step": step, "evaluation": sum(each) / 6, "each": each, "articles": list("aabbcc")}
        for step, each in enumerate(evaluations, 1)
    ]
    return TrainerState(log_history=history, global_step=len(history))


def test_an_earlier_adapter_is_kept_only_if_it_is_better_in_pairs():
    last = [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    surely = [0.6, 0.6, 0.6, 0.6, 0.6, 0.6]
    by_one_article = [1.0, 1.0, 0.4, 0.5, 0.5, 0.5]
    assert select_step(state_of(surely, last)) == 1
    assert best_step(state_of(by_one_article, last)) == 1, "the higher mean"
    assert select_step(state_of(by_one_article, last)) == 2
    on_one = state_of(surely, last)
    for record in on_one.log_history:
        record["articles"] = ["a"] * 6
    assert select_step(on_one) == 2, "one article shows nothing"
    assert select_step(state_of(last, surely)) == 2
    assert select_step(TrainerState()) is None
    old = state_of(by_one_article, last)
    old.log_history = [{k: r[k] for k in ("step", "evaluation")} for r in old.log_history]
    assert select_step(old) == 1, "a run that was begun before"
    other = state_of(by_one_article, last)
    other.log_history[0] |= {"each": [0.9] * 4, "articles": list("abcd")}
    assert select_step(other) == 1, "other questions, after --resume_anyway"


def test_each_score_is_the_headlines():
    """By question, and their mean is the score that an evaluation tells."""
    for task, answers, said in (
        ("economic_qa", ("부산", "3억 원", "없다"), ["부산", "3억", "서울"]),
        ("dialogue_inference", ("A", "B", "C"), ["A", "C", "C"]),
        ("wallpaper_qa", ("벽지를 말린다", "환기한다", "물"), ["벽지", "환기", "불"]),
    ):
        fields = {"category": "원인"}
        rows = [
            Row(str(n), str(n), "?", (answer,), fields=fields) for n, answer in enumerate(answers)
        ]
        task = TASKS[task]
        each, scores = task.score_each(rows, said), task.score(rows, said)
        assert sum(each) / 3 == pytest.approx(scores[task.headline[0]])


def test_patience_ends_training(tmp_path):
    assert play(tmp_path, [0.2, 0.5, 0.4, 0.5, 0.6, 0.7], patience=2) == (
        [1, 2, 3, 4],
        [1, 2, 4],
        4,
        4,
    )
    assert play(tmp_path, [0.1, 0.2, 0.3], patience=1)[3] == 3


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Twelve articles with two questions each; three of them for validation."""
    folder = tmp_path_factory.mktemp("selection")
    write_small_train(folder / "train.csv", articles=12)
    return folder


def options(folder, *more):
    fixed = "--recipe demo --validation_fraction 0.3 --questions_per_step 4 --epochs 2"
    paths = ["--train_file", str(folder / "train.csv"), "--output_dir", str(folder / "outputs")]
    return [*fixed.split(), *paths, "--evaluate_every", "2 steps", *more]


def f1_by_step(monkeypatch, f1s):
    """Let evaluations of a run have the test's scores, by the step they are made at."""
    real, steps = Evaluate._evaluate, []

    def evaluate(self, args, state, control, loss=""):
        steps.append(state.global_step)
        real(self, args, state, control, loss)

    def score(self, answers):
        scores, record = real_score(self, answers)
        f1 = f1s[steps[-1]]
        each = [f1] * len(record["each"])
        return scores | {"char_f1": f1}, record | {"evaluation": f1, "each": each}

    real_score = Evaluate._score
    monkeypatch.setattr(Evaluate, "_evaluate", evaluate)
    monkeypatch.setattr(Evaluate, "_score", score)


def test_the_adapter_of_the_best_evaluation_is_kept(work, monkeypatch, capsys):
    f1_by_step(monkeypatch, {2: 0.1, 4: 0.9, 6: 0.2, 8: 0.3, 10: 0.2})
    fine_tune.main(options(work, "--run_name", "best", "--save_steps", "1"))
    run = RunFolder(work / "outputs" / "best")
    kept = sorted(path.name for path in run.checkpoints.iterdir())
    last = json.loads(
        (run.checkpoints / max(kept, key=lambda n: int(n[11:])) / "trainer_state.json").read_text()
    )["max_steps"]
    assert kept == sorted(["checkpoint-4", f"checkpoint-{last - 1}", f"checkpoint-{last}"]), (
        "the best and the two newest"
    )
    best, ours, final = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (
            run.checkpoints / "checkpoint-4",
            run.adapter,
            run.checkpoints / f"checkpoint-{last}",
        )
    )
    assert all(torch.equal(best[name], ours[name]) for name in best)
    assert any(not torch.equal(final[name], ours[name]) for name in final)
    assert "the adapter of step 4 is selected" in capsys.readouterr().out


def test_a_lost_best_is_told_and_the_last_one_kept(work, monkeypatch, capsys):
    f1_by_step(monkeypatch, {2: 0.9, **dict.fromkeys(range(3, 20), 0.1)})
    real = training_run.selected_checkpoint

    def damage(run, state):
        (run.checkpoints / "checkpoint-2" / "adapter_model.safetensors").write_bytes(b"")
        return real(run, state)

    monkeypatch.setattr(training_run, "selected_checkpoint", damage)
    fine_tune.main(options(work, "--run_name", "lost"))
    assert "the best adapter, of step 2, is unusable" in capsys.readouterr().out
    assert RunFolder(work / "outputs" / "lost").finished


@pytest.mark.parametrize("step", [2, 5])
def test_a_run_that_was_cut_evaluates_and_decides_the_same(work, monkeypatch, step):
    """Step 2 is one that is evaluated: a run told to stop there leaves that to the resumed one."""
    if not (work / "outputs" / "whole").exists():
        fine_tune.main(options(work, "--run_name", "whole"))
    real = training_run.make_trainer

    def make(*args, **kwargs):
        trainer = real(*args, **kwargs)
        trainer.callback_handler.callbacks.insert(
            0, At(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        )
        return trainer

    monkeypatch.setattr(training_run, "make_trainer", make)
    with pytest.raises(Stopped):
        fine_tune.main(options(work, "--run_name", f"cut-{step}"))
    monkeypatch.setattr(training_run, "make_trainer", real)
    cut, whole = RunFolder(work / "outputs" / f"cut-{step}"), RunFolder(work / "outputs" / "whole")
    fine_tune.main(["--resume", str(cut.path)])

    def lines(run):
        records = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
        return [
            {name: value for name, value in record.items() if name != "seconds"}
            for record in records
        ]

    assert lines(cut) == lines(whole)
    expected, got = (load_file(run.adapter / "adapter_model.safetensors") for run in (whole, cut))
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert cut.validation_record.read_bytes() == whole.validation_record.read_bytes()


def test_evaluating_changes_no_training(work):
    """Losses and gradients are those of a run that never evaluates."""
    fine_tune.main(
        options(work, "--run_name", "never", "--evaluate_every", "none", "--lora_dropout", "0.1")
    )
    fine_tune.main(
        options(work, "--run_name", "often", "--evaluate_every", "1", "--lora_dropout", "0.1")
    )

    def losses(name):
        lines = map(
            json.loads, RunFolder(work / "outputs" / name).metrics_file.read_text().splitlines()
        )
        return [(record["loss"], record["grad_norm"]) for record in lines if "loss" in record]

    assert losses("never") == losses("often")


def test_trl_s_own_path_evaluates_too(work):
    fine_tune.main(options(work, "--run_name", "plain", "--read_once", "false"))
    lines = RunFolder(work / "outputs" / "plain").metrics_file.read_text().splitlines()
    assert sum("evaluation" in json.loads(line) for line in lines) >= 3
    shutil.rmtree(work / "outputs" / "plain")
