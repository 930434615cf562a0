"""What is wrong with data before a model learns it: contradictions, answers that cannot be copied, leaks, near-duplicates."""

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import combinations

from dandap.dataset import Row

ALIKE = 0.8  # of the pieces of two articles, the share in both from which they count as nearly the same (Jaccard)
PIECE = 8  # characters of a piece
SKETCH = 8  # pieces by which candidates are found; two that are ALIKE miss each other once in 400,000 (0.2 ** 8)
COMMON = 200  # a piece in more articles than this says nothing (a reporter's line, a copyright)

TOLD = {
    "contradictions": "questions asked twice on one article with different answers",
    "not_in_article": "answers that do not stand in their article as written",
    "shared_articles": "articles that are in more than one of train, validation and test",
    "near_duplicates": "pairs of articles that are nearly the same",
}
Finding = dict


def check_data(splits: dict[str, list[Row]]) -> dict[str, list[Finding]]:
    """Findings by the names in TOLD, of rows by split (train, validation, test); test rows may have no answers."""
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
        if row.answers:
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
        if row.answers and not any(answer in row.context for answer in row.answers)
    ]


def _shared(splits: dict[str, list[Row]]) -> list[Finding]:
    first: dict[str, dict[str, str]] = defaultdict(dict)  # article -> split -> an id
    for split, rows in splits.items():
        for row in rows:
            first[row.article].setdefault(split, row.id)
    return [{"ids": list(where.values()), "splits": list(where)} for where in first.values() if len(where) > 1]


def _near_duplicates(splits: dict[str, list[Row]]) -> list[Finding]:
    """Pairs of different texts, most alike first: candidates share a least hash (Broder, 1997), then all pieces are compared."""
    articles = {row.article: (split, row) for split, rows in reversed(splits.items()) for row in reversed(rows)}
    pieces = {article: _pieces(row.context) for article, (_, row) in articles.items()}
    by_piece: dict[int, list[str]] = defaultdict(list)
    for article, hashes in pieces.items():
        for piece in sorted(hashes)[:SKETCH]:
            by_piece[piece].append(article)
    candidates = Counter(pair for same in by_piece.values() if len(same) <= COMMON for pair in combinations(sorted(same), 2))
    found = []
    for one, other in candidates:
        alike = len(pieces[one] & pieces[other]) / len(pieces[one] | pieces[other])
        if alike >= ALIKE:
            pair = [articles[one], articles[other]]
            found.append({"ids": [r.id for _, r in pair], "splits": [s for s, _ in pair], "alike": round(alike, 3)})
    return sorted(found, key=lambda finding: (-finding["alike"], finding["ids"]))


def _pieces(text: str) -> set[int]:
    """Hashes of all runs of PIECE characters, white space left out; a shorter text is one piece."""
    bare = _bare(text)
    return {zlib.crc32(bare[i : i + PIECE].encode()) for i in range(max(1, len(bare) - PIECE + 1))}
