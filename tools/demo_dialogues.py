"""Make fictional dialogues for dialogue_inference.

There are ten situations, filled in with things, places and people, with five items each.
"""

import random

from tasks.dialogue_inference import CATEGORIES, INFERENCES, Item

# A situation: what may stand for its slots; turns (speaker, text); per category the referred turn,
# counted from 0, the right inference and wrong ones.
SITUATIONS = [
    {
        "slots": {"thing": ["노트북", "자전거", "카메라", "청소기", "에어컨"], "place": ["서비스 센터", "수리점", "대리점"]},
        "turns": [
            (1, "안녕. 어제 {thing} 산다고 했잖아, 어떻게 됐어?"),
            (2, "샀는데 집에 와서 켜 보니까 소리가 이상해."),
            (1, "헐 새건데? ㅠㅠ 바로 바꿔 달라고 해."),
            (2, "그래서 내일 {place}에 가져가 보려고."),
            (1, "영수증은 꼭 챙겨 가."),
            (2, "ㅇㅇ 고마워~ 안 그랬으면 까먹을 뻔했어."),
        ],
        "items": {
            "원인": (3, "새로 산 {thing}에 문제가 있다.", ["{thing}의 색이 마음에 들지 않는다.", "{place}에서 할인을 한다."]),
            "후행사건": (3, "화자2가 {place}에서 점검을 받는다.", ["화자2가 {thing}을 친구에게 판다.", "화자1이 {place}를 그만둔다."]),
            "전제": (4, "화자2가 {thing}을 돈을 내고 샀다.", ["화자2가 {thing}을 선물로 받았다.", "{place}가 문을 닫았다."]),
            "동기": (4, "화자1은 화자2가 교환을 쉽게 받기를 바란다.", ["화자1은 영수증을 모으고 싶다.", "화자1은 {thing}을 사고 싶다."]),
            "반응": (5, "화자2는 화자1에게 고마움을 느낀다.", ["화자2는 화자1에게 화가 난다.", "화자2는 지루해한다."]),
        },
    },
    {
        "slots": {"food": ["김치찌개", "파스타", "떡볶이", "카레", "만두"], "time": ["저녁", "점심"]},
        "turns": [
            (1, "오늘 {time}은 내가 {food} 해 줄게!!"),
            (2, "진짜? 너 요리 안 한 지 오래됐잖아...."),
            (1, "요즘 영상 보면서 연습했거든. 지난주에는 태웠지만."),
            (2, "그럼 나는 설거지할게."),
            (1, "좋아. 대신 맛없다고 하기 없기."),
            (2, "걱정 마, 나 다 잘 먹어. 벌써 배고프다 ㅋㅋ"),
        ],
        "items": {
            "원인": (2, "화자1이 영상을 보며 {food} 만드는 법을 익혔다.", ["화자1이 식당을 열었다.", "화자2가 {food}를 싫어한다."]),
            "후행사건": (3, "{time}을 먹은 뒤 화자2가 그릇을 씻는다.", ["화자1이 설거지를 두 번 한다.", "화자2가 {food}를 배달시킨다."]),
            "전제": (1, "화자1은 전에 요리를 한 적이 있다.", ["화자1은 요리사이다.", "화자2는 요리를 가르친다."]),
            "동기": (4, "화자1은 자신의 {food}가 나쁜 평을 받을까 걱정한다.", ["화자1은 {food}를 팔고 싶다.", "화자1은 {time}을 거르고 싶다."]),
            "반응": (5, "화자2는 {time}을 기대하고 있다.", ["화자2는 무서워하고 있다.", "화자2는 후회하고 있다."]),
        },
    },
    {
        "slots": {"place": ["제주도", "강릉", "부산", "여수", "경주"], "ride": ["기차", "버스", "비행기"]},
        "turns": [
            (1, "이번 휴가에 {place} 가기로 한 거 예약했어?"),
            (2, "아직... {ride} 표가 벌써 다 나갔더라."),
            (1, "말도 안 돼. 한 달이나 남았는데???"),
            (2, "연휴라서 그런가 봐. 취소표 나오는지 매일 보고 있어."),
            (1, "그럼 나도 같이 볼게."),
            (2, "고마워, 둘이 보면 훨씬 낫지."),
        ],
        "items": {
            "원인": (1, "연휴에 {place}로 가려는 사람이 많다.", ["{ride}가 없어졌다.", "화자2가 {place}를 싫어한다."]),
            "후행사건": (4, "두 사람이 취소된 {ride} 표를 찾아본다.", ["화자1이 {place}로 이사한다.", "두 사람이 휴가를 회사에 반납한다."]),
            "전제": (0, "두 사람은 {place}에 가기로 약속했다.", ["두 사람은 {place}에 산다.", "화자2는 휴가가 없다."]),
            "동기": (3, "화자2는 {place}에 꼭 가고 싶다.", ["화자2는 {ride} 회사에 들어가고 싶다.", "화자2는 표를 비싸게 팔고 싶다."]),
            "반응": (2, "화자1은 표가 없다는 말에 놀랐다.", ["화자1은 표가 없어서 기쁘다.", "화자1은 졸리다."]),
        },
    },
    {
        "slots": {"pet": ["강아지", "고양이", "토끼", "앵무새"], "days": ["이틀", "사흘", "일주일"]},
        "turns": [
            (1, "나 출장 가는 동안 우리 {pet} 좀 봐줄 수 있어?"),
            (2, "며칠이나 가는데?"),
            (1, "{days}이야. 밥은 내가 다 챙겨 놓을게."),
            (2, "좋아, 우리 애들도 {pet} 보면 좋아할 거야!"),
            (1, "정말 다행이다. 맡길 데가 없어서 잠도 못 잤어."),
            (2, "진작 말하지 그랬어."),
        ],
        "items": {
            "원인": (0, "화자1이 집을 비우게 되었다.", ["{pet}가 집을 나갔다.", "화자2가 {pet}를 잃어버렸다."]),
            "후행사건": (3, "화자1이 {pet}를 화자2에게 맡긴다.", ["화자2가 출장을 간다.", "화자1이 {pet}를 새로 산다."]),
            "전제": (3, "화자2에게는 아이들이 있다.", ["화자2는 {pet}를 무서워한다.", "화자1은 결혼하지 않았다."]),
            "동기": (2, "화자1은 화자2의 수고를 덜어 주고 싶다.", ["화자1은 밥을 먹고 싶다.", "화자1은 출장을 미루고 싶다."]),
            "반응": (4, "화자1은 마음이 놓였다.", ["화자1은 속이 상했다.", "화자1은 부러워했다."]),
        },
    },
    {
        "slots": {"exam": ["운전면허", "토익", "자격증", "한국사"], "score": ["한 문제", "두 문제", "3점"]},
        "turns": [
            (1, "name1은 {exam} 시험 결과 나왔어?"),
            (2, "응... {score} 차이로 떨어졌어 ㅠㅡㅠ"),
            (1, "아깝다. 그렇게 열심히 했는데."),
            (2, "시간이 모자라서 뒤는 찍었거든."),
            (1, "다음 달에 또 있잖아. 이번에는 시간 재면서 연습해 봐."),
            (2, "그래야지. 같이 공부할래?"),
        ],
        "items": {
            "원인": (1, "화자2는 시간이 모자라 뒷부분을 풀지 못했다.", ["화자2는 시험장에 가지 않았다.", "화자2는 {exam}을 이미 땄다."]),
            "후행사건": (5, "두 사람이 함께 {exam} 공부를 한다.", ["화자1이 시험을 출제한다.", "화자2가 {exam}을 포기한다."]),
            "전제": (4, "{exam} 시험은 다음 달에도 있다.", ["{exam} 시험은 한 번뿐이다.", "화자1은 시험 감독이다."]),
            "동기": (4, "화자1은 화자2가 다음에는 붙기를 바란다.", ["화자1은 시계를 사고 싶다.", "화자1은 화자2와 겨루고 싶다."]),
            "반응": (2, "화자1은 화자2의 결과를 안타까워한다.", ["화자1은 화자2의 결과를 고소해한다.", "화자1은 아무렇지 않다."]),
        },
    },
    {
        "slots": {"team": ["농구부", "합창단", "연극반", "축구팀"], "day": ["토요일", "일요일", "수요일"]},
        "turns": [
            (1, "{day}에 {team} 모임 있는 거 알지?"),
            (2, "아 맞다! 나 그날 할머니 생신인데...."),
            (1, "어떡해, 네가 빠지면 연습이 안 되는데."),
            (2, "모임을 저녁으로 옮기면 안 될까?"),
            (1, "다른 사람들한테 물어볼게."),
            (2, "부탁할게. 미안해 정말."),
        ],
        "items": {
            "원인": (3, "화자2는 {day} 낮에 가족 모임이 있다.", ["화자2는 {team}을 그만두었다.", "화자1이 {day}에 이사를 한다."]),
            "후행사건": (4, "화자1이 {team} 사람들에게 시간을 바꿔도 되는지 묻는다.", ["화자1이 할머니께 전화한다.", "화자2가 {team}을 새로 만든다."]),
            "전제": (2, "화자2는 {team}에서 중요한 역할을 한다.", ["화자2는 {team}에 들어간 적이 없다.", "{team}에는 화자1만 있다."]),
            "동기": (3, "화자2는 생신과 모임에 모두 가고 싶다.", ["화자2는 {day}에 쉬고 싶다.", "화자2는 저녁을 굶고 싶다."]),
            "반응": (5, "화자2는 미안함을 느낀다.", ["화자2는 뿌듯함을 느낀다.", "화자2는 질투를 느낀다."]),
        },
    },
    {
        "slots": {"item": ["우산", "지갑", "휴대 전화", "장갑"], "where": ["지하철", "버스", "카페", "도서관"]},
        "turns": [
            (1, "나 {where}에 {item} 두고 내렸나 봐."),
            (2, "언제? 바로 전화해 봐."),
            (1, "벌써 해 봤는데 들어온 게 없대 ㅠㅠ"),
            (2, "하루쯤 기다려 보자. 나도 전에 그렇게 찾았어."),
            (1, "생일 선물로 받은 건데.... 큰일이네."),
            (2, "찾을 수 있을 거야. 내일 같이 가 줄게!!"),
        ],
        "items": {
            "원인": (2, "화자1이 {where}에서 {item}을 챙기지 못했다.", ["화자1이 {item}을 팔았다.", "{where}에 불이 났다."]),
            "후행사건": (5, "두 사람이 {item}을 찾으러 간다.", ["화자2가 {item}을 버린다.", "화자1이 {where}를 청소한다."]),
            "전제": (3, "화자2도 물건을 잃어버렸다가 찾은 적이 있다.", ["화자2는 {where}에 간 적이 없다.", "화자1은 {item}이 여러 개다."]),
            "동기": (5, "화자2는 화자1을 위로하고 돕고 싶다.", ["화자2는 {where}에서 일하고 싶다.", "화자2는 {item}을 갖고 싶다."]),
            "반응": (4, "화자1은 속상하고 초조하다.", ["화자1은 홀가분하다.", "화자1은 자랑스럽다."]),
        },
    },
    {
        "slots": {"job": ["빵집", "편의점", "학원", "꽃집"], "hours": ["네 시간", "다섯 시간", "여섯 시간"]},
        "turns": [
            (1, "너 {job}에서 일 시작했다며? 어때?"),
            (2, "하루 {hours}씩 서 있으니까 다리가 너무 아파."),
            (1, "의자 없어? 사장님한테 말해 봐."),
            (2, "말했더니 다음 주에 하나 놔 주신대."),
            (1, "잘됐다~ 편한 신발도 하나 사."),
            (2, "안 그래도 월급 받으면 사려고."),
        ],
        "items": {
            "원인": (1, "화자2는 일하는 동안 앉지 못한다.", ["화자2는 {job}까지 뛰어간다.", "화자2는 계단에서 넘어졌다."]),
            "후행사건": (3, "{job}에 의자가 생긴다.", ["{job}이 문을 닫는다.", "화자2가 사장이 된다."]),
            "전제": (5, "화자2는 아직 첫 월급을 받지 않았다.", ["화자2는 신발 가게에서 일한다.", "화자2는 월급을 다 썼다."]),
            "동기": (4, "화자1은 화자2가 덜 힘들게 일하기를 바란다.", ["화자1은 신발을 팔고 싶다.", "화자1은 {job}을 차리고 싶다."]),
            "반응": (4, "화자1은 다행이라고 여긴다.", ["화자1은 서운해한다.", "화자1은 겁을 낸다."]),
        },
    },
    {
        "slots": {"noise": ["피아노 소리", "공사 소리", "개 짖는 소리", "음악 소리"], "floor": ["위층", "옆집", "아래층"]},
        "turns": [
            (1, "어젯밤에도 {floor} {noise} 들렸어?"),
            (2, "응, 두 시까지 한숨도 못 잤어 ㅠㅠ"),
            (1, "관리실에 말해 보지 그래?"),
            (2, "벌써 두 번이나 말했는데 그대로야."),
            (1, "그러면 쪽지를 써서 붙여 보자."),
            (2, "그게 좋겠다. 오늘은 꼭 자고 싶어...."),
        ],
        "items": {
            "원인": (1, "{floor}에서 밤늦게 {noise}가 났다.", ["화자2가 커피를 많이 마셨다.", "화자2가 늦게까지 공부했다."]),
            "후행사건": (5, "두 사람이 {floor}에 쪽지를 붙인다.", ["화자2가 관리실에 취직한다.", "화자1이 악기를 배운다."]),
            "전제": (0, "전에도 {floor}에서 {noise}가 들렸다.", ["화자1은 {floor}에 산다.", "{floor}에는 사람이 없다."]),
            "동기": (4, "화자1은 다른 방법으로 문제를 풀고 싶다.", ["화자1은 글씨를 자랑하고 싶다.", "화자1은 이사하고 싶다."]),
            "반응": (3, "화자2는 답답하다.", ["화자2는 즐겁다.", "화자2는 설렌다."]),
        },
    },
    {
        "slots": {"plant": ["상추", "토마토", "고추", "딸기"], "spot": ["베란다", "옥상", "마당"]},
        "turns": [
            (1, "우리 {spot}에 심은 {plant} 봤어?"),
            (2, "아니, 왜? 시들었어?"),
            (1, "반대야!!! 하룻밤 사이에 엄청 컸어."),
            (2, "어제 비가 와서 그런가 보다."),
            (1, "이번 주말에 따서 할머니 댁에 갖다드리자."),
            (2, "좋아하시겠다. 작년에도 {plant} 잘 드셨잖아."),
        ],
        "items": {
            "원인": (2, "어제 내린 비로 {plant}가 물을 많이 먹었다.", ["화자2가 {plant}를 새로 샀다.", "할머니가 {spot}을 넓혔다."]),
            "후행사건": (4, "두 사람이 주말에 {plant}를 딴다.", ["두 사람이 {plant}를 뽑아 버린다.", "할머니가 {spot}으로 이사 온다."]),
            "전제": (5, "할머니는 작년에 {plant}를 드셨다.", ["할머니는 {plant}를 처음 보신다.", "할머니는 {spot}에 사신다."]),
            "동기": (4, "화자1은 할머니를 기쁘게 해 드리고 싶다.", ["화자1은 {plant}를 팔고 싶다.", "화자1은 주말에 쉬고 싶다."]),
            "반응": (2, "화자1은 신이 났다.", ["화자1은 실망했다.", "화자1은 부끄럽다."]),
        },
    },
]  # fmt: skip
# Dialogues, before those that came out equal are dropped.
PER_SITUATION = 8


