"""Test run folders: finding, listing, naming and reading them."""

import json
from pathlib import Path

import pytest

from dandap.errors import InputError
from dandap.files import locked
from dandap.runs.folder import RunFolder, check_name, find_run, new_run
from dandap.runs.predictions import find_predictions, load_members, own_answers

LEGACY = Path("tests/data/legacy")


def make_run(folder, environment):
    """Write a finished run with an environment.json from a dict or a text."""
    (folder / "adapter").mkdir(parents=True)
    text = environment if isinstance(environment, str) else json.dumps(environment)
    template = {"name": "concise", "template": {"user": "{context} {question}"}}
    for name, content in (
        ("recipe.yaml", "model: m\n"),
        ("environment.json", text),
        ("template.json", json.dumps(template)),
        ("adapter/adapter_model.safetensors", "x"),
    ):
        (folder / name).write_text(content)
    return RunFolder(folder)


def test_legacy_run():
    run = RunFolder(LEGACY)
    assert run.finished and not run.is_new
    assert run.time("started") < run.time("finished")
    assert len(run.run_id) == 32
    assert run.load_recipe().task == "economic_qa"
    assert run.load_template()[0] == run.load_recipe().template
    assert find_predictions(str(LEGACY), "outputs", "validation") == run.validation_record
    assert own_answers(run) == []
    assert not RunFolder(Path("tests/data/legacy-stopped")).finished


def test_broken_runs_are_skipped(tmp_path, capsys):
    first = {"started": "2026-01-01", "finished": "2026-01-02"}
    later = json.dumps({"started": "2026-01-03", "finished": "2026-01-04"})
    make_run(tmp_path / "good", first)
    broken = [("environment.json", text) for text in ("", "[]", '{"finished": ', "\x00")]
    broken += [("template.json", "{"), ("recipe.yaml", "[")]
    for number, (file, content) in enumerate(broken):
        (make_run(tmp_path / f"odd-{number}", later).path / file).write_text(content)
    assert find_run(None, str(tmp_path)).path.name == "good"
    printed = capsys.readouterr().out
    for number in range(len(broken)):
        assert f"{tmp_path / f'odd-{number}'} is skipped: " in printed


def test_newest_finished_run_is_found(tmp_path):
    make_run(tmp_path / "done", {"started": "2026-01-02", "finished": "2026-01-03"})
    make_run(tmp_path / "before", {"started": "2026-01-01", "finished": "2026-01-02"})
    make_run(tmp_path / "newer", {"started": "2026-01-03"}).weights.unlink()
    assert find_run(None, str(tmp_path)).path.name == "done"
    with pytest.raises(InputError, match="'before', 'done', 'newer'"):
        find_run("nobody", str(tmp_path))


def test_name_of_a_run_without_checkpoint_can_be_reused(tmp_path):
    run = make_run(tmp_path / "mine", {})
    with pytest.raises(InputError, match="exists already"):
        check_name(str(tmp_path), "mine")
    run.weights.unlink()
    run.adapter.rmdir()
    check_name(str(tmp_path), "mine")
    assert new_run(str(tmp_path), "mine", "demo").path == run.path
    with locked(run.path), pytest.raises(InputError, match="in use"):
        check_name(str(tmp_path), "mine")
    (run.checkpoints / "checkpoint-1").mkdir(parents=True)
    with pytest.raises(InputError, match="exists already"):
        check_name(str(tmp_path), "mine")
    assert new_run(str(tmp_path), None, "demo").path.name.startswith("demo-2")


def test_same_ids_with_different_questions_are_rejected(tmp_path):
    names = [tmp_path / f"{name}.jsonl" for name in "ab"]
    for name, question in zip(names, ("왜?", "언제?"), strict=True):
        name.write_text(json.dumps({"id": "r0", "prediction": "가", "question": question}))
    with pytest.raises(InputError, match="question of r0 differs"):
        load_members(names, "outputs")
