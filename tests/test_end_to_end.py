"""Test both scripts from the command line's words to the files.

The bundled model works on a handful of rows.
"""

import csv
import json
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
from dandap.answering.answer import Decoding
from dandap.answering.generate import generate_answers
from dandap.answering.run import open_model
from dandap.data.rows import Row
from dandap.errors import InputError
from dandap.files import safe_name
from dandap.model import device
from dandap.runs.folder import RunFolder, find_run, list_runs
from dandap.training import start
from tests.conftest import HEADER, LAUNCH
from tools import compare

TEST_HEADER = HEADER[:3]


def article(number):
    return f"한빛전자 {number}호는 지난해 매출 {100 + number}억 원을 기록했다. 본사는 부산에 있다."


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Make a folder with train.csv (20 rows), test.csv (4), test_answers.csv and a finished run."""
    folder = tmp_path_factory.mktemp("work")
    train, test, gold = [HEADER], [TEST_HEADER], [["id", "answer"]]
    for number in range(20):
        train.append(
            [
                f"TRAIN_{number:05d}",
                article(number // 2),
                ("매출은?", "본사는 어디인가?")[number % 2],
                ("답", "부산")[number % 2],
            ]
        )
    for number in range(4):
        test.append([f"TEST_{number:04d}", article(50 + number), "본사는 어디인가?"])
        gold.append([f"TEST_{number:04d}", "부산"])
    for name, rows in (("train.csv", train), ("test.csv", test), ("test_answers.csv", gold)):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
    fine_tune.main(train_options(folder, "--run_name", "first"))
    return folder


def train_options(folder, *more):
    options = [
        "--recipe",
        "demo",
        "--train_file",
        str(folder / "train.csv"),
        "--test_file",
        str(folder / "test.csv"),
    ]
    return [
        *options,
        "--output_dir",
        str(folder / "outputs"),
        "--questions_per_step",
        "8",
        "--epochs",
        "1",
        *more,
    ]


def answer(folder, *more):
    return inference.main(["--output_dir", str(folder / "outputs"), *more])


def test_a_run_leaves_everything(work):
    run = RunFolder(work / "outputs" / "first")
    assert run.finished
    assert run.load_recipe().train_file == str(work / "train.csv")
    assert run.load_template() == ("concise", prompts.TEMPLATES["concise"])
    environment = json.loads(run.environment_file.read_text())
    assert torch.__version__.startswith(
        environment["packages"]["torch"]
    )  # the wheel may not name its "+cu130"
    assert len(next(iter(environment["data"].values()))) == 64
    assert environment["compute_dtype"] in ("float32", "bfloat16", "float16")
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert lines[0]["step"] > 0
    assert lines[-1]["validation"]["questions"] == len(pd.read_csv(run.validation_file))
    assert any("evaluation" in line for line in lines)
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "10</td><td>answers that do not stand in their article as written" in page
    assert (run.path / "plots" / "training.png").is_file()
    findings = json.loads(run.findings_file.read_text(encoding="utf-8"))
    assert [found["answers"] for found in findings["not_in_article"]][:1] == [["답"]]
    adapter = load_file(run.adapter / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    assert all("lora_" in name for name in adapter)
    assert any(tensor.abs().max() > 0 for name, tensor in adapter.items() if "lora_B" in name), (
        "nothing was learned"
    )
    assert any(run.checkpoints.iterdir())


def test_inference_writes_and_scores(work, capsys):
    result = answer(work)
    folder = next((work / "outputs" / "first" / "answers").glob("test-*"))
    submission = pd.read_csv(folder / "submission.csv", dtype=str, keep_default_na=False)
    assert submission["id"].tolist() == [f"TEST_{n:04d}" for n in range(4)]
    records = [
        json.loads(line)
        for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert {record["ended"] for record in records} <= {"stopped", "cut"}
    table = pd.read_csv(folder / "predictions.csv", dtype=str, keep_default_na=False)
    assert list(table.columns[:5]) == ["id", "question", "prediction", "gold", "char_f1"]
    assert table["prediction"].tolist() == submission["answer"].tolist()
    assert (folder / "report.html").is_file()
    assert result["questions"] == 4
    assert 0 <= result["char_f1"] <= 1
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert json.loads(last) == result
    assert list(result) == ["char_f1", "exact_match", "questions", "seconds", "submission"]


def test_runs_are_compared_and_joined(work):
    """The adapter, the same grounded, and the base alone answer, as the command line says.

    Only like ones are joined.
    """
    greedy, grounded = (
        Path(answer(work, *more)["submission"]).parent for more in ([], ["--grounded", "true"])
    )
    base = Path(
        answer(work, "--recipe", "demo", "--no_adapter", "--test_file", str(work / "test.csv"))[
            "submission"
        ]
    ).parent
    names = list(map(str, (greedy, grounded, base)))
    compared = compare.main([*names, "--output_dir", str(work / "outputs")])
    assert {"grounded", "adapter"} <= set(compared["recipes"])
    with pytest.raises(
        InputError, match=r"answered in different ways: grounded False and True\. Name folders"
    ):
        ensemble.main([*names, "--output_dir", str(work / "outputs")])
    joined = ensemble.main([names[0], names[2], "--output_dir", str(work / "outputs")])
    assert joined["questions"] == 4


def test_a_test_file_that_cannot_be_read_is_told_and_trains_all_the_same(work, tmp_path, capsys):
    (tmp_path / "test.csv").write_text("id,contxt\n1,2\n", encoding="utf-8")
    fine_tune.main([*train_options(work, "--preview"), "--test_file", str(tmp_path / "test.csv")])
    assert "WARNING: the test file cannot be used yet" in capsys.readouterr().out


def test_every_inference_keeps_its_own_folder(work):
    before = set((work / "outputs" / "first" / "answers").iterdir())
    answer(work)
    answer(work)
    assert len(set((work / "outputs" / "first" / "answers").iterdir()) - before) == 2


def newest_records(work):
    newest = max(
        (work / "outputs" / "first" / "answers").iterdir(),
        key=lambda folder: folder.stat().st_mtime_ns,
    )
    return [
        json.loads(line)
        for line in (newest / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def test_a_record_says_how_its_answer_came_about(work):
    answer(work)
    for record in newest_records(work):
        assert record["log_probability"] <= 0
        assert record["token_ids"]
        context = article(50 + int(record["id"][-1]))
        if record["span"]:
            assert context[slice(*record["span"])] == record["prediction"]
        else:
            assert record["prediction"] not in context


def test_samples_grounded_choices_and_beams_from_the_command_line(work, capsys):
    answer(work, "--samples", "3", "--temperature", "1", "--grounded", "true")
    for record in newest_records(work):
        context = article(50 + int(record["id"][-1]))
        assert len(record["samples"]) == 3
        assert all(sample in context for sample in record["samples"])
        assert record["prediction"] in record["samples"]
    answer(work, "--choices", "서울,부산")
    assert {record["prediction"] for record in newest_records(work)} <= {"서울", "부산"}
    answer(work, "--beams", "2")
    assert "by generate (beams=2)" in capsys.readouterr().out
    answer(work, "--samples", "2")
    assert "all alike at temperature 0" in capsys.readouterr().out
    with pytest.raises(InputError, match="cannot be combined"):
        answer(work, "--beams", "2", "--grounded", "true")


def test_scores_are_null_without_gold(work, tmp_path):
    shutil.copy(work / "test.csv", tmp_path / "unknown.csv")
    result = answer(work, "--test_file", str(tmp_path / "unknown.csv"))
    assert result["char_f1"] is None
    assert result["exact_match"] is None


def test_a_quick_look_writes_no_submission(work):
    result = answer(work, "--limit", "2")
    assert (result["questions"], result["submission"]) == (2, None)


def test_output_is_a_copy_and_never_replaces(work, tmp_path):
    target = tmp_path / "mine.csv"
    result = answer(work, "--output", str(target))
    assert target.read_bytes() == Path(result["submission"]).read_bytes()
    with pytest.raises(InputError, match="exists already.*--overwrite"):
        answer(work, "--output", str(target))
    answer(work, "--output", str(target), "--overwrite")


def test_validation_is_rescored_to_the_same_answers(work):
    run = RunFolder(work / "outputs" / "first")
    result = answer(work, "--split", "validation")
    trained = json.loads(run.metrics_file.read_text().splitlines()[-1])["validation"]
    assert result["char_f1"] == round(trained["char_f1"], 4), "as people are told it"
    again = next((run.answers).glob("validation-*")) / "predictions.csv"
    assert again.read_text(encoding="utf-8-sig") == run.validation_file.read_text(
        encoding="utf-8-sig"
    )


def test_batches_answer_as_single_prompts_do(work):
    """Left padding must not change an answer."""
    source = inference.choose(
        inference.parse(inference.command_line(), ["--output_dir", str(work / "outputs")])
    )
    answerer = open_model(
        source.recipe,
        source.template,
        source.run,
    ).answerer
    encoder, model = answerer.encoder, answerer.model
    texts = ["본사는?", "한빛전자가 지난해에 기록한 매출은 모두 얼마인가?", "몇 호인가?"]
    ids = [
        encoder.encode_prompt(article(n) * (n + 1), Row("q", "", question))
        for n, question in enumerate(texts)
    ]
    stops = encoder.stop_ids(model.generation_config)

    decoding = Decoding(stops, encoder.tokenizer.pad_token_id, max_new_tokens=12)

    def generate(tokens):
        return {i: answer.token_ids for i, answer in generate_answers(model, ids, decoding, tokens)}

    assert generate(tokens=1) == generate(tokens=100_000)


def test_zero_shot_needs_no_run_and_is_skipped_by_the_bare_command(work):
    options = [
        "--recipe",
        "demo",
        "--no_adapter",
        "--template",
        "context_bot",
        "--test_file",
        str(work / "test.csv"),
        "--limit",
        "1",
    ]
    answer(work, *options)
    newest = list_runs(work / "outputs")[-1]
    assert not newest.finished
    assert newest.load_template()[0] == "context_bot"
    assert find_run(None, str(work / "outputs")).path.name == "first"


@pytest.mark.parametrize("name", ["eeve-10.8b", "recipes/midm-2.0-mini.yaml"])
def test_a_recipe_name_with_dots_names_the_run_whole(name):
    """Path("eeve-10.8b").stem is "eeve-10"."""
    arguments = fine_tune.parse(fine_tune.command_line(), ["--recipe", name])
    assert start.choose(arguments).name == name.removeprefix("recipes/").removesuffix(".yaml")


def test_trimmed_articles_are_told_and_recorded(work, capsys, monkeypatch):
    monkeypatch.setattr(inference.Recipe, "prompt_limit", 75)
    answer(work)
    assert "4 questions have their article cut to the sentences nearest" in capsys.readouterr().out
    newest = max(
        (work / "outputs" / "first" / "answers").glob("test-*"),
        key=lambda path: path.stat().st_mtime_ns,
    )
    assert all(
        json.loads(line)["trimmed_characters"] > 0
        for line in (newest / "predictions.jsonl").read_text().splitlines()
    )


def test_another_template_is_told(work, capsys):
    answer(work, "--template", "answer_bot", "--limit", "1")
    assert "answer_bot (--template) instead of concise" in capsys.readouterr().out


def test_a_changed_template_is_told_and_the_trained_one_used(work, capsys, monkeypatch):
    monkeypatch.setitem(prompts.TEMPLATES, "concise", {"prompt": "{context}{question}"})
    arguments = inference.parse(inference.command_line(), ["--output_dir", str(work / "outputs")])
    assert "user" in inference.choose(arguments).template
    assert "the one saved with the run is used" in capsys.readouterr().out


def test_preview_shows_the_answer_tokens_and_trains_nothing(work, capsys):
    before = list_runs(work / "outputs")
    fine_tune.main(
        train_options(work, "--preview", "--max_length", "120", "--max_new_tokens", "30")
    )
    printed = capsys.readouterr().out
    assert "answer tokens (the only ones in the loss" in printed
    assert "'</s>'" in printed
    assert len(list_runs(work / "outputs")) == len(before)


def test_resume_continues_to_the_same_adapter(work):
    """Plain resume: a run cut after its first checkpoint ends where the uninterrupted one did."""
    options = train_options(
        work, "--save_steps", "1", "--epochs", "2", "--validation_fraction", "0"
    )
    fine_tune.main([*options, "--run_name", "whole"])
    whole, cut = RunFolder(work / "outputs" / "whole"), RunFolder(work / "outputs" / "cut")
    shutil.copytree(whole.path, cut.path)
    shutil.rmtree(cut.adapter)
    steps = sorted(
        cut.checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])
    )
    shutil.rmtree(steps[-1])
    fine_tune.main(["--resume", str(cut.path), "--output_dir", str(work / "outputs")])
    expected, got = (load_file(run.adapter / "adapter_model.safetensors") for run in (whole, cut))
    assert all(torch.equal(expected[name], got[name]) for name in expected)


# fine_tune.py, with a file per process of how many questions it has answered.
COUNTING = """
import os, sys
sys.path.insert(0, os.getcwd())
import fine_tune
from dandap.answering.answerer import Answerer
from dandap.cli import run_script

