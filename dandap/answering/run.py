"""A model opened for answering: base, adapter, tokenizer, and how its answers come about."""

from dataclasses import dataclass

from transformers import PretrainedConfig

from dandap.answering.answerer import Answerer
from dandap.data.encode import Encoder, Example
from dandap.model.adapter import for_answering, load_adapter
from dandap.model.device import pick_device
from dandap.model.identity import base_identity, same_base
from dandap.model.load import check_base, check_ids, load_base, load_config, load_tokenizer
from dandap.model.memory import make_plan, same_plan
from dandap.recipe import Recipe
from dandap.runs.folder import RunFolder
from tasks import get_task


@dataclass(frozen=True)
class OpenModel:
    """Holds what answers, the identity of its base, and the engine with its version.

    The versions of our own engine's packages are noted apart.
    """

    answerer: Answerer  # or what has its `encoder` and `answers`
    base: dict[str, str]
    config: PretrainedConfig
    engine: str = "ours"

    def check(self, examples: list[Example]) -> None:
        """Refuse token ids that the base has no embedding for."""
        check_ids(examples, self.config, self.answerer.encoder.tokenizer)


def open_model(
    recipe: Recipe,
    template: dict[str, str],
    run: RunFolder | None,
) -> OpenModel:
    """Load a run's model, or with no run the recipe's base alone."""
    # What can be refused without the weights is refused before they are loaded.
    config = load_config(recipe)
    plan = same_plan(make_plan(recipe, config, pick_device(), training=False))
    tokenizer = load_tokenizer(recipe, run.adapter if run else None)
    check_base(recipe, config, tokenizer)
    base = base_identity(recipe)
    # Only a warning: the adapter's tensors may still fit, and load_adapter refuses them if not.
    trained_on = run.environment().get("base", base) if run else base
    if not same_base(trained_on, base):
        print(
            f"WARNING: the base {recipe.model} is not the one that {run.path} was trained on; its "
            "answers will differ"
        )
    encoder = Encoder(tokenizer, template, get_task(recipe.task).sample)
    print(plan)
    model = load_base(recipe, plan.device, config, plan.dequantized)
    if run:
        model = load_adapter(model, run.adapter)
        # On a CPU the products are what takes the time.
        if plan.device.type == "cuda":
            model = for_answering(model, plan.merged)
    return OpenModel(Answerer(recipe, encoder, model, plan), base, config)
