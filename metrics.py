"""Score short answers by character F1 and exact match, with bootstrap intervals.

Texts are normalized as in the official evaluator of KorQuAD 1.0 (Lim, Kim and Lee, 2019): replace
brackets and quotation marks with spaces, lowercase, delete ASCII punctuation, collapse white
space. Exact match compares the normalized texts, character F1 their multisets of non-space
characters. With several gold answers, the best score counts.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

# Saved with every score. Change it if scores could change.
METRIC_VERSION = "korquad-1.0/char-f1"

# As in the official evaluator, “ ” · … are not replaced.
_TO_SPACE = str.maketrans(dict.fromkeys("'\"《》<>〈〉()‘’", " "))
_DELETE = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Return the normalized text that both metrics compare."""
    # Brackets and quotation marks first: deleting them as ASCII punctuation would join words.
    return " ".join(text.translate(_TO_SPACE).lower().translate(_DELETE).split())


def exact_match(prediction: str, gold: str | Sequence[str]) -> float:
    """Return 1.0 if the normalized prediction equals a normalized gold answer, else 0.0."""
    return float(any(normalize(prediction) == normalize(answer) for answer in _golds(gold)))


def char_f1(prediction: str, gold: str | Sequence[str]) -> float:
    """Return character F1 in [0, 1]; 0 without common characters, also for two empty texts."""
    return max(_f1(_characters(prediction), _characters(answer)) for answer in _golds(gold))


def _golds(gold: str | Sequence[str]) -> Sequence[str]:
    return [gold] if isinstance(gold, str) else gold


def _characters(text: str) -> Counter[str]:
    return Counter(normalize(text).replace(" ", ""))


def _f1(prediction: Counter[str], gold: Counter[str]) -> float:
    common = (prediction & gold).total()
    if common == 0:
        return 0.0
    precision, recall = common / prediction.total(), common / gold.total()
    return 2 * precision * recall / (precision + recall)


def rouge_l(prediction: str, gold: str | Sequence[str]) -> float:
    """Return ROUGE-L (Lin, 2004): F1 of the longest common subsequence of non-space characters."""
    return max(_rouge_l(prediction, answer) for answer in _golds(gold))


def _rouge_l(prediction: str, gold: str) -> float:
    prediction, gold = "".join(prediction.split()), "".join(gold.split())
    # row[j]: length of the longest common subsequence of gold[:j] and the prediction so far;
    # `diagonal`: row[j - 1] before the current character.
    row = [0] * (len(gold) + 1)
    for character in prediction:
        diagonal = 0
        for j, other in enumerate(gold, 1):
            longest = diagonal + 1 if character == other else max(row[j], row[j - 1])
            diagonal, row[j] = row[j], longest
    return 2 * row[-1] / (len(prediction) + len(gold)) if row[-1] else 0.0


def consensus(answers: Sequence[str]) -> int:
    """Return the index of the answer with the highest total F1 against all; the first of ties.

    This is minimum Bayes risk decoding (Kumar and Byrne, 2004) with character F1 as the gain.
    """
    characters = [_characters(answer) for answer in answers]

    def gain(index: int) -> float:
        # Add in order: rounding decides ties, and Python 3.12's `sum` rounds differently.
        total = 0.0
        for theirs in characters:
            total += _f1(characters[index], theirs)
        return total

    return max(range(len(answers)), key=lambda index: (gain(index), -index))


def repeats(text: str) -> bool:
    """Return whether a text repeats two characters or more three times in a row."""
    # At most 62 characters, to keep the search linear.
    return re.search(r"(\S.{0,60}?\S)(\s*\1){2}", text) is not None


def score(
    predictions: Sequence[str], golds: Sequence[str | Sequence[str]], articles: Sequence[str]
) -> dict:
    """Return mean scores with 95% intervals, counts and the metric's version.

    The keys are "metric", "questions", "articles", "char_f1", "char_f1_interval", "exact_match" and
    "exact_match_interval". `articles` is the article of each question; intervals resample articles.
    """
    result: dict = {"metric": METRIC_VERSION, "questions": len(predictions)}
    result["articles"] = len(set(articles))
    for name, metric in (("char_f1", char_f1), ("exact_match", exact_match)):
        values = [metric(p, g) for p, g in zip(predictions, golds, strict=True)]
        result[name] = sum(values) / len(values)
        result[f"{name}_interval"] = bootstrap_interval(values, articles)
    return result


def compare(ours: Sequence[float], theirs: Sequence[float], articles: Sequence[str]) -> dict:
    """Return the mean "difference" of paired scores, ours minus theirs, and its "interval".

    All arguments are in the order of the questions; the interval resamples articles.
    """
    # Pairing removes the variance of the questions' difficulty.
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
    """Return the 95% percentile interval of the mean, resampling articles (Efron, 1979).

    The draws are seeded. For a single article the interval is `possible`.
    """
    # Every draw would be that article, and any difference significant.
    if len(set(articles)) == 1:
        return possible
    # Questions on one article are dependent, so whole articles are drawn.
    numbers: dict[str, int] = {}
    article = [numbers.setdefault(name, len(numbers)) for name in articles]
    totals = np.bincount(article, weights=np.asarray(values, dtype=float))
    counts = np.bincount(article)
    # The draws of random.Random(0).choices, as for earlier scores: with a list as seed, NumPy
    # initializes the Mersenne Twister in the same way.
    rng = np.random.RandomState([0])
    means = np.empty(samples)
    for number in range(samples):
        drawn = (rng.random_sample(len(counts)) * len(counts)).astype(np.intp)
        means[number] = totals[drawn].sum() / counts[drawn].sum()
    means.sort()
    return float(means[int(0.025 * samples)]), float(means[int(0.975 * samples) - 1])
