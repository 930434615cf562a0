"""Make fictional dialogues for dialogue_inference that the demo base model can learn.

A dialogue has three talks about one situation, each with an item of one category. In a talk, one
statement is true and another is false: the real cause and a guessed one, who does what, what is
done and what is left. The third inference is false too, and some talks mention it. Train and test
share the wordings of talks, but not the situations with their turns and phrases
(tools/demo/situations.py).
"""

import itertools
import random

from tasks.dialogue_inference import CATEGORIES, INFERENCES, Item
from tools.demo.articles import Word, plain
from tools.demo.situations import TRAIN, Situation

# The turns of a talk, separated by bars. The star marks the referenced utterance, by speaker S; O is
# the other speaker. {right} is true of S and {wrong} is false. The words that distinguish them
# come first, because the demo base model reads from left to right and copies from the start of a
# phrase.
TALKS = {
    "원인": (
        "O: {ask}|*S: {tell}....|O: 혹시 {wrong} 그런 거야? 아니면 {other} 그랬어?|S: 아니, 사실은 {right} 그랬어.",
        "O: {ask}|*S: {tell} ㅠㅠ|O: 설마 {wrong} 그랬어?|S: 그게 아니라 {right} 그랬어.",
        "O: {ask}|*S: {tell}.|O: 왜???|S: 사실은 {right} 그랬지 뭐.|O: 나는 또 {wrong} 그런 줄 알았어.",
        "O: {ask}|*S: {tell}.|O: 어쩌다가?|S: 알고 보니 {right} 그런 거였어.|O: 그랬구나. 혹시 {wrong} 그랬나, 설마 {other} 그랬나 했지.",
        "O: {ask}|*S: {tell} ㅠㅡㅠ|O: 나는 또 {wrong} 그런 줄 알았네.|S: ㅋㅋ 아니야, 사실은 {right} 그랬어.",
        "O: {ask}|*S: {tell}.|O: 설마 {wrong} 그랬어? 혹시 {other} 그런 거야?|S: 아니라니까~ 알고 보니 {right} 그런 거였어.",
        "O: {ask}|*S: {tell}....|O: 헐, 왜?|S: 사실은 {right} 그랬어.|O: 설마 {wrong} 그랬나, 혹시 {other} 그랬나 하고 걱정했네.",
    ),
    "동기": (
        "*S: {plan}!|O: 갑자기? 혹시 {wrong} 싶어서 그래? 아니면 {other} 싶어서?|S: 아니, 그냥 {right} 싶어서.",
        "*S: {plan}~|O: 왜?|S: 그냥 {right} 싶어서 ㅎㅎ|O: 나는 또 {wrong} 싶은 줄 알았네.",
        "*S: {plan}.|O: 왜???|S: 사실은 {right} 싶거든.|O: 그렇구나. 나라면 {wrong} 싶을 텐데.",
        "*S: {plan}!|O: 설마 {wrong} 싶어서? 혹시 {other} 싶어서?|S: 그게 아니라 {right} 싶어서.",
        "*S: {plan}.|O: 너 혹시 {wrong} 싶은 거야?|S: ㅋㅋㅋ 사실은 {right} 싶어서 그래.",
        "*S: {plan}~|O: 설마 {other} 싶은 건 아니지? 나라면 {wrong} 싶을 텐데.|S: 사실은 {right} 싶어서 그래.",
    ),
    "전제": (
        "O: 준비는 어떻게 돼 가?|*S: 벌써 {right:은/는} 끝냈지. 이제 {wrong}하고 {other}만 남았어.",
        "O: 준비는 다 했어?|*S: 이제 {wrong:을/를} 하면 돼. 어제 {right:을/를} 다 했거든.",
        "O: 아직 {wrong:은/는} 남았지?|*S: ㅇㅇ 그것만 남았어. 벌써 {right:을/를} 끝냈고.",
        "O: 뭐가 남았어?|*S: 아직 {wrong:은/는} 못 했어 ㅠㅠ 이제 {other:을/를} 해야지. 어제 {right:은/는} 다 했지만.",
        "O: 어디까지 했어?|*S: 이미 {right:이/가} 끝났고 아직 {wrong:이/가} 남았어.",
        "O: 아직 {wrong:은/는} 못 했어? 이제 {other:을/를} 해야 돼?|*S: ㅇㅇ 이미 {right:은/는} 끝났는데 그게 남았어.",
    ),
    "후행사건": (
        "*S: 그럼 내가 {right}게.|O: 고마워~ 나는 {wrong}게.",
        "O: 네가 {right}래? 나는 {wrong}게. 이미 {other} 사람은 구했어.|*S: 좋아, 그럴게.",
        "O: 나는 {wrong}게. 너는 {right} 수 있어?|*S: ㅇㅇ 알았어!!",
        "*S: 이미 {other} 사람은 있으니까 내가 {right}까?|O: 그래 주면 좋지. 나는 {wrong}게.",
        "O: 혹시 {wrong} 수 있어?|*S: 그건 좀.... 대신 내가 {right}게.|O: 좋아, 그건 내가 할게. 이미 {other} 사람은 있고.",
        "O: 나는 {wrong} 생각이야. 이미 {other} 사람은 구했고.|*S: 그럼 내가 {right}게!!",
    ),
    "반응": ("*S: {right}|O: {wrong}", "O: {wrong}|*S: {right}"),
}  # fmt: skip
# The order of talks in a dialogue.
ORDER = ("원인", "동기", "전제", "후행사건", "반응")
# Added before a first talk that cannot open a dialogue.
OPENINGS = {
    "전제": "S: {topic} 때문에 정신이 없네.",
    "후행사건": "S: 우리 {topic} 말인데, 일을 나누자.",
    "반응": "O: {topic} 이야기 들었어?",
}
GREETINGS = ("", "", "", "안녕~ ", "안녕! ", "name{o}, ", "야, ")
# Feelings, and utterances that express them.
FEELINGS = {
    "고마워한다": ("네 덕분에 살았어.", "정말 고마워, 잊지 않을게.", "이렇게까지 도와주다니 고맙다 ㅠㅠ"),
    "미안해한다": ("괜히 나 때문에.... 미안해.", "미안, 내가 잘못했어.", "진짜 미안해 ㅠㅠ"),
    "놀라워한다": ("헐, 진짜???", "깜짝이야! 그런 일이 있었어?", "말도 안 돼, 몰랐어!!"),
    "마음을 놓는다": ("휴, 다행이다.", "이제야 한시름 놨어.", "잘돼서 다행이네~"),
    "기대한다": ("벌써 두근두근해!", "얼른 그날이 왔으면 좋겠다 ㅎㅎ", "너무 기대돼~"),
    "걱정한다": ("괜찮을까? 자꾸 불안해.", "잘 안되면 어떡하지....", "무슨 일 생길까 봐 겁나."),
    "속상해한다": ("너무 속상해 ㅠㅠ", "눈물 나려고 해.", "마음이 아프다 진짜."),
}  # fmt: skip
# The subject of a statement, and the same with speakers swapped.
SWAPPED = {"화자1은": "화자2는", "화자1이": "화자2가", "화자2는": "화자1은", "화자2가": "화자1이"}
Turn = tuple[int, str]  # speaker, text
Claim = tuple[int, str]  # speaker that the claim is about, phrase


