"""A row is one question, of whatever file; rows are told apart by id and split by article."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from dandap.data.near_duplicates import group_near_copies
from dandap.data.text import bare, id_key
from dandap.errors import InputError, short_list


# With slots: 96 bytes a row instead of 144, and there may be a million.
@dataclass(frozen=True, slots=True)
class Row:
    """Holds one question.

    `answers` are the gold ones, of which the first is trained on; a test file has none.
    """

    id: str  # as the file has it: it goes into the submission byte for byte
    context: str
    question: str
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()  # the answers to choose from; none: any text
    # What a task's templates may use besides. A dict has no hash, so rows are hashed without it.
    fields: Mapping[str, str] = field(default_factory=dict, hash=False)
    group: str = ""  # what belongs together where there is no article

    @property
    def article(self) -> str:
        """Return the article's name, a hash of its text.

        Rows with the same text share it, whatever file or order they come in.
        """
        return _hash(self.group) if self.group else _name_of_text(self.context)

    @property
    def story(self) -> str:
        """Return the name of what the article tells.

        It is the same for copies that differ in white space or invisible characters.
        """
        return _hash(self.group) if self.group else _name_of_story(self.context)


def template_fields(row: Row, context: str, answer: str) -> dict[str, str]:
    """Return the fields that a template may use for a row.

    `context` is the article, shortened where it was too long. For a chosen letter, `answer_text` is
    the text of that option (`option_A` of row.fields).
    """
    fields = {"context": context, "question": row.question, "answer": answer, **row.fields}
    if row.choices:
        fields["answer_text"] = row.fields.get(f"option_{answer}", "")
    return fields


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# An article's questions follow one another, so a few texts are enough to hash each once; a step's
# questions, which are shuffled, ask for theirs again.
@lru_cache(maxsize=1024)
def _name_of_text(context: str) -> str:
    return _hash(context.strip())


@lru_cache(maxsize=1024)
def _name_of_story(context: str) -> str:
    return _hash(bare(context))


@dataclass(frozen=True)
class Table:
    """Holds a file's rows and what reading it found out."""

    path: Path
    rows: list[Row]
    sha256: str  # of the file's bytes
    notes: list[str]  # what was dropped or decided, in sentences for people


class Answers(NamedTuple):
    """Holds questions and their answers in one order; records are lines of predictions.jsonl."""

    rows: Sequence[Row]
    records: Sequence[dict]

    @property
    def predictions(self) -> list[str]:
        """Return the answers' texts."""
        return [record["prediction"] for record in self.records]


def join(tables: list[Table]) -> Table:
    """Make one table of several files."""
    rows = [row for table in tables for row in table.rows]
    path = Path(",".join(str(table.path) for table in tables))
    refuse_duplicate_ids(rows, Path(short_list(table.path for table in tables)))
    together = hashlib.sha256("".join(table.sha256 for table in tables).encode()).hexdigest()
    return Table(path, rows, together, [note for table in tables for note in table.notes])


def refuse_duplicate_ids(rows: list[Row], path: Path) -> None:
    """Refuse ids that stand twice: answers are told apart by them."""
    repeated = [row_id for row_id, count in Counter(row.id for row in rows).items() if count > 1]
    if repeated:
        raise InputError(
            f"{path} has ids more than once ({len(repeated)}): {short_list(repeated, 5)}. Every "
            "question needs its own."
        )


def match_ids(wanted: Collection[str], found: Iterable[str]) -> Callable[[str], str | None]:
    """Return a function that finds the name for a wanted one, or None.

    It is the same name, or the same but for white space around it and composition.
    """
    found = list(found)
    exact, by_key = set(found), {id_key(name): name for name in found}
    if len(by_key) < len(found) or len({id_key(name) for name in wanted}) < len(set(wanted)):
        # Two ids that differ only so must not be taken for one another.
        by_key = {}

    def find(name: str) -> str | None:
        return name if name in exact else by_key.get(id_key(name))

    return find


def by_article(articles: Iterable[str]) -> list[list[int]]:
    """Return the indices of equal articles together, in the order in which they first come."""
    groups: dict[str, list[int]] = {}
    for index, article in enumerate(articles):
        groups.setdefault(article, []).append(index)
    return list(groups.values())


