"""Run the benchmarks from the command line with random weights."""

import json
from pathlib import Path

import pytest
from transformers import Gemma2Config

from benchmarks import inference, operators, overflow, peers, training
from benchmarks.material import named_config
from dandap.errors import InputError


@pytest.mark.slow
def test_training_benchmark_prints_its_result(capsys):
    options = "--model tiny-qwen3 --article 40 --questions_per_article 4 --questions 16"
    result = training.main([*options.split(), "--rounds", "1", "--questions_per_step", "8"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert result["max_loss_difference"] < 1e-5
    assert 0 < result["gradient_difference"] < 1e-5
    tokens = 16 * (40 + 35 + 6), 4 * (40 + 4 * (35 + 5))  # the stop token is predicted, not read
    assert result["token_ratio"] == pytest.approx(tokens[0] / tokens[1], abs=1e-3)
    for measured in ("questions_per_second", "peak_memory_mb"):
        assert set(result[measured]) == {"seed", "trl", "read_once"}
    assert result["forwarded_tokens"]["read_once"] < result["forwarded_tokens"]["trl"]
    assert result["speedup_vs_trl"] > 0
    assert result["speedup_vs_seed"] > 0


def test_peer_job_is_written_and_run(tmp_path, monkeypatch):
    """Peers with other dependencies are run by hand in their own environment."""
    file, jobs = tmp_path / "job.json", []

    def worker(job):
        assert Path(job["folder"]).is_dir()
        jobs.append(job)
        return 2.5

    monkeypatch.setitem(peers.WORKERS, "llamafactory", worker)
    job = training.main(["--questions", "4", "--trl_batch", "2", "--job", str(file)])
    assert peers.work("llamafactory", file) == 2.5
    folder = jobs[0].pop("folder")
    assert jobs == [job]
    assert not Path(folder).exists()
    assert (job["batch"], job["questions_per_step"], len(job["rows"])) == (2, 16, 4)
    assert max(len(row["input_ids"]) for row in job["rows"]) == job["longest"]


@pytest.mark.parametrize("options", [["--growth"], ["--model", "tiny-qwen3"]])
def test_invalid_peer_job_is_rejected(options, tmp_path):
    with pytest.raises(InputError, match="expected a model folder"):
        training.main([*options, "--job", str(tmp_path / "job.json")])


def test_shapes_are_found_by_name():
    assert isinstance(named_config("Gemma-2-9B"), Gemma2Config)
    with pytest.raises(InputError, match="Did you mean 'EEVE-10.8B'"):
        named_config("EEVE-10.8")


@pytest.mark.slow
def test_answering_benchmark_reports_equal_answers(capsys):
    """Speed is not asserted: a few questions and one round are too noisy."""
    options = "--questions 8 --rounds 1 --batch 4 --samples 2 --no_continuous"
    result = inference.main(options.split())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert {"speedup_vs_loop", "speedup_vs_batched", "samples_cost"} <= result.keys()
    assert result["answers_equal"] == result["natural"]["answers_equal"] == 1.0
    assert result["forwarded_tokens"]["tree"] < result["forwarded_tokens"]["loop"]


def test_overflow_benchmark_compares_trim_and_select(capsys):
    result = overflow.main(["--questions", "60"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == json.loads(json.dumps(result))
    in_text = result["answer_in_text"]
    assert 0 < in_text["trim"] < in_text["select"] <= 1
    assert in_text["difference"] == pytest.approx(in_text["select"] - in_text["trim"], abs=1e-3)


@pytest.mark.slow
def test_profile_reports_time_by_operator(capsys, monkeypatch):
    """Shares are only bounded: other jobs on the machine can slow down any operator."""
    monkeypatch.setattr(inference, "FORCED", 3)  # torch takes a second for 2,000 events
    material = ["--model", "tiny-llama", "--article", "40", "--questions_per_article", "4"]
    result = operators.main([*material, "--questions", "8"])
    *_, last = lines = capsys.readouterr().out.splitlines()
    assert json.loads(last) == result
    assert sum(line.startswith(("| nf4 |", "| dequantized |")) for line in lines) == 8
    for row in result["rows"]:
        assert 0 < row["products"] < 1
        assert 0 <= row["attention"] < 1
        assert row["products"] + row["attention"] + sum(row["others"].values()) < 1.001
        if row["weights"] == "dequantized":
            assert not any("4bit" in name.lower() for name in row["others"])
    assert [row["work"] for row in result["rows"]] == 2 * [
        "training step, 4 of an article",
        "answering 1",
        "answering 4 of an article",
        "answering 8 together",
    ]
