"""Prompt templates.

Add an entry to TEMPLATES to try a new prompt: python fine_tune.py --template NAME.

A template is a dict of strings with fields such as {context} and {question}:

    "system", "user"   chat turns, rendered with the model's chat template ("system" is optional)
    "prompt"           plain text, exactly as the model sees it, directly before the answer
    "answer"           the text to learn (default: {answer})

The task economic_qa has {context}, {question} and {answer}. An unknown field is rejected with a
list of the task's fields.

Put {context} before {question}: only then do an article's questions share a prefix. Write {{ for a
literal brace. `python prompts.py [TEMPLATE]` prints templates.
"""

import string
from collections.abc import Collection, Mapping

from dandap.errors import InputError, did_you_mean

Template = dict[str, str]

# The instructions of the published prompts A and B (2024 Inha AI Challenge); see recipes/.
_CONCISE_BOT = "Question에 대한 답변만 가급적 한 단어로 최대한 간결하게 답변하도록 해."
_CONTEXT_BOT = (
    "너는 주어진 Context를 토대로 Question에 답하는 챗봇이야. "
    + _CONCISE_BOT
    + ":\n\n{context}\n\nQuestion:\n{question}"
)

_DIALOGUE = "[대화]\n{context}\n\n[대상 발화]\n{reference}\n\n[질문]\n"
_OPTIONS = "\n\n[선택지]\n{options}\n\n[답]\n"
_CHOICE = "{answer}. {answer_text}"

TEMPLATES: dict[str, Template] = {
    # Ours, the default. The instruction precedes the article and is read once; at the end, its 36
    # tokens would be read for each question.
    "concise": {
        "user": "다음 기사를 읽고 질문에 답하라. "
        "기사에 나온 표현을 그대로 써서 되도록 한 단어로, 설명 없이 답만 적어라."
        "\n\n기사:\n{context}\n\n질문: {question}"
    },
    # Prompt A: a SOLAR-10.7B, 0.8142 public F1.
    "answer_bot": {
        "prompt": "{context}\n너는 주어진 Question에 답하는 챗봇이야. "
        + _CONCISE_BOT
        + "\nQuestion: {question}\nAnswer:"
    },
    # Prompt B: Gemma 2 and EEVE in the 0.9025 system; Gemma has no system turn.
    "context_bot": {"user": _CONTEXT_BOT},
    "context_bot_system": {"system": "You are a helpful assistant.", "user": _CONTEXT_BOT},
    # Dialogue inference: the five prompt sets of the 2024 winner, in our words. The dialogue is
    # first, so that its questions share it.
    "dialogue": {"prompt": _DIALOGUE + "{question}" + _OPTIONS, "answer": _CHOICE},
    "dialogue_term": {"prompt": _DIALOGUE + "{question_term}" + _OPTIONS, "answer": _CHOICE},
    "dialogue_definition": {
        "prompt": _DIALOGUE + "{question_definition}" + _OPTIONS,
        "answer": _CHOICE,
    },
    "dialogue_instruction": {
        "prompt": _DIALOGUE + "{instruction_definition}" + _OPTIONS,
        "answer": _CHOICE,
    },
    "dialogue_detailed": {
        "prompt": "너는 한국어 대화를 읽고 드러나지 않은 맥락을 추론하는 전문가다.\n"
        "1. 대화를 끝까지 읽고 누가 무엇을 했는지 파악한다.\n"
        "2. 대상 발화가 대화에서 하는 역할을 생각한다.\n"
        "3. 질문에 맞지 않는 선택지를 하나씩 지운다.\n"
        "4. 남은 선택지의 기호와 내용을 '기호. 내용'의 꼴로만 적는다.\n\n"
        + _DIALOGUE
        + "{question_term}"
        + _OPTIONS,
        "answer": _CHOICE,
    },
    # Without "answer", the model learns only the letter.
    "dialogue_letter": {"prompt": _DIALOGUE + "{question}" + _OPTIONS},
    # Without options, for models too small to compare them: the answer is the option with the
    # highest probability as a text (--choices_by whole).
    "dialogue_statement": {
        "user": "다음 대화를 읽고 질문에 답하라.\n\n대화:\n{context}\n\n대상 발화:\n{reference}\n\n"
        "질문: {question}",
        "answer": "{answer_text}",
    },
    # Wallpaper QA: the two published ones, and one for chat models.
    "wallpaper_bare": {"prompt": "{question}"},
    "wallpaper_instruction": {"prompt": "주어진 질문에 대한 답을 출력 질문: {question} 답:"},
    "wallpaper_chat": {
        "user": "도배와 마감재의 하자를 잘 아는 전문가로서 다음 질문에 답하라.\n\n질문: {question}"
    },
    # Prompt C: Nous-Hermes-2-SOLAR in the 0.9025 system, in training.
    "system_context": {
        "prompt": "### System:\n{context}\n\n### User:\n{question}\n### Assistant:\n"
    },
    # Prompt D: the same model's prompt at inference; a variant to try with --template.
    "nouns_only": {
        "prompt": "너는 주어진 Context를 토대로 Question에 답하는 챗봇이야. "
        "Question에 대한 답변만 최대한 한 단어로, 명사들로만 답변해줘. "
        "예를 들면 누구(사람에 대한 질문)-> 김철수(사람 이름만, 직무 회사 제외), "
        "물건 -> 사과, 시간 -> 1시, 속력 -> 1m/s, "
        "이런식으로 딱 간단하게만 나타내줘. ### System:\n{context}\n\n## User:\n{question}\n\n"
    },
}


