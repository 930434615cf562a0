"""The wording. Add an entry to TEMPLATES to try a new one: python fine_tune.py --template NAME.

A template is a dict of strings with {context} and {question} where a row's texts go:

    "system", "user"   a chat turn, wrapped by the model's own chat template ("system" may be left out)
    "prompt"           plain text, exactly as the model will see it; the answer follows it directly

Put {context} before {question}: what the questions of an article share is read once. Write {{ for a literal brace.
`python prompts.py [TEMPLATE]` prints what a template makes of a sample row.
"""

import string
import sys

from dandap.errors import InputError, nearest, run_script

Template = dict[str, str]

# The published instruction that prompts A and B share (2024 Inha AI Challenge); see recipes/ for who used which.
_CONCISE_BOT = "Question에 대한 답변만 가급적 한 단어로 최대한 간결하게 답변하도록 해."

TEMPLATES: dict[str, Template] = {
    # Ours, the default: the rule stands before the article, where it is read once for all questions.
    "concise": {
        "user": "다음 기사를 읽고 질문에 답하라. 기사에 나온 표현을 그대로 써서 되도록 한 단어로, 설명 없이 답만 적어라."
        "\n\n기사:\n{context}\n\n질문: {question}",
    },
    # Prompt A: a SOLAR-10.7B, 0.8142 public F1.
    "answer_bot": {
        "prompt": "{context}\n너는 주어진 Question에 답하는 챗봇이야. " + _CONCISE_BOT + "\nQuestion: {question}\nAnswer:",
    },
    # Prompt B: Gemma 2 and EEVE in the 0.9025 system; Gemma has no system turn.
    "context_bot": {
        "user": "너는 주어진 Context를 토대로 Question에 답하는 챗봇이야. "
        + _CONCISE_BOT
        + ":\n\n{context}\n\nQuestion:\n{question}",
    },
    "context_bot_system": {
        "system": "You are a helpful assistant.",
        "user": "너는 주어진 Context를 토대로 Question에 답하는 챗봇이야. "
        + _CONCISE_BOT
        + ":\n\n{context}\n\nQuestion:\n{question}",
    },
    # Prompt C: Nous-Hermes-2-SOLAR in the 0.9025 system, in training.
    "system_context": {
        "prompt": "### System:\n{context}\n\n### User:\n{question}\n### Assistant:\n",
    },
    # Prompt D: the same model's wording at inference; a variant to try with --template.
    "nouns_only": {
        "prompt": "너는 주어진 Context를 토대로 Question에 답하는 챗봇이야. Question에 대한 답변만 최대한 한 단어로, 명사들로만 답변해줘. "
        "예를 들면 누구(사람에 대한 질문)-> 김철수(사람 이름만, 직무 회사 제외), 물건 -> 사과, 시간 -> 1시, 속력 -> 1m/s, "
        "이런식으로 딱 간단하게만 나타내줘. ### System:\n{context}\n\n## User:\n{question}\n\n",
    },
}


def get_template(name: str) -> Template:
    """The template of this name, checked; InputError names the nearest known one."""
    if name not in TEMPLATES:
        raise InputError(f"got template {name!r}; expected one of {', '.join(TEMPLATES)}.{nearest(name, TEMPLATES)}")
    check_template(TEMPLATES[name], name)
    return TEMPLATES[name]


def check_template(template: Template, name: str) -> None:
    """Refuse a template that `render` could not fill."""
    if set(template) not in ({"prompt"}, {"user"}, {"system", "user"}):
        raise InputError(
            f"template {name!r} has the parts {sorted(template)}; expected 'prompt', or 'user' with or without 'system'."
        )
    try:
        fields = [field for part in template.values() for _, field, _, _ in string.Formatter().parse(part) if field is not None]
    except ValueError as error:
        raise InputError(f"template {name!r}: {error}. Write {{{{ and }}}} for literal braces.") from error
    if not {"context", "question"} <= set(fields):
        raise InputError(f"template {name!r} has the fields {sorted(set(fields))}; it needs {{context}} and {{question}}.")


def render(template: Template, fields: dict[str, str]) -> Template:
    """Fill a template's parts with a row's texts, for training, validation and inference alike.

    Texts are put in once and never read as templates: an article that spells {question} keeps it as it is.
    """
    try:
        return {part: text.format_map(fields) for part, text in template.items()}
    except (KeyError, IndexError, AttributeError) as error:
        raise InputError(f"a template asks for {error}; this task has {', '.join(fields)}.") from error


def show(argv: list[str] | None = None) -> None:
    """Print what templates make of a sample row."""
    names = (sys.argv[1:] if argv is None else argv) or list(TEMPLATES)
    fields = {
        "context": "한빛전자는 올해 1분기 매출 1,240억 원을 기록했다고 4월 3일 밝혔다.",
        "question": "한빛전자의 올해 1분기 매출은 얼마인가?",
    }
    for name in names:
        print(f"=== {name}")
        for part, text in render(get_template(name), fields).items():
            print(f"[{part}]\n{text}")
        print("[answer]\n1,240억 원\n")


if __name__ == "__main__":
    run_script(show)
