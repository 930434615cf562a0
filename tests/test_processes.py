"""Several processes: what is dealt out, and what each knows of the others."""

import pytest

from dandap.answering.batches import run_batches
from dandap.model.distributed import dealt, from_all, from_first, process_count, share_of


class Pairs:
    """Batches of two questions."""

    def batches(self, indices, tokens):
        return [indices[at : at + 2] for at in range(0, len(indices), 2)]

    def members(self, batch):
        return batch

    def size(self, batch):
        return len(batch)


def process(monkeypatch, number, count):
    monkeypatch.setenv("RANK", str(number))
    monkeypatch.setenv("WORLD_SIZE", str(count))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_processes_share_the_batches_that_one_would_do(monkeypatch, count):
    """Done batches are not dealt: a resumed inference would give a process nothing to do."""
    done = {0, 1, 3, 4, 5, 9}  # 2 is answered again with 3, whose answer is left out
    batches, results = [], []

    def work(batch):
        batches.append(batch)
        return {index: index for index in batch}

    shares = []
    for number in range(count):
        process(monkeypatch, number, count)
        before = len(batches)
        results += [index for index, _ in run_batches(Pairs(), 12, 2, work, done)]
        shares.append(len(batches) - before)
    assert sorted(batches) == [[2, 3], [6, 7], [8, 9], [10, 11]]
    assert sorted(results) == [2, 6, 7, 8, 10, 11]
    assert max(shares) - min(shares) <= 1


def test_shares_and_values_of_one_process(monkeypatch):
    assert (process_count(), dealt([1, 2, 3]), share_of(7)) == (1, [1, 2, 3], 7)
    assert (from_first(dict), from_all(5)) == ({}, [5])
    process(monkeypatch, 1, 2)
    assert (process_count(), dealt([1, 2, 3]), share_of(7)) == (2, [2], 4)
