"""Splitting: whole articles, the same ones whatever the order."""

import pytest

from dandap.data.read import read_questions
from dandap.data.rows import Row, split_by_article
from dandap.errors import InputError


def test_validation_is_whole_articles_whatever_the_order(small_train):
    rows = read_questions(small_train).rows
    train, validation = split_by_article(rows, 0.3)
    assert validation
    assert not {row.article for row in train} & {row.article for row in validation}
    assert len(train) + len(validation) == len(rows)
    again = split_by_article(rows[::-1], 0.3)[1]
    assert {row.id for row in again} == {row.id for row in validation}


def test_articles_chosen_by_the_same_hash_are_not_all_held_out():
    """As benchmarks.take chooses them: the smallest hashes, which validation takes as well."""
    rows = [Row(f"{n}", f"{n}번 회사는 {n * 7919}억 원을 벌었다.", "얼마?") for n in range(300)]
    first = sorted(rows, key=lambda row: row.article)[:30]
    held = split_by_article(first, 0.1)[1]
    assert len(held) == 6, "twice the share at most"
    assert {row.article for row in held} == {row.article for row in first[:6]}


def test_no_validation_and_only_one_article(small_train):
    rows = read_questions(small_train).rows
    assert split_by_article(rows, 0) == (rows, [])
    with pytest.raises(InputError, match="nothing is left to train on"):
        split_by_article(rows[:2], 0.05)