def split_by_article(
    rows: list[Row], fraction: float, fold: str | None = None
) -> tuple[list[Row], list[Row]]:
    """Split into (train, validation) with no article in both, nor copies or near copies of one.

    An article is chosen by a hash of its text, so it falls on the same side for every seed, recipe
    and row order; with few articles the one with the smallest hash is taken, so that a fraction
    above 0 always validates on something, and at most on twice its share. A fold ("2/5") holds out
    one of as many equal parts instead, in the order of the hashes.
    """
    if fraction == 0 and fold is None:
        return list(rows), []
    generated = [row for row in rows if row.fields.get("generated")]
    rows = [row for row in rows if not row.fields.get("generated")]
    if not rows:
        raise InputError(
            "every row is marked as generated, and those are never validated on: add real rows, or "
            "set validation_fraction 0."
        )
    family = families(rows)
    names = sorted(set(family.values()))
    chosen = _part_of(names, fold) if fold else _share_of(names, fraction)
    held = [row for row in rows if family[row.article] in chosen]
    # Rows that a tool has made are trained on, unless one that they were made of is measured on.
    held_out = {row.group for row in held}
    generated = [
        row for row in generated if not held_out & set(row.fields.get("sources", "").split())
    ]
    train = [row for row in rows if family[row.article] not in chosen] + generated
    if not train:
        raise InputError(
            f"got {len(names)} article(s) and validation_fraction {fraction}: nothing is left to "
            "train on. Add articles or set validation_fraction: 0."
        )
    return train, held


def _share_of(names: list[str], fraction: float) -> set[str]:
    """Return the names below a fraction: 16 hexadecimal digits are spread evenly from 0 to 1."""
    below = [name for name in names if int(name, 16) / 16**16 < fraction]
    # Not so where a file was itself chosen by these hashes, as benchmarks.take does: of its 100
    # articles of KorQuAD a tenth would have been 49, and a fifth all.
    most = math.ceil(2 * fraction * len(names))
    return set(below[:most]) or {names[0]}


def _part_of(names: list[str], fold: str) -> set[str]:
    """Return every n-th name, so that parts differ by one article at most."""
    part, parts = map(int, fold.split("/"))
    if len(names) < parts:
        raise InputError(
            f"got {len(names)} article(s) for {parts} folds; each needs one at least. "
            "Use fewer folds."
        )
    return set(names[part - 1 :: parts])


def _same_questions(rows: list[Row], family: dict[str, str]) -> dict[str, str]:
    """Return the families, joined where rows without an article ask the same question.

    Such rows are copies under other ids.
    """
    joined = dict(family)
    asked: dict[str, str] = {}  # question -> the family that asks it
    for row in rows:
        if row.context:
            continue
        mine, other = joined[row.story], asked.setdefault(bare(row.question), joined[row.story])
        # The whole family moves, in both maps: questions that were seen before may name it.
        if mine != other:
            joined |= {story: other for story, name in joined.items() if name == mine}
            asked |= {question: other for question, name in asked.items() if name == mine}
    return joined


def families(rows: list[Row]) -> dict[str, str]:
    """Map each row's article to the name of its family.

    It is the article's own name, or one shared by the article, its copies and its near copies.
    """
    articles: dict[str, set[str]] = {}  # story -> the articles that tell it
    for row in rows:
        articles.setdefault(row.story, set()).add(row.article)
    texts = {row.story: row.context for row in rows if row.context and not row.group}
    family = {story: story for story in articles}
    for group in group_near_copies(texts):
        family |= dict.fromkeys(group, min(group))
    family |= _same_questions(rows, family)
    members: dict[str, set[str]] = {}
    for story, name in family.items():
        members.setdefault(name, set()).update(articles[story])
    names = {}
    for same in members.values():
        # Not the smallest hash itself: the more copies, the smaller it would be, and the likelier
        # validation.
        name = min(same) if len(same) == 1 else _hash(min(same))
        names |= dict.fromkeys(same, name)
    return names
