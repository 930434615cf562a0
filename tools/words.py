"""Word counts without particles and endings, for a word cloud.

kiwipiepy analyzes morphemes if it is installed (requirements-extra.txt); otherwise rules do.
"""

import re
from collections import Counter
from functools import cache
from importlib.util import find_spec

from dandap.data.korean import PARTICLES

# Nouns and names, as Kiwi tags them, and words in Latin letters.
NOUNS = ("NNG", "NNP", "SL")
PIECE = 2000  # characters that Kiwi reads at a time; a whole file at once takes gigabytes
# Verbs and adjectives say little of what a file is about; nearly all of them end so.
VERB_ENDINGS = tuple(
    "다 며 던 았 었 였 된 될 됐 할 했 줘 봐 써 죠 하고 되고 이고 있고 없고 했고 하는 되는 있는 "
    "없는 려는 같은 위한 대한 통한 따른 관한 하기 되기 하게 되게 하면 되면 으면 려면 하지 되지 "
    "지만 도록 면서 해서 돼서 어서 아서 려고 는데 은데 인데 던데 네요 어요 아요 해요 예요 까요 "
    "더라 더니 거든 잖아 겠어 했어 았어 었어 였어 을게 길래 자고 챙겨 가져 바꿔".split()
)
# Words of every Korean text.
STOP = frozenset(
    "내가 네가 니가 나도 나는 너는 너도 안녕 아직 벌써 훨씬 엄청 "
    "것으 곳은 곳으 곳에 곳을 곳이 얼마인 어디인 누구인 무엇을 "
    "가장 각각 간 거기 거의 것 것으로 것은 것이 결국 경우 계속 관련 그 그것 그냥 그녀 그는 그들 "
    "그때 그래 그래서 그러나 그런 그런데 그럼 그렇 그리 그리고 기간 기자 까지 나머지 내년 내일 "
    "너무 누구 누가 누군가 다른 다만 다시 다음 달리 당시 당일 대부분 대비 대상 대표적 대해 대한 "
    "더욱 덕분 도중 동시 동안 등 등등 등을 등이 따라 따라서 때 때문 또 또는 또한 마다 마련 만약 "
    "많은 매우 매일 모두 모든 무슨 무엇 무엇인가 물론 뭐 미만 바로 밝혔 방식 별도 부분 사실 사이 "
    "사항 상당 상황 생각 서로 수 수준 스스로 시기 아까 아니 아닌 아마 아주 알 앞 앞으로 약 얘기 "
    "어느 어디 어떤 어떻게 어제 언제 얼마 여기 여러 역시 예정 오늘 오전 오후 올해 완전 왜 외 요즘 "
    "우리 원래 위해 의미 이 이것 이날 이내 이는 이달 이때 이런 이렇게 이로 이를 이미 이번 이번주 "
    "이상 이어 이에 이외 이용 이유 이전 이제 이하 이후 일부 일단 일반 입장 자기 자신 자체 작년 잘 "
    "저희 전날 전년 전체 점 정도 정말 정말로 제가 조금 종류 주로 중 즉 지금 지난 지난달 지난해 "
    "직접 진짜 차지 최근 측 크게 통해 특히 편 포함 필요 하나 하지만 한편 함께 항상 해당 현재 "
    "혹은 활용 후 같이 같은 관계자 질문 답변 기사 설명 방법 내용 위치 있을 기록 발표 지역 국내 "
    "기준".split()
)


def count_words(texts: list[str]) -> Counter[str]:
    """Return how often each word of two characters and more is in the texts."""
    words = _nouns_by_kiwi(texts) if find_spec("kiwipiepy") else _words_by_rules(texts)
    return Counter({word: n for word, n in words.items() if len(word) > 1 and word not in STOP})


def _nouns_by_kiwi(texts: list[str]) -> Counter[str]:
    from kiwipiepy import Kiwi  # optional, and 2 s

    pieces = []
    for text in texts:
        pieces += [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
    # Kiwi reads some pieces ahead, in its own threads.
    return Counter(
        token.form for found in Kiwi().tokenize(pieces) for token in found if token.tag in NOUNS
    )


def _words_by_rules(texts: list[str]) -> Counter[str]:
    found = Counter()
    for text in texts:
        # Hangul right behind a digit is its unit: 3월을, 40원에.
        for word in re.findall(r"(?<![\d가-힣])[가-힣]+|[A-Za-z]+", text):
            bare = without_particle(word)
            if not word.endswith(VERB_ENDINGS) and not bare.endswith(VERB_ENDINGS):
                found[bare] += 1
    return found


@cache
def without_particle(word: str) -> str:
    """Return a word without the longest particle at its end, if two characters are left."""
    endings = [p for p in PARTICLES if word.endswith(p) and len(word) - len(p) > 1]
    return word.removesuffix(max(endings, key=len, default=""))
