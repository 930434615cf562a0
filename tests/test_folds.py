"""Test cross-validation: held-out articles, out-of-fold answers and ensembles."""

import contextlib
import io
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fine_tune
import inference
from dandap.data.rows import Row, split_by_article
from dandap.errors import InputError, Stopped
from dandap.recipe import make_recipe
from dandap.runs.folder import RunFolder
from dandap.training.cross_validation import find_suspects
from tests.conftest import ROOT, read_lines, write_small_train
from tests.interrupting import CallAtStep, change_trainer, send

CPU = torch.device("cpu")
ROWS = [
    Row(f"{n}-{q}", f"{n}번 회사의 소식은 {n * 7919}억 원이다.", f"{q}?")
    for n in range(11)
    for q in range(2)
]


def test_each_article_is_held_out_once():
    parts = [split_by_article(ROWS, 0.05, f"{part}/4") for part in range(1, 5)]
    validation_ids = [row.id for _, validation in parts for row in validation]
    assert sorted(validation_ids) == sorted(row.id for row in ROWS)
    for train, validation in parts:
        assert not {row.article for row in train} & {row.article for row in validation}
        assert len(validation) in (4, 6), "parts differ by one article of two questions"
    again = split_by_article(ROWS[::-1], 0.05, "2/4")[1]
    assert {row.id for row in again} == {row.id for row in parts[1][1]}, "in any order of rows"
    with pytest.raises(InputError, match=r"got 11 article\(s\) for 12 folds"):
        split_by_article(ROWS, 0, "1/12")
    for fold in ("0/5", "6/5", "1/1", "x"):
        with pytest.raises(InputError, match="fold: got"):
            make_recipe({"fold": fold}, "test")


def test_suspects_are_wrong_and_sorted_by_confidence():
    made = (
        ("unsure", -1.0, 0.0, "부산"),
        ("second", -0.1, 0.1, "부산"),
        ("first", -0.01, 0.0, "부산"),
        ("in a sentence", -0.01, 0.1, "매출은 5억원이라고 할 수 있습니다."),
        ("no span", -0.01, 0.0, "222"),
    )
    names = "id log_probability char_f1 prediction".split()
    records = [dict(zip(names, each, strict=True)) | {"gold": ["5억 원"]} for each in made]
    for record in records:
        record["span"] = None if record["id"] == "no span" else [0, 2]
    assert [record["id"] for record in find_suspects(records)] == ["first", "second"]


