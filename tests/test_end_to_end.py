"""Train, answer, score, compare and combine from the command line, on a few rows."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import ensemble
import fine_tune
import inference
import prompts
from dandap.answering.run import find_source
from dandap.errors import InputError
from dandap.files import find_damage
from dandap.runs.folder import RunFolder, find_run, list_runs
from tests.conftest import LAUNCH, read_lines, small_article, write_small_train
from tools import compare


def train_options(folder, name, more=""):
    files = f"--train_file {folder}/train.csv --test_file {folder}/test.csv"
    fixed = f"--recipe demo --output_dir {folder}/outputs --questions_per_step 8 --epochs 1"
    return f"{fixed} {files} --run_name {name} {more}".split()


def train(folder, name, more=""):
    fine_tune.main(train_options(folder, name, more))
    return RunFolder(folder / "outputs" / name)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Return a folder with train.csv (20 rows), test.csv (4) and its gold answers."""
    folder = tmp_path_factory.mktemp("work")
    train_file = write_small_train(folder / "train.csv")
    text = train_file.read_text(encoding="utf-8")
    # Half of the answers are not in their article.
    train_file.write_text(re.sub(r"매출은\?,.*", "매출은?,답", text), encoding="utf-8")
    test = [f"TEST_{n:04d},{small_article(50 + n)},본사는 어디인가?\n" for n in range(4)]
    gold = [f"TEST_{n:04d},부산\n" for n in range(4)]
    (folder / "test.csv").write_text("id,context,question\n" + "".join(test), encoding="utf-8")
    (folder / "test_answers.csv").write_text("id,answer\n" + "".join(gold), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(work):
    """Return a finished run."""
    return train(work, "first")


def infer(run, *options):
    """Run inference.py with options and return its result."""
    return inference.main(["--run", str(run.path), *(w for each in options for w in each.split())])


def answers_of(result):
    """Return the records of an inference that wrote a submission."""
    return read_lines(Path(result["submission"]).with_name("predictions.jsonl"))


def test_contents_of_a_run(work, run):
    assert run.finished
    assert run.load_recipe().train_file == str(work / "train.csv")
    assert run.load_template() == ("concise", prompts.TEMPLATES["concise"])
    assert len(next(iter(run.environment()["data"].values()))) == 64
    lines = read_lines(run.metrics_file)
    assert lines[-1]["validation"]["questions"] == len(pd.read_csv(run.validation_file))
    assert any("evaluation" in line for line in lines)
    assert (run.path / "plots" / "training.png").is_file()
    assert run.report_file.is_file()
    findings = json.loads(run.findings_file.read_text(encoding="utf-8"))
    assert findings["not_in_article"][0]["answers"] == ["답"]
    assert find_damage(run.adapter) is None, "sealed"
    texts = [file.read_text(encoding="utf-8") for file in run.adapter.glob("*.json")]
    assert not any(str(Path.cwd()) in text for text in texts)
    adapter = load_file(run.weights)
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    assert any(adapter[name].any() for name in adapter if "lora_B" in name), "nothing was learned"


def test_preview_prints_the_answer_tokens_without_training(work, run, tmp_path, capsys):
    before = list_runs(work / "outputs")
    # Training does not need the test file.
    (tmp_path / "test.csv").write_text("id,contxt\n1,2\n", encoding="utf-8")
    fine_tune.main(train_options(work, "none", f"--preview --test_file {tmp_path}/test.csv"))
    printed = capsys.readouterr().out
    assert "answer tokens (the only ones in the loss" in printed and "'</s>'" in printed
    assert "WARNING: the test file is not usable yet" in printed
    assert len(list_runs(work / "outputs")) == len(before)


def test_two_processes_equal_one(work):
    """Two CPU processes split the articles of each step and the validation questions.

    SGD, because the first steps of AdamW turn rounding errors of tiny gradients into full steps.
    """
    # Each article is its own answering batch.
    recipe_options = "--optim sgd --learning_rate 0.05 --epochs 2 --tokens_per_batch 200 "
    recipe_options += "--validation_fraction 0.3 --evaluate_every 2 --max_new_tokens 4"
    one, two = train(work, "one", recipe_options), RunFolder(work / "outputs" / "two")
    command = [*LAUNCH, "fine_tune.py", *train_options(work, "two", recipe_options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("validation: char F1") == 1, "one process prints"
    expected, got = load_file(one.weights), load_file(two.weights)
    for name in expected:
        assert expected[name].norm() > 0
        assert (got[name] - expected[name]).norm() <= 1e-5 * expected[name].norm()
    scores = [
        [line for line in read_lines(each.metrics_file) if {"evaluation", "validation"} & {*line}]
        for each in (one, two)
    ]
    assert scores[0] == scores[1]


def test_inference_writes_and_scores(run, capsys):
    result = infer(run, "--json")
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert list(result) == ["char_f1", "exact_match", "questions", "seconds", "submission"]
    assert result["questions"] == 4 and 0 <= result["char_f1"] <= 1
    read = {"dtype": str, "keep_default_na": False}
    submission = pd.read_csv(result["submission"], **read)
    assert submission["id"].tolist() == [f"TEST_{n:04d}" for n in range(4)]
    folder = Path(result["submission"]).parent
    table = pd.read_csv(folder / "review.csv", **read)
    assert table["prediction"].tolist() == submission["answer"].tolist()
    assert (folder / "report.html").is_file()
    assert infer(run)["submission"] != result["submission"], "each inference has its own folder"


def test_fields_of_a_prediction_record(run):
    for record in answers_of(infer(run)):
        assert record["ended"] in ("stopped", "cut")
        assert record["log_probability"] <= 0
        assert record["token_ids"]
        context = small_article(50 + int(record["id"][-1]))
        if record["span"]:
            assert context[slice(*record["span"])] == record["prediction"]
        else:
            assert record["prediction"] not in context


def test_samples_grounded_choices_and_beams(run, capsys):
    for record in answers_of(infer(run, "--samples 3 --temperature 1 --grounded true")):
        context = small_article(50 + int(record["id"][-1]))
        assert len(record["samples"]) == 3
        assert all(sample in context for sample in record["samples"])
        assert record["prediction"] in record["samples"]
    records = answers_of(infer(run, "--choices 서울,부산"))
    assert {record["prediction"] for record in records} <= {"서울", "부산"}
    infer(run, "--beams 2")
    assert "with generate (beams=2)" in capsys.readouterr().out
    with pytest.raises(InputError, match="cannot be combined"):
        infer(run, "--beams 2 --grounded true")


def test_output_is_a_copy_and_needs_overwrite(run, tmp_path):
    assert infer(run, "--limit 2")["submission"] is None
    target = tmp_path / "mine.csv"
    result = infer(run, f"--output {target}")
    assert target.read_bytes() == Path(result["submission"]).read_bytes()
    with pytest.raises(InputError, match="exists already.*--overwrite"):
        infer(run, f"--output {target}")
    infer(run, f"--output {target} --overwrite")


def test_validation_split_repeats_the_answers_of_training(run):
    result = infer(run, "--split validation")
    trained = read_lines(run.metrics_file)[-1]["validation"]
    assert result["char_f1"] == round(trained["char_f1"], 4)
    (again,) = run.answers.glob("validation-*/review.csv")
    assert again.read_bytes() == run.validation_file.read_bytes()


def test_zero_shot_without_a_run(work, run, tmp_path):
    outputs = tmp_path / "outputs"
    shutil.copytree(run.path, outputs / "first")
    options = f"--no_adapter --template context_bot --test_file {work}/test.csv --limit 1"
    inference.main(f"--recipe demo {options} --output_dir {outputs}".split())
    newest = list_runs(str(outputs))[-1]
    assert not newest.finished
    assert newest.load_template()[0] == "context_bot"
    assert find_run(None, str(outputs)).path.name == "first"


def test_template_option_and_saved_template(run, monkeypatch):
    source = find_source(str(run.path), template="answer_bot")
    assert source.template == prompts.TEMPLATES["answer_bot"]
    monkeypatch.setitem(prompts.TEMPLATES, "concise", {"prompt": "{context}{question}"})
    assert "user" in find_source(str(run.path)).template, "the one saved with the run"


def test_compare_and_ensemble(work, run):
    """Members of an ensemble need the same settings: grounded answers do not match others."""
    base = inference.main(
        f"--recipe demo --no_adapter --test_file {work}/test.csv "
        f"--output_dir {work}/outputs".split()
    )
    results = [infer(run), infer(run, "--grounded true"), base]
    names = [str(Path(result["submission"]).parent) for result in results]
    output = ["--output_dir", str(work / "outputs")]
    assert {"grounded", "adapter"} <= set(compare.main([*names, *output])["recipes"])
    with pytest.raises(InputError, match="different settings: grounded False and True"):
        ensemble.main([*names, *output])
    assert ensemble.main([names[0], names[2], *output])["questions"] == 4


def test_demo_run_is_not_used_for_real_data(tmp_path):
    shutil.copytree("tests/data/legacy", tmp_path / "demo")
    with pytest.raises(InputError, match="newest finished run is the demo"):
        inference.main(f"--output_dir {tmp_path} --test_file data/test.csv".split())


ANSWER_CALLS = """
    --output_dir {empty} | no finished run
    --run {unfinished} | has no adapter.*--resume
    --run nobody --output_dir {outputs} | expected one in .*first
    --run {empty} | expected a run folder
    --run {run} --test_file {empty}/header.csv | has no questions
    --run {run} --template consise | Did you mean 'concise'
    --recipe demo | Add --no_adapter
    --tets_file x | Did you mean 'test_file'
    --limit 0 | --limit: got '0'
    --run {run} --split validation --test_file x | expected one of them
"""
TRAIN_CALLS = """
    --recipe demo --lora_r 0 | lora_r: got '0'
    --learning_rate -1e-4 | --learning_rate: expected one argument
    --recipe demo --task wallpaper | expected one of dialogue_inference, economic_qa
    --recipe demo --train_file nowhere.csv | no file at nowhere.csv
    --recipe demo --train_file {empty}/header.csv | no column 'answer'
    --recipe demo --model {empty} --run_name later | cannot be loaded
    --recipe demo --output_dir {outputs} --run_name first | exists already
    --resume first --output_dir {outputs} | nothing is left to resume
    --resume --output_dir {empty} | no unfinished run
    demo | argument 'demo'
"""


def test_invalid_calls_fail_clearly_and_change_nothing(work, run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "header.csv").write_text("id,context,question\n")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run.path, unfinished, ignore=shutil.ignore_patterns("adapter"))
    paths = {"empty": tmp_path / "empty", "unfinished": unfinished, "run": run.path}
    before = sorted([*work.rglob("*"), *tmp_path.rglob("*")])
    for main, calls in ((inference.main, ANSWER_CALLS), (fine_tune.main, TRAIN_CALLS)):
        for call in calls.strip().splitlines():
            words, message = call.split(" | ")
            with pytest.raises(InputError, match=message):
                main(words.format(outputs=work / "outputs", **paths).split())
    assert sorted([*work.rglob("*"), *tmp_path.rglob("*")]) == before
