"""What each of several processes does, and what it knows of the others."""

from dandap.answering.batches import run_batches


class Pairs:
    """Batches of two questions."""

    def batches(self, indices, tokens):
        return [indices[at : at + 2] for at in range(0, len(indices), 2)]

    def members(self, batch):
        return batch

    def size(self, batch):
        return len(batch)


def test_processes_share_the_batches_of_one(monkeypatch):
    """Finished batches are not dealt: a resumed inference would leave a process idle."""
    done = {0, 1, 3, 4, 5, 9}  # 2 is answered again with 3, whose answer is dropped
    for count in (1, 2, 3, 7):
        shares, results = [], []
        for number in range(count):
            monkeypatch.setenv("RANK", str(number))
            monkeypatch.setenv("WORLD_SIZE", str(count))
            batches = []

            def work(batch, batches=batches):
                batches.append(batch)
                return {index: index for index in batch}

            results += [index for index, _ in run_batches(Pairs(), 12, 2, work, done)]
            shares.append(batches)
        dealt = sorted(batch for share in shares for batch in share)
        assert dealt == [[2, 3], [6, 7], [8, 9], [10, 11]]
        assert sorted(results) == [2, 6, 7, 8, 10, 11]
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
