"""The sentences of an article that its questions are about are found by shared character pairs."""

import math
import re
from collections import Counter

# Characters; shorter sentences are counted as so long, or a heading of one word would come first.
SHORT = 20


def split_sentences(text: str) -> list[str]:
    """Return the sentences with the white space after them, so that they join to the text again.

    A line break ends one, too.
    """
    # A mark ends a sentence only before white space, so that 3.5% stays whole.
    return re.findall(r".+?(?:[.!?][\"'”’)\]]*\s+|\n\s*|$)", text, re.DOTALL)


def nearest_first(sentences: list[str], questions: list[str]) -> list[int]:
    """Return the indices of sentences, those first that are near to any of the questions.

    A sentence's nearness to a question is the summed rarity (inverse document frequency, Sparck
    Jones, 1972) of the pairs of neighbouring characters in both, divided by the sentence's length.
    Questions take turns: every one's nearest sentence comes before any one's second.
    """
    pairs = [_pairs(sentence) for sentence in sentences]
    frequency = Counter(pair for each in pairs for pair in each)
    rarity = {pair: math.log(1 + len(sentences) / count) for pair, count in frequency.items()}
    room = [max(len(sentence.strip()), SHORT) for sentence in sentences]
    every = range(len(sentences))
    nearness: list[list[float]] = []  # for each question, of each sentence
    places: list[dict[int, int]] = []  # for each question: sentence -> its place among all
    for question in questions:
        asked = _pairs(question)
        near = [sum(rarity[pair] for pair in pairs[i] & asked) / room[i] for i in every]
        ranked = sorted(every, key=lambda i: -near[i])
        nearness.append(near)
        places.append({i: place for place, i in enumerate(ranked)})
    # By a sentence's best place with any question; of those on one place the nearest comes first.
    return sorted(
        every, key=lambda i: (min(place[i] for place in places), -max(near[i] for near in nearness))
    )


def _pairs(text: str) -> set[str]:
    """Return the pairs of neighbouring characters within words.

    Pairs and not words are compared, because Korean words share stems, not endings.
    """
    return {pair for word in re.findall(r"\w+", text) for pair in character_pairs(word)}


def character_pairs(text: str) -> set[str]:
    """Return all pairs of neighbouring characters."""
    return {text[i : i + 2] for i in range(len(text) - 1)}


def likeness(one: set, other: set) -> float:
    """Return the share of what is in either set that is in both (Jaccard); of empty sets 0."""
    common = len(one & other)
    return common / max(len(one) + len(other) - common, 1)