answers = Answerer.answers

def counted(self, examples, known=()):
    for shown in answers(self, examples, known):
        with open(__file__ + "." + os.environ["RANK"], "a") as file:
            file.write(shown[0].row.id + " ")
        yield shown

Answerer.answers = counted
run_script(fine_tune.main)
"""


def test_two_processes_train_what_one_does(work):
    """`accelerate launch` has two CPU processes share out each step's articles and sum gradients.

    They share out the validation questions, too, which may be of one batch or of several. By SGD:
    AdamW's first steps turn the rounding of gradients near zero into steps of full size.
    """
    how = ["--optim", "sgd", "--learning_rate", "0.05", "--epochs", "2"]
    # Every article is a batch of answers.
    how += [
        "--validation_fraction",
        "0.3",
        "--tokens_per_batch",
        "200",
        "--evaluate_every",
        "0.5 epochs",
    ]
    fine_tune.main(train_options(work, "--run_name", "one", *how))
    script = work / "counting.py"
    script.write_text(COUNTING)
    done = subprocess.run(
        [*LAUNCH, str(script), *train_options(work, "--run_name", "two", *how)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("validation: char F1") == 1, "one process speaks"
    runs = [RunFolder(work / "outputs" / name) for name in ("one", "two")]
    one, two = (load_file(run.adapter / "adapter_model.safetensors") for run in runs)
    for name in one:
        assert one[name].norm() > 0
        assert (one[name] - two[name]).norm() <= 1e-5 * one[name].norm()
    scores = []
    for run in runs:
        lines = map(json.loads, run.metrics_file.read_text().splitlines())
        scores.append([line for line in lines if line.keys() & {"evaluation", "validation"}])
    assert scores[0] == scores[1]
    first, second = (work / f"counting.py.{rank}" for rank in (0, 1))
    first, second = first.read_text().split(), second.read_text().split()
    validated = set(pd.read_csv(runs[0].validation_file)["id"])
    assert set(first) | set(second) == validated
    assert not set(first) & set(second)
    assert len(first) == len(scores[0]) * len(set(first))


def test_resume_refuses_another_recipe(work):
    run = work / "outputs" / "unfinished"
    shutil.copytree(work / "outputs" / "first", run)
    shutil.rmtree(run / "adapter")
    with pytest.raises(InputError, match=r"learning_rate=0\.002 \(now 0\.5\)"):
        fine_tune.main(["--resume", str(run), "--learning_rate", "0.5"])
    shutil.rmtree(run)


def test_a_finished_run_is_not_resumed(work):
    with pytest.raises(InputError, match="nothing is left to resume"):
        fine_tune.main(["--resume", "first", "--output_dir", str(work / "outputs")])


def test_a_taken_run_name_is_refused(work):
    with pytest.raises(InputError, match="exists already"):
        fine_tune.main(train_options(work, "--run_name", "first"))


BAD_CALLS = {
    "no run yet": (inference.main, ["--output_dir", "{empty}"], "has no finished run"),
    "a run whose training has not finished": (
        inference.main,
        ["--run", "{unfinished}"],
        "holds no adapter.*--resume",
    ),
    "an unknown run": (
        inference.main,
        ["--run", "nobody", "--output_dir", "{outputs}"],
        "no such folder.*first",
    ),
    "a run without adapter": (inference.main, ["--run", "{empty}"], "no run folder"),
    "a missing test file": (
        inference.main,
        ["--test_file", "nowhere.csv", "--output_dir", "{outputs}"],
        "no file at nowhere.csv",
    ),
    "a header-only test file": (
        inference.main,
        ["--test_file", "{header}", "--output_dir", "{outputs}"],
        "has no questions",
    ),
    "an unknown template": (
        inference.main,
        ["--template", "consise", "--output_dir", "{outputs}"],
        "Did you mean 'concise'",
    ),
    "a recipe without --no_adapter": (inference.main, ["--recipe", "demo"], "add --no_adapter"),
    "an unknown option": (inference.main, ["--tets_file", "x"], "Did you mean 'test_file'"),
    "an option of the other script": (
        inference.main,
        ["--batch_size", "8"],
        "unknown option '--batch_size'. See",
    ),
    "out of range": (fine_tune.main, ["--recipe", "demo", "--lora_r", "0"], "lora_r: got '0'"),
    "a negative learning rate": (
        fine_tune.main,
        ["--recipe", "demo", "--learning_rate=-1"],
        "learning_rate: got '-1'",
    ),
    "a value that looks like an option": (
        fine_tune.main,
        ["--learning_rate", "-1e-4"],
        "--option=-1",
    ),
    "a limit of zero": (inference.main, ["--limit", "0"], "--limit: got '0'"),
    "split and file": (
        inference.main,
        ["--split", "validation", "--test_file", "x", "--output_dir", "{outputs}"],
        "give one",
    ),
    "an unknown recipe": (fine_tune.main, ["--recipe", "dmeo"], "Did you mean 'demo'"),
    "an unknown task": (
        fine_tune.main,
        ["--recipe", "demo", "--task", "wallpaper"],
        "expected one of dialogue_inference, economic_qa",
    ),
    "an unknown template in training": (
        fine_tune.main,
        ["--recipe", "demo", "--template", "x"],
        "expected one of concise",
    ),
    "a missing train file": (
        fine_tune.main,
        ["--recipe", "demo", "--train_file", "nowhere.csv"],
        "no file at nowhere.csv",
    ),
    "a model that is nowhere": (
        fine_tune.main,
        ["--recipe", "demo", "--model", "no/where"],
        "'no/where' cannot be loaded",
    ),
    "nothing to resume": (
        fine_tune.main,
        ["--resume", "--output_dir", "{empty}"],
        "no unfinished run",
    ),
    "a stray argument": (fine_tune.main, ["demo"], "argument 'demo'"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_are_clear_and_lose_nothing(work, tmp_path, name):
    main, argv, message = BAD_CALLS[name]
    (tmp_path / "header.csv").write_text("id,context,question\n")
    (tmp_path / "empty").mkdir()
    shutil.copytree(
        work / "outputs" / "first",
        tmp_path / "unfinished",
        ignore=shutil.ignore_patterns("adapter"),
    )
    places = {
        "unfinished": tmp_path / "unfinished",
        "empty": tmp_path / "empty",
        "outputs": work / "outputs",
        "header": tmp_path / "header.csv",
    }
    before = sorted(work.rglob("*"))
    with pytest.raises(InputError, match=message):
        main([part.format(**places) for part in argv])
    assert sorted(work.rglob("*")) == before


def test_a_test_file_that_is_missing_is_told_before_training(tmp_path, small_train):
    options = ["--recipe", "demo", "--train_file", str(small_train), "--output_dir", str(tmp_path)]
    with pytest.raises(InputError, match="no file at data/nope.csv"):
        fine_tune.main([*options, "--test_file", "data/nope.csv"])
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_sample_test_file_beside_ones_own_questions_is_told(tmp_path, small_train, capsys):
    options = ["--recipe", "demo", "--train_file", str(small_train), "--output_dir", str(tmp_path)]
    fine_tune.main([*options, "--preview"])
    told = "answers will be those to data/sample/test.csv, the sample's. For yours: --test_file"
    assert told in capsys.readouterr().out
    fine_tune.main([*options, "--preview", "--test_file", str(small_train)])
    assert "the sample's" not in capsys.readouterr().out


BAD_DATA = {
    "a misspelt column": ("id,contxt,question,answer\na,b,c,d\n", "Did you mean 'contxt'"),
    "no answers": ("id,context,question\na,b,c\n", "no column 'answer'"),
    "a missing answer": ("id,context,question,answer\na,b,c,\n", "id a.*no answer"),
    "duplicate ids": (
        "id,context,question,answer\na,b,c,d\na,b,c,d\n",
        r"ids more than once \(1\)",
    ),
    "broken quotes": ('id,context,question,answer\na,"b,c,d\n', "quotation mark"),
    "empty": ("", "is empty"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_training_data_starts_no_run(tmp_path, name):
    text, message = BAD_DATA[name]
    (tmp_path / "train.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        fine_tune.main(
            [
                "--recipe",
                "demo",
                "--train_file",
                str(tmp_path / "train.csv"),
                "--output_dir",
                str(tmp_path / "out"),
            ]
        )
    assert not (tmp_path / "out").exists()


def test_a_model_that_fails_to_load_leaves_no_run(work, tmp_path):
    """So that the same --run_name works once the model is there."""
    with pytest.raises(InputError, match="cannot be loaded"):
        fine_tune.main(train_options(work, "--model", str(tmp_path), "--run_name", "later"))
    assert not (work / "outputs" / "later").exists()


def test_a_loss_that_is_not_finite_stops_the_run(work):
    """transformers logs it as 0.0 and the run would "succeed"."""
    options = train_options(
        work,
        "--learning_rate",
        "1e30",
        "--max_grad_norm",
        "1e30",
        "--epochs",
        "20",
        "--run_name",
        "broken",
    )
    with pytest.raises(InputError, match="nan in step .* nothing more is saved"):
        fine_tune.main(options)
    assert not RunFolder(work / "outputs" / "broken").finished
    shutil.rmtree(work / "outputs" / "broken")


def test_the_newest_demo_run_does_not_answer_real_data_unasked(work, monkeypatch):
    monkeypatch.setattr(inference, "DEMO_TEST", work / "test.csv")
    with pytest.raises(InputError, match="newest finished run is the demo"):
        answer(work, "--test_file", "data/test.csv")
    with pytest.raises(InputError, match="no file at"):
        answer(work, "--test_file", "data/test.csv", "--run", "first")


def test_the_bare_command_is_decided_by_data_and_machine(tmp_path, monkeypatch, capsys):
    bare = fine_tune.parse(fine_tune.command_line(), [])
    monkeypatch.setitem(
        fine_tune.Recipe.model_fields,
        "train_file",
        fine_tune.Recipe.model_fields["train_file"]._copy(),
    )
    fine_tune.Recipe.model_fields["train_file"].default = str(tmp_path / "train.csv")
    begun = start.choose(bare)
    assert (begun.name, begun.recipe.model) == ("demo", "data/demo_model")
    assert "DEMO" in capsys.readouterr().out
    (tmp_path / "train.csv").touch()
    monkeypatch.setattr(device, "why_no_gpu", lambda: "no driver")
    with pytest.raises(InputError, match="needs a GPU: no driver.*--recipe demo"):
        start.choose(bare)
    monkeypatch.setattr(device, "why_no_gpu", lambda: None)
    assert start.choose(bare).recipe.model.startswith("yanolja/EEVE")


@pytest.mark.parametrize(
    ("name", "expected"), [("../../etc", "etc"), ("a b/c", "a-b-c"), ("한글-1.2", "한글-1.2")]
)
def test_names_become_one_folder(name, expected):
    assert safe_name(name) == expected


@pytest.mark.parametrize("name", ["..", "/", " "])
def test_names_without_letters_are_refused(name):
    with pytest.raises(InputError, match="expected letters"):
        safe_name(name)
