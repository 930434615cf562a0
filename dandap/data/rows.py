"""Rows (one question each), and their split by article into training and validation."""

import hashlib
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from dandap.data.near_duplicates import group_near_duplicates
from dandap.data.text import comparable, trim
from dandap.errors import InputError, short_list


@dataclass(frozen=True, slots=True)  # slots: 96 bytes per row instead of 144
class Row:
    """One question with its gold answers; the first one is trained on."""

    id: str  # unchanged from the file, for the submission
    context: str
    question: str
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()  # the answers to choose from; none: any text
    # More texts for a task's templates; not hashed.
    fields: Mapping[str, str] = field(default_factory=dict, hash=False)
    group: str = ""  # groups rows that have no article

    @property
    def article(self) -> str:
        """Return the hash of the article's text without surrounding white space."""
        return _hash(self.group or self.context.strip())

    @property
    def content_hash(self) -> str:
        """Return the hash of the article's text without white space and invisible characters."""
        return _hash(self.group or comparable(self.context))


def template_fields(row: Row, context: str, answer: str) -> dict[str, str]:
    """Return the template fields of a row; `answer_text` is the text of the answer's letter."""
    fields = {"context": context, "question": row.question, "answer": answer, **row.fields}
    if row.choices:
        fields["answer_text"] = row.fields.get(f"option_{answer}", "")
    return fields


# An article's questions follow one another, so a small cache hashes each text once.
@lru_cache(maxsize=1024)
def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Table:
    """A file's rows."""

    path: Path
    rows: list[Row]
    sha256: str  # of the file's bytes
    notes: list[str]  # sentences about skipped and normalized rows


class Answers(NamedTuple):
    """Questions and their answers in the same order; records are lines of predictions.jsonl."""

    rows: list[Row]
    records: list[dict]

    @property
    def predictions(self) -> list[str]:
        """Return the text of each answer."""
        return [record["prediction"] for record in self.records]


def join(tables: list[Table]) -> Table:
    """Concatenate the tables of several files."""
    rows = [row for table in tables for row in table.rows]
    reject_duplicate_ids(rows, Path(short_list(table.path for table in tables)))
    sha256 = hashlib.sha256("".join(table.sha256 for table in tables).encode()).hexdigest()
    path = Path(",".join(str(table.path) for table in tables))
    return Table(path, rows, sha256, [note for table in tables for note in table.notes])


def reject_duplicate_ids(rows: list[Row], path: Path) -> None:
    """Reject duplicate ids."""
    repeated = [name for name, count in Counter(row.id for row in rows).items() if count > 1]
    if repeated:
        names = short_list(repeated, 5)
        raise InputError(f"{path} has {len(repeated)} duplicate ids: {names}. Rename them.")


def match_ids(wanted: Collection[str], found: Iterable[str]) -> Callable[[str], str | None]:
    """Return a function that returns the name in `found` that matches a wanted name, or None.

    Names match if they differ only in surrounding white space and Unicode composition, unless that
    is ambiguous.
    """

    def key(name: str) -> str:
        return unicodedata.normalize("NFC", trim(name))

    found = list(found)
    exact, by_key = set(found), {key(name): name for name in found}
    if len(by_key) < len(found) or len(set(map(key, wanted))) < len(set(wanted)):
        by_key = {}
    return lambda name: name if name in exact else by_key.get(key(name))


def by_article(articles: Iterable[str]) -> list[list[int]]:
    """Group the indices of equal articles, in order of first occurrence."""
    groups: dict[str, list[int]] = {}
    for index, article in enumerate(articles):
        groups.setdefault(article, []).append(index)
    return list(groups.values())


def split_by_article(
    rows: list[Row], fraction: float, fold: str | None = None
) -> tuple[list[Row], list[Row]]:
    """Split rows into (train, validation) by article; near duplicates stay on one side.

    Articles are selected by a hash of their text, independent of seed, recipe and row order. A
    fraction above 0 selects at least one article, and at most twice its share. A fold "2/5" selects
    the second of five equal parts instead.
    """
    if fraction == 0 and fold is None:
        return list(rows), []
    family = article_groups(rows)
    names = sorted(set(family.values()))
    if fold:
        part, parts = map(int, fold.split("/"))
        if len(names) < parts:
            raise InputError(f"got {len(names)} article(s) for {parts} folds. Use fewer folds.")
        chosen = set(names[part - 1 :: parts])
    else:
        # Hashes are uniform in [0, 1), unless the file was selected by them (benchmarks.take): the
        # limit of twice the share covers that.
        below = [name for name in names if int(name, 16) / 16**16 < fraction]
        chosen = set(below[: math.ceil(2 * fraction * len(names))]) or {names[0]}
    validation = [row for row in rows if family[row.article] in chosen]
    train = [row for row in rows if family[row.article] not in chosen]
    if not train:
        got = f"got {len(names)} article(s): nothing is left to train on"
        raise InputError(f"{got}. Add some, or set validation_fraction 0.")
    return train, validation


def article_groups(rows: list[Row]) -> dict[str, str]:
    """Map each article to the name of its group of copies and near duplicates.

    Rows without an article are copies if their questions are equal.
    """
    parent = {row.article: row.article for row in rows}  # union-find

    def root(article: str) -> str:
        while parent[article] != article:
            parent[article] = article = parent[parent[article]]
        return article

    first: dict[tuple[str, ...], str] = {}  # shared property -> the first article that has it

    def link(article: str, kind: str, value: str) -> None:
        parent[root(article)] = root(first.setdefault((kind, value), article))

    for row in rows:
        link(row.article, "content", row.content_hash)
        if not row.context:
            link(row.article, "question", comparable(row.question))
    texts = {row.content_hash: row.context for row in rows if row.context and not row.group}
    for group in group_near_duplicates(texts):
        for content in group:
            link(first["content", content], "group", min(group))
    names: dict[str, str] = {}
    articles = list(parent)
    for same in by_article(map(root, articles)):
        members = [articles[index] for index in same]
        # Hash the minimum again: the minimum of many hashes is small, and would be selected.
        names |= dict.fromkeys(members, members[0] if len(members) == 1 else _hash(min(members)))
    return names
