"""Configs and tokenizers of all recipes, from the Hugging Face hub: `pytest -m hub`.

No weights are downloaded. CI does not run these tests.
"""

from dataclasses import replace

import pytest
import torch
from transformers import GenerationConfig

from dandap.data.encode import Encoder
from dandap.model.adapter import resolve_targets
from dandap.model.load import load_config, load_tokenizer
from dandap.model.memory import Footprint, empty_model
from dandap.recipe import load_recipe, named_recipes
from tasks import checked_template, get_task

pytestmark = pytest.mark.hub
RECIPES = list(named_recipes())
SPECIAL = " <|im_end|></s>"


@pytest.mark.parametrize("name", RECIPES)
def test_template_stop_token_and_lora_targets(name):
    recipe = load_recipe(name, {})
    config, tokenizer = load_config(recipe), load_tokenizer(recipe)
    sample = get_task(recipe.task).sample
    encoder = Encoder(tokenizer, checked_template(recipe.template, recipe.task), sample)
    row = replace(sample, context=sample.context + SPECIAL, question=sample.question + SPECIAL)
    (example,) = encoder.encode([row], recipe.prompt_limit, True, "trim")
    assert row.answers[0] in encoder.decode(example.answer_ids)
    generation = GenerationConfig.from_pretrained(recipe.model, revision=recipe.revision)
    stops = generation.eos_token_id
    stops = {*(stops if isinstance(stops, list) else [stops]), tokenizer.eos_token_id}
    assert example.answer_ids[-1] in stops.intersection(encoder.stop_ids())
    # Special tokens in a text are encoded as plain text.
    (clean,) = encoder.encode([sample], recipe.prompt_limit, False, "trim")
    special, expected = (
        [token for token in each.prompt_ids if token in tokenizer.all_special_ids]
        for each in (example, clean)
    )
    assert special == expected
    names = recipe.lora_target_modules
    names = ["q_proj", "v_proj"] if names == "all-linear" else names
    assert len(resolve_targets(empty_model(config), names)) == len(names)
    footprint = Footprint(recipe, config, torch.device("cuda"), torch.bfloat16)
    print(f"{name}: {footprint.training(recipe.max_length, checkpointing=True)}")
