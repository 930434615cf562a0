"""Recipes and options: all files in recipes/, inheritance, command line, errors and help."""

import pytest
import yaml

from dandap.cli import Parser, add_options, chosen_options, parse
from dandap.errors import InputError
from dandap.recipe import GROUPS, Recipe, load_recipe, make_recipe, named_recipes
from tasks import checked_template

RECIPES = named_recipes()


def options(*argv):
    parser = Parser()
    add_options(parser, "recipe options")
    return chosen_options(parse(parser, list(argv)))


def write(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    return str(tmp_path / "mine.yaml")


def test_every_recipe_loads_and_repeats_no_default():
    assert {"demo", "wolminji-eeve-10.8b", "eeve-10.8b", "dialogue"} < set(RECIPES)
    assert not {"ddp", "multi_node", "skypilot"} & set(RECIPES)
    for name, path in RECIPES.items():
        recipe = load_recipe(name, {})
        checked_template(recipe.template, recipe.task)
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
        parent = load_recipe(written.pop("extends"), {}) if "extends" in written else Recipe()
        for key, value in written.items():
            repeated = getattr(parent, key) == value and key not in ("model", "max_length")
            assert not repeated, f"{name}: {key}"


def test_a_recipe_extends_another(tmp_path):
    recipe = load_recipe(write(tmp_path, "extends: dialogue-01\nlora_r: 4\n"), {"lora_alpha": "8"})
    assert (recipe.lora_r, recipe.lora_alpha) == (4, 8)
    assert (recipe.template, recipe.epochs) == ("dialogue_term", 4)
    with pytest.raises(InputError, match="Did you mean 'dialogue'"):
        load_recipe(write(tmp_path, "extends: dialgue\n"), {})
    with pytest.raises(InputError, match="extends itself"):
        load_recipe(write(tmp_path, f"extends: {tmp_path}/mine.yaml\n"), {})


def test_the_command_line_overrides_the_file():
    argv = "--learning-rate 1e-4 --lora_target_modules q_proj,v_proj --columns context=본문"
    recipe = load_recipe("demo", options(*argv.split(), "--choices=예, 아니오"))
    assert recipe.learning_rate == 1e-4
    assert recipe.lora_target_modules == ["q_proj", "v_proj"]
    assert recipe.columns == {"context": "본문"}
    assert recipe.choices == ["예", "아니오"]
    assert recipe.model == "data/demo_model"


def test_an_unknown_key_suggests_a_similar_one():
    with pytest.raises(InputError, match="Did you mean 'max_length'"):
        make_recipe({"max_seq_length": 1}, "mine.yaml")
    with pytest.raises(InputError, match="Did you mean 'learning_rate'"):
        options("--learning_rat", "1")


def test_invalid_values_are_rejected():
    for field, value, expected in (
        ("lora_r", "0", "--lora_r: got '0', expected greater than or equal to 1"),
        ("lora_r", "9" * 5000, "--lora_r: got '9+...9+', expected an integer"),
        ("learning_rate", "fast", "--learning_rate: got 'fast', expected a valid number"),
        ("epochs", "inf", "expected 'auto' or a finite number"),
        ("quantization", "int8", "--quantization: got 'int8', expected 'nf4' or 'none'"),
        ("tokens_per_batch", "abc", "expected 'auto' or a valid integer"),
        ("evaluate_every", "0 steps", "--evaluate_every: got '0 steps', expected steps or epochs"),
        ("fold", "6/5", "--fold: got '6/5', expected a fold like 2/5"),
        ("model", "", "--model: got '', expected at least 1 character"),
        ("max_new_tokens", "4000", "leaves no room for a prompt"),
        ("columns", "본문", "expected NAME=COLUMN pairs"),
        ("lora_target_modules", "", "expected a valid string or at least 1 item"),
    ):
        with pytest.raises(InputError, match=expected):
            load_recipe(None, {field: value})
    for combined in ({"beams": "4", "choices": "가,나"}, {"choices": "가,나", "samples": "4"}):
        with pytest.raises(InputError, match="cannot be combined"):
            load_recipe(None, combined)
    assert load_recipe(None, {"grounded": "true", "samples": "4"}).samples == 4


def test_errors_name_the_file_or_the_option(tmp_path):
    path = write(tmp_path, "max_new_tokens: 4000\n")
    with pytest.raises(InputError, match=rf"^{path}: max_new_tokens .* leaves no room"):
        load_recipe(path, {"epochs": "3"})
    with pytest.raises(InputError, match="^max_new_tokens .* leaves no room"):
        load_recipe(path, {"max_length": "3000"})
    path = write(tmp_path, "learning_rat: 3\nlora_r: 0\nepochs: x\n7: 8\n")
    with pytest.raises(InputError) as error:
        load_recipe(path, {"epochs": "many"})
    lines = sorted(str(error.value).splitlines())
    expected = ("--epochs: got 'many'", "lora_r: got 0", "'7'", "Did you mean 'learning_rate'?")
    for line, part in zip(lines, expected, strict=True):
        assert part in line


def test_malformed_yaml_gives_a_short_error(tmp_path):
    for text in (
        *("a: [", "- 1", "\x00", "run_name: 2024-13-45", "extends: 5", "extends: [demo]"),
        *("epochs: !!int x", "run_name: !!timestamp x", "extends: " + "a" * 300),
        "a: &a [x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\n"
        "choices: [*b, *b, *b, *b, *b, *b, *b]\n",
        "epochs: [&a [*a]]\n",
    ):
        with pytest.raises(InputError) as error:
            load_recipe(write(tmp_path, text), {})
        assert len(str(error.value)) < 1500


def test_help_lists_every_option_with_values_default_and_description():
    parser = Parser()
    add_options(parser, "recipe options")
    printed = " ".join(parser.format_help().split())
    for name, field in Recipe.model_fields.items():
        assert field.description and "\n" not in field.description, name
        assert f"--{name} " in printed
    assert "--learning_rate X peak learning rate" in printed
    assert "--tokens_per_batch {auto,N} " in printed
    assert all(f"{group}: --" in printed for group in GROUPS.values())
    assert "(default: 0.0002)" in printed
    assert "--quantization {nf4,none} " in printed
    assert "--grounded {true,false} " in printed


def test_a_saved_recipe_reads_back(tmp_path):
    recipe = load_recipe("eeve-10.8b", {"columns": "context=본문"})
    assert load_recipe(write(tmp_path, recipe.to_yaml()), {}) == recipe
    assert load_recipe("tests/data/legacy/recipe.yaml", {}).run_name == "legacy"


def test_auto_epochs_give_about_110_steps():
    """At least one epoch, and at most three."""
    recipe = Recipe(questions_per_step=16)
    for questions, epochs in ((1, 3), (588, 3), (900, 2), (1755, 1), (33_716, 1)):
        assert recipe.epochs_for(questions) == epochs, questions
    assert Recipe(epochs=0.5).epochs_for(588) == 0.5
