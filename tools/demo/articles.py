"""Make fictional Korean economic news with questions, for the bundled demo.

Names of companies, people and products are random syllables, and figures are random numbers.
Cities, countries and industries are real words. Articles mention several candidates of every kind
(companies, people, places, amounts, dates), so that the form of an answer does not reveal it.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

# Separates a noun from its particle while the tokenizer is trained. No token spans both, so a name
# has the same tokens in the article and in the answer. `plain` removes it.
SEAM = "\x1f"


def plain(text: str) -> str:
    """Return the text without seams."""
    return text.replace(SEAM, "")


class Word(str):
    """A noun that adds the matching particle when formatted.

    f"{Word('한빛전자'):은/는}" is "한빛전자는", with a seam before the particle.
    """

    def __format__(self, particles: str) -> str:
        """Return the noun, a seam, and the matching one of two particles, if given."""
        if not particles:
            return str(self) + SEAM
        after_consonant, after_vowel = particles.split("/")
        particle = after_consonant if final_consonant(self, particles) else after_vowel
        return str(self) + SEAM + particle


# The pronunciation of the last character decides the particle:
# 3 -> 삼 (ends in a consonant), 2 -> 이 (ends in a vowel), % -> 퍼센트.
_READ_AS = dict(zip("0123456789%", "영일이삼사오육칠팔구트", strict=True))


def final_consonant(word: str, particles: str) -> bool:
    """Return whether `word` takes the after-consonant form of the particle.

    The particle 으로/로 treats a final ㄹ as a vowel.
    """
    last = next((c for c in reversed(word) if c.isalnum() or c == "%"), "이")
    last = _READ_AS.get(last, last)
    if not "가" <= last <= "힣":
        return False
    final = (ord(last) - ord("가")) % 28
    return final != 0 and not (final == 8 and particles.startswith("으로"))


@dataclass(frozen=True)
class Fact:
    """A fact that an article can mention, in several wordings.

    Every slot that answers a question is literally in the sentence.
    """

    sentences: tuple[str, ...]
    questions: dict[str, tuple[str, ...]]  # answer slot -> paraphrases


COMPANY_SYLLABLES = (
    "가 강 거 건 경 고 광 구 국 금 기 길 나 남 네 노 누 늘 다 단 달 담 대 도 동 두 라 람 래 로 "
    "루 리 림 마 맑 명 모 무 문 미 민 바 반 밝 백 범 보 봄 부 비 빛 산 상 새 샘 서 선 설 성 세 "
    "소 솔 송 수 순 슬 승 시 신 아 안 양 어 여 연 영 예 오 온 우 운 울 원 위 유 율 은 을 이 인 "
    "일 자 재 정 제 조 종 주 중 지 진 차 찬 창 천 청 초 충 큰 탄 태 터 토 파 평 포 푸 풍 하 한 "
    "해 현 혜 호 화 환 효 휘 희"
).split()
INDUSTRIES = {
    "전자": ("반도체 검사 장비", "가전제품", "디스플레이 패널", "전자 부품"),
    "화학": ("이차전지 소재", "합성수지", "친환경 도료", "정밀 화학 제품"),
    "바이오": ("신약", "진단 키트", "백신", "건강기능식품"),
    "식품": ("간편식", "라면", "음료", "냉동식품"),
    "중공업": ("선박 엔진", "건설 기계", "풍력 발전기", "산업용 보일러"),
    "제약": ("항암제", "감기약", "당뇨 치료제", "피부 연고"),
    "모빌리티": ("전기차 충전기", "전기 오토바이", "자율주행 센서", "차량용 배터리"),
    "물산": ("커피 원두", "수입 가구", "산업 원자재", "곡물"),
    "소프트": ("회계 프로그램", "보안 프로그램", "물류 관리 시스템", "온라인 교육 서비스"),
    "패션": ("등산복", "운동화", "아동복", "가방"),
    "에너지": ("태양광 모듈", "수소 연료전지", "에너지 저장 장치", "전력 변환 장치"),
    "로보틱스": ("물류 로봇", "서빙 로봇", "협동 로봇", "용접 로봇"),
    "항공": ("무인기", "항공기 부품", "화물 운송 서비스", "위성 안테나"),
    "건설": ("조립식 주택", "친환경 건축 자재", "도로 포장재", "스마트 주택"),
}
SURNAMES = (
    "김 이 박 최 정 강 조 윤 장 임 한 오 서 신 권 황 안 송 류 홍 전 고 문 양 손 배 백 허 남 심 "
    "노 하"
).split()
GIVEN_FIRST = (
    "가 건 경 규 기 나 다 도 동 라 명 문 미 민 병 보 상 서 선 성 세 소 수 승 시 아 영 예 용 우 "
    "원 유 윤 은 인 재 정 종 주 준 지 진 찬 창 채 태 하 한 해 현 형 혜 호 효 희"
).split()
GIVEN_SECOND = (
    "건 결 경 관 구 국 규 기 나 남 덕 라 람 록 림 만 명 미 민 배 범 별 복 봉 빈 석 선 섭 성 솔 "
    "수 숙 순 식 신 아 안 애 엽 영 옥 완 용 우 욱 웅 원 윤 율 은 인 일 자 정 종 주 준 중 지 진 "
    "찬 철 태 택 하 한 헌 혁 현 형 혜 호 환 훈 희"
).split()
PRODUCT_SYLLABLES = (
    "네 노 니 라 레 로 루 리 마 모 미 바 베 벨 브 비 빈 사 세 소 솔 스 시 아 알 에 엘 오 온 올 "
    "유 이 제 젠 지 카 케 코 큐 크 키 타 테 토 티 파 페 포 프 피 하 헬 휴"
).split()
PLACES = (
    "서울 부산 대구 인천 광주 대전 울산 수원 용인 성남 고양 안산 안양 평택 화성 이천 파주 김포 "
    "춘천 원주 강릉 속초 청주 충주 제천 천안 아산 당진 서산 공주 전주 군산 익산 정읍 남원 목포 "
    "여수 순천 광양 나주 포항 경주 구미 안동 김천 영주 창원 진주 통영 김해 거제 양산 밀양 제주 "
    "서귀포 세종 오산 시흥 하남 구리"
).split()
COUNTRIES = (
    "미국 일본 중국 독일 프랑스 영국 이탈리아 스페인 캐나다 호주 인도 베트남 태국 인도네시아 "
    "말레이시아 싱가포르 필리핀 브라질 멕시코 칠레 터키 폴란드 헝가리 체코 네덜란드 스웨덴 "
    "노르웨이 핀란드 카타르 이집트"
).split()
CAUSES = (
    "원자재 가격|물류비|인건비|환율|수출|내수 판매|해외 주문|신제품 판매|온라인 판매|생산 원가|"
    "전기 요금|연구개발 성과|구독 서비스|부품 공급|곡물 가격|공장 가동률|프리미엄 제품 판매|"
    "단체 주문"
).split("|")
CHANGES_UP = "증가|확대|회복|호조|급증|개선|안정".split("|")
CHANGES_DOWN = "감소|부진|하락|차질|축소|급감|악화".split("|")
UNIVERSITY_HEADS = (
    "한빛 새벽 동해 서림 남산 북악 백두 한라 청운 미래 금강 가온 누리 태백 소백 영산 다솔 하늘 "
    "은하 초원"
).split()
BANK_HEADS = (
    "나루 가람 다온 새길 두레 한울 미르 온누리 푸른 참빛 늘봄 아침 한결 동녘 샛별 으뜸"
).split()
EVENTS = (
    "산업 박람회|기술 전시회|투자 설명회|신제품 발표회|취업 박람회|수출 상담회|창업 경진 대회|"
    "품질 혁신 대회"
).split("|")
AGENCIES = (
    "산업통상자원부 중소벤처기업부 과학기술정보통신부 환경부 고용노동부 국토교통부 "
    "농림축산식품부 보건복지부 해양수산부 공정거래위원회 금융위원회 특허청 조달청 관세청"
).split()
PERIODS = ("지난해|올해 상반기|올해 1분기|올해 2분기|올해 3분기|지난해 4분기|지난해 하반기").split(
    "|"
)
FACILITIES = ("공장|연구소|물류 센터|데이터 센터|생산 단지|교육 센터|서비스 센터|시험 시설").split(
    "|"
)
MATERIALS = ("리튬|니켈|구리|알루미늄|밀가루|설탕|면화|고무|펄프|강판|유리 섬유|반도체 기판").split(
    "|"
)
TECHNOLOGIES = (
    "음성 인식|영상 분석|폐열 회수|급속 충전|자동 포장|불량 검사|저온 살균|수질 정화|소음 저감|"
    "위치 추적|원격 제어|수요 예측|얼굴 인식|배터리 재활용"
).split("|")
CUSTOMERS = (
    "20대 고객|30대 고객|40대 고객|50대 고객|1인 가구|신혼부부|직장인|대학생|자영업자|외국인 관광객"
).split("|")

# The slots company, rival and target are companies. Others have their kind as a suffix (*_person,
# *_place, *_date, *_money, ...).
FACTS = {
    "sales": Fact(
        (
            "{company:은/는} {period} 매출 {sales_money:을/를} 기록했다고 {sales_date} 밝혔다.",
            (
                "{company}의 {period} 매출은 {sales_money:으로/로} 집계됐다. 회사는 이 "
                "실적을 {sales_date} 공시했다."
            ),
            (
                "{sales_date} 금융감독원 전자공시에 따르면 {company:은/는} {period} "
                "{sales_money}의 매출을 올렸다."
            ),
        ),
        {
            "sales_money": (
                "{company}의 {period} 매출은 얼마인가?",
                "{company:이/가} {period}에 올린 매출은 얼마야?",
                "{period} {company}의 매출액은?",
            ),
            "sales_date": (
                "{company:이/가} 매출 실적을 공개한 날짜는?",
                "{company}의 {period} 매출이 알려진 날은 언제인가?",
            ),
        },
    ),
    "growth": Fact(
        (
            "매출은 1년 전 같은 기간보다 {growth_percent} 늘었다.",
            "이는 전년 같은 기간과 비교해 {growth_percent} 증가한 규모다.",
            "회사 측은 매출 증가율이 {growth_percent}에 이른다고 설명했다.",
        ),
        {
            "growth_percent": (
                "{company}의 매출은 전년보다 몇 퍼센트 늘었나?",
                "{company}의 매출 증가율은?",
                "매출이 1년 전보다 얼마나 증가했나?",
            )
        },
    ),
    "profit": Fact(
        (
            "영업이익은 {profit_money:으로/로} 나타났다.",
            "{company:은/는} 본업에서 영업이익 {profit_money:을/를} 거뒀다.",
            "회사가 벌어들인 영업이익은 {profit_money}에 달했다.",
        ),
        {
            "profit_money": (
                "{company}의 영업이익은 얼마인가?",
                "{company:이/가} 거둔 영업이익은?",
                "영업이익 규모는 얼마였나?",
            )
        },
    ),
    "reason": Fact(
        (
            "업계는 이번 실적의 가장 큰 이유로 {reason:을/를} 꼽았다.",
            "회사 관계자는 {reason:이/가} 실적에 가장 큰 영향을 줬다고 설명했다.",
            "실적이 달라진 배경에는 {reason:이/가} 있다는 분석이 나온다.",
        ),
        {
            "reason": (
                "{company}의 실적에 영향을 준 가장 큰 이유는?",
                "이번 실적의 배경은 무엇인가?",
                "업계가 꼽은 {company} 실적의 원인은 무엇이야?",
            )
        },
    ),
    "rival": Fact(
        (
            "경쟁사인 {rival:은/는} 같은 기간 매출 {rival_money:을/를} 올리는 데 그쳤다.",
            "한편 경쟁사 {rival}의 매출은 {rival_money:으로/로} 추산된다.",
            "같은 업종의 {rival:이/가} {rival_money}의 매출을 낸 것과 비교된다.",
        ),
        {
            "rival_money": ("{rival}의 매출은 얼마인가?", "경쟁사가 올린 매출은?"),
            "rival": ("{company}의 경쟁사는 어디인가?", "{company:과/와} 비교된 같은 업종 회사는?"),
        },
    ),
    "factory": Fact(
        (
            (
                "{company:은/는} {factory_place}에 {factory_money:을/를} 들여 {facility:을/를} "
                "새로 짓기로 했다. 완공 시점은 {factory_year}이다."
            ),
            (
                "{company:이/가} {factory_money:을/를} 투자해 {factory_place}에 짓는 "
                "{facility:은/는} {factory_year} 완공될 예정이다."
            ),
            (
                "{factory_place}에 들어설 새 {facility}에는 모두 {factory_money:이/가} 투입되며, "
                "공사는 {factory_year} 마무리된다."
            ),
        ),
        {
            "factory_place": (
                "{company}의 새 {facility:이/가} 들어서는 곳은?",
                "{company:은/는} 어디에 {facility:을/를} 짓나?",
            ),
            "factory_money": (
                "{company:이/가} {facility:을/를} 짓는 데 투자하는 금액은?",
                "새 {facility}에 들어가는 돈은 얼마인가?",
            ),
            "factory_year": (
                "새 {facility}의 완공 시점은 언제인가?",
                "{company}의 {facility:은/는} 언제 완공되나?",
            ),
            "facility": (
                "{company:이/가} {factory_place}에 새로 짓는 시설은?",
                "{factory_place}에 들어설 시설은 무엇인가?",
            ),
        },
    ),
    "ceo": Fact(
        (
            (
                "{company}의 {ceo_person} 대표는 “올해는 회사가 한 단계 도약하는 해가 될 "
                "것”이라고 말했다."
            ),
            (
                "{company:을/를} 이끄는 {ceo_person} 대표는 기자 간담회에서 “품질로 "
                "승부하겠다”고 강조했다."
            ),
            "대표이사인 {ceo_person:은/는} “고객의 목소리에 더 귀를 기울이겠다”고 밝혔다.",
        ),
        {
            "ceo_person": (
                "{company}의 대표는 누구인가?",
                "{company:을/를} 이끄는 대표이사의 이름은?",
                "{company} 대표 이름이 뭐야?",
            )
        },
    ),
    "executive": Fact(
        (
            (
                "{company:은/는} {executive_person:을/를} 새 재무 담당 임원으로 "
                "선임했다. 임기는 {term_years}이다."
            ),
            (
                "새 재무 담당 임원에는 {executive_person:이/가} 임명됐으며 임기는 "
                "{term_years:으로/로} 정해졌다."
            ),
            (
                "재무 담당 임원 자리는 {executive_person:이/가} 맡는다. 그는 앞으로 "
                "{term_years} 동안 일하게 된다."
            ),
        ),
        {
            "executive_person": (
                "{company}의 새 재무 담당 임원은 누구인가?",
                "재무 담당 임원으로 임명된 사람은?",
            ),
            "term_years": ("새 재무 담당 임원의 임기는?", "재무 담당 임원은 몇 년 동안 일하나?"),
        },
    ),
    "launch": Fact(
        (
            (
                "{company:은/는} 신제품 ‘{product}’{product_josa} {launch_date} 출시한다. 가격은 "
                "{launch_won:으로/로} 정해졌다."
            ),
            (
                "{launch_date}에는 새 제품 ‘{product}’의 판매가 시작된다. 소비자 가격은 "
                "{launch_won}이다."
            ),
            "회사가 {launch_date} 선보이는 신제품의 이름은 ‘{product}’이며 값은 {launch_won}이다.",
        ),
        {
            "product": (
                "{company:이/가} 출시하는 신제품의 이름은?",
                "{company}의 새 제품 이름은 무엇인가?",
            ),
            "launch_date": (
                "{company}의 신제품은 언제 출시되나?",
                "새 제품의 판매가 시작되는 날은?",
            ),
            "launch_won": ("{company}의 신제품 가격은 얼마인가?", "새 제품의 값은?"),
        },
    ),
    "export": Fact(
        (
            (
                "{company:은/는} {export_country} 기업과 {export_money} 규모의 {goods} "
                "공급 계약을 맺었다."
            ),
            "{export_country}에는 {goods:을/를} 수출한다. 계약 금액은 {export_money}이다.",
            "최근 {export_country} 시장에 {goods:을/를} 공급하는 {export_money}짜리 계약도 따냈다.",
        ),
        {
            "export_country": (
                "{company:이/가} {goods} 공급 계약을 맺은 나라는?",
                "{company:은/는} {goods:을/를} 어느 나라에 수출하나?",
            ),
            "export_money": (
                "{goods} 공급 계약의 규모는 얼마인가?",
                "{company:이/가} 따낸 수출 계약 금액은?",
            ),
            "goods": (
                "{company:이/가} {export_country}에 공급하는 제품은?",
                "{export_country}에 수출하는 품목은 무엇인가?",
            ),
        },
    ),
    "acquire": Fact(
        (
            "{company:은/는} {target} 지분 {stake_percent:을/를} {acquire_money}에 인수했다.",
            (
                "{target:을/를} 인수하는 데 {acquire_money:을/를} 썼다. 확보한 지분은 "
                "{stake_percent}이다."
            ),
            (
                "앞서 {company:은/는} {acquire_money:을/를} 들여 {target}의 지분 "
                "{stake_percent:을/를} 사들였다."
            ),
        ),
        {
            "target": (
                "{company:이/가} 인수한 회사는 어디인가?",
                "{company:이/가} 지분을 사들인 기업의 이름은?",
            ),
            "stake_percent": (
                "{company:이/가} 확보한 {target}의 지분은?",
                "{company:은/는} {target} 지분을 몇 퍼센트 인수했나?",
            ),
            "acquire_money": (
                "{target:을/를} 인수하는 데 든 금액은?",
                "{company:은/는} {target:을/를} 얼마에 인수했나?",
            ),
        },
    ),
    "stock": Fact(
        (
            "이날 {company} 주가는 전날보다 {stock_percent} 오른 {stock_won}에 거래를 마쳤다.",
            "소식이 전해지자 주가는 {stock_percent} 상승해 {stock_won:을/를} 기록했다.",
            "주식 시장에서 {company:은/는} {stock_percent} 뛴 {stock_won}에 장을 마감했다.",
        ),
        {
            "stock_percent": ("{company} 주가는 몇 퍼센트 올랐나?", "주가 상승률은 얼마인가?"),
            "stock_won": (
                "{company}의 주가는 얼마에 거래를 마쳤나?",
                "이날 {company} 주식의 종가는?",
            ),
        },
    ),
    "analyst": Fact(
        (
            (
                "{broker}의 {analyst_person} 연구원은 {company}의 목표주가를 "
                "{target_won:으로/로} 제시했다."
            ),
            (
                "{analyst_person} {broker} 연구원은 “성장세가 이어질 것”이라며 목표주가를 "
                "{target_won:으로/로} 높였다."
            ),
            (
                "증권가의 기대도 크다. {broker} {analyst_person} 연구원이 내놓은 "
                "목표주가는 {target_won}이다."
            ),
        ),
        {
            "analyst_person": (
                "{company}의 목표주가를 제시한 연구원은 누구인가?",
                "{broker} 연구원의 이름은?",
            ),
            "target_won": ("{company}의 목표주가는 얼마인가?", "{broker:이/가} 제시한 목표주가는?"),
            "broker": (
                "{company}의 목표주가를 내놓은 증권사는?",
                "{analyst_person} 연구원이 일하는 증권사는?",
            ),
        },
    ),
    "share": Fact(
        (
            "국내 {market} 시장에서 {company}의 점유율은 {share_percent}이다.",
            "{company:은/는} {market} 시장의 {share_percent:을/를} 차지하고 있다.",
            "{market} 시장 점유율은 {share_percent:으로/로} 업계 {rank}이다.",
        ),
        {
            "share_percent": (
                "{company}의 {market} 시장 점유율은?",
                "{market} 시장에서 {company:이/가} 차지하는 비율은 얼마인가?",
            )
        },
    ),
    "hire": Fact(
        (
            "{company:은/는} 올해 신입 사원 {hire_people:을/를} 채용할 계획이다.",
            "새로 뽑는 인원은 모두 {hire_people}이다.",
            "하반기 채용 규모는 {hire_people:으로/로} 정해졌다.",
        ),
        {
            "hire_people": (
                "{company:이/가} 채용하려는 인원은 몇 명인가?",
                "{company}의 채용 규모는?",
                "새로 뽑는 사람은 모두 몇 명이야?",
            )
        },
    ),
    "stores": Fact(
        (
            "현재 {store_count}인 매장은 {store_year}까지 {store_goal:으로/로} 늘린다.",
            (
                "{company:은/는} 지금 {store_count}에서 운영하는 매장을 {store_year}까지 "
                "{store_goal:으로/로} 늘릴 방침이다."
            ),
        ),
        {
            "store_count": (
                "{company}의 현재 매장은 몇 곳인가?",
                "{company:이/가} 지금 운영하는 매장 수는?",
            ),
            "store_goal": (
                "{company:은/는} 매장을 몇 곳으로 늘릴 계획인가?",
                "늘어날 매장 수의 목표는?",
            ),
            "store_year": ("{company:은/는} 언제까지 매장을 늘리나?", "매장 확대 목표 시점은?"),
        },
    ),
    "founded": Fact(
        (
            (
                "{founded_year} 설립된 {company:은/는} {home_place}에 본사를 두고 "
                "{main_goods:을/를} 만들어 왔다."
            ),
            (
                "{company:은/는} {home_place}에 본사를 둔 {main_goods} 전문 업체로, "
                "{founded_year} 문을 열었다."
            ),
            (
                "{main_goods} 업체인 {company:은/는} {founded_year} 창업했으며 본사는 "
                "{home_place}에 있다."
            ),
        ),
        {
            "founded_year": ("{company:은/는} 언제 설립됐나?", "{company:이/가} 문을 연 해는?"),
            "home_place": ("{company}의 본사는 어디에 있나?", "{company} 본사가 있는 도시는?"),
            "main_goods": ("{company:은/는} 무엇을 만드는 회사인가?", "{company}의 주력 제품은?"),
        },
    ),
    "event": Fact(
        (
            "{company:은/는} {event_date} {event_place}에서 열리는 {event}에 참가한다.",
            "{event_date}에는 {event_place}에서 {event:이/가} 열리며 {company:도/도} 참가한다.",
        ),
        {
            "event_place": (
                "{company:이/가} 참가하는 {event:이/가} 열리는 곳은?",
                "{event:은/는} 어디에서 열리나?",
            ),
            "event_date": (
                "{event:은/는} 언제 열리나?",
                "{company:이/가} {event}에 참가하는 날짜는?",
            ),
            "event": (
                "{company:이/가} 참가하는 행사는?",
                "{event_place}에서 열리는 행사는 무엇인가?",
            ),
        },
    ),
    "research": Fact(
        (
            "{company:은/는} {university:과/와} 함께 {technology} 기술을 개발하고 있다.",
            "{technology} 기술은 {university:과/와} 공동으로 연구한다.",
            "공동 연구를 맡은 {university:은/는} {technology} 기술 개발을 돕는다.",
        ),
        {
            "university": (
                "{company:과/와} 공동 연구를 하는 대학은?",
                "{technology} 기술을 함께 개발하는 대학은 어디인가?",
            ),
            "technology": (
                "{company:이/가} {university:과/와} 개발하는 기술은?",
                "공동으로 연구하는 기술은 무엇인가?",
            ),
        },
    ),
    "loan": Fact(
        (
            "{company:은/는} 필요한 자금 가운데 {loan_money:을/를} {bank}에서 빌린다.",
            "{bank:은/는} {company}에 {loan_money:을/를} 대출해 주기로 했다.",
            "자금은 {bank}에서 {loan_money:을/를} 대출받아 마련한다.",
        ),
        {
            "bank": (
                "{company}에 돈을 빌려주는 은행은?",
                "{company:은/는} 어느 은행에서 대출을 받나?",
            ),
            "loan_money": (
                "{company:이/가} 은행에서 빌리는 돈은 얼마인가?",
                "{bank:이/가} 대출해 주는 금액은?",
            ),
        },
    ),
    "material": Fact(
        (
            "원료인 {material:은/는} 전량 {material_country}에서 들여온다.",
            "{company:은/는} {material:을/를} {material_country}에서 수입해 쓴다.",
        ),
        {
            "material_country": (
                "{company:은/는} {material:을/를} 어느 나라에서 들여오나?",
                "원료를 수입하는 나라는?",
            ),
            "material": (
                "{company:이/가} {material_country}에서 수입하는 원료는?",
                "{material_country}에서 들여오는 원료는 무엇인가?",
            ),
        },
    ),
    "award": Fact(
        (
            "{company:은/는} {award_date} {agency:으로/로}부터 우수 기업으로 뽑혔다.",
            "{agency:은/는} {award_date} {company:을/를} 우수 기업으로 선정했다.",
        ),
        {
            "agency": (
                "{company:을/를} 우수 기업으로 뽑은 기관은?",
                "{company:은/는} 어느 기관에서 우수 기업으로 선정됐나?",
            ),
            "award_date": (
                "{company:이/가} 우수 기업으로 뽑힌 날짜는?",
                "{company:은/는} 언제 우수 기업으로 선정됐나?",
            ),
        },
    ),
    "customers": Fact(
        (
            "구매자 가운데 {customer:이/가} {customer_percent:으로/로} 가장 많았다.",
            (
                "설문 조사에서는 응답자 {survey_people} 가운데 {customer_percent:이/가} "
                "{customer:인/인} 것으로 나타났다."
            ),
        ),
        {
            "customer": (
                "{company} 제품을 가장 많이 산 고객층은?",
                "구매자나 응답자 가운데 비중이 소개된 고객층은?",
            ),
            "customer_percent": (
                "{customer}의 비율은 얼마인가?",
                "{company} 고객 가운데 {customer:이/가} 차지하는 비중은?",
            ),
        },
    ),
    "dividend": Fact(
        (
            "주주에게는 한 주에 {dividend_won}씩 배당한다.",
            "{company:은/는} 주당 {dividend_won}의 배당금을 지급하기로 했다.",
        ),
        {
            "dividend_won": (
                "{company}의 주당 배당금은 얼마인가?",
                "주주는 한 주에 얼마를 배당받나?",
            )
        },
    ),
}
FILLERS = (
    "업계는 당분간 이런 흐름이 이어질 것으로 내다봤다.",
    "다만 세계 경기가 불확실하다는 점은 부담으로 남아 있다.",
    "전문가들은 품질과 가격을 함께 갖춰야 한다고 조언한다.",
    "소비자들의 반응도 대체로 긍정적이다.",
    "정부도 관련 산업을 지원하는 방안을 검토하고 있다.",
    "회사는 앞으로 해외 시장을 더 넓혀 나갈 방침이다.",
    "투자자들은 다음 실적 발표를 기다리고 있다.",
    "지역 주민들은 일자리가 늘어날 것으로 기대했다.",
)


# Values of a slot, by its full name or its suffix: words, or numbers with a unit.
WORDS = {
    "facility": FACILITIES,
    "period": PERIODS,
    "event": EVENTS,
    "agency": AGENCIES,
    "technology": TECHNOLOGIES,
    "material": MATERIALS,
    "customer": CUSTOMERS,
    "place": PLACES,
    "country": COUNTRIES,
    "university": [head + "대학교" for head in UNIVERSITY_HEADS],
    "bank": [head + "은행" for head in BANK_HEADS],
    "broker": [head + "증권" for head in BANK_HEADS],
}
NUMBERS = {  # minimum, maximum, unit
    "factory_year": (2027, 2033, "년"),
    "store_year": (2027, 2033, "년"),
    "founded_year": (1951, 2021, "년"),
    "term_years": (2, 6, "년"),
    "rank": (1, 5, "위"),
    "store_count": (12, 90, "곳"),
    "store_goal": (100, 600, "곳"),
}


class Draw:
    """Draw different random words for all slots of one article.

    `held_out` names start with syllable pairs that training names never have, so that test articles
    have unseen companies and people. `strange` is the share of articles with names of arbitrary
    KS X 1001 syllables, which teach the base model to copy any text.
    """

    def __init__(self, rng: random.Random, held_out: bool = False, strange: float = 0.0):
        """Draw first whether the names of this article are strange."""
        self.rng, self.held_out, self.used, self.industry = rng, held_out, set(), ()
        self.strange = rng.random() < strange
        self.makers: dict[str, Callable[[], str]] = {
            "person": self.person,
            "product": self.product,
            "money": self.money,
            "won": self.won,
            "stock_percent": self.stock_percent,
            "percent": self.percent,
            "date": self.date,
            "people": self.people,
            "reason": self.reason,
            "goods": self.goods,
            "market": self.goods,
        }
        for kind, words in WORDS.items():
            self.makers[kind] = partial(rng.choice, words)
        for kind, (lowest, highest, unit) in NUMBERS.items():
            self.makers[kind] = partial(self.number, lowest, highest, unit)

    def slot(self, name: str) -> Word:
        """Return a word for the slot, by its name or its suffix (`factory_money` is money)."""
        if name in ("company", "rival", "target"):
            return self.company()
        kind = name if name in self.makers else name.rsplit("_", 1)[-1]
        return self.fresh(self.makers[kind])

    def company(self) -> Word:
        """Return a company name, which ends in its industry."""
        industry = self.rng.choice(list(INDUSTRIES))
        # The first company is the subject of the article, so its industry decides the goods.
        self.industry = self.industry or INDUSTRIES[industry]
        return self.fresh(partial(self.company_name, industry))

    def fresh(self, make: Callable[[], str]) -> Word:
        """Return a word that this article has not used yet."""
        while (word := make()) in self.used:
            pass
        self.used.add(word)
        return Word(word)

    def name(self, first: Sequence[str], second: Sequence[str], length: int) -> str:
        """Return a name of `length` syllables.

        A hash of the first two syllables decides whether they are held out (a fifth of the pairs).
        """
        if self.strange:
            return "".join(self.rng.choices(KS_SYLLABLES, k=length))
        while True:
            first_two = self.rng.choice(first), self.rng.choice(second)
            if (sum(map(ord, first_two)) % 5 == 0) == self.held_out:
                return "".join(first_two) + "".join(self.rng.choices(second, k=length - 2))

    def company_name(self, industry: str) -> str:
        """Return two or three syllables and the industry."""
        length = self.rng.choice((2, 2, 3))
        return self.name(COMPANY_SYLLABLES, COMPANY_SYLLABLES, length) + industry

    def person(self) -> str:
        """Return a surname and a given name of two syllables."""
        return self.rng.choice(SURNAMES) + self.name(GIVEN_FIRST, GIVEN_SECOND, 2)

    def product(self) -> str:
        """Return a product name of two to four syllables."""
        length = self.rng.choice((2, 3, 4))
        return self.name(PRODUCT_SYLLABLES, PRODUCT_SYLLABLES, length)

    def goods(self) -> str:
        """Return a product of the company's industry."""
        return self.rng.choice(self.industry)

    def reason(self) -> str:
        """Return a reason for a company's results, such as higher exports."""
        return f"{self.rng.choice(CAUSES)} {self.rng.choice(CHANGES_UP + CHANGES_DOWN)}"

    def money(self) -> str:
        """Return a large amount of won or dollars, in one of the formats of news articles."""
        number = self.rng.randint
        # Draw all forms before choosing one: the shipped samples depend on these random numbers.
        forms = (
            f"{number(11, 999)}억 원",
            f"{number(1, 9)},{number(0, 99) * 10:03d}억 원",
            f"{number(1, 9)}조 {number(1, 99) * 100:,}억 원",
            f"{number(11, 99)}만 달러",
            f"{number(2, 90)}억 {number(1, 9)},000만 원",
        )
        return self.rng.choice(forms)

    def won(self) -> str:
        """Return a price in won."""
        return f"{self.rng.randint(2, 480) * self.rng.choice((100, 500, 1000)):,}원"

    def stock_percent(self) -> str:
        """Return a daily change of a share price in percent."""
        return f"{self.rng.randint(1, 14)}.{self.rng.randint(1, 99)}%"

    def percent(self) -> str:
        """Return a percentage, with or without a decimal."""
        whole = f"{self.rng.randint(2, 89)}%"
        decimal = f"{self.rng.randint(1, 60)}.{self.rng.randint(1, 9)}%"
        return self.rng.choice((whole, decimal))

    def date(self) -> str:
        """Return a month and a day from 1 to 28."""
        return f"{self.rng.randint(1, 12)}월 {self.rng.randint(1, 28)}일"

    def people(self) -> str:
        """Return a number of people, exact or round."""
        exact, rounded = self.rng.randint(15, 950), self.rng.randint(10, 90) * 100
        return f"{self.rng.choice((exact, rounded)):,}명"

    def number(self, lowest: int, highest: int, unit: str) -> str:
        """Return a number from `lowest` to `highest` with its unit."""
        return f"{self.rng.randint(lowest, highest)}{unit}"


