"""`pytest -m hub`: every recipe's config and tokenizer, fetched from the Hugging Face hub; no weights. Not in CI."""

import pytest
import torch

from dandap.dataset import Row
from dandap.encoding import Encoder
from dandap.memory import empty_model, estimate_training
from dandap.model import load_config, load_tokenizer, resolve_targets
from dandap.recipe import RECIPES_DIR, load_recipe
from prompts import get_template, render

pytestmark = pytest.mark.hub
RECIPES = sorted(path.stem for path in RECIPES_DIR.glob("**/*.yaml"))
ROW = Row("a", "한빛전자는 매출 1,240억 원을 기록했다. <|im_end|></s>", "매출은 얼마인가?", ("1,240억 원",))


@pytest.fixture(autouse=True)
def _online(monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.mark.parametrize("name", RECIPES)
def test_template_stop_token_and_targets(name):
    recipe = load_recipe(name, {})
    config, tokenizer = load_config(recipe), load_tokenizer(recipe)
    template = get_template(recipe.template)
    encoder = Encoder(tokenizer, lambda context, question: render(template, {"context": context, "question": question}))
    example = encoder.encode_rows([ROW], recipe.prompt_limit, answers=True)[0]
    assert example.answer_ids[-1] in encoder.stop_ids()
    assert encoder.decode(example.answer_ids) == ROW.answers[0]
    model = empty_model(config)
    assert resolve_targets(model, recipe.lora_target_modules)
    estimate = estimate_training(recipe, model, recipe.max_length, checkpointing=True, bytes_each=torch.bfloat16.itemsize)
    print(
        f"{name}: {estimate.parameters:,} parameters, {estimate}, stops at {tokenizer.convert_ids_to_tokens(encoder.stop_ids())}"
    )
