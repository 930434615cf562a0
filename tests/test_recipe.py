"""Recipes and options: one declaration, clear refusals, every file under recipes/."""

import argparse
import re

import pytest
import torch
import yaml

from dandap.cli import Parser, add_options, chosen_options, parse
from dandap.errors import InputError, nearest
from dandap.model.memory import GB, Footprint
from dandap.model.shapes import SHAPES, make_config
from dandap.recipe import RECIPES_DIR, Recipe, load_recipe, make_recipe
from tasks import checked_template

RECIPES = sorted(path.stem for path in RECIPES_DIR.glob("*.yaml"))


def test_there_are_recipes():
    assert {
        "demo",
        "solar-10.7b-r8",
        "ko-gemma-2-9b",
        "eeve-10.8b",
        "nous-solar-10.7b",
        "kosolar-10.7b",
        "llama-2-ko-7b",
    } < set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_resolves(name):
    recipe = load_recipe(name, {})
    checked_template(recipe.template, recipe.task)
    written = yaml.safe_load((RECIPES_DIR / f"{name}.yaml").read_text(encoding="utf-8"))
    parent = load_recipe(written.pop("extends"), {}) if "extends" in written else Recipe()
    same = [
        key
        for key, value in written.items()
        if getattr(parent, key) == value and key not in ("model", "max_length")
    ]
    assert not same, (
        "a recipe holds only what differs from the defaults, or from the recipe it extends"
    )


def test_a_recipe_extends_another(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: dialogue-01\nlora_r: 4\n")
    recipe = load_recipe(str(tmp_path / "mine.yaml"), {"lora_alpha": "8"})
    assert (recipe.lora_r, recipe.lora_alpha, recipe.template, recipe.epochs) == (
        4,
        8,
        "dialogue_term",
        4,
    )
    (tmp_path / "lost.yaml").write_text("extends: dialgue\n")
    with pytest.raises(InputError, match="Did you mean 'dialogue'"):
        load_recipe(str(tmp_path / "lost.yaml"), {})


@pytest.mark.parametrize(
    "name", [name for name in RECIPES if load_recipe(name, {}).model in SHAPES]
)
def test_a_recipe_tells_its_source_and_that_it_never_ran(name):
    comment = (RECIPES_DIR / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"--recipe {name}" in comment
    if "\nextends: " in comment:  # what is told there need not be told again
        parent = yaml.safe_load(comment)["extends"]
        comment += (RECIPES_DIR / f"{parent}.yaml").read_text(encoding="utf-8")
    assert "Never run" in comment
    assert "icence" in comment or "Apache-2.0" in comment
    assert "per step" in comment
    assert "Source: " in comment
    recipe = load_recipe(name, {})
    config = make_config(SHAPES[recipe.model])
    footprint = Footprint(recipe, config, torch.device("cuda"), torch.bfloat16)
    least = footprint.training(recipe.max_length, checkpointing=True).total / GB
    assert f"Memory: about {least:.0f} GB at least" in comment


def test_published_values():
    """Cells of the published systems' table that transcription could lose."""
    solar = load_recipe("solar-10.7b-r8", {})
    assert (solar.lora_r, solar.lora_alpha, solar.lora_dropout, solar.max_length) == (
        8,
        16,
        0.1,
        512,
    )
    for name in ("ko-gemma-2-9b", "eeve-10.8b", "nous-solar-10.7b"):
        recipe = load_recipe(name, {})
        assert (recipe.lora_r, recipe.lora_alpha, recipe.questions_per_step, recipe.epochs) == (
            6,
            8,
            1,
            1,
        )
        assert (recipe.learning_rate, recipe.optim, recipe.compute_dtype) == (
            2e-4,
            "paged_adamw_32bit",
            "float16",
        )
        assert not recipe.double_quantization


def test_yaml_text_is_cast_by_the_declared_type(tmp_path):
    """PyYAML reads 1e-4 as a string."""
    path = tmp_path / "mine.yaml"
    path.write_text("learning_rate: 1e-4\nlora_r: 4\n")
    assert load_recipe(str(path), {}).learning_rate == 1e-4


def options(*argv):
    parser = Parser()
    add_options(parser, "recipe options")
    return chosen_options(parse(parser, list(argv)))


def test_the_command_line_wins_over_the_file():
    recipe = load_recipe(
        "demo",
        options(
            "--learning_rate",
            "1e-4",
            "--lora_target_modules",
            "q_proj,v_proj",
            "--columns",
            "context=본문",
        ),
    )
    assert recipe.learning_rate == 1e-4
    assert recipe.lora_target_modules == ["q_proj", "v_proj"]
    assert recipe.columns == {"context": "본문"}
    assert recipe.model == "data/demo_model"


def test_none_clears_an_option():
    assert (
        load_recipe(None, {"neftune_noise_alpha": "none", "quantization": "none"}).quantization
        == "none"
    )


@pytest.mark.parametrize(
    ("key", "right"),
    [
        ("model_name_or_path", "Here it is model."),
        ("base_model", "Here it is model."),
        ("num_train_epochs", "Here it is epochs."),
        ("max_seq_length", "Here it is max_length."),
        ("cutoff_len", "Here it is max_length."),
        ("sequence_len", "Here it is max_length."),
        ("lora_rank", "Here it is lora_r."),
        ("load_in_4bit", "Here it is quantization."),
        ("quantization_bit", "Here it is quantization."),
        ("per_device_train_batch_size", "Here it is questions_per_step"),
        ("gradient_accumulation_steps", "Here it is questions_per_step"),
        ("learning_rat", "Did you mean 'learning_rate'?"),
    ],
)
def test_an_unknown_key_is_told_the_right_one(key, right):
    with pytest.raises(InputError, match=right):
        make_recipe({key: 1}, "mine.yaml")
    with pytest.raises(InputError, match=right):
        options(f"--{key}", "1")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("lora_r", "0", "--lora_r: got '0', expected a number of at least 1"),
        ("lora_r", "1.5", "--lora_r: got '1.5', expected a whole number"),
        ("lora_r", "9" * 5000, "--lora_r: got '9+', expected a smaller number"),
        ("learning_rate", "-1", "--learning_rate: got '-1', expected a number above 0"),
        ("learning_rate", "fast", "--learning_rate: got 'fast', expected a number"),
        ("epochs", "inf", "expected a finite number"),
        ("quantization", "int8", "--quantization: got 'int8', expected one of 'nf4', 'none'"),
        ("validation_fraction", "1", "expected a number below 1"),
        ("grounded", "maybe", "expected true or false"),
        ("epochs", "-1", "expected a number above 0 "),
        ("tokens_per_batch", "abc", "got 'abc', expected auto or a whole number of at least 1 "),
        ("gradient_checkpointing", "abc", "expected auto, true or false"),
        ("model", "", "--model: got '', expected text"),
        ("max_new_tokens", "4000", "leaves no room for a prompt"),
        ("columns", "본문", "expected NAME=COLUMN pairs"),
        ("lora_target_modules", "", "expected names of modules"),
        ("tokens_per_batch", "0", "expected auto or a whole number of at least 1"),
        ("choices", " , ,", "expected answers with commas"),
    ],
)
def test_out_of_range_values(field, value, expected):
    with pytest.raises(InputError, match=expected):
        load_recipe(None, {field: value})


