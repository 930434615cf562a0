"""What is wrong with data before a model learns it: contradictions, answers that cannot be copied, leaks, near-duplicates."""

from collections import defaultdict
from collections.abc import Iterable

from dandap.data.near_copies import group_near_copies
from dandap.data.rows import Row
from dandap.data.texts import bare

TOLD = {
    "contradictions": "questions asked twice on one article with different answers",
    "not_in_article": "answers that do not stand in their article as written",
    "shared_articles": "articles that are in more than one of train, validation and test",
    "near_duplicates": "groups of articles that are nearly the same",
}
Finding = dict


def check_data(splits: dict[str, list[Row]]) -> dict[str, list[Finding]]:
    """Findings by the names in TOLD, of rows by split (train, validation, test); test rows may have no answers.

    Choices need not stand in their article, and what has no article is not compared.
    """
    rows = [row for split in splits.values() for row in split]
    return {
        "contradictions": _contradictions(rows),
        "not_in_article": _not_in_article(rows),
        "shared_articles": _shared(splits),
        "near_duplicates": _near_duplicates(splits),
    }


def tell_findings(findings: dict[str, list[Finding]]) -> list[str]:
    """A line per kind of finding that there is, with the first ids."""
    return [
        f"{len(found)} {TOLD[name]}, first {', '.join(found[0]['ids'][:2])}"
        for name, found in findings.items()
        if found
    ]


def _contradictions(rows: Iterable[Row]) -> list[Finding]:
    asked: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.answers and not row.choices:
            asked[row.article, bare(row.question).rstrip("?")].append(row)
    return [
        {
            "ids": [row.id for row in same],
            "question": same[0].question,
            "answers": [row.answers[0] for row in same],
        }
        for same in asked.values()
        if not set.intersection(*({bare(answer) for answer in row.answers} for row in same))
    ]


def _not_in_article(rows: Iterable[Row]) -> list[Finding]:
    return [
        {"ids": [row.id], "question": row.question, "answers": list(row.answers)}
        for row in rows
        if row.context
        and not row.choices
        and row.answers
        and not any(answer in row.context for answer in row.answers)
    ]


def _shared(splits: dict[str, list[Row]]) -> list[Finding]:
    first: dict[str, dict[str, str]] = defaultdict(dict)  # story -> split -> an id
    for split, rows in splits.items():
        for row in rows:
            if row.context or row.group:
                first[row.story].setdefault(split, row.id)
    return [
        {"ids": list(where.values()), "splits": list(where)}
        for where in first.values()
        if len(where) > 1
    ]


def _near_duplicates(splits: dict[str, list[Row]]) -> list[Finding]:
    """Groups of different texts that are nearly the same."""
    articles = {
        row.article: (split, row)
        for split, rows in reversed(splits.items())
        for row in reversed(rows)
        if row.context
    }
    groups = group_near_copies({article: row.context for article, (_, row) in articles.items()})
    return sorted(
        (_group_finding(splits, articles, members) for members in groups),
        key=lambda found: found["ids"],
    )


def _group_finding(
    splits: dict[str, list[Row]], articles: dict[str, tuple[str, Row]], members: set[str]
) -> Finding:
    found = sorted(
        (list(splits).index(split), row.id)
        for split, row in (articles[article] for article in members)
    )
    return {
        "ids": [name for _, name in found],
        "splits": [list(splits)[place] for place, _ in found],
    }
