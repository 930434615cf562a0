"""What does not fit is told before training or answering.

These are articles that are cut, answers that go with what is cut, and answers that are too long.
"""

from dandap.data.encode import Encoder, Example
from dandap.data.rows import by_article
from dandap.errors import InputError, short_list
from dandap.recipe import Recipe


def loses_answer(example: Example) -> bool:
    """Say whether the answer stands in the article, and no longer in what is left of it.

    From such an example the model would learn to invent.
    """
    row = example.row
    # A chosen answer is a letter, which the article need not hold.
    if not example.trimmed or row.choices:
        return False
    return any(a in row.context for a in row.answers) and not any(
        a in example.context for a in row.answers
    )


def tell_cut(recipe: Recipe, examples: list[Example]) -> None:
    """Print which questions have an article that is cut, and which lost their answer with it."""
    cut = [example.row.id for example in examples if example.trimmed]
    if cut:
        how = (
            "trimmed"
            if recipe.on_overflow == "trim"
            else "cut to the sentences nearest to its questions"
        )
        print(
            f"{len(cut)} questions have their article {how}, for max_length={recipe.max_length}: "
            f"{short_list(cut, 5, quoted=False)}"
        )
    lost = [example.row.id for example in examples if loses_answer(example)]
    if lost:
        # Selecting keeps the sentences nearest to the questions already; then only room helps.
        way_out = (
            "a larger --max_length"
            if recipe.on_overflow == "select"
            else "--on_overflow select, or a larger --max_length"
        )
        print(
            f"WARNING: {len(lost)} of {len(examples):,} answers are no longer in what is left of "
            f"their article, which teaches to invent; the way out: {way_out}: "
            f"{short_list(lost, 5, quoted=False)}"
        )


def tell_lengths(recipe: Recipe, examples: list[Example]) -> None:
    """Print token counts, what was trimmed, and which answers inference could not finish."""
    lengths = [len(example.prompt_ids) + len(example.answer_ids) for example in examples]
    mean = sum(lengths) / len(lengths)
    print(
        f"{len(examples):,} training examples, {sum(lengths):,} tokens (mean {mean:.0f}, longest "
        f"{max(lengths)})"
    )
    tell_cut(recipe, examples)
    # They are trained on, but inference stops after max_new_tokens, in the middle of them.
    long_answers = [
        example.row.id for example in examples if len(example.answer_ids) > recipe.max_new_tokens
    ]
    if long_answers:
        print(
            f"{len(long_answers)} answers have more than max_new_tokens={recipe.max_new_tokens} "
            f"tokens: {short_list(long_answers, 5, quoted=False)}"
        )


def without_too_long(recipe: Recipe, examples: list[Example]) -> list[Example]:
    """Return the examples of at most max_length tokens; the memory plan counts on no longer ones.

    Those that are left out are printed; InputError if none is left. A prompt leaves room for
    max_new_tokens, so these have answers that inference could not finish either.
    """
    kept, long = [], []
    for example in examples:
        fits = len(example.prompt_ids) + len(example.answer_ids) <= recipe.max_length
        (kept if fits else long).append(example)
    if long:
        longest = max(len(example.answer_ids) for example in long)
        print(
            f"{len(long)} questions are left out of training: with their answers (up to "
            f"{longest:,} tokens) they take more than max_length={recipe.max_length}: "
            f"{short_list([example.row.id for example in long], 5, quoted=False)}"
        )
    if not kept:
        raise InputError(
            f"every answer is too long for max_length={recipe.max_length}. Raise max_length."
        )
    return kept


def preview(encoder: Encoder, example: Example) -> None:
    """Print one example as the model sees it: its prompt, then its supervised tokens one by one."""
    tokens = encoder.tokenizer.convert_ids_to_tokens
    counts = f"{len(example.prompt_ids)} prompt tokens, {len(example.answer_ids)} answer tokens"
    print(f"\n--- example {example.row.id}: {counts}, {example.trimmed} characters trimmed")
    print(encoder.tokenizer.decode(list(example.prompt_ids)))
    print("--- answer tokens (the only ones in the loss; the last one stops generation)")
    # Both forms, because a vocabulary spells its tokens its own way, with spaces marked.
    for token_id, token in zip(example.answer_ids, tokens(example.answer_ids), strict=True):
        print(f"  {token_id:>7}  {token!r}  {encoder.tokenizer.decode([token_id])!r}")


def answer_share(examples: list[Example]) -> float:
    """Return the answers' share of the tokens of the article that has most of them.

    A batch may be this article alone. Its prompts count as the longest of them, which is nearly all
    that is read of them.
    """
    largest = 0.0
    for article in by_article(example.row.article for example in examples):
        members = [examples[index] for index in article]
        answers = sum(len(example.answer_ids) for example in members)
        read = max(len(example.prompt_ids) for example in members) + answers
        largest = max(largest, answers / read)
    return largest
