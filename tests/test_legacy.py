"""Test that runs of earlier versions still answer, resume, export and combine.

tests/data/legacy is a finished demo run, and legacy-stopped the same run stopped at step 6 of 57.
"""

import shutil

import pytest
import torch
from safetensors.torch import load_file

import fine_tune
from dandap.answering.run import answer, find_source
from dandap.runs.folder import RunFolder
from tests.conftest import read_lines


@pytest.fixture
def copy(tmp_path):
    """Return a function that copies a legacy run into an output folder."""

    def make(name, to):
        target = tmp_path / "outputs" / to
        shutil.copytree(f"tests/data/{name}", target)
        return RunFolder(target)

    return make


@pytest.mark.parametrize("limit", [20, pytest.param(None, marks=pytest.mark.slow)])
def test_legacy_run_answers(copy, limit):
    run = copy("legacy", "run")
    result = answer(find_source(str(run.path)), limit=limit)
    assert len(read_lines(result.folder / "predictions.jsonl")) == (limit or 265)
    if limit:
        assert result.scores["char_f1"] > 0.9
    else:
        assert result.scores["char_f1"] == pytest.approx(0.9544, abs=5e-5)
        assert result.scores["exact_match"] == pytest.approx(0.8906, abs=5e-5)
        assert result.submission.is_file()


@pytest.mark.slow
def test_legacy_run_resumes_to_the_same_adapter(copy, capsys):
    finished, stopped = copy("legacy", "whole"), copy("legacy-stopped", "stopped")
    assert not stopped.finished
    fine_tune.main(["--resume", str(stopped.path)])
    assert "from checkpoint-6" in capsys.readouterr().out
    expected, got = load_file(finished.weights), load_file(stopped.weights)
    assert expected.keys() == got.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-5)
    histories = [
        {line["step"]: line["loss"] for line in read_lines(run.metrics_file) if "loss" in line}
        for run in (finished, stopped)
    ]
    assert histories[0].keys() == histories[1].keys()
    assert histories[1] == pytest.approx(histories[0], rel=1e-4)


def test_legacy_run_exports_its_adapter(copy, tmp_path):
    from dandap.export.run import export

    run = copy("legacy", "run")
    folder = export(str(run.path), "adapter", exports_dir=str(tmp_path / "exports"))
    exported = load_file(folder / "adapter_model.safetensors")
    assert exported.keys() == load_file(run.weights).keys()
    assert (folder / "README.md").is_file()


def test_legacy_validation_answers_are_combined_and_compared(copy, tmp_path):
    from dandap.runs.ensemble import combine
    from tools.compare import compare

    names = [str(copy("legacy", name).path) for name in ("one", "two")]
    records = read_lines(RunFolder(tmp_path / "outputs" / "one").validation_record)
    combined = combine(names, split="validation", output_dir=str(tmp_path))
    assert [each["prediction"] for each in combined.records] == [r["prediction"] for r in records]
    assert combined.submission is None
    compared = compare(names, str(tmp_path), "validation")
    assert len(compared["scores"]) == 2
    assert compared["differences"][0]["difference"] == 0
