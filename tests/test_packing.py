"""Test packing of articles into batches with as few repeated prefixes as possible."""

from dandap.tree.token_tree import grow, pack


def article(length, questions):
    """Return (prompt, answer) pairs. Each question adds 42 tokens to the tree."""
    text = list(range(length))
    return [([*text, *[10**6 + number] * 40], [1, 2, 3]) for number in range(questions)]


def members(articles, limit):
    """Pack articles, and return the members of each part of each batch."""
    batches = pack(articles, grow, lambda batch: sum(len(part.tree) for part in batch) <= limit)
    return [[part.members for part in batch] for batch in batches]


def test_article_is_split_into_few_batches():
    for length, reads in ((3000, 1), (3900, 4), (4000, 8), (4053, 16), (4100, 16)):
        assert len(members([article(length, 16)], 4096)) == reads
    sizes = [len(part) for (part,) in members([article(3600, 17)], 4096)]
    assert sorted(sizes) == [6, 11]  # as many as fit, then the rest


def test_batches_contain_every_question_and_fit():
    for length, questions in ((8000, 50), (400, 200)):
        batches = members([article(length, questions)], 8192)
        for batch in batches:
            assert sum(length + 42 * len(part) for part in batch) <= 8192
        found = [member for batch in batches for part in batch for member in part]
        assert sorted(found) == sorted(article(length, questions))


def test_question_that_does_not_fit_gets_its_own_batch():
    batches = members([article(100, 2), article(10, 1)], 90)
    assert [[len(part) for part in batch] for batch in batches] == [[1], [1], [1]]
