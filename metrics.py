"""Score short answers by character F1 and exact match, with bootstrap intervals.

The rules are those of KorQuAD 1.0 (Lim, Kim and Lee, 2019), as its official evaluator applies
them: replace brackets and quotation marks with spaces, lower-case, delete ASCII punctuation,
collapse white space. Exact match compares the results; character F1 compares their non-space
characters as multisets. Of several gold answers the one that scores best counts.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

# This stands beside every saved score, and must change whenever a score could.
METRIC_VERSION = "korquad-1.0/char-f1"

# “ ” · … are kept, as the official evaluator keeps them.
_TO_SPACE = str.maketrans(dict.fromkeys("'\"《》<>〈〉()‘’", " "))
_DELETE = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Return the text that both metrics compare, its words separated by single spaces."""
    # Brackets and quotation marks come first: as ASCII punctuation they would join their words.
    return " ".join(text.translate(_TO_SPACE).lower().translate(_DELETE).split())


def exact_match(prediction: str, gold: str | Sequence[str]) -> float:
    """Return 1.0 if the normalised prediction equals a normalised gold answer, else 0.0."""
    return float(any(normalize(prediction) == normalize(answer) for answer in _golds(gold)))


def char_f1(prediction: str, gold: str | Sequence[str]) -> float:
    """Return character F1 in [0, 1]; without a common character 0, even when both are empty."""
    return max(_f1(_characters(prediction), _characters(answer)) for answer in _golds(gold))


def _golds(gold: str | Sequence[str]) -> Sequence[str]:
    golds = [gold] if isinstance(gold, str) else gold
    if not golds:
        raise ValueError("got no gold answer; a score needs at least one")
    return golds


def _characters(text: str) -> Counter[str]:
    return Counter(normalize(text).replace(" ", ""))


def _f1(prediction: Counter[str], gold: Counter[str]) -> float:
    common = (prediction & gold).total()
    if common == 0:
        return 0.0
    precision, recall = common / prediction.total(), common / gold.total()
    return 2 * precision * recall / (precision + recall)


def rouge_l(prediction: str, gold: str | Sequence[str]) -> float:
    """Return character ROUGE-L in [0, 1] (Lin, 2004), white space left out.

    It is the F measure of the longest common subsequence; of several gold answers the best counts.
    """
    return max(
        _rouge_l("".join(prediction.split()), "".join(answer.split())) for answer in _golds(gold)
    )


def _rouge_l(prediction: str, gold: str) -> float:
    # row[j] is the length of the longest common subsequence of gold[:j] and of what was read of the
    # prediction so far; `diagonal` is row[j - 1] as it was one character before.
    row = [0] * (len(gold) + 1)
    for character in prediction:
        diagonal = 0
        for j, other in enumerate(gold, 1):
            diagonal, row[j] = (
                row[j],
                diagonal + 1 if character == other else max(row[j], row[j - 1]),
            )
    return 2 * row[-1] / (len(prediction) + len(gold)) if row[-1] else 0.0


def consensus(answers: Sequence[str]) -> int:
    """Return the index of the answer with the most character F1 with all; the first of equals.

    This is minimum Bayes risk decoding (Kumar and Byrne, 2004) with character F1 as the gain. An
    answer is wholly like itself, unless it is empty: an empty answer never scores.
    """
    characters = [_characters(answer) for answer in answers]

    def gain(index: int) -> float:
        total = 0.0
        # In the members' order, itself included, because the order of a sum decides its last bit,
        # and that bit whose answer is taken where two are equally like the others.
        for other, theirs in enumerate(characters):
            itself = other == index
            total += float(bool(theirs)) if itself else _f1(characters[index], theirs)
        return total

    return max(range(len(answers)), key=lambda index: (gain(index), -index))


def repeats(text: str) -> bool:
    """Say whether a piece of two characters or more stands three times in a row.

    Answers that never end look so.
    """
    # Pieces of at most 62 characters: the search tries each length at each place, and so takes time
    # linear in the text.
    return re.search(r"(\S.{0,60}?\S)(\s*\1){2}", text) is not None


def score(
    predictions: Sequence[str], golds: Sequence[str | Sequence[str]], articles: Sequence[str]
) -> dict:
    """Return the means over a file with their 95% intervals, the counts and the metric's version.

    The keys are "metric", "questions", "articles", "char_f1", "char_f1_interval", "exact_match" and
    "exact_match_interval". `articles` names the article of each question: questions on one article
    are resampled together.
    """
    if not len(predictions) == len(golds) == len(articles):
        raise ValueError(
            f"got {len(predictions)} predictions, {len(golds)} golds, {len(articles)} articles; "
            "need as many of each"
        )
    result: dict = {
        "metric": METRIC_VERSION,
        "questions": len(predictions),
        "articles": len(set(articles)),
    }
    for name, metric in (("char_f1", char_f1), ("exact_match", exact_match)):
        values = [metric(p, g) for p, g in zip(predictions, golds, strict=True)]
        result[name] = sum(values) / len(values)
        result[f"{name}_interval"] = bootstrap_interval(values, articles)
    return result


def compare(ours: Sequence[float], theirs: Sequence[float], articles: Sequence[str]) -> dict:
    """Return the mean of `ours` minus `theirs` and its interval, for the same questions in order.

    The keys are "difference" and "interval". Whole articles are resampled.
    """
    # Pairs take out how hard each question is, which two separate intervals hold twice.
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    return {
        "difference": sum(differences) / len(differences),
        "interval": bootstrap_interval(differences, articles, possible=(-1.0, 1.0)),
    }


def bootstrap_interval(
    values: Sequence[float],
    articles: Sequence[str],
    samples: int = 1000,
    possible: tuple[float, float] = (0.0, 1.0),
) -> tuple[float, float]:
    """Return the 95% percentile interval of the mean, resampling whole articles (Efron, 1979).

    The draws are seeded, so the interval is the same every time. Of a single article it is all that
    the mean can be, `possible`.
    """
    # Every draw would be that article, and its mean seem certain: validation on one article would
    # keep an adapter for being ahead on it by anything at all.
    if len(set(articles)) == 1:
        return possible
    # Questions on one article are not independent; drawn one by one they would give an interval
    # that is too narrow. Sums and counts per article are all that a draw needs.
    numbers: dict[str, int] = {}
    article = [numbers.setdefault(name, len(numbers)) for name in articles]
    totals = np.bincount(article, weights=np.asarray(values, dtype=float))
    counts = np.bincount(article)
    # The draws of random.Random(0).choices, which this was computed with at first: a list as the
    # seed starts the Mersenne Twister in the same way.
    rng = np.random.RandomState([0])
    means = np.empty(samples)
    for number in range(samples):
        drawn = (rng.random_sample(len(counts)) * len(counts)).astype(np.intp)
        means[number] = totals[drawn].sum() / counts[drawn].sum()
    means.sort()
    return float(means[int(0.025 * samples)]), float(means[int(0.975 * samples) - 1])
