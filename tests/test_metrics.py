"""Test the KorQuAD 1.0 normalization rules, the scores and their intervals."""

from collections import Counter

import pytest

from metrics import bootstrap_interval, char_f1, compare, consensus, exact_match, normalize, score

# (prediction, gold, exact match, character F1)
PAIRS = [
    ("한국은행", "한국은행", 1, 1.0),
    ("한국은행이", "한국은행", 0, 8 / 9),  # 4 of 5 and 4 of 4
    ("36.70%", "36.7%", 0, 6 / 7),  # no punctuation: 3670 and 367
    ("《독립신문》", "독립신문", 1, 1.0),  # brackets become spaces
    ("독립 신문", "독립신문", 0, 1.0),  # spaces count for exact match only
    ("'가'나", "가 나", 1, 1.0),  # a quotation mark leaves a space
    ("가-나", "가나", 1, 1.0),  # other punctuation leaves none
    ("“가”", "가", 0, 1 / 2),  # curly double quotes are not removed
    ("GDP", "gdp", 1, 1.0),  # lower case
    ("가  나\t다\n", "가 나 다", 1, 1.0),  # white space collapses
    ("가가나", "가나나", 0, 2 / 3),  # multisets: one 가 and one 나 in common
    ("%", "%", 1, 0.0),  # both empty: equal, but no common character
    ("", "가", 0, 0.0),
]


def test_korquad_rules():
    for prediction, gold, em, f1 in PAIRS:
        assert exact_match(prediction, gold) == em, prediction
        assert char_f1(prediction, gold) == pytest.approx(f1, abs=1e-12), prediction
    assert normalize(' "A"  B. ') == "a b"


def test_best_of_several_gold_answers_is_used():
    assert char_f1("0.25%p", ["25bp", "0.25%p"]) == 1.0
    assert exact_match("0.25%p", ("25bp", "0.25%p")) == 1.0


def test_score_means_and_counts():
    result = score(["가", "나", "라"], [["가"], ["다"], ["라"]], ["기사1", "기사1", "기사2"])
    assert result["char_f1"] == pytest.approx(2 / 3)
    assert (result["questions"], result["articles"]) == (3, 2)
    # Two resampled articles have means of 1/2, 2/3 or 1.
    assert result["char_f1_interval"] == (0.5, 1.0)
    # Forty questions per article do not shrink the interval of two articles.
    two = bootstrap_interval([0, 1], ["a", "b"])
    assert two == bootstrap_interval([0] * 40 + [1] * 40, ["a"] * 40 + ["b"] * 40) == (0.0, 1.0)


def test_interval_of_one_article_is_the_full_range():
    """All resamples of one article are equal, but other articles could have any score."""
    assert score(["가", "나"], ["가", "다"], ["a", "a"])["char_f1_interval"] == (0, 1)
    assert compare([0.6, 0.6], [0.5, 0.5], ["a", "a"])["interval"] == (-1, 1)
    assert compare([0.6, 0.6], [0.5, 0.5], ["a", "b"])["interval"][0] > 0


def test_consensus_is_the_most_similar_answer():
    assert consensus(["부산"]) == 0
    assert consensus(["서울", "부산", "부산시"]) == 1
    assert consensus(["대전", "부산"]) == 0
    assert consensus(["", "", "부산"]) == 2


def test_consensus_ties_depend_on_summation_order():
    """Floating-point sums depend on their order, which decides the submitted answer."""
    answers = ["7월 29일", "29일 오전 7", "29일 7월"]
    characters = [Counter(normalize(answer).replace(" ", "")) for answer in answers]
    totals = []
    for index, mine in enumerate(characters):
        total = 0.0
        for other, theirs in enumerate(characters):
            common = (mine & theirs).total()
            total += 1.0 if other == index else 2 * common / (mine.total() + theirs.total())
        totals.append(total)
    assert consensus(answers) == max(range(3), key=lambda index: (totals[index], -index))
