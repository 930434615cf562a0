"""Articles are put into batches that fit, and are read as seldom as that allows."""

import pytest

from dandap.tree.packing import pack
from dandap.tree.token_tree import grow


def article(length, questions, asked=40):
    """Return an article's questions, each of so many tokens, as (prompt, answer) pairs."""
    text = list(range(length))
    return [([*text, *[10**6 + number] * asked], [1, 2, 3]) for number in range(questions)]


def packed(articles, limit):
    return pack(articles, grow, lambda batch: sum(len(part.tree) for part in batch) <= limit)


@pytest.mark.parametrize(
    ("length", "reads"), [(3000, 1), (3900, 4), (4000, 8), (4053, 16), (4100, 16)]
)
def test_an_article_is_read_as_often_as_the_room_beside_it_asks_for(length, reads):
    """16 questions of 42 tokens: 4,096 tokens hold 4 of them beside an article of 3,900."""
    assert len(packed([article(length, 16)], 4096)) == reads


def test_what_is_left_over_takes_no_more_readings_than_needed():
    """The first part takes all that there is room for."""
    sizes = [len(batch[0].members) for batch in packed([article(3600, 17)], 4096)]
    assert sorted(sizes, reverse=True) == [11, 6]


@pytest.mark.parametrize(("length", "questions"), [(8000, 50), (400, 200)])
def test_batches_of_large_articles_are_bounded(length, questions):
    batches = packed([article(length, questions)], 8192)
    assert max(sum(len(part.tree) for part in batch) for batch in batches) <= 8192
    members = [member for batch in batches for part in batch for member in part.members]
    assert sorted(members) == sorted(article(length, questions))


def test_a_single_question_that_does_not_fit_is_a_batch_by_itself():
    batches = packed([article(100, 2), article(10, 1)], 90)
    assert [[len(part.members) for part in batch] for batch in batches] == [[1], [1], [1]]
