"""Which sentences of an article its questions are about, by the character pairs they share."""

import math
import re
from collections import Counter


def split_sentences(text: str) -> list[str]:
    """Sentences with the white space after them, so that they join to the text again. A line break ends one too."""
    return re.findall(r".+?(?:[.!?][\"'”’)\]]*\s+|\n\s*|$)", text, re.DOTALL)


def nearest_first(sentences: list[str], questions: list[str]) -> list[int]:
    """Indices of sentences, those first that are near to any of the questions.

    A sentence's nearness to a question is the summed rarity (inverse document frequency, Sparck Jones, 1972) of the pairs of
    neighbouring characters in both. Questions take turns: every one's nearest sentence comes before any one's second.
    """
    pairs = [_pairs(sentence) for sentence in sentences]
    frequency = Counter(pair for each in pairs for pair in each)
    rarity = {pair: math.log(1 + len(sentences) / count) for pair, count in frequency.items()}
    nearness = [[sum(rarity[pair] for pair in each & _pairs(question)) for each in pairs] for question in questions]
    every = range(len(sentences))
    places = [{i: place for place, i in enumerate(sorted(every, key=lambda i: -near[i]))} for near in nearness]
    return sorted(every, key=lambda i: (min(place[i] for place in places), -max(near[i] for near in nearness)))


def _pairs(text: str) -> set[str]:
    """Neighbouring characters within words: Korean words share stems, not endings."""
    return {word[i : i + 2] for word in re.findall(r"\w+", text) for i in range(len(word) - 1)}
