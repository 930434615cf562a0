"""Rank an article's sentences by how near they are to its questions."""

import math
import re
from collections import Counter

SHORT = 20  # characters; shorter sentences count as this long, or one-word headings would win


def split_sentences(text: str) -> list[str]:
    """Return the sentences with the white space that follows; joined they are the text again."""
    # A mark ends a sentence only before white space, so that 3.5% stays whole. So do line breaks.
    return re.findall(r".+?(?:[.!?][\"'”’)\]]*\s+|\n\s*|$)", text, re.DOTALL)


def nearest_first(sentences: list[str], questions: list[str]) -> list[int]:
    """Return the indices of sentences, those nearest to any of the questions first.

    The nearness of a sentence to a question is the summed inverse document frequency (Sparck Jones,
    1972) of the character pairs in both, divided by the sentence's length. Every question's nearest
    sentence comes before any question's second.
    """
    pairs = [_word_pairs(sentence) for sentence in sentences]
    frequency = Counter(pair for each in pairs for pair in each)
    weight = {pair: math.log(1 + len(sentences) / count) for pair, count in frequency.items()}
    best = [(len(sentences), 0.0)] * len(sentences)  # place with any question, minus nearness
    for question in questions:
        asked = _word_pairs(question)
        nearness = [
            sum(weight[pair] for pair in each & asked) / max(len(sentence.strip()), SHORT)
            for each, sentence in zip(pairs, sentences, strict=True)
        ]
        ranked = sorted(range(len(sentences)), key=lambda i: -nearness[i])
        for place, i in enumerate(ranked):
            best[i] = (min(best[i][0], place), min(best[i][1], -nearness[i]))
    return sorted(range(len(sentences)), key=best.__getitem__)


def _word_pairs(text: str) -> set[str]:
    """Return the character pairs within words: Korean words share stems, not endings."""
    return {pair for word in re.findall(r"\w+", text) for pair in character_pairs(word)}


def character_pairs(text: str) -> set[str]:
    """Return all pairs of neighboring characters."""
    return {text[i : i + 2] for i in range(len(text) - 1)}


def likeness(one: set, other: set) -> float:
    """Return the Jaccard similarity of two sets; of empty sets 0."""
    common = len(one & other)
    return common / max(len(one) + len(other) - common, 1)
