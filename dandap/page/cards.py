"""Show answers as HTML: a card a question, and the article with the answers marked in it.

Whatever comes from people or models is escaped here, and nowhere else.
"""

from dataclasses import dataclass
from html import escape
from itertools import pairwise

from dandap.page.labels import how_sure

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


def render(sheet: Sheet, labels: dict) -> str:
    """Return the sheet as HTML."""
    cards = [
        _card(number, question, said, sheet, labels)
        for number, (question, said) in enumerate(
            zip(sheet.questions, sheet.answers, strict=True), 1
        )
    ]
    article = ""
    if sheet.article:
        note = labels["trimmed"].format(f"{sheet.trimmed:,}") if sheet.trimmed else ""
        article = (
            f'<section class="article"><h3>{labels["read"]}</h3>'
            f'{_note(note)}<p class="text">{_marked(sheet)}</p></section>'
        )
    return (
        f'<div class="sheet"><ol class="cards">{"".join(cards)}</ol>'
        f'<p class="note">{labels["sure_means"]}</p>{article}</div>'
    )


def message(text: str) -> str:
    """Return a sentence, as an error's, in place of answers."""
    return f'<p class="message" role="alert">{escape(text)}</p>'


def _card(number: int, question: str, answers: list[Said], sheet: Sheet, labels: dict) -> str:
    """Return a question's card; answers that differ from the first one's are told apart."""
    lines = []
    for speaker, said in enumerate(answers, 1):
        notes = [labels["cut"]] if said.is_cut else []
        elsewhere = sheet.article and said.text and not said.span
        # Nor does what was cut; that it was says enough.
        if elsewhere and not said.is_cut and not said.is_choice:
            notes.append(labels["not_in"])
        size = ' class="long"' if len(said.text) > LONG else ""
        name = f'<span class="who">{escape(said.speaker)}</span>' if len(answers) > 1 else ""
        lines.append(
            f'<div class="said by{speaker}">{name}'
            f"<strong{size}>{escape(said.text) or labels['no_answer']}</strong>"
            f"{_confidence(said.probability, labels)}{''.join(map(_note, notes))}</div>"
        )
    return (
        f'<li class="card"><div class="question"><b>{number}</b> {escape(question)}</div>'
        f'<div class="row">{"".join(lines)}</div></li>'
    )


def _confidence(probability: float, labels: dict) -> str:
    # Rounded down: 99.7% is not certain.
    percent = f"{min(int(probability * 100), 99)}%"
    return (
        f'<span class="sure"><span class="bar"><i style="width:{percent}"></i></span>'
        f"{how_sure(labels, probability)} · {percent}</span>"
    )


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