def cross_validate(*words):
    """Run fine_tune.py --folds 2 --json; return the output and the parsed last line."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        fine_tune.main(["--folds", "2", "--json", *words])
    out = printed.getvalue()
    return out, json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """Return a run of two folds, interrupted in the second one, and resumed."""
    folder = tmp_path_factory.mktemp("folds")
    for name in ("train.csv", "test.csv"):
        write_small_train(folder / name)
    shutil.copytree(ROOT / "data/demo_model", folder / "model")
    files = f"--train_file {folder}/train.csv --test_file {folder}/test.csv"
    output = f"--output_dir {folder}/outputs"
    made = []

    def stop_the_second(trainer):
        made.append(trainer)
        if len(made) == 2:
            trainer.callback_handler.callbacks.insert(0, CallAtStep(1, send))

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        change_trainer(patch, stop_the_second)
        model = f"--recipe demo --model {folder}/model --evaluate_every none"
        with pytest.raises(Stopped, match=r"^fold 2: .*Continue with .* --folds 2 --resume"):
            cross_validate(*f"{model} {files} {output}".split())
        (parent,) = (folder / "outputs").iterdir()
        assert not RunFolder(parent / "fold-2").finished
        out, _ = cross_validate("--resume", *output.split())
    assert "fold 1 of 2 (continued)" in out
    assert len(made) == 3, "a finished fold is not trained again"
    return parent


def test_each_row_is_answered_by_its_held_out_fold(parent):
    records = read_lines(parent / "out_of_fold.jsonl")
    assert [record["id"] for record in records] == [f"TRAIN_{number:05d}" for number in range(20)]
    validation_ids = [read_lines(RunFolder(parent / f"fold-{n}").validation_record) for n in (1, 2)]
    assert len(validation_ids[0] + validation_ids[1]) == 20
    assert (parent / "report.html").is_file()


def test_folds_are_combined_and_answer_only_once(parent):
    # Answers to another file must be ignored.
    lines = (parent.parents[1] / "test.csv").read_text(encoding="utf-8").splitlines(True)
    other = parent.parents[1] / "other.csv"
    other.write_text("".join(lines[:3]), encoding="utf-8")
    inference.main(["--run", str(parent / "fold-1"), "--test_file", str(other)])
    for complete in (True, True, False):
        if not complete:  # an edited file of answers is not submitted
            answers = next(parent.glob("fold-2/answers/test-*/predictions.jsonl"))
            answers.write_text(answers.read_text("utf-8").partition("\n")[0] + "\n", "utf-8")
        _, result = cross_validate("--resume", str(parent))
        submission = Path(result["submission"])
        assert submission.parent.name.startswith("ensemble-f1_sum")
        assert submission.read_text(encoding="utf-8").count("\n") == 21
        assert len(list(parent.glob("fold-*/answers/test-*"))) == 3 - complete
    record = RunFolder(parent / "fold-1").validation_record
    content = record.read_text(encoding="utf-8")
    record.write_text(content.partition("\n")[0] + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="of 20 questions have no out-of-fold answer"):
        cross_validate("--resume", str(parent))
    record.write_text(content, encoding="utf-8")


def change_weights(file):
    tensors = load_file(file)
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, file, {"format": "pt"})


def test_finished_folds_are_verified(parent):
    """Regression: damaged folds and folds of different data or base models were combined."""
    folder = parent.parents[1]
    for file, change, message in (
        (folder / "train.csv", lambda f: write_small_train(f, 11), "the data .* changed since"),
        (folder / "model/model.safetensors", change_weights, "the base .* changed since"),
        (parent / "fold-2/adapter/adapter_model.safetensors", change_weights, "2.* is damaged"),
    ):
        content = file.read_bytes()
        change(file)
        with pytest.raises(InputError, match=message):
            cross_validate("--resume", str(parent))
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"fold-1 was started with grounded=False \(now True\)"):
        cross_validate("--resume", str(parent), "--grounded", "true")
    with pytest.raises(InputError, match="has 2 folds, not 3"):
        fine_tune.main(["--folds", "3", "--resume", str(parent)])


def test_invalid_folds_json_is_rejected(tmp_path):
    """folds.json may be damaged or edited."""
    file = tmp_path / "folds.json"
    code = {"model": "data/demo_model", "trust_remote_code": "true"}
    for text, message in (
        ("[]", "folds.json"),
        ('{"folds": 2, "options": [], "recipe": "demo"}', "folds.json is damaged"),
        ('{"folds": 2, "options": {"epohcs": 1}, "recipe": "demo"}', "epohcs"),
        (json.dumps({"folds": 2, "recipe": "demo", "options": code}), "trust_remote_code"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            cross_validate("--resume", str(tmp_path))
        assert list(tmp_path.iterdir()) == [file]


def test_resume_selects_the_latest_folds(tmp_path):
    """Regression: resume selected the folder that changed last, and deleted it after an error."""
    for seconds, name in ((1, "old"), (2, "new")):
        file = tmp_path / name / "folds.json"
        file.parent.mkdir()
        options = {"train_file": f"nowhere-{name}.csv"}
        file.write_text(json.dumps({"folds": 2, "recipe": "demo", "options": options}))
        os.utime(file, (seconds, seconds))
    (tmp_path / "old" / "notes").touch()
    with pytest.raises(InputError, match="no file at nowhere-new.csv"):
        cross_validate("--resume", "--output_dir", str(tmp_path))
    assert file.is_file()


def test_invalid_calls_and_previews_write_nothing(tmp_path):
    call = f"--recipe demo --output_dir {tmp_path} --folds 2"
    for words, message in (
        ("--folds 1", "expected at least 2"),
        ("--fold 1/2", "expected one of them"),
        ("--resume nowhere", "expected a folder of folds in"),
    ):
        with pytest.raises(InputError, match=message):
            fine_tune.main(f"{call} {words}".split())
    fine_tune.main(f"{call} --preview".split())
    assert not list(tmp_path.iterdir())