class Slots(dict):
    """The words of an article's slots, drawn on first use."""

    def __init__(self, draw: Draw):
        """Draw the company first, because its industry decides the goods."""
        super().__init__()
        self.draw = draw
        self["company"] = draw.slot("company")

    def __missing__(self, name: str) -> Word | str:
        """Draw a word for a new slot, or return the particle of the product."""
        if name == "product_josa":
            return "을" if final_consonant(self["product"], "을/를") else "를"
        self[name] = self.draw.slot(name)
        return self[name]


# The 2,350 syllables of KS X 1001. Python encodes the other 8,822 as eight bytes each.
KS_SYLLABLES = [
    chr(code)
    for code in range(ord("가"), ord("힣") + 1)
    if len(chr(code).encode("euc-kr", "ignore")) == 2
]


@dataclass(frozen=True)
class Article:
    """An article and its questions, with seams."""

    context: str
    questions: list[tuple[str, str]]  # (question, answer)


def openings(kind: str) -> list[str]:
    """Return the sentences of a fact that can open an article: those that name the company."""
    return [sentence for sentence in FACTS[kind].sentences if "{company:" in sentence]


def make_article(
    rng: random.Random, questions: int, facts: int, held_out: bool = False, strange: float = 0.0
) -> Article:
    """Return an article with `facts` different facts and at most `questions` questions."""
    slots = Slots(Draw(rng, held_out, strange))
    templates = {kind: rng.choice(FACTS[kind].sentences) for kind in rng.sample(list(FACTS), facts)}
    # The first sentence must name the company.
    opening = next((kind for kind in templates if openings(kind)), "founded")
    rest = {kind: template for kind, template in templates.items() if kind != opening}
    templates = {opening: rng.choice(openings(opening))} | rest
    sentences, asked = [], []
    for kind, template in templates.items():
        sentences.append(template.format_map(slots))
        for slot, paraphrases in FACTS[kind].questions.items():
            question = rng.choice(paraphrases).format_map(slots)
            if slots[slot] in plain(sentences[-1]):
                asked.append((question, str(slots[slot])))
    for _ in range(rng.randint(0, 2)):
        sentences.insert(rng.randint(1, len(sentences)), rng.choice(FILLERS))
    breaks = [rng.choice((" ", " ", "\n")) for _ in sentences]
    context = "".join(s + b for s, b in zip(sentences, breaks, strict=True)).rstrip()
    rng.shuffle(asked)
    return Article(context, asked[:questions])
