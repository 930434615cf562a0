"""Data are checked here before a model learns them.

Found are contradictions, answers that cannot be copied, leaks between splits and near-duplicates.
"""

from collections import defaultdict
from collections.abc import Iterable

from dandap.data.near_duplicates import forget_signatures, group_near_copies
from dandap.data.rows import Row
from dandap.data.text import bare

TOLD = {
    "contradictions": "questions asked twice on one article with different answers",
    "not_in_article": "answers that do not stand in their article as written",
    "shared_articles": "articles that are in more than one of train, validation and test",
    "near_duplicates": "groups of articles that are nearly the same",
}
Finding = dict


def check_data(splits: dict[str, list[Row]]) -> dict[str, list[Finding]]:
    """Return the findings by the names in TOLD, for rows by split (train, validation, test).

    Test rows may have no answers. Choices need not stand in their article, and what has no article
    is not compared.
    """
    rows = [row for split in splits.values() for row in split]
    return {
        "contradictions": _contradictions(rows),
        "not_in_article": _not_in_article(rows),
        "shared_articles": _shared(splits),
        "near_duplicates": _near_duplicates(splits),
    }


def tell_findings(findings: dict[str, list[Finding]]) -> list[str]:
    """Return a line for each kind of finding that there is, with the first ids."""
    return [
        f"{len(found)} {TOLD[name]}, first {', '.join(found[0]['ids'][:2])}"
        for name, found in findings.items()
        if found
    ]


def _contradictions(rows: Iterable[Row]) -> list[Finding]:
    asked: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        # A chosen answer is a letter, which stands for another text in every row.
        if row.answers and not row.choices:
            asked[row.article, bare(row.question).rstrip("?")].append(row)
    found = []
    for same in asked.values():
        # One gold answer that all the rows have is enough: the others may be other wordings.
        golds = [{bare(answer) for answer in row.answers} for row in same]
        if set.intersection(*golds):
            continue
        found.append(
            {
                "ids": [row.id for row in same],
                "question": same[0].question,
                "answers": [row.answers[0] for row in same],
            }
        )
    return found


def _not_in_article(rows: Iterable[Row]) -> list[Finding]:
    found = []
    for row in rows:
        if not row.context or row.choices or not row.answers:
            continue
        # As written, commas and spaces included: a grounded answer is copied letter for letter.
        if not any(answer in row.context for answer in row.answers):
            found.append({"ids": [row.id], "question": row.question, "answers": list(row.answers)})
    return found


def _shared(splits: dict[str, list[Row]]) -> list[Finding]:
    first: dict[str, dict[str, str]] = defaultdict(dict)  # story -> split -> its first row's id
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
    """Return the groups of different texts that are nearly the same."""
    # Backwards, so that an article in several rows stands under the first one's split and id.
    articles = {
        row.article: (split, row)
        for split, rows in reversed(splits.items())
        for row in reversed(rows)
        if row.context
    }
    groups = group_near_copies({article: row.context for article, (_, row) in articles.items()})
    # The split has asked for the same articles before; nobody asks again.
    forget_signatures()
    return sorted(
        (_group_finding(splits, articles, members) for members in groups),
        key=lambda found: found["ids"],
    )


def _group_finding(
    splits: dict[str, list[Row]], articles: dict[str, tuple[str, Row]], members: set[str]
) -> Finding:
    # By the order of the splits, so that a group's first id is one that is trained on, if any is.
    found = sorted(
        (list(splits).index(split), row.id)
        for split, row in (articles[article] for article in members)
    )
    return {
        "ids": [name for _, name in found],
        "splits": [list(splits)[place] for place, _ in found],
    }
