"""Check the data before training: contradictions, missing answers, leaks, near-duplicates."""

from collections import defaultdict

from dandap.data.near_duplicates import forget_signatures, group_near_copies
from dandap.data.rows import Row
from dandap.data.text import bare

FINDINGS = {
    "contradictions": "questions asked twice on one article with different answers",
    "not_in_article": "answers that are not in their article as written",
    "shared_articles": "articles that are in more than one of train, validation and test",
    "near_duplicates": "groups of articles that are nearly the same",
}
Finding = dict


def check_data(splits: dict[str, list[Row]]) -> dict[str, list[Finding]]:
    """Return the findings by kind (FINDINGS), for the rows of train, validation and test.

    Test rows may have no answers. Choices need not be in their article.
    """
    rows = [row for split in splits.values() for row in split]
    return {
        "contradictions": _contradictions(rows),
        "not_in_article": [
            {"ids": [row.id], "question": row.question, "answers": list(row.answers)}
            for row in rows
            if row.context and row.answers and not row.choices
            # Commas and spaces included: a grounded answer is copied letter for letter.
            if not any(answer in row.context for answer in row.answers)
        ],
        "shared_articles": _shared_articles(splits),
        "near_duplicates": _near_duplicates(splits),
    }


def finding_lines(findings: dict[str, list[Finding]]) -> list[str]:
    """Return a line for each kind that was found, with the first ids."""
    return [
        f"{len(found)} {FINDINGS[name]}, first {', '.join(found[0]['ids'][:2])}"
        for name, found in findings.items()
        if found
    ]


def _contradictions(rows: list[Row]) -> list[Finding]:
    asked: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.answers and not row.choices:  # a letter means another text in every row
            asked[row.article, bare(row.question).rstrip("?")].append(row)
    return [
        {
            "ids": [row.id for row in same],
            "question": same[0].question,
            "answers": [row.answers[0] for row in same],
        }
        for same in asked.values()
        # One common answer is enough: the others may be other wordings.
        if not set.intersection(*({bare(answer) for answer in row.answers} for row in same))
    ]


def _shared_articles(splits: dict[str, list[Row]]) -> list[Finding]:
    first: dict[str, dict[str, str]] = defaultdict(dict)  # content -> split -> its first id
    for split, rows in splits.items():
        for row in rows:
            if row.context or row.group:
                first[row.content_hash].setdefault(split, row.id)
    return [
        {"ids": list(ids.values()), "splits": list(ids)} for ids in first.values() if len(ids) > 1
    ]


def _near_duplicates(splits: dict[str, list[Row]]) -> list[Finding]:
    """Return groups of different texts that are nearly the same, sorted by their first id."""
    names = list(splits)
    # Backwards, so that an article is listed with its first row: one that is trained on, if any.
    first = {
        row.article: (number, row)
        for number, name in reversed(list(enumerate(names)))
        for row in reversed(splits[name])
        if row.context
    }
    groups = group_near_copies({article: row.context for article, (_, row) in first.items()})
    forget_signatures()  # the split has asked for the same articles before; nobody asks again
    found = []
    for group in groups:
        members = sorted((number, row.id) for number, row in map(first.__getitem__, group))
        found.append(
            {"ids": [i for _, i in members], "splits": [names[number] for number, _ in members]}
        )
    return sorted(found, key=lambda each: each["ids"])
