"""Test the split by article."""

import pytest

from dandap.data.read import read_questions
from dandap.data.rows import Row, split_by_article
from dandap.errors import InputError


def test_split_by_article_is_independent_of_row_order(small_train):
    rows = read_questions(small_train).rows
    train, validation = split_by_article(rows, 0.3)
    assert validation
    assert not {row.article for row in train} & {row.article for row in validation}
    assert len(train) + len(validation) == len(rows)
    again = split_by_article(rows[::-1], 0.3)[1]
    assert {row.id for row in again} == {row.id for row in validation}


def test_validation_is_capped_for_articles_selected_by_hash():
    """benchmarks selects the articles with the smallest hashes, and validation does too."""
    rows = [Row(f"{n}", f"{n}번 회사는 {n * 7919}억 원을 벌었다.", "얼마?") for n in range(300)]
    first = sorted(rows, key=lambda row: row.article)[:30]
    validation = split_by_article(first, 0.1)[1]
    assert len(validation) == 6, "at most twice the fraction"
    assert {row.article for row in validation} == {row.article for row in first[:6]}


def test_no_validation_and_only_one_article(small_train):
    rows = read_questions(small_train).rows
    assert split_by_article(rows, 0) == (rows, [])
    with pytest.raises(InputError, match="nothing is left to train on"):
        split_by_article(rows[:2], 0.05)