@pytest.mark.parametrize("field", Recipe.model_fields)
@pytest.mark.parametrize("value", ["", "~", "-1", [[]], {"a": []}])
def test_nonsense_is_told_in_one_line_of_our_words(field, value):
    try:
        load_recipe(None, {field: value})
    except InputError as error:
        told = str(error)
        assert "\n" not in told
        assert not re.search("[Ii]nput should|String should|[Vv]alid ", told), told


def test_a_fault_of_a_whole_recipe_names_its_file_unless_an_option_made_it(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("max_new_tokens: 4000\n")
    with pytest.raises(InputError, match=rf"^{path}: max_new_tokens .* leaves no room"):
        load_recipe(str(path), {"epochs": "3"})
    with pytest.raises(InputError, match="^max_new_tokens .* leaves no room"):
        load_recipe(str(path), {"max_length": "3000"})


def test_who_set_a_wrong_value_is_blamed(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("lora_r: 0\nepochs: x\n")
    with pytest.raises(InputError) as error:
        load_recipe(str(path), {"epochs": "many"})
    blamed = [problem.split(" got")[0] for problem in str(error.value).split("\n")]
    assert sorted(blamed) == ["--epochs:", f"{path}: lora_r:"]


@pytest.mark.parametrize("text", ["a: [", "- 1", "\x00"])
def test_broken_yaml(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"bad\.yaml"):
        load_recipe(str(path), {})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("질뭉", " Did you mean '질문'?"),
        ("기시", " Did you mean '기사'?"),
        ("questoin", " Did you mean 'question'?"),
        ("요약", ""),
    ],
)
def test_a_letter_of_a_short_name_may_be_wrong(name, hint):
    assert nearest(name, ["질문", "기사", "정답", "question"]) == hint


def test_unknown_keys_hide_no_wrong_values(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("learning_rat: 3\nepochs: many\nlora: 3\n")
    with pytest.raises(InputError) as told:
        load_recipe(str(file), {"lora_r": "x"})
    asked = ["'learning_rate'?", "'lora_r'?", "--lora_r: got 'x'", "epochs: got 'many'"]
    for line, part in zip(str(told.value).split("\n"), asked, strict=True):
        assert part in line


def test_an_unknown_recipe():
    with pytest.raises(InputError, match="Did you mean 'eeve-10.8b'"):
        load_recipe("eeve-10b", {})


def test_help_tells_every_option_with_its_default(capsys):
    parser = argparse.ArgumentParser()
    add_options(parser, "recipe options")
    printed = " ".join(parser.format_help().split())
    for name in Recipe.model_fields:
        assert f"--{name} VALUE" in printed
    assert "(default: 0.0002)" in printed


def test_a_saved_recipe_reads_back(tmp_path):
    recipe = load_recipe("eeve-10.8b", {"columns": "context=본문"})
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(str(path), {}) == recipe
