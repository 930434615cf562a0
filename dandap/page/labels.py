"""Hold every text of the page, in Korean and in English."""

import locale

LABELS = {
    "ko": {
        "subtitle": "기사를 한 번 읽고, 여러 질문에 한 단어로 답합니다.",
        "run": "답하는 모델",
        "beside": "나란히 볼 모델",
        "nothing": "없음",
        "base": "학습 전 모델",
        "sample": "예시",
        "pick": "골라 보세요",
        "ask": "묻기",
        "article": "기사",
        "questions": "질문 (한 줄에 하나)",
        "dialogue": "대화 (한 줄에 한 발화, 예: 1: 안녕)",
        "target": "대상 발화의 줄 번호",
        "category": "추론 유형",
        "inference_1": "추론 A",
        "inference_2": "추론 B",
        "inference_3": "추론 C",
        "economic_qa": "기사 질문",
        "dialogue_inference": "대화 추론",
        "wallpaper_qa": "도배 질문",
        "empty": "답이 여기에 나옵니다.",
        "no_answer": "(빈 답)",
        "read": "모델이 읽은 글",
        "trimmed": "글이 길어서 {}자를 빼고 읽었습니다.",
        "cut": "답이 길어서 중간에 끊겼습니다.",
        "not_in": "글에 그대로 나오지 않는 답입니다.",
        "sure": ("매우 확신", "꽤 확신", "반신반의", "추측에 가까움"),
        "sure_means": "확신은 모델이 답의 토큰마다 매긴 확률의 평균(기하평균)입니다. "
        "선택지가 있으면 선택지 가운데 그 답이 차지하는 몫입니다. 답이 맞을 확률은 아닙니다.",
        "too_long": "'{}' 칸이 {}자입니다. {}자까지 쓸 수 있습니다.",
        "too_many": "질문이 {}개입니다. 한 번에 {}개까지 물을 수 있습니다.",
        "long_question": "질문 {}이 {}자입니다. {}자까지 쓸 수 있습니다.",
        "none_asked": "질문이 없습니다. 한 줄에 하나씩 적어 주세요.",
        "login": "사용자 이름은 dandap입니다.",
    },
    "en": {
        "subtitle": "Reads an article once and answers its questions in a word each.",
        "run": "Who answers",
        "beside": "Beside it",
        "nothing": "nothing",
        "base": "the base, before training",
        "sample": "Sample",
        "pick": "pick one",
        "ask": "Ask",
        "article": "Article",
        "questions": "Questions (one a line)",
        "dialogue": "Dialogue (an utterance a line, as 1: hello)",
        "target": "Number of the line that is asked about",
        "category": "Kind of inference",
        "inference_1": "Inference A",
        "inference_2": "Inference B",
        "inference_3": "Inference C",
        "economic_qa": "Articles",
        "dialogue_inference": "Dialogues",
        "wallpaper_qa": "Wallpaper",
        "empty": "Answers appear here.",
        "no_answer": "(an empty answer)",
        "read": "As the model read it",
        "trimmed": "The text was too long: {} characters were left out.",
        "cut": "The answer was too long and was cut.",
        "not_in": "This answer does not stand in the text as written.",
        "sure": ("very sure", "fairly sure", "unsure", "little more than a guess"),
        "sure_means": "How sure: the probability that the model gave to a token of its answer, on "
        "average (the geometric mean); where there are choices, the answer's share among them. It "
        "is not the probability that the answer is right.",
        "too_long": "'{}' holds {} characters; at most {} can be read.",
        "too_many": "Got {} questions; at most {} can be asked at once.",
        "long_question": "Question {} has {} characters; at most {} can be asked.",
        "none_asked": "There is no question. Write one a line.",
        "login": "The user name is dandap.",
    },
}
LIMITS = (0.95, 0.8, 0.5)  # probabilities from which the first, second and third of "sure" are said


def language() -> str:
    """Return the language of the locale where LABELS has it, else English."""
    name = (locale.getlocale()[0] or "").lower()
    return "ko" if name.startswith(("ko", "korean")) else "en"


def how_sure(labels: dict, probability: float) -> str:
    """Return a probability in words."""
    return labels["sure"][sum(probability < limit for limit in LIMITS)]
