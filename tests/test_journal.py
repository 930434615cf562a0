"""A killed inference resumes, and its files equal those of an uninterrupted one."""

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
from dandap.errors import InputError
from dandap.files import locked
from dandap.runs.predictions import answers_folder
from tests.conftest import HEADER, LAUNCH, ROOT, process_of


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Train for one step and answer a test file of 60 questions on 30 articles."""
    folder = tmp_path_factory.mktemp("work")
    texts = {"train": [",".join(HEADER)], "test": [",".join(HEADER[:3])]}
    for number in range(60):
        article = (
            f"한빛전자 {number // 2}호는 지난해 매출 {100 + number // 2}억 원을 기록했다. "
            + "본사는 부산에 있다. " * (1 + number // 8)
        )
        question = ("매출은?", "본사는 어디인가?")[number % 2]
        texts["test"].append(f"TEST_{number:04d},{article},{question}")
        texts["train"].append(f"TRAIN_{number:04d},{article},{question},부산")
    for name, lines in texts.items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = f"--recipe demo --train_file {folder}/train.csv --test_file {folder}/test.csv"
    options += " --epochs 0.3 --tokens_per_batch 600 --max_new_tokens 8 --validation_fraction 0"
    options += f" --output_dir {folder}/outputs --run_name run"
    fine_tune.main(options.split())
    answer(folder)
    return folder


def answer(folder, *more):
    inference.main(["--output_dir", str(folder / "outputs"), *more])


def answers(folder):
    """Return the answer folders, oldest first."""
    found = (folder / "outputs" / "run" / "answers").glob("*/settings.json")
    return [path.parent for path in sorted(found, key=lambda path: path.stat().st_mtime_ns)]


def assert_as_uninterrupted(folder, path):
    for name in ("predictions.jsonl", "review.csv", "submission.csv"):
        assert (path / name).read_bytes() == (answers(folder)[0] / name).read_bytes()
    assert not list(path.glob("predictions-*"))


def interrupt(folder, name, lines, torn=b""):
    """Create the answer folder of an inference that was killed after `lines` answers."""
    whole, path = answers(folder)[0], folder / "outputs" / "run" / "answers" / name
    path.mkdir()
    shutil.copy(whole / "settings.json", path)
    known = (whole / "predictions.jsonl").read_bytes().splitlines(keepends=True)[60 - lines :]
    (path / "predictions.jsonl").write_bytes(b"".join(known) + torn)
    return path


def test_an_interrupted_inference_resumes_to_the_same_bytes(work, capsys):
    for lines, torn in (
        (1, b'{"id": "TEST_0003", "predi'),
        (17, b"\x00\xff\n"),
        (59, b"null\n[]\n3\n"),
        (60, b""),
    ):
        path = interrupt(work, f"cut-{lines}-{len(torn)}", lines, torn)
        answer(work)
        assert f"{lines} of 60 answers" in capsys.readouterr().out
        assert_as_uninterrupted(work, path)


def test_answered_questions_are_not_answered_again(work):
    path = interrupt(work, "known", 60)
    lines = (path / "predictions.jsonl").read_text(encoding="utf-8")
    changed = lines.replace('"prediction": "', '"prediction": "이미 ')
    (path / "predictions.jsonl").write_text(changed, encoding="utf-8")
    answer(work)
    assert (path / "predictions.jsonl").read_text(encoding="utf-8").count('": "이미 ') == 60


def test_other_settings_never_reuse_answers(work):
    path = interrupt(work, "other", 30)
    before = (path / "predictions.jsonl").read_bytes()
    for more, name in (
        ("--grounded true", "test-grounded-2"),
        ("--template context_bot", "test-context_bot-2"),
        ("--limit 9", "test-first9-2"),
    ):
        answer(work, *more.split())
        assert answers(work)[-1].name.startswith(name), "followed by the year"
    assert (path / "predictions.jsonl").read_bytes() == before
    shutil.rmtree(path)


def test_a_changed_adapter_never_reuses_answers(work):
    path = interrupt(work, "adapter", 30)
    weights = work / "outputs" / "run" / "adapter" / "adapter_model.safetensors"
    manifest = weights.with_name("manifest.json")
    before, sealed = weights.read_bytes(), manifest.read_bytes()
    try:
        weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(InputError, match=r"adapter_model.safetensors is damaged .*manifest"):
            answer(work)
        manifest.unlink()  # accept the change
        answer(work)
        assert not (path / "submission.csv").exists()
    finally:
        weights.write_bytes(before)
        manifest.write_bytes(sealed)
    shutil.rmtree(path)


def start(folder, *launcher):
    command = [*(launcher or [sys.executable]), "inference.py"]
    command += ["--output_dir", str(folder / "outputs")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=ROOT, text=True, **pipes)


def wait_for_answers(work, count, process, name, least):
    """Wait for a new answer folder (beyond `count`) with at least `least` answers."""
    while process.poll() is None:
        file = answers(work)[-1] / name
        known = file.read_bytes().count(b"\n") if file.is_file() else 0
        if len(answers(work)) > count and known >= least:
            return
        time.sleep(0.005)
    raise AssertionError(process.stdout.read()[-3000:])


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 25])
def test_a_killed_inference_resumes_to_the_same_bytes(work, after):
    """SIGKILL after that many answers."""
    count = len(answers(work))
    child = start(work)
    wait_for_answers(work, count, child, "predictions.jsonl", after)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    path = answers(work)[-1]
    answer(work)
    assert_as_uninterrupted(work, path)
    assert json.loads((path / "scores.json").read_text())["limit"] is None
    assert answers_folder(path.parent, path.name, "no such settings") != path


def test_two_processes_write_the_same_bytes_as_one(work):
    """They resume an inference that one process started."""
    path = interrupt(work, "two", 7, torn=b'{"id"')
    both = start(work, *LAUNCH)
    out, _ = both.communicate(timeout=300)
    assert both.returncode == 0, out[-3000:]
    assert out.count(f"submission: {path}") == 1, "one process prints"
    assert "7 of 60 answers" in out
    assert_as_uninterrupted(work, path)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_stops_all_and_loses_no_answers(work, killed):
    """SIGKILL one of two processes after its first answer; then one process resumes both."""
    count = len(answers(work))
    both = start(work, *LAUNCH)
    wait_for_answers(work, count, both, ("predictions.jsonl", "predictions-1.jsonl")[killed], 1)
    os.kill(process_of(both.pid, killed), signal.SIGKILL)
    both.communicate(timeout=120)
    assert both.returncode != 0
    path = answers(work)[-1]
    assert not (path / "scores.json").exists()
    with locked(path):
        pass
    answer(work)
    assert_as_uninterrupted(work, path)
