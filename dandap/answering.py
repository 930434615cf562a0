"""How a recipe's answers come about: trees where the model can branch, generate where it cannot; samples, spans, choices."""

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass

from transformers import PreTrainedModel

from dandap.decoding import answer_examples, score_choices, why_no_tree
from dandap.encoding import Encoder, Example
from dandap.errors import InputError
from dandap.grounding import Grounding
from dandap.memory import READ_TOKENS
from dandap.recipe import Recipe
from dandap.reference import Answer, Decoding, generate_answers


@dataclass(frozen=True)
class Prediction:
    """An answer as text."""

    text: str
    token_ids: list[int]
    log_probability: float  # of a token, on average: how sure the model is
    stopped: bool  # False: cut at max_new_tokens
    span: tuple[int, int] | None  # its first place in the trimmed article, in characters; None if it stands nowhere
    choices: dict[str, float] | None = None  # log-probability of every choice, where there were choices


def predict(
    model: PreTrainedModel,
    encoder: Encoder,
    examples: list[Example],
    recipe: Recipe,
    tokens_per_batch: int,
    advance: Callable[[int], None] = lambda count: None,
    done: Container[int] = (),
) -> Iterator[tuple[int, list[Prediction]]]:
    """(index of the example, its answers: one, or as many as the recipe's samples) as batches finish, but for the `done`."""
    decoding = make_decoding(model, encoder, recipe)
    reason = check_answering(model, encoder, examples, recipe, decoding)
    if reason:
        print(f"reading the article for every question, by generate ({reason})")
        prompts = [example.prompt_ids for example in examples]
        answers = generate_answers(model, prompts, decoding, min(tokens_per_batch, READ_TOKENS), advance, done)
        yield from ((index, [_as_text(examples[index], answer, encoder.decode)]) for index, answer in answers)
    elif recipe.choices or any(example.row.choices for example in examples):
        yield from _choose(model, encoder, examples, recipe, decoding, tokens_per_batch, advance, done)
    else:
        grounding = Grounding(encoder.tokenizer, encoder.control_ids) if recipe.grounded else None
        text_of = grounding.text if grounding else encoder.decode
        for index, samples in answer_examples(model, examples, decoding, tokens_per_batch, grounding, advance, done):
            yield index, [_as_text(examples[index], answer, text_of) for answer in samples]


def make_decoding(model: PreTrainedModel, encoder: Encoder, recipe: Recipe) -> Decoding:
    """The recipe's way of decoding."""
    return Decoding(
        stop_ids=encoder.stop_ids(model.generation_config),
        pad_id=encoder.tokenizer.pad_token_id,
        max_new_tokens=recipe.max_new_tokens,
        samples=recipe.samples,
        temperature=recipe.temperature,
        seed=recipe.seed,
        beams=recipe.beams,
        repetition_penalty=recipe.repetition_penalty,
    )


def check_answering(
    model: PreTrainedModel, encoder: Encoder, examples: list[Example], recipe: Recipe, decoding: Decoding
) -> str | None:
    """Why articles will be read for every question, or None; InputError if the recipe asks for what cannot be had."""
    reason = f"beams={recipe.beams}" if recipe.beams > 1 else why_no_tree(model, decoding)
    if reason:
        _refuse_what_needs_trees(recipe, examples, reason)
    _encode_choices(encoder, examples[:1], recipe)
    return reason


def _refuse_what_needs_trees(recipe: Recipe, examples: list[Example], reason: str) -> None:
    asked = {
        "samples": recipe.samples > 1,
        "temperature": recipe.temperature > 0,
        "grounded": recipe.grounded,
        "choices": bool(recipe.choices) or any(example.row.choices for example in examples),
    }
    wanted = [name for name, is_wanted in asked.items() if is_wanted]
    if wanted:
        raise InputError(f"{', '.join(wanted)}: not with this model, whose prompts cannot branch ({reason}). Leave them out.")


def _as_text(example: Example, answer: Answer, text_of: Callable[[list[int]], str]) -> Prediction:
    text = text_of(answer.said)
    return Prediction(text, answer.token_ids, answer.log_probability, answer.stopped, place(text, example.context))


def place(text: str, context: str) -> tuple[int, int] | None:
    """Where a text first stands in the article, as [start, end) characters."""
    start = context.find(text) if text else -1
    return None if start < 0 else (start, start + len(text))


def _choose(
    model: PreTrainedModel,
    encoder: Encoder,
    examples: list[Example],
    recipe: Recipe,
    decoding: Decoding,
    tokens_per_batch: int,
    advance: Callable[[int], None],
    done: Container[int],
) -> Iterator[tuple[int, list[Prediction]]]:
    """The likeliest of the question's own choices, or of the recipe's."""
    choices = [_offered(example, recipe) for example in examples]
    ids = _encode_choices(encoder, examples, recipe)
    for index, scores in score_choices(model, examples, ids, decoding.pad_id, tokens_per_batch, advance, done):
        best = max(range(len(scores)), key=scores.__getitem__)
        text, said = choices[index][best], ids[index][best]
        span, compared = place(text, examples[index].context), dict(zip(choices[index], scores, strict=True))
        yield index, [Prediction(text, said, scores[best] / len(said), True, span, compared)]


def _offered(example: Example, recipe: Recipe) -> tuple[str, ...]:
    return example.row.choices or tuple(recipe.choices)


def _encode_choices(encoder: Encoder, examples: list[Example], recipe: Recipe) -> list[list[list[int]]]:
    """Token ids of every example's choices: whole, or as many of the first as tell them apart."""
    encoded = [
        [encoder.encode_answer(e.context, e.row, choice, e.prompt_ids) for choice in _offered(e, recipe)] for e in examples
    ]
    return encoded if recipe.choices_by == "whole" else [_beginnings(ids) for ids in encoded]


def _beginnings(ids: list[list[int]]) -> list[list[int]]:
    """The shortest beginnings, of the same length, that all differ: mostly of one token."""
    longest = max(map(len, ids), default=0)
    count = next((n for n in range(1, longest + 1) if len({tuple(choice[:n]) for choice in ids}) == len(ids)), longest)
    return [choice[:count] for choice in ids]
