"""An inference that is killed goes on where it was, and its files end as if it never had been."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

import fine_tune
import inference
from dandap.data.encode import Example
from dandap.data.rows import Row
from dandap.errors import InputError
from dandap.files import locked
from dandap.recipe import Recipe
from dandap.runs.journal import Journal, answers_folder, answers_name
from tests.conftest import HEADER, LAUNCH, ROOT, process_of

FILES = ("predictions.jsonl", "predictions.csv", "submission.csv")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Make a run of one step, a test file of 60 questions on 30 articles, and its answers."""
    folder = tmp_path_factory.mktemp("work")
    text = {"train": [",".join(HEADER)], "test": [",".join(HEADER[:3])]}
    for number in range(60):
        article = (
            f"한빛전자 {number // 2}호는 지난해 매출 {100 + number // 2}억 원을 기록했다. "
            + "본사는 부산에 있다. " * (1 + number // 8)
        )
        question = ("매출은?", "본사는 어디인가?")[number % 2]
        text["test"].append(f"TEST_{number:04d},{article},{question}")
        text["train"].append(f"TRAIN_{number:04d},{article},{question},부산")
    for name, lines in text.items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    paths = ["--train_file", str(folder / "train.csv"), "--test_file", str(folder / "test.csv")]
    short = [
        "--epochs",
        "0.3",
        "--tokens_per_batch",
        "600",
        "--max_new_tokens",
        "8",
        "--validation_fraction",
        "0",
    ]
    fine_tune.main(
        [
            "--recipe",
            "demo",
            *paths,
            *short,
            "--output_dir",
            str(folder / "outputs"),
            "--run_name",
            "run",
        ]
    )
    answer(folder)
    return folder


def answer(folder, *more):
    return inference.main(["--output_dir", str(folder / "outputs"), *more])


def answers(folder):
    """Folders of answers, oldest first."""
    found = (folder / "outputs" / "run" / "answers").glob("*/settings.json")
    return [path.parent for path in sorted(found, key=lambda path: path.stat().st_mtime_ns)]


def assert_as_uninterrupted(folder, path):
    for name in FILES:
        assert (path / name).read_bytes() == (answers(folder)[0] / name).read_bytes()


def cut_off(folder, name, lines, torn=b""):
    """Leave things as an inference does that was killed after so many answers.

    They are in the order in which they came.
    """
    path = folder / "outputs" / "run" / "answers" / name
    path.mkdir()
    whole = answers(folder)[0]
    shutil.copy(whole / "settings.json", path)
    kept = (
        (whole / "predictions.jsonl").read_bytes().splitlines(keepends=True)[-lines:]
        if lines
        else []
    )
    (path / "predictions.jsonl").write_bytes(b"".join(kept) + torn)
    return path


CUTS = [
    (0, b""),
    (1, b'{"id": "TEST_0003", "predi'),
    (17, b""),
    (17, b"\x00\xff\n"),
    (59, b"null\n[]\n3\n"),
    (60, b""),
]


@pytest.mark.parametrize(("lines", "torn"), CUTS)
def test_a_cut_off_inference_goes_on_to_the_same_bytes(work, capsys, lines, torn):
    path = cut_off(work, f"cut-{lines}-{len(torn)}", lines, torn)
    result = answer(work)
    assert result["submission"] == str(path / "submission.csv")
    assert (f"holds {lines} of 60 answers" in capsys.readouterr().out) == (lines > 0)
    assert_as_uninterrupted(work, path)


def test_answered_questions_are_not_answered_again(work, monkeypatch):
    """What a journal with other words in it holds is kept.

    Whole batches of it are not forwarded.
    """
    path = cut_off(work, "kept", 60)
    lines = (path / "predictions.jsonl").read_text(encoding="utf-8")
    (path / "predictions.jsonl").write_text(
        lines.replace('"prediction": "', '"prediction": "이미 '), encoding="utf-8"
    )
    answer(work)
    assert (path / "predictions.jsonl").read_text(encoding="utf-8").count(
        '"prediction": "이미 '
    ) == 60


@pytest.mark.parametrize(
    ("more", "name"),
    [
        (["--max_new_tokens", "7"], "test-new7-2"),
        (["--grounded", "true"], "test-grounded-2"),
        (["--template", "context_bot"], "test-context_bot-2"),
        (["--limit", "9"], "test-first9-2"),
    ],
)
def test_other_settings_never_reuse_answers(work, more, name):
    path = cut_off(work, f"other-{more[0]}", 30)
    before = (path / "predictions.jsonl").read_bytes()
    answer(work, *more)
    assert answers(work)[-1] != path
    assert answers(work)[-1].name.startswith(name), "then comes the year"
    assert (path / "predictions.jsonl").read_bytes() == before
    shutil.rmtree(path)


def test_another_adapter_never_reuses_answers(work):
    path = cut_off(work, "adapter", 30)
    weights = work / "outputs" / "run" / "adapter" / "adapter_model.safetensors"
    before = weights.read_bytes()
    changed = bytearray(before)
    changed[-1] ^= 1
    weights.write_bytes(changed)
    manifest = weights.with_name("manifest.json")
    sealed = manifest.read_bytes()
    try:
        with pytest.raises(
            InputError, match=r"adapter_model.safetensors is damaged .* remove .*manifest.json"
        ):
            answer(work)
        manifest.unlink()  # the change was meant
        result = answer(work)
    finally:
        weights.write_bytes(before)
        manifest.write_bytes(sealed)
    assert str(path) not in result["submission"]
    shutil.rmtree(path)


def test_folders_of_answers_are_called_what_they_hold():
    usual = Recipe()
    sampled = usual.model_copy(update={"samples": 8, "temperature": 0.7, "grounded": True})
    assert answers_name("test", usual, usual, None) == "test"
    assert answers_name("test", sampled, usual, None) == "test-grounded-s8-t0.7"
    assert answers_name("test", sampled, sampled, 9) == "test-first9-grounded-s8-t0.7"
    assert answers_name("test", usual, sampled, None) == "test-no-grounded-s1-no-temperature"
    longer = usual.model_copy(update={"max_new_tokens": 128})
    assert answers_name("validation", longer, longer, None) == "validation", "as the run has it"
    assert answers_name("validation", longer, usual, None) == "validation-new128"


def test_a_record_under_another_key_is_dropped(tmp_path):
    example = Example(Row("a", "기사", "질문?"), [1, 2], [])
    journal = Journal(tmp_path, "settings", [example])
    journal.add({"id": "a", "prediction": "답"})
    assert Journal(tmp_path, "settings", [example]).read() == {"a"}
    assert Journal(tmp_path, "settings", [Example(example.row, [1, 3], [])]).read() == set()
    assert (tmp_path / "predictions.jsonl").read_bytes() == b""


def test_a_finished_inference_gets_a_new_folder(work):
    count = len(answers(work))
    answer(work)
    assert len(answers(work)) == count + 1


def test_two_at_once_on_one_folder_are_refused(work):
    path = cut_off(work, "locked", 3)
    hold = (
        "import time; from pathlib import Path; from dandap.files import locked\n"
        f"with locked(Path({str(path)!r})):\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", hold + " print(1, flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    owner.stdout.readline()
    with pytest.raises(InputError, match="in use by process"):
        answer(work)
    owner.kill()
    owner.wait()
    with locked(path):
        pass
    shutil.rmtree(path)


@pytest.mark.parametrize("after", [pytest.param(1, marks=pytest.mark.slow), 25])
def test_a_killed_inference_goes_on_to_the_same_bytes(work, after):
    """SIGKILL once so many answers are there."""
    count = len(answers(work))
    child = subprocess.Popen(
        [sys.executable, "inference.py", "--output_dir", str(work / "outputs")],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.time() + 120
    while child.poll() is None and time.time() < deadline:
        if len(answers(work)) > count:
            journal = answers(work)[-1] / "predictions.jsonl"
            if journal.is_file() and journal.read_bytes().count(b"\n") >= after:
                break
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    path = answers(work)[-1]
    if not (path / "scores.json").exists():
        answer(work)
    assert_as_uninterrupted(work, path)
    assert json.loads((path / "scores.json").read_text())["limit"] is None
    assert answers_folder(path.parent, path.name, "no such settings") != path


def launch(folder, *more, **how):
    """Start inference.py as two processes; return them."""
    command = [*LAUNCH, "inference.py", "--output_dir", str(folder / "outputs"), *more]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **how
    )


def test_two_processes_write_the_bytes_of_one(work):
    """They go on where one process was cut off, too, and leave no journals of their own."""
    path = cut_off(work, "two", 7, torn=b'{"id"')
    both = launch(work)
    out, _ = both.communicate(timeout=300)
    assert both.returncode == 0, out[-3000:]
    assert out.count(f"submission: {path}") == 1, "one process speaks"
    assert "holds 7 of 60 answers" in out
    assert_as_uninterrupted(work, path)
    assert not list(path.glob("predictions-*"))


@pytest.mark.parametrize("dies", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_process_that_dies_ends_all_and_loses_nothing(work, dies):
    """SIGKILL to one of two once it has answered; one process then goes on with what both said."""
    count = len(answers(work))
    both = launch(work)
    journal = ("predictions.jsonl", "predictions-1.jsonl")[dies]

    def lines(name):
        path = answers(work)[-1] / name
        return (
            path.read_bytes().splitlines() if len(answers(work)) > count and path.exists() else []
        )

    while not lines(journal):
        assert both.poll() is None, both.stdout.read()[-3000:]
        time.sleep(0.005)
    os.kill(process_of(both.pid, dies), signal.SIGKILL)
    both.communicate(timeout=120)
    assert both.returncode != 0
    path = answers(work)[-1]
    assert not (path / "scores.json").exists()
    assert lines("predictions.jsonl") or lines("predictions-1.jsonl")
    with locked(path):
        pass
    answer(work)
    assert (path / "scores.json").exists()
    assert_as_uninterrupted(work, path)
    assert not list(path.glob("predictions-*"))


def test_answers_of_several_processes_become_one_record(tmp_path):
    """Each process has its file; whoever comes next, one or more, finds all, each once."""
    examples = [Example(Row(name, "기사", "질문?"), [1, 2], []) for name in "abcd"]
    journals = [Journal(tmp_path, "settings", examples, process) for process in range(3)]
    for journal, name in zip(journals, "dba", strict=True):
        journal.add({"id": name, "prediction": f"{name} 답"})
    with (tmp_path / "predictions-2.jsonl").open("a") as file:
        file.write('{"id": "c", "predi')
    next_one = Journal(tmp_path, "settings", examples)
    assert next_one.read() == {"a", "b", "d"}
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]
    Journal(tmp_path, "settings", examples, process=1).add({"id": "c", "prediction": "c 답"})
    assert [record["id"] for record in next_one.finish(["a", "b", "c", "d"])] == [
        "a",
        "b",
        "c",
        "d",
    ]
    with pytest.raises(InputError, match="lacks 1 answers that other processes wrote"):
        next_one.finish(["a", "e"])
