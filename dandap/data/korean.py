"""Korean text rules: kinds of questions, near misses, and sentences similar to a question."""

import math
import re
from collections import Counter

SHORT = 20  # characters; the minimum length in a similarity, or one-word headings would win


def with_ro(word: str, gloss: str = "") -> str:
    """Return the word, the gloss in brackets, and the particle 으로 or 로."""
    # Hangul code points repeat every 28 finals: 0 (none) and 8 (ㄹ) take 로.
    final = (ord(word[-1]) - 0xAC00) % 28
    return f"{word}{f'({gloss})' if gloss else ''}{'로' if final in (0, 8) else '으로'}"


# The first match wins. "며칠", "몇 년", "몇 시": when; "몇 시간" and other "몇": how much;
# "어느 기관": what; "어느 나라": where. Many questions end with the kind of answer: "... 사람은?"
_PLACES = "곳|나라|국가|도시|지역|장소|지방"
_KINDS = {
    "who": r"누구|누가|누굴|누군|(?:어떤|무슨) (?:사람|인물)"
    r"|(?:사람|인물|대표|사장|회장|저자|감독)[은는이가]?\s*\?*$",
    "when": r"언제|며칠|몇\s*(?:년|월|일|시(?!간)|분기|세기)|무슨 요일"
    r"|(?:어느|어떤) (?:해|달|날|시기|분기|시점)"
    r"|(?:날|날짜|연도|년도|시기|시점|요일)[은는]?\s*\?*$",
    "how much": r"얼마|얼만|몇|어느 정도|퍼센트|%"
    r"|(?:금액|액수|값|가격|비율|규모|수|수량|횟수|점유율|매출|매출액)[은는]?\s*\?*$",
    "where": rf"어디|어딘|(?:어느|어떤|무슨) (?:{_PLACES})"
    rf"|(?:{_PLACES}|소재지|위치)[은는]?\s*\?*$",
    "why": r"왜|이유|까닭|원인|때문",
    "what": r"무엇|무슨|무얼|뭐|뭘|어느|어떤|어떠한|어떻게|이름|명칭",
    "yes/no": r"(?:는가|은가|인가|던가|[나가까요지니])\s*\??\s*$",
}
KINDS = {
    "who": "누구",
    "when": "언제",
    "where": "어디",
    "how much": "얼마",
    "what": "무엇",
    "why": "왜",
    "yes/no": "예/아니오",
}


def question_kind(question: str) -> str:
    """Return the kind of a question (one of KINDS), by default "what"."""
    return next((kind for kind in _KINDS if re.search(_KINDS[kind], question)), "what")


PARTICLES = (
    "은 는 이 가 을 를 의 에 에서 에게 로 으로 와 과 도 만 부터 까지 "
    "이다 다 입니다 이라고 라고 라는 이라는 에는 에서는 께서"
).split()
# With its sign; the hyphen in "3-5" is not a sign.
_NUMBER = r"(?<![\d.])[-+−]?\d[\d,]*(?:\.\d+)?"
NEAR_MISSES = {
    "white space": "differs in white space only (lowers exact match, not F1)",
    "quotation marks": "differs in quotation marks or punctuation only",
    "form of a number": "the same number in another format: 36.7% and 36.70%",
    "unit": "the same number with another unit or without one",
    "another number": "another number in the same text",
    "particle": "an extra or missing particle or ending",
    "too long": "the gold answer with extra text",
    "too short": "a part of the gold answer",
    "some letters": "some common characters",
    "wrong": "no common character",
}


def near_miss(prediction: str, gold: str) -> str | None:
    """Return how a prediction differs from a gold answer (a key of NEAR_MISSES), or None."""
    if prediction.strip() == gold.strip():
        return None
    ours, theirs = ("".join(text.split()) for text in (prediction, gold))
    if ours == theirs:
        return "white space"
    spelled = [re.findall(_NUMBER, text) for text in (ours, theirs)]
    ours_n, theirs_n = ([float(n.replace(",", "").replace("−", "-")) for n in s] for s in spelled)
    # Keep unit signs: 3.5 instead of 3.5% lacks its unit.
    letters = [re.sub(r"[^\w%‰°$₩€]|_", "", text).casefold() for text in (ours, theirs)]
    if letters[0] == letters[1] and ours_n == theirs_n:
        return "quotation marks" if spelled[0] == spelled[1] else "form of a number"
    short, long = sorted((ours, theirs), key=len)
    particle = long.startswith(short) and long[len(short) :].rstrip(".") in PARTICLES
    if ours_n and theirs_n:
        if re.sub(_NUMBER, "#", ours) == re.sub(_NUMBER, "#", theirs):
            return "form of a number" if ours_n == theirs_n else "another number"
        # Only if both start with a number.
        starts = all(re.match(r"[^\w]*\d", text) for text in (ours, theirs))
        if ours_n == theirs_n and not particle and len(ours_n) == 1 and starts:
            return "unit"
    if particle:
        return "particle"
    if theirs in ours:
        return "too long"
    if ours and ours in theirs:
        return "too short"
    return "some letters" if set(letters[0]) & set(letters[1]) else "wrong"


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences with their trailing white space, so that joining restores it."""
    # Line breaks end a sentence, and marks before white space (not the point in 3.5%).
    return re.findall(r".+?(?:[.!?][\"'”’)\]]*\s+|\n\s*|$)", text, re.DOTALL)


def nearest_first(sentences: list[str], questions: list[str]) -> list[int]:
    """Return the indices of sentences, the most similar to any question first.

    The similarity is the sum of the inverse document frequencies (Sparck Jones, 1972) of common
    character pairs, divided by the sentence's length. The best sentence of every question comes
    before the second best of any.
    """

    def word_pairs(text: str) -> set[str]:  # within words
        return {pair for word in re.findall(r"\w+", text) for pair in character_pairs(word)}

    pairs = list(map(word_pairs, sentences))
    frequency = Counter(pair for each in pairs for pair in each)
    weight = {pair: math.log(1 + len(sentences) / count) for pair, count in frequency.items()}
    best = [(len(sentences), 0.0)] * len(sentences)  # best rank, minus similarity
    for question in questions:
        question_pairs = word_pairs(question)
        similarity = [
            sum(weight[pair] for pair in each & question_pairs) / max(len(sentence.strip()), SHORT)
            for each, sentence in zip(pairs, sentences, strict=True)
        ]
        ranked = sorted(range(len(sentences)), key=lambda i: -similarity[i])
        for rank, i in enumerate(ranked):
            best[i] = (min(best[i][0], rank), min(best[i][1], -similarity[i]))
    return sorted(range(len(sentences)), key=best.__getitem__)


def character_pairs(text: str) -> set[str]:
    """Return all pairs of neighboring characters."""
    return {text[i : i + 2] for i in range(len(text) - 1)}
