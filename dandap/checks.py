"""What is wrong with data before a model learns it: contradictions, answers that cannot be copied, leaks, near-duplicates."""

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import combinations

from dandap.dataset import Row
from dandap.sentences import likeness

ALIKE = 0.8  # of the pieces of two articles, the share in both from which they count as nearly the same (Jaccard)
PIECE = 8  # characters of a piece
SKETCH, SHARED = 16, 8  # of the least hashes, those by which candidates are found: articles that are ALIKE share 13 on average
COMMON = 100  # a piece in more articles than this says nothing (a reporter's line, a copyright)

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
    return [f"{len(found)} {TOLD[name]}, first {', '.join(found[0]['ids'][:2])}" for name, found in findings.items() if found]


def _bare(text: str) -> str:
    return re.sub(r"\s+", "", text).casefold()


def _contradictions(rows: Iterable[Row]) -> list[Finding]:
    asked: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.answers and not row.choices:
            asked[row.article, _bare(row.question).rstrip("?")].append(row)
    return [
        {"ids": [row.id for row in same], "question": same[0].question, "answers": [row.answers[0] for row in same]}
        for same in asked.values()
        if not set.intersection(*({_bare(answer) for answer in row.answers} for row in same))
    ]


def _not_in_article(rows: Iterable[Row]) -> list[Finding]:
    return [
        {"ids": [row.id], "question": row.question, "answers": list(row.answers)}
        for row in rows
        if row.context and not row.choices and row.answers and not any(answer in row.context for answer in row.answers)
    ]


def _shared(splits: dict[str, list[Row]]) -> list[Finding]:
    first: dict[str, dict[str, str]] = defaultdict(dict)  # article -> split -> an id
    for split, rows in splits.items():
        for row in rows:
            first[row.article].setdefault(split, row.id)
    return [{"ids": list(where.values()), "splits": list(where)} for where in first.values() if len(where) > 1]


def _near_duplicates(splits: dict[str, list[Row]]) -> list[Finding]:
    """Groups of different texts: candidates share least hashes (Broder, 1997), then all pieces are compared."""
    articles = {row.article: (split, row) for split, rows in reversed(splits.items()) for row in reversed(rows) if row.context}
    pieces = {article: _pieces(row.context) for article, (_, row) in articles.items()}
    by_piece: dict[int, list[str]] = defaultdict(list)
    for article, hashes in pieces.items():
        for piece in sorted(hashes)[:SKETCH]:
            by_piece[piece].append(article)
    shared = Counter(pair for same in by_piece.values() if len(same) <= COMMON for pair in combinations(sorted(same), 2))
    group = {article: {article} for article in articles}
    for (one, other), count in shared.items():
        enough = min(SHARED, len(pieces[one]), len(pieces[other]))
        if count >= enough and group[one] is not group[other] and likeness(pieces[one], pieces[other]) >= ALIKE:
            group[one] |= group[other]
            for article in group[other]:
                group[article] = group[one]
    groups = {id(members): members for members in group.values() if len(members) > 1}
    return sorted((_group_finding(splits, articles, members) for members in groups.values()), key=lambda found: found["ids"])


def _group_finding(splits: dict[str, list[Row]], articles: dict[str, tuple[str, Row]], members: set[str]) -> Finding:
    found = sorted((list(splits).index(split), row.id) for split, row in (articles[article] for article in members))
    return {"ids": [name for _, name in found], "splits": [list(splits)[place] for place, _ in found]}


def _pieces(text: str) -> set[int]:
    """Hashes of all runs of PIECE characters, white space left out; a shorter text is one piece."""
    bare = _bare(text)
    return {zlib.crc32(bare[i : i + PIECE].encode()) for i in range(max(1, len(bare) - PIECE + 1))}
