"""Show answers as HTML: a card a question, and the article with the answers marked in it.

Whatever comes from people or models is escaped here, and nowhere else.
"""

from dataclasses import dataclass
from html import escape
from itertools import pairwise

from dandap.language import t

LIMITS = (0.95, 0.8, 0.5)  # probabilities from which the first, second and third of these are said
SURE = ("very sure", "fairly sure", "unsure", "little more than a guess")
LONG = 40  # characters; a sentence is not shown in the size of a word


@dataclass(frozen=True)
class Said:
    """Holds one answer: who gave it, its text, how sure, and its place in the article shown.

    Where it `is_choice` nobody expects that it stands there.
    """

    speaker: str
    text: str
    probability: float
    span: tuple[int, int] | None
    is_cut: bool
    is_choice: bool = False


@dataclass(frozen=True)
class Sheet:
    """Holds what is shown: an article ("" for none), and each question with all its answers.

    `trimmed` is how many characters of the article were not read.
    """

    article: str
    trimmed: int
    questions: list[str]
    answers: list[list[Said]]  # for each question, one of each speaker


def render(sheet: Sheet) -> str:
    """Return the sheet as HTML."""
    cards = [
        _card(number, question, said, sheet)
        for number, (question, said) in enumerate(
            zip(sheet.questions, sheet.answers, strict=True), 1
        )
    ]
    article = ""
    if sheet.article:
        cut = t(
            "The text was too long: {characters} characters were left out.",
            characters=f"{sheet.trimmed:,}",
        )
        article = (
            f'<section class="article"><h3>{t("As the model read it")}</h3>'
            f'{_note(cut if sheet.trimmed else "")}<p class="text">{_marked(sheet)}</p></section>'
        )
    means = t(
        "How sure: the probability that the model gave to a token of its answer, on "
        "average (the geometric mean); where there are choices, the answer's share among them. It "
        "is not the probability that the answer is right."
    )
    return (
        f'<div class="sheet"><ol class="cards">{"".join(cards)}</ol>'
        f'<p class="note">{means}</p>{article}</div>'
    )


def message(text: str) -> str:
    """Return a sentence, as an error's, in place of answers."""
    return f'<p class="message" role="alert">{escape(text)}</p>'


def _card(number: int, question: str, answers: list[Said], sheet: Sheet) -> str:
    """Return a question's card; answers that differ from the first one's are told apart."""
    lines = []
    for speaker, said in enumerate(answers, 1):
        notes = [t("The answer was too long and was cut.")] if said.is_cut else []
        elsewhere = sheet.article and said.text and not said.span
        # Nor does what was cut; that it was says enough.
        if elsewhere and not said.is_cut and not said.is_choice:
            notes.append(t("This answer does not stand in the text as written."))
        size = ' class="long"' if len(said.text) > LONG else ""
        name = f'<span class="who">{escape(said.speaker)}</span>' if len(answers) > 1 else ""
        lines.append(
            f'<div class="said by{speaker}">{name}'
            f"<strong{size}>{escape(said.text) or t('(an empty answer)')}</strong>"
            f"{_confidence(said.probability)}{''.join(map(_note, notes))}</div>"
        )
    return (
        f'<li class="card"><div class="question"><b>{number}</b> {escape(question)}</div>'
        f'<div class="row">{"".join(lines)}</div></li>'
    )


def _confidence(probability: float) -> str:
    # Rounded down: 99.7% is not certain.
    percent = f"{min(int(probability * 100), 99)}%"
    return (
        f'<span class="sure"><span class="bar"><i style="width:{percent}"></i></span>'
        f"{how_sure(probability)} · {percent}</span>"
    )


def how_sure(probability: float) -> str:
    """Return a probability in words."""
    return t(SURE[sum(probability < limit for limit in LIMITS)])


def _note(text: str) -> str:
    return f'<span class="note">{text}</span>' if text else ""


def _marked(sheet: Sheet) -> str:
    """Return the article with a mark wherever an answer stands, and the questions' numbers at it.

    Answers may overlap, so that the text is cut where any of them begins or ends.
    """
    places = [
        (said.span, number, speaker)
        for number, answers in enumerate(sheet.answers, 1)
        for speaker, said in enumerate(answers, 1)
        if said.span
    ]
    cuts = sorted({0, len(sheet.article), *(end for span, _, _ in places for end in span)})
    pieces = []
    for start, end in pairwise(cuts):
        piece = escape(sheet.article[start:end])
        here = [each for each in places if each[0][0] <= start and end <= each[0][1]]
        if here:
            speakers = " ".join(f"by{speaker}" for speaker in sorted({each[2] for each in here}))
            ending = sorted({number for span, number, _ in here if span[1] == end})
            numbers = "".join(f"<sup>{number}</sup>" for number in ending)
            piece = f'<mark class="{speakers}">{piece}{numbers}</mark>'
        pieces.append(piece)
    return "".join(pieces)
