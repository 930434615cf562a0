"""Helpers shared by several test modules."""

from dandap.data.encode import Encoder
from tasks import get_task


def make_encoder(recipe, template, tokenizer):
    """Return the encoder of a recipe's task."""
    return Encoder(tokenizer, template, get_task(recipe.task).sample)
