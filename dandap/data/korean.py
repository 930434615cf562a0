"""Rules tell what Korean questions ask for, and how an answer that is nearly right is wrong."""

import re


def with_ro(word: str, noted: str = "") -> str:
    """Return the word with the particle 으로 or 로 that its last syllable asks for.

    `noted` stands between the two, in brackets.
    """
    # Unicode has 28 syllables in a row that differ in their final consonant; 0 is none and 8 is ㄹ,
    # which take 로.
    final = (ord(word[-1]) - 0xAC00) % 28
    return f"{word}{f'({noted})' if noted else ''}{'로' if final in (0, 8) else '으로'}"


# The first that matches decides. "며칠" and "몇 년" ask when, other "몇" how much; "어느 기관" asks
# what, "어느 나라" where; "몇 시" asks when, "몇 시간" how much. Many questions end in what they
# ask for: "... 제작한 사람은?"
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
_YES_NO = r"(?:는가|은가|인가|던가|[나가까요지니])\s*\??$"


def question_kind(question: str) -> str:
    """Return which of KINDS a question is.

    Without an interrogative it is a yes/no question if it ends as a question does, else "what".
    """
    kind = next((kind for kind, pattern in _KINDS.items() if re.search(pattern, question)), None)
    if kind:
        return kind
    return "yes/no" if re.search(_YES_NO, question.strip()) else "what"


PARTICLES = (
    *(
        "은",
        "는",
        "이",
        "가",
        "을",
        "를",
        "의",
        "에",
        "에서",
        "에게",
        "로",
        "으로",
        "와",
        "과",
        "도",
        "만",
        "부터",
        "까지",
    ),
    *("이다", "다", "입니다", "이라고", "라고", "라는", "이라는", "에는", "에서는", "께서"),
)
# With its sign, because a lost sign is another number; but the hyphen of "3-5" is no sign.
_NUMBER = r"(?<![\d.])[-+−]?\d[\d,]*(?:\.\d+)?"
NEAR_MISSES = {
    "white space": "the same but for white space (F1 does not see it, exact match does)",
    "quotation marks": "the same but for quotation marks and punctuation",
    "form of a number": "the same number written otherwise: 36.7% and 36.70%",
    "unit": "the same number with another unit, or without one",
    "another number": "the same form with another number in it",
    "particle": "a particle or an ending more or less",
    "too long": "the gold answer with more around it",
    "too short": "a piece of the gold answer",
    "some letters": "some characters in common",
    "wrong": "no character in common",
}


def near_miss(prediction: str, gold: str) -> str | None:
    """Return how a prediction differs from a gold answer; None if they are equal.

    It is the first name of NEAR_MISSES that fits.
    """
    ours, theirs = prediction.strip(), gold.strip()
    if ours == theirs:
        return None
    bare, gold_bare = re.sub(r"\s", "", ours), re.sub(r"\s", "", theirs)
    if bare == gold_bare:
        return "white space"
    # One value written in two ways is told apart from marks around a number that is written alike.
    if _letters(bare) == _letters(gold_bare) and _numbers(bare) == _numbers(gold_bare):
        return (
            "quotation marks"
            if re.findall(_NUMBER, bare) == re.findall(_NUMBER, gold_bare)
            else "form of a number"
        )
    return _number_miss(bare, gold_bare) or _text_miss(bare, gold_bare)


def _letters(text: str) -> str:
    # Signs of units stay: 3.5 for 3.5% lacks its unit, and not just punctuation.
    return re.sub(r"[^\w%‰°$₩€]|_", "", text).casefold()


def _numbers(text: str) -> list[float]:
    return [
        float(number.replace(",", "").replace("−", "-")) for number in re.findall(_NUMBER, text)
    ]


def _number_miss(ours: str, theirs: str) -> str | None:
    if not _numbers(ours) or not _numbers(theirs):
        return None
    same_rest = re.sub(_NUMBER, "#", ours) == re.sub(_NUMBER, "#", theirs)
    if _numbers(ours) == _numbers(theirs):
        if same_rest:
            return "form of a number"
        if _particle_between(ours, theirs):
            return "particle"
        # Only where both are one number and what follows it; other texts that share a number are
        # told by their words (too long, too short).
        return (
            "unit"
            if len(_numbers(ours)) == 1
            and _starts_with_number(ours)
            and _starts_with_number(theirs)
            else None
        )
    return "another number" if same_rest else None


def _starts_with_number(text: str) -> bool:
    return re.match(r"[^\w]*\d", text) is not None


def _particle_between(ours: str, theirs: str) -> bool:
    short, long = sorted((ours, theirs), key=len)
    return long.startswith(short) and long[len(short) :].rstrip(".") in PARTICLES


def _text_miss(ours: str, theirs: str) -> str:
    if _particle_between(ours, theirs):
        return "particle"
    if theirs in ours:
        return "too long"
    if ours and ours in theirs:
        return "too short"
    return "some letters" if set(_letters(ours)) & set(_letters(theirs)) else "wrong"
