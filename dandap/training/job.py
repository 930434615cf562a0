"""What a training run works on, in one object for the functions that share it."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from dandap.data.encode import Example
from dandap.model.memory import Plan
from dandap.recipe import Recipe


@dataclass(frozen=True)
class Job:
    """Holds a recipe, how it uses this machine, and the encoded questions that are trained on."""

    recipe: Recipe
    plan: Plan
    tokenizer: PreTrainedTokenizerBase
    examples: list[Example]
