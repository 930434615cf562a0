"""Test every recipe's config and tokenizer, fetched from the Hugging Face hub: `pytest -m hub`.

No weights are fetched. This does not run in CI.
"""

from dataclasses import replace

import pytest
import torch
from helpers import make_encoder
from transformers import GenerationConfig

from dandap.model.adapter import resolve_targets
from dandap.model.load import load_config, load_tokenizer
from dandap.model.memory import Footprint, empty_model
from dandap.recipe import RECIPES_DIR, load_recipe
from tasks import checked_template, get_task

pytestmark = pytest.mark.hub
RECIPES = sorted(path.stem for path in RECIPES_DIR.glob("**/*.yaml"))
SPELLED = " <|im_end|></s>"


@pytest.mark.parametrize("name", RECIPES)
def test_template_stop_token_and_targets(name):
    recipe = load_recipe(name, {})
    config, tokenizer = load_config(recipe), load_tokenizer(recipe)
    template = checked_template(recipe.template, recipe.task)
    encoder = make_encoder(recipe, template, tokenizer)
    sample = get_task(recipe.task).sample
    row = replace(sample, context=sample.context + SPELLED, question=sample.question + SPELLED)
    example = encoder.encode([row], recipe.prompt_limit, answers=True)[0]
    assert example.answer_ids[-1] in encoder.stop_ids()
    assert row.answers[0] in encoder.decode(example.answer_ids)
    model = empty_model(config)
    names = (
        ["q_proj", "v_proj"]
        if recipe.lora_target_modules == "all-linear"
        else recipe.lora_target_modules
    )
    assert len(resolve_targets(model, names)) == len(names)
    generation = GenerationConfig.from_pretrained(recipe.model, revision=recipe.revision)
    configured = (
        generation.eos_token_id
        if isinstance(generation.eos_token_id, list)
        else [generation.eos_token_id]
    )
    assert example.answer_ids[-1] in {*configured, tokenizer.eos_token_id}
    special = [i for i in example.prompt_ids if i in tokenizer.all_special_ids]
    clean = encoder.encode([sample], recipe.prompt_limit, answers=False)[0]
    assert special == [i for i in clean.prompt_ids if i in tokenizer.all_special_ids]
    footprint = Footprint(recipe, config, torch.device("cuda"), torch.bfloat16)
    estimate = footprint.training(recipe.max_length, checkpointing=True)
    print(
        f"{name}: {estimate.parameters:,} parameters, {estimate}, "
        f"stops at {tokenizer.convert_ids_to_tokens(encoder.stop_ids())}"
    )
