"""Which sentences of an article its questions are about, by the character pairs they share."""

import math
import re
from collections import Counter

SHORT = 20  # characters; shorter sentences are counted as so long, or a heading of one word would come first


def split_sentences(text: str) -> list[str]:
    """Sentences with the white space after them, so that they join to the text again. A line break ends one too."""
    return re.findall(r".+?(?:[.!?][\"'”’)\]]*\s+|\n\s*|$)", text, re.DOTALL)


def nearest_first(sentences: list[str], questions: list[str]) -> list[int]:
    """Indices of sentences, those first that are near to any of the questions.

    A sentence's nearness to a question is the summed rarity (inverse document frequency, Sparck Jones, 1972) of the pairs of
    neighbouring characters in both, for the room that the sentence takes. Questions take turns: every one's nearest sentence
    comes before any one's second.
    """
    pairs = [_pairs(sentence) for sentence in sentences]
    frequency = Counter(pair for each in pairs for pair in each)
    rarity = {pair: math.log(1 + len(sentences) / count) for pair, count in frequency.items()}
    room = [max(len(sentence.strip()), SHORT) for sentence in sentences]
    asked = [_pairs(question) for question in questions]
    nearness = [
        [sum(rarity[p] for p in each & ask) / size for each, size in zip(pairs, room, strict=True)]
        for ask in asked
    ]
    every = range(len(sentences))
    places = [
        {i: place for place, i in enumerate(sorted(every, key=lambda i: -near[i]))}
        for near in nearness
    ]
    return sorted(
        every, key=lambda i: (min(place[i] for place in places), -max(near[i] for near in nearness))
    )


def _pairs(text: str) -> set[str]:
    """Neighbouring characters within words: Korean words share stems, not endings."""
    return {pair for word in re.findall(r"\w+", text) for pair in character_pairs(word)}


def character_pairs(text: str) -> set[str]:
    """All pairs of neighbouring characters."""
    return {text[i : i + 2] for i in range(len(text) - 1)}


def likeness(one: set, other: set) -> float:
    """Jaccard's: the share of what is in either that is in both."""
    common = len(one & other)
    return common / max(len(one) + len(other) - common, 1)