def get_template(name: str) -> Template:
    """Return a template by name; the InputError suggests a similar name."""
    if name not in TEMPLATES:
        raise InputError(
            f"got template {name!r}; expected one of {', '.join(TEMPLATES)}."
            f"{did_you_mean(name, TEMPLATES)}"
        )
    return TEMPLATES[name]


def check_template(
    template: Template, name: str, fields: Collection[str], needs: Collection[str]
) -> None:
    """Reject a template with unknown fields or without the fields the task needs.

    `fields` are the task's fields; a needed "one|other" is either of them.
    """
    if set(template) - {"answer"} not in ({"prompt"}, {"user"}, {"system", "user"}):
        raise InputError(
            f"template {name!r} has the parts {sorted(template)}; expected 'prompt', or 'user' "
            "with or without 'system', and optionally 'answer'."
        )
    used: set[str] = set()
    for part in template.values():
        try:
            for _, field, width, conversion in string.Formatter().parse(part):
                if width or conversion:
                    raise ValueError(f"got {{{field}...}}, expected only a field name")
                if field is not None:
                    used.add(field)
        except ValueError as error:
            raise InputError(
                f"template {name!r}: {error} in {part[:80]!r}. Write {{{{ and }}}} for literal "
                "braces."
            ) from error
    lacking = [need for need in needs if not used & set(need.split("|"))]
    if lacking or not used <= set(fields):
        needed = " and ".join(need.replace("|", " or ") for need in needs)
        raise InputError(
            f"template {name!r} has the fields {sorted(used)}; this task needs {needed}, and has "
            f"{', '.join(fields)}."
        )


def render(template: Template, fields: Mapping[str, str]) -> Template:
    """Return a template with its fields replaced; braces in a row's texts are literal."""
    return {part: text.format_map(fields) for part, text in template.items()}


def show(argv: list[str] | None = None) -> None:
    """Print templates."""
    from dandap.cli import Parser, parse

    parser = Parser(__doc__)
    parser.add_argument(
        "templates", nargs="*", metavar="TEMPLATE", help="names of TEMPLATES (default: all)"
    )
    for name in parse(parser, argv).templates or TEMPLATES:
        print(f"=== {name}")
        for part, text in ({"answer": "{answer}"} | get_template(name)).items():
            print(f"[{part}]\n{text}")
        print()


if __name__ == "__main__":
    from dandap.cli import run_script

    run_script(show)
