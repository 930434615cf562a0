"""Make fictional questions and answers on wallpaper defects, in the competition's format."""

import random

from tools.demo.articles import Word, plain

# Per category: subjects, causes and remedies.
DEFECTS = {
    "곰팡이": (["벽지에 핀 곰팡이", "창틀 옆 곰팡이"], ["실내 습기가 찬 벽에 맺혀서", "환기가 모자라서"], ["마른걸레로 닦고 환기를 자주 하는 것", "곰팡이를 제거한 뒤 단열재를 덧대는 것"]),
    "들뜸": (["벽지가 들뜬 부분", "이음매가 벌어진 벽지"], ["풀이 고르게 발리지 않아서", "벽면이 덜 마른 채 시공해서"], ["들뜬 곳에 풀을 넣고 눌러 붙이는 것", "벽면을 말린 뒤 다시 도배하는 것"]),
    "오염": (["벽지에 묻은 얼룩", "바닥재의 찌든 때"], ["손때와 먼지가 쌓여서", "음료가 스며들어서"], ["중성 세제를 묻힌 천으로 닦는 것", "지워지지 않으면 그 폭만 새로 붙이는 것"]),
    "균열": (["벽에 간 금", "천장 모서리의 틈"], ["콘크리트가 마르며 줄어들어서", "건물이 조금씩 움직여서"], ["탄성 퍼티로 메우는 것", "금이 넓으면 전문가의 진단을 받는 것"]),
    "누수": (["천장에 번진 물 자국", "벽을 타고 흐르는 물"], ["윗집 배관이 새서", "외벽 틈으로 빗물이 들어와서"], ["새는 곳을 먼저 고치고 마감재를 바꾸는 것", "방수 공사를 다시 하는 것"]),
    "변색": (["누렇게 바랜 벽지", "햇빛에 색이 빠진 바닥"], ["햇빛의 자외선을 오래 받아서", "접착제 성분이 배어 나와서"], ["커튼으로 햇빛을 가리는 것", "색이 변한 곳을 새 자재로 바꾸는 것"]),
    "소음": (["걸을 때 나는 바닥 소리", "문을 닫을 때 나는 소리"], ["바닥재 사이가 벌어져서", "경첩이 느슨해져서"], ["틈에 윤활제를 넣는 것", "나사를 조이고 완충재를 붙이는 것"]),
    "결로": (["창에 맺히는 물방울", "외벽 안쪽의 물기"], ["안팎의 온도 차이가 커서", "단열이 끊긴 자리가 있어서"], ["습도를 낮추고 바람이 통하게 하는 것", "단열을 보강하는 것"]),
    "파손": (["찢어진 벽지", "모서리가 깨진 타일"], ["가구를 옮기다 부딪쳐서", "무거운 것을 떨어뜨려서"], ["같은 무늬의 조각을 덧대는 것", "깨진 타일만 떼어 내고 바꾸는 것"]),
    "냄새": (["새 벽지의 냄새", "마루에서 나는 냄새"], ["접착제의 성분이 날아가는 중이라서", "젖은 자재가 마르지 않아서"], ["며칠 동안 환기를 충분히 하는 것", "친환경 자재로 바꾸는 것"]),
}  # fmt: skip
PLACES = ("거실", "안방", "주방", "욕실 앞", "베란다", "아이 방", "현관")
# For each kind (why, how) two wordings, the two questions of a row. {what:은/는} adds the matching
# particle, as in tools.demo.articles.
ASK = (
    ("{place} {what:은/는} 왜 생기나요?", "{place} {what}의 원인은 무엇인가요?"),
    ("{place} {what:은/는} 어떻게 고치나요?", "{place} {what:을/를} 없애는 방법은 무엇인가요?"),
)
# Each row uses every wording once, for its five answers.
ANSWERS = (
    "{place} {what:은/는} {why} 생깁니다. {how}이 좋습니다.",
    "가장 흔한 원인은 {why} 그렇습니다. 먼저 {how}을 권합니다.",
    "보통 {why} 나타나는 하자입니다. {how}으로 나아질 수 있습니다.",
    "{why} 그럴 수 있습니다. 심하지 않다면 {how}만으로 충분합니다.",
    "{place}에서는 {why} 자주 보입니다. {how}을 먼저 해 보세요.",
)


def make_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Return `count` rows: id, 질문_1, 질문_2, category, 답변_1 to 답변_5.

    No two rows have the same category, subject, place and kind of question.
    """
    rng = random.Random(seed)
    subjects = [
        (category, what, place, kind)
        for category in DEFECTS
        for what in DEFECTS[category][0]
        for place in PLACES
        for kind in (0, 1)
    ]
    return [
        make_row(number, *subject, rng)
        for number, subject in enumerate(rng.sample(subjects, count))
    ]


def make_row(
    number: int, category: str, what: str, place: str, kind: int, rng: random.Random
) -> dict[str, str]:
    """Return a row on one subject in one place; kind 0 asks why, 1 how."""
    _, causes, remedies = DEFECTS[category]
    words = {"place": place, "what": Word(what)}
    questions = [plain(text.format(**words)) for text in ASK[kind]]
    answers = [
        plain(text.format(**words, why=rng.choice(causes), how=rng.choice(remedies)))
        for text in rng.sample(ANSWERS, len(ANSWERS))
    ]
    numbered = {f"답변_{place}": answer for place, answer in enumerate(answers, 1)}
    return {
        "id": f"TRAIN_{number:03d}",
        "질문_1": questions[0],
        "질문_2": questions[1],
        "category": category,
        **numbered,
    }


def make_test(rows: list[dict[str, str]], seed: int = 1) -> list[tuple[str, str, list[str]]]:
    """Return (id, question, gold answers) of each row.

    Every second question is joined with one of another row by "또한,", as in the competition.
    """
    rng, test = random.Random(seed), []
    for number, row in enumerate(rows):
        question, answers = row["질문_1"], [row[f"답변_{n}"] for n in range(1, 6)]
        if number % 2:
            other = rng.choice([one for one in rows if one is not row])
            question = f"{question} 또한, {other['질문_2']}"
            answers = [f"{mine} {other[f'답변_{n}']}" for n, mine in enumerate(answers, 1)]
        test.append((f"TEST_{number:03d}", question, answers))
    return test