def make_dialogues(seed: int = 0) -> list[list[Item]]:
    """Return dialogues in random order, each as its five items, all with `output`.

    They are the same for a seed; no two have the same utterances.
    """
    rng = random.Random(seed)
    dialogues = [fill(situation, rng) for situation in SITUATIONS for _ in range(PER_SITUATION)]
    # A situation has few fillings, so some are drawn twice: one dialogue on both sides of a split
    # would be a leak.
    different = {}
    for items in dialogues:
        said = [turn["utterance"] for turn in items[0]["input"]["conversation"]]
        different[str(said)] = items
    dialogues = list(different.values())
    rng.shuffle(dialogues)
    return dialogues


def fill(situation: dict, rng: random.Random) -> list[Item]:
    """Return one dialogue of a situation: an item per category, the options in random order."""
    slots = {name: rng.choice(values) for name, values in situation["slots"].items()}
    conversation = [
        {"speaker": speaker, "utterance": text.format(**slots)}
        for speaker, text in situation["turns"]
    ]
    items = []
    for category in CATEGORIES:
        turn, right, wrong = situation["items"][category]
        options = [text.format(**slots) for text in (right, *wrong)]
        order = rng.sample(range(3), 3)
        content = {
            "conversation": conversation,
            "reference_id": [turn],
            "category": category,
            **{name: options[place] for name, place in zip(INFERENCES, order, strict=True)},
        }
        items.append({"id": "", "input": content, "output": INFERENCES[order.index(0)]})
    return items


def numbered(dialogues: list[list[Item]], split: str) -> list[Item]:
    """Return all items of a split, with the ids of items and utterances as NIKL writes them."""
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
