"""fine_tune.py: the selected recipe and files, and the checks before training."""

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, LlamaConfig

import fine_tune
from dandap.cli import chosen_options, parse
from dandap.data.checks import drop_too_long, loses_answer
from dandap.data.encode import Example
from dandap.data.rows import Row
from dandap.errors import InputError
from dandap.model import device
from dandap.model.load import check_base, check_ids, load_config
from dandap.model.memory import make_plan
from dandap.recipe import load_recipe, make_recipe
from tests.conftest import ROOT


def choose(words=""):
    """Return the name and recipe that fine_tune.py trains with."""
    arguments = parse(fine_tune.command_line(), words.split())
    return fine_tune.choose_recipe(arguments, chosen_options(arguments))


def test_the_default_recipe_depends_on_data_and_gpu(tmp_path, monkeypatch, capsys):
    assert choose("--recipe recipes/midm-2.0-mini.yaml")[0] == "midm-2.0-mini"
    monkeypatch.chdir(tmp_path)
    name, recipe = choose()
    assert (name, recipe.model) == ("demo", str(ROOT / "data/demo_model"))
    assert "DEMO" in capsys.readouterr().out
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").touch()
    monkeypatch.setattr(device, "why_no_gpu", lambda: "no driver")
    with pytest.raises(InputError, match="needs a GPU: no driver.*--recipe"):
        choose()
    monkeypatch.setattr(device, "why_no_gpu", lambda: None)
    assert choose()[1].model.startswith("yanolja/EEVE")


def test_the_demo_is_found_from_another_folder(tmp_path, monkeypatch):
    """Only bundled files are found in the project; other paths stay relative."""
    monkeypatch.chdir(tmp_path)
    recipe = make_recipe({"train_file": "data/sample/train.csv,data/README.md"}, "there")
    assert recipe.train_file == f"{ROOT / 'data/sample/train.csv'},data/README.md"
    (tmp_path / "data" / "sample").mkdir(parents=True)
    (tmp_path / "data" / "sample" / "train.csv").touch()
    assert choose()[1].train_file == "data/sample/train.csv", "the user's file takes precedence"


def test_limits_of_a_base_are_checked_before_loading(tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained("data/demo_model")
    recipe, size = make_recipe({"model": "some/base"}, "test"), len(tokenizer)
    with pytest.raises(InputError, match="max_length=2048 .* 64 positions of some/base"):
        check_base(recipe, GPT2Config(n_positions=64, vocab_size=size), tokenizer)
    check_base(recipe, LlamaConfig(max_position_embeddings=64, vocab_size=size), tokenizer)
    assert "WARNING: max_length=2048" in capsys.readouterr().out
    for kind, original in (("dynamic", 64), ("longrope", 32)):
        rope = {"rope_type": kind, "factor": 4.0, "original_max_position_embeddings": original}
        rope |= {"rope_theta": 1e4, "short_factor": [1.0] * 64, "long_factor": [4.0] * 64}
        scaled = LlamaConfig(max_position_embeddings=4096, vocab_size=size, rope_parameters=rope)
        with pytest.raises(InputError, match=f"exceeds {original}, above"):
            check_base(recipe, scaled, tokenizer)
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(InputError, match="has an adapter"):
        check_base(make_recipe({"model": str(tmp_path)}, "test"), LlamaConfig(), tokenizer)
    with pytest.raises(InputError, match="float16 cannot be trained on a CPU"):
        half = load_recipe("demo", {"compute_dtype": "float16"})
        make_plan(half, load_config(half), torch.device("cpu"), training=True)
    with pytest.raises(InputError, match="has 100 embeddings"):
        check_base(recipe, LlamaConfig(vocab_size=100), tokenizer)
    example = Example(Row("a", "", ""), [1, 9999], [])
    with pytest.raises(InputError, match="question a: the token .* has id 9999"):
        check_ids([example], LlamaConfig(vocab_size=size), tokenizer)


def test_examples_longer_than_max_length_are_skipped(capsys):
    recipe = make_recipe({"max_length": 20, "max_new_tokens": 4}, "test")
    short, long = (Example(Row(str(n), "", ""), [1] * 10, [1] * n) for n in (10, 11))
    assert drop_too_long(recipe, [short, long]) == [short]
    assert "1 questions are skipped" in capsys.readouterr().out
    with pytest.raises(InputError, match="every answer is too long"):
        drop_too_long(recipe, [long])


def test_an_answer_lost_to_truncation_is_detected():
    row = Row("a", "앞 가나다 뒤", "?", ("뒤",))
    assert loses_answer(Example(row, [1], [], trimmed=2, context="앞 가나다"))
    assert not loses_answer(Example(row, [1], [], trimmed=2, context="다 뒤"))
    assert not loses_answer(Example(Row("a", "앞", "?", ("없음",)), [1], [], trimmed=1, context=""))