def make_dialogues(
    situations: list[Situation] = TRAIN, count: int = 40, seed: int = 0
) -> list[list[Item]]:
    """Return dialogues in random order, each as a list of three items with `output`.

    Ten dialogues have all ten combinations of three categories. The outputs of each category are
    balanced.
    """
    rng = random.Random(seed)
    choices = list(itertools.combinations(ORDER, 3))
    places = {category: rng.randrange(3) for category in CATEGORIES}
    dialogues = []
    for number in range(count):
        # The shift gives each situation different combinations.
        situation = situations[(number + number // 10) % len(situations)]
        items = make_dialogue(situation, choices[number % 10], rng)
        for item in items:
            category = item["input"]["category"]
            places[category] = (places[category] + 1) % 3
            put_right_at(item, places[category])
        dialogues.append(items)
    rng.shuffle(dialogues)
    return dialogues


def put_right_at(item: Item, place: int) -> None:
    """Swap the right inference, which is first, with the one at `place`."""
    content, right, other = item["input"], INFERENCES[0], INFERENCES[place]
    content[right], content[other] = content[other], content[right]
    item["output"] = other


def make_dialogue(
    situation: Situation, categories: tuple[str, ...], rng: random.Random
) -> list[Item]:
    """Return the items of one dialogue, with the right inference first."""
    turns, asked = [], []
    for number, category in enumerate(categories):
        speakers = (1, 2) if rng.random() < 0.5 else (2, 1)
        talk, place, inferences = make_talk(category, situation, speakers, rng)
        if not number:
            talk, place = open_talk(talk, place, category, situation, speakers)
        asked.append((category, len(turns) + place, inferences))
        turns += talk
    # The first speaker is speaker 1.
    if turns[0][0] == 2:
        turns = [(3 - speaker, text) for speaker, text in turns]
        asked = [(*others, list(map(swap_speakers, texts))) for *others, texts in asked]
    speaker, text = turns[0]
    turns[0] = (speaker, rng.choice(GREETINGS).format(o=3 - speaker) + text)
    conversation = [{"speaker": speaker, "utterance": text} for speaker, text in turns]
    items = []
    for category, place, inferences in asked:
        # Shuffle the wrong two: the position must not reveal which one the talk mentions.
        first, *others = inferences
        inferences = [first, *rng.sample(others, 2)]
        content = {
            "conversation": conversation,
            "reference_id": [place],
            "category": category,
            **dict(zip(INFERENCES, inferences, strict=True)),
        }
        items.append({"id": "", "input": content, "output": INFERENCES[0]})
    return items


def open_talk(
    talk: list[Turn], place: int, category: str, situation: Situation, speakers: tuple[int, int]
) -> tuple[list[Turn], int]:
    """Return the talk with an opening turn before it, if it needs one."""
    if category not in OPENINGS:
        return talk, place
    opening, _ = fill_turns(OPENINGS[category], {"topic": situation.topic}, speakers)
    return opening + talk, place + 1


def make_talk(
    category: str, situation: Situation, speakers: tuple[int, int], rng: random.Random
) -> tuple[list[Turn], int, list[str]]:
    """Return a talk's turns, the index of the referenced one, and the inferences, right first.

    `speakers` is (S, O).
    """
    phrases = {
        "원인": situation.causes,
        "동기": situation.wishes,
        "전제": situation.steps,
        "후행사건": situation.tasks,
        "반응": list(FEELINGS),
    }
    right, wrong, other = rng.sample(phrases[category], 3)
    words = {"right": Word(right), "wrong": Word(wrong), "other": Word(other)}
    if category == "반응":
        words = {name: rng.choice(FEELINGS[feeling]) for name, feeling in words.items()}
    for name in ("ask", "tell", "plan"):
        words[name] = rng.choice(getattr(situation, f"{name}s"))
    talk, place = fill_turns(rng.choice(TALKS[category]), words, speakers)
    if category in ("원인", "전제"):  # these have no speaker
        claims = [(0, right), (0, wrong), (0, other)]
    else:
        claims = make_claims(right, wrong, other, speakers, rng)
    return talk, place, [state(category, *claim) for claim in claims]


def fill_turns(
    turns: str, words: dict[str, str], speakers: tuple[int, int]
) -> tuple[list[Turn], int]:
    """Fill in the turns of a talk; also return the index of the one with a star, or 0."""
    filled, place = [], 0
    for number, turn in enumerate(turns.split("|")):
        who, text = turn.split(": ", 1)
        if who.startswith("*"):
            place = number
        speaker = speakers[0] if who.endswith("S") else speakers[1]
        filled.append((speaker, plain(text.format_map(words))))
    return filled, place


def make_claims(
    right: str, wrong: str, other: str, speakers: tuple[int, int], rng: random.Random
) -> list[Claim]:
    """Return the claims of three statements: the right one, which is about S, and two wrong ones.

    Half of the time all are about S. Otherwise two share the phrase and two share the speaker, in
    patterns that do not reveal the right one. No claim combines O with `wrong`, which can be true.
    """
    s, o = speakers
    if rng.random() < 0.5:
        return [(s, right), (s, wrong), (s, other)]
    middle = [(s, right), (o, right), (s, rng.choice((wrong, other)))]
    ends = [(s, right), (o, right), (o, other)], [(s, right), (s, other), (o, other)]
    return rng.choice((middle, *ends))


def state(category: str, speaker: int, phrase: str) -> str:
    """Return the statement of a category, about a speaker if the category has one."""
    if category == "원인":
        return f"{past(phrase)}."
    if category == "전제":
        return plain(f"{Word(phrase):은/는} 이미 끝났다.")
    person = Word(f"화자{speaker}")
    if category == "동기":
        return plain(f"{person:은/는} {phrase} 싶어 한다.")
    if category == "반응":
        return plain(f"{person:은/는} {phrase}.")
    return plain(f"{person:이/가} {present(phrase)}.")


def swap_speakers(statement: str) -> str:
    """Return a statement with 화자1 and 화자2 swapped."""
    person, rest = statement[:4], statement[4:]
    return SWAPPED.get(person, person) + rest


def past(cause: str) -> str:
    """Return a cause in the past tense: 고장 나서 becomes 고장 났다."""
    return with_final(cause.removesuffix("서"), 20) + "다"  # 20 is ㅆ


def present(task: str) -> str:
    """Return a task in the present tense: 살 becomes 산다, 찍을 becomes 찍는다."""
    if task.endswith("을"):
        return task.removesuffix("을") + "는다"
    return with_final(task, 4) + "다"  # 4 is ㄴ


def with_final(word: str, final: int) -> str:
    """Return a word with the final consonant of its last syllable replaced (Unicode index)."""
    syllable = ord(word[-1]) - ord("가")
    return word[:-1] + chr(ord("가") + syllable - syllable % 28 + final)


def numbered(dialogues: list[list[Item]], split: str) -> list[Item]:
    """Return all items of a split, with ids of items and utterances like those of NIKL."""
    items = []
    for number, dialogue in enumerate(dialogues, 1):
        name = f"dandap.{split}.{number:03d}"
        for item in dialogue:
            turns = [
                {
                    "speaker": turn["speaker"],
                    "utterance": turn["utterance"],
                    "utterance_id": f"{name}.{place}",
                }
                for place, turn in enumerate(item["input"]["conversation"], 1)
            ]
            referred = [f"{name}.{place + 1}" for place in item["input"]["reference_id"]]
            content = {**item["input"], "conversation": turns, "reference_id": referred}
            items.append(
                {
                    "id": f"dandap-대화 맥락 추론-{split}-{len(items) + 1:06d}",
                    "input": content,
                    "output": item["output"],
                }
            )
    return items
