"""Check the data before training: contradictions, leaks, near duplicates, cut articles."""

from collections import defaultdict

from dandap.data.encode import Encoder, Example
from dandap.data.near_duplicates import group_near_duplicates, signature
from dandap.data.rows import Row, by_article
from dandap.data.text import comparable
from dandap.errors import InputError, short_list
from dandap.recipe import Recipe

FINDINGS = {
    "contradictions": "repeated questions with different answers",
    "not_in_article": "answers that are not literally in their article",
    "shared_articles": "articles in more than one of train, validation and test",
    "near_duplicates": "groups of nearly identical articles",
}


def check_data(splits: dict[str, list[Row]]) -> dict[str, list[dict]]:
    """Return the findings by kind (FINDINGS), for the rows of train, validation and test.

    Test rows may have no answers. Choices need not be in their article.
    """
    answered = [row for rows in splits.values() for row in rows if row.answers and not row.choices]
    asked: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in answered:
        asked[row.article, comparable(row.question).rstrip("?")].append(row)
    contradictions = []
    for same in asked.values():
        # One common answer is enough; others may be paraphrases.
        if not set.intersection(*({comparable(answer) for answer in row.answers} for row in same)):
            ids, answers = [row.id for row in same], [row.answers[0] for row in same]
            contradictions.append({"ids": ids, "question": same[0].question, "answers": answers})
    not_in_article = [
        {"ids": [row.id], "question": row.question, "answers": list(row.answers)}
        for row in answered
        # Exact match with commas and spaces, as in grounded answers.
        if row.context and not any(answer in row.context for answer in row.answers)
    ]
    first: dict[str, dict[str, str]] = defaultdict(dict)  # content -> split -> its first id
    for split, rows in splits.items():
        for row in rows:
            if row.context or row.group:
                first[row.content_hash].setdefault(split, row.id)
    shared = [ids for ids in first.values() if len(ids) > 1]
    return {
        "contradictions": contradictions,
        "not_in_article": not_in_article,
        "shared_articles": [{"ids": list(ids.values()), "splits": list(ids)} for ids in shared],
        "near_duplicates": _near_duplicates(splits),
    }


def finding_lines(findings: dict[str, list[dict]]) -> list[str]:
    """Return a line per kind of finding, with the first ids."""
    return [
        f"{len(found)} {FINDINGS[name]}, first {', '.join(found[0]['ids'][:2])}"
        for name, found in findings.items()
        if found
    ]


def _near_duplicates(splits: dict[str, list[Row]]) -> list[dict]:
    first: dict[str, tuple[int, str]] = {}  # article -> its first row
    texts = {}
    for number, rows in enumerate(splits.values()):
        for row in rows:
            if row.context and row.article not in first:
                first[row.article], texts[row.article] = (number, row.id), row.context
    found, names = [], list(splits)
    for group in group_near_duplicates(texts):
        numbers, ids = zip(*sorted(first[article] for article in group), strict=True)
        found.append({"ids": list(ids), "splits": [names[number] for number in numbers]})
    signature.cache_clear()  # the split computed them; this is their last use
    return sorted(found, key=lambda each: each["ids"])


def loses_answer(example: Example) -> bool:
    """Return whether shortening the article removed the answer."""
    row = example.row
    if not example.trimmed or row.choices:  # choices are letters
        return False
    whole, left = ({a for a in row.answers if a in text} for text in (row.context, example.context))
    return bool(whole) and not left


def report_cut(recipe: Recipe, examples: list[Example]) -> None:
    """Print the questions whose article was shortened, and those that lost their answer."""
    cut = [example for example in examples if example.trimmed]
    if cut:
        how = "trimmed" if recipe.on_overflow == "trim" else "cut to the most similar sentences"
        limit = f"max_length={recipe.max_length}"
        print(f"{len(cut)} questions have their article {how} ({limit}): {_ids(cut)}")
    lost = list(filter(loses_answer, cut))
    if lost:
        # With select, only a larger max_length helps.
        select = "" if recipe.on_overflow == "select" else "--on_overflow select, or "
        print(
            f"WARNING: {len(lost)} of {len(examples):,} answers are missing from their shortened "
            f"article, which teaches hallucination. Use {select}a larger --max_length: {_ids(lost)}"
        )


def report_lengths(recipe: Recipe, examples: list[Example]) -> None:
    """Print token counts, shortened articles, and answers longer than max_new_tokens."""
    lengths = [len(example.prompt_ids) + len(example.answer_ids) for example in examples]
    mean = f"mean {sum(lengths) / len(lengths):.0f}, longest {max(lengths)}"
    print(f"{len(examples):,} training examples, {sum(lengths):,} tokens ({mean})")
    report_cut(recipe, examples)
    long = [each for each in examples if len(each.answer_ids) > recipe.max_new_tokens]
    if long:
        limit = f"max_new_tokens={recipe.max_new_tokens} and will be cut"
        print(f"{len(long)} answers are longer than {limit}: {_ids(long)}")


def drop_too_long(recipe: Recipe, examples: list[Example]) -> list[Example]:
    """Return the examples of at most max_length tokens; report the others.

    Raise InputError if none is left. The memory plan relies on max_length.
    """
    most = recipe.max_length
    long = [each for each in examples if len(each.prompt_ids) + len(each.answer_ids) > most]
    if len(long) == len(examples):
        raise InputError(f"every answer is too long for max_length={most}. Raise max_length.")
    if long:
        longest = f"up to {max(len(each.answer_ids) for each in long):,} tokens"
        print(
            f"{len(long)} questions are skipped: with their answers ({longest}) they exceed "
            f"max_length={most}: {_ids(long)}"
        )
    return [each for each in examples if len(each.prompt_ids) + len(each.answer_ids) <= most]


def preview(encoder: Encoder, example: Example) -> None:
    """Print the prompt of one example, then its answer tokens."""
    counts = f"{len(example.prompt_ids)} prompt tokens, {len(example.answer_ids)} answer tokens"
    print(f"\n--- example {example.row.id}: {counts}, {example.trimmed} characters trimmed")
    print(encoder.tokenizer.decode(list(example.prompt_ids)))
    print("--- answer tokens (the only ones in the loss; the last one stops generation)")
    tokens = encoder.tokenizer.convert_ids_to_tokens(list(example.answer_ids))
    for token_id, token in zip(example.answer_ids, tokens, strict=True):
        print(f"  {token_id:>7}  {token!r}  {encoder.tokenizer.decode([token_id])!r}")


def answer_share(examples: list[Example]) -> float:
    """Return the largest share of answer tokens in any article's tree.

    The tree's prompt tokens are approximated by the longest prompt.
    """
    share = 0.0
    for article in by_article(example.row.article for example in examples):
        answers = sum(len(examples[index].answer_ids) for index in article)
        prompt = max(len(examples[index].prompt_ids) for index in article)
        share = max(share, answers / (prompt + answers))
    return share


def _ids(examples: list[Example]) -> str:
    return short_list((example.row.id for example in examples), 5, quoted=False)
