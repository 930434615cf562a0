"""How an optimizer step's pieces are shared out among processes, and what several gain by it."""

from collections.abc import Callable

from dandap.data.encode import Example

# Questions of one article that go through the model together, as indices of examples.
Piece = list[int]
FED = 0.75  # of the speed of so many processes; below it people are told what would feed them


class TreeTokens:
    """Counts the tokens of a piece's tree: what its article's questions share, and their own.

    What some of an article's questions share beyond all of them is counted more than once.
    """

    def __init__(self, examples: list[Example], articles: list[Piece]):
        self.shared, self.own = [0] * len(examples), [0] * len(examples)
        for article in articles:
            first = examples[article[0]].prompt_ids
            shared = min(_common(first, examples[index].prompt_ids) for index in article)
            for index in article:
                example = examples[index]
                self.shared[index] = shared
                self.own[index] = len(example.prompt_ids) - shared + len(example.answer_ids)

    def __call__(self, piece: Piece) -> int:
        return self.shared[piece[0]] + sum(self.own[index] for index in piece)


def _common(one: list[int], other: list[int]) -> int:
    """Return how many tokens two prompts begin with in common."""
    for number, (token, same) in enumerate(zip(one, other, strict=False)):
        if token != same:
            return number
    return min(len(one), len(other))


def share(
    step: list[Piece], tokens: Callable[[Piece], int] | None, processes: int
) -> list[list[Piece]]:
    """Return a step's pieces for each process, dealt so that the longest share is short.

    The result is the same on every process. `tokens` counts those of a piece's tree, for which one
    process alone has no use.
    """
    if processes == 1:
        return [step]
    pieces = list(step)
    # Halving reads an article twice, but at the same time; otherwise a process would have nothing
    # to do. It ends where every piece is a single question.
    while len(pieces) < processes and (largest := max(pieces, key=len))[1:]:
        pieces.remove(largest)
        pieces += [largest[::2], largest[1::2]]
    shares: list[list[Piece]] = [[] for _ in range(processes)]
    load = [0] * processes
    # The longest first, each to the process with the least so far.
    for piece in sorted(pieces, key=lambda piece: -tokens(piece)):
        process = load.index(min(load))
        shares[process].append(piece)
        load[process] += tokens(piece)
    return shares


def gain(steps: list[list[Piece]], tokens: Callable[[Piece], int], processes: int) -> float:
    """Return how many times as fast as one so many processes take an epoch's steps, at best.

    One reads all tokens of a step; of several the one with the longest share is waited for.
    """
    alone = longest = 0
    for step in steps:
        alone += sum(map(tokens, step))
        longest += max(sum(map(tokens, mine)) for mine in share(step, tokens, processes))
    return alone / longest
