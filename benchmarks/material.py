"""Load the model (real or with random weights) and the questions (real or random)."""

import argparse
import random
import statistics
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

import prompts
from benchmarks.machine import random_model
from dandap.cli import Parser, positive
from dandap.data.encode import Encoder, Example
from dandap.data.read import read_questions
from dandap.data.rows import Row, by_article
from dandap.errors import InputError, did_you_mean
from dandap.model.device import pick_compute_dtype, pick_device
from dandap.model.load import load_base, load_config, load_tokenizer
from dandap.model.plans import NAMES, make_config
from dandap.recipe import Recipe, make_recipe
from tasks import get_task

GROWTH = (1, 2, 4, 8, 16)  # questions per article, for --growth
DEMO_MODEL, DEMO_DATA = "data/demo_model", "data/sample/train.csv"


def named_config(name: str) -> PretrainedConfig:
    """Return the model config for a short name; raise InputError for unknown names."""
    if name not in NAMES:
        known = ", ".join(NAMES)
        raise InputError(
            f"got {name!r}; expected a model folder or one of {known}.{did_you_mean(name, NAMES)}"
        )
    return make_config(NAMES[name])


def add_material_options(parser: Parser) -> None:
    """Add the options that select the model and the questions."""
    parser.add_argument(
        "--data",
        metavar="FILE",
        default=DEMO_DATA,
        help=f"questions with answers (default: {DEMO_DATA})",
    )
    shapes = ", ".join(NAMES)
    parser.add_argument(
        "--model",
        metavar="PATH|SHAPE",
        default=DEMO_MODEL,
        help=f"a model folder, or random weights for one of {shapes}",
    )
    parser.add_argument(
        "--questions",
        metavar="N",
        type=positive,
        default=320,
        help="questions per round (default: %(default)s)",
    )
    parser.add_argument(
        "--article",
        metavar="TOKENS",
        type=positive,
        help="use random articles of this length instead of --data",
    )
    parser.add_argument(
        "--questions_per_article",
        metavar="N",
        type=positive,
        default=5,
        help="with --article (default: 5)",
    )
    parser.add_argument(
        "--quantization",
        choices=["nf4", "none"],
        default="nf4",
        help="quantization of the base model (default: nf4)",
    )


def add_comparison_options(parser: Parser) -> None:
    """Add --rounds and --growth."""
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=positive,
        default=3,
        help="rounds; medians are reported (default: 3)",
    )
    parser.add_argument(
        "--growth", action="store_true", help="measure 1 to 16 questions per article"
    )


@dataclass
class Material:
    """A base model with its tokenizer, device and compute dtype."""

    recipe: Recipe
    device: torch.device
    dtype: torch.dtype
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    is_random: bool  # random weights


def load_material(arguments: argparse.Namespace, options: dict) -> Material:
    """Load the model, or build one with random weights."""
    device = pick_device()
    shaped = not Path(arguments.model).is_dir()
    # A model with random weights uses the demo's tokenizer.
    model = DEMO_MODEL if shaped else arguments.model
    recipe = make_recipe(
        {"model": model, "quantization": arguments.quantization, **options}, "the command line"
    )
    config = named_config(arguments.model) if shaped else load_config(recipe)
    dtype = pick_compute_dtype(recipe, device)
    base = random_model(config, recipe, device, dtype) if shaped else load_base(recipe, device)
    return Material(recipe, device, dtype, base, load_tokenizer(recipe), shaped)


def make_examples(
    arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, recipe: Recipe
) -> list[Example]:
    """Return --questions examples from whole articles in random order."""
    if arguments.article:
        return made_up(arguments.article, arguments.questions_per_article, arguments.questions)
    # A base model without a chat template needs a plain prompt.
    template = prompts.get_template(recipe.template if tokenizer.chat_template else "answer_bot")
    encoder = Encoder(tokenizer, template, get_task(recipe.task).sample)
    rows = read_questions(arguments.data, need_answers=True).rows
    order = by_article(row.article for row in rows)
    random.Random(0).shuffle(order)
    rows = [rows[index] for article in order for index in article][: arguments.questions]
    return encoder.encode(rows, recipe.prompt_limit, answers=True)


def made_up(article_tokens: int, questions_per_article: int, questions: int) -> list[Example]:
    """Return examples with random ids: 35 tokens per question, 5 per answer and a stop token."""
    rng = random.Random(0)
    # Ids within every vocabulary, including those of tiny models.
    draw = partial(rng.choices, range(10, 1900))
    examples = []
    while len(examples) < questions:
        article, name = draw(k=article_tokens), str(len(examples))
        examples += [
            Example(Row(f"{name}-{n}", name, "q"), article + draw(k=35), [*draw(k=5), 1])
            for n in range(questions_per_article)
        ]
    return examples[:questions]


@contextmanager
def counted_tokens(model):
    """Yield a list; its only entry counts the tokens passed to the embedding."""
    counted = [0]

    def count(module, inputs):
        counted[0] += inputs[0].numel()

    hook = model.get_input_embeddings().register_forward_pre_hook(count)
    try:
        yield counted
    finally:
        hook.remove()


def ratio(slow: list[float], fast: list[float]) -> float:
    """Return the median over rounds of the ratio of two methods' seconds."""
    # A ratio within one round cancels the load of other jobs on the machine.
    return round(statistics.median(s / f for s, f in zip(slow, fast, strict=True)), 3)
