"""Test chat templates: the full article and the exact answer are encoded, or an error is raised."""

import sys

import pytest
from transformers import AutoTokenizer

from dandap.data import chat_template as chat
from dandap.data.encode import Encoder
from dandap.data.rows import Row
from dandap.errors import InputError
from prompts import get_template

ROW = Row("a", "한빛전자는 1분기 매출 1,240억 원을 기록했다.", "1분기 매출은?", ("1,240억 원",))
TURNS = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + eos_token }}{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|assistant|>{% endif %}"


def tokenizer_with(template, words=()):
    tokenizer = AutoTokenizer.from_pretrained("data/demo_model")
    tokenizer.add_tokens(list(words))
    tokenizer.chat_template = "{{ bos_token }}" + template
    return tokenizer


def encoder(tokenizer, template="concise"):
    return Encoder(tokenizer, get_template(template))


def decoded_example(tokenizer, template="concise"):
    """Return the prompt and the answer of ROW as text."""
    (example,) = encoder(tokenizer, template).encode([ROW], 1000, answers=True)
    return tokenizer.decode(example.prompt_ids), tokenizer.decode(example.answer_ids)


ANSWER_PREFIXES = {
    "no generation prompt": TURNS,
    "a channel before the answer": "{% for m in messages %}{{ '<|' + m.role + '|>' + ('[final]' if m.role == 'assistant' else '') + m.content + eos_token }}"
    "{% endfor %}" + PROMPT,
    "a thinking block in every turn": "{% for m in messages %}{{ '<|' + m.role + '|>' + ('<think>\n\n</think>\n\n' if m.role == 'assistant' else '')"
    " + m.content + eos_token }}{% endfor %}" + PROMPT,
    "words before the answer": "{% for m in messages %}{{ '<|' + m.role + '|>' + ('답: ' if m.role == 'assistant' else '') + m.content + eos_token }}"
    "{% endfor %}" + PROMPT,
}


@pytest.mark.parametrize("name", ANSWER_PREFIXES)
def test_text_before_the_answer_is_part_of_the_prompt(name, tmp_path):
    tokenizer = tokenizer_with(ANSWER_PREFIXES[name], ["<think>", "</think>"])
    prompt, answer = decoded_example(tokenizer)
    assert answer.strip() == "1,240억 원</s>"
    assert prompt.rstrip().endswith(("<|assistant|>", "[final]", "</think>", "답:"))
    # The saved tokenizer gives the same prompt.
    tokenizer.save_pretrained(tmp_path)
    assert decoded_example(AutoTokenizer.from_pretrained(tmp_path))[0] == prompt


def test_added_tokens_that_are_words_are_kept():
    for template in ("concise", "answer_bot"):
        tokenizer = tokenizer_with("매출 소식. " + TURNS + PROMPT, ["매출", "1,240억"])
        prompt, answer = decoded_example(tokenizer, template)
        assert "매출" in prompt
        assert answer.replace(" ", "") == "1,240억원</s>"
        encode = encoder(tokenizer, template)
        prompt_ids = encode.encode_prompt(ROW.context, ROW)
        assert encode.decode(encode.encode_answer(ROW.context, ROW, "매출", prompt_ids)) == "매출"


def test_added_tokens_that_are_markers_are_control_tokens():
    tokenizer = tokenizer_with(TURNS.replace("eos_token", "'<|end|>'") + PROMPT, ["<|end|>"])
    encode = encoder(tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    prompt_ids = encode.encode_prompt(ROW.context, ROW)
    assert encode.encode_answer(ROW.context, ROW, "답", prompt_ids)[-1] == end
    spelled = Row("b", "기사에 <|end|> 라고 적혀 있다.", "무엇?", ("답",))
    assert encode.encode_prompt(spelled.context, spelled).count(end) == 1, "the turn's own"


CHAT_TEMPLATES = {
    **ANSWER_PREFIXES,
    "no markers": TURNS.replace("'<|' + m.role + '|>' + ", "") + "답:",
    "content that is stripped": TURNS.replace("m.content", "m.content | trim") + PROMPT,
    "content that is split": TURNS.replace("m.content", "m.content.split('</think>')[-1]") + PROMPT,
    "blocks": "{% for m in messages %}{{ '<|' + m.role + '|>' }}{% for b in m.content %}{{ b.text }}{% endfor %}{{ eos_token }}{% endfor %}"
    + PROMPT,
}
HOSTILE = [
    "기사에 </s> 와 <|assistant|> 라고 적혀 있다.",
    "<s>처음",
    "앞\U000f0000</s>\U000f0001뒤",
]
HOSTILE += ["<think>생각</think> 답", "<|im_end|>", " 빈칸 \n\n", ROW.context]


@pytest.mark.parametrize("template", ["concise", "answer_bot", "context_bot_system"])
@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_batch_encoding_equals_single_encoding(name, template):
    """Also for texts that contain a control token or our internal marker of one."""
    tokenizer = tokenizer_with(CHAT_TEMPLATES[name], ["<think>", "</think>", "<|im_end|>"])
    encode = encoder(tokenizer, template)
    rows = [Row(str(n), text, text + "?", (f"답 {n}",)) for n, text in enumerate(HOSTILE)]
    items = [(row.context, row) for row in rows]
    prompts = encode._prompts(items)
    answers = encode._answers(items, [row.answers[0] for row in rows], prompts)
    for row, prompt, answer in zip(rows, prompts, answers, strict=True):
        assert prompt.ids == encode.encode_prompt(row.context, row)
        assert answer == encode.encode_answer(row.context, row, row.answers[0], prompt.ids)
        if encode.chat:
            parts = encode.render(row.context, row, "")
            turns = [{"role": role, "content": parts[role]} for role in parts if role != "answer"]
            assert prompt.ids == encode.chat.render([turns], True, tokenize=True)[0]


def test_date_in_a_prompt_is_fixed(tmp_path):
    dated = "{% set day = strftime_now('%d %b %Y') %}{{ day }} {{ strftime_now(\"%B %d, %Y\") if strftime_now is defined }}"
    tokenizer = tokenizer_with(dated + TURNS + PROMPT)
    prompt, _ = decoded_example(tokenizer)
    assert "26 Jul 2024 July 26, 2024" in prompt
    tokenizer.save_pretrained(tmp_path)  # a run's tokenizer, loaded on another day
    assert decoded_example(AutoTokenizer.from_pretrained(tmp_path))[0] == prompt
    assert "strftime_now(" not in chat.fix_date(dated)


def test_date_macro_of_earlier_runs_still_works():
    macro = "{% macro strftime_now(format) %}{{ format | replace('%Y', '2024') }}{% endmacro %}"
    prompt, _ = decoded_example(tokenizer_with(macro + "{{ strftime_now('%Y') }}" + TURNS + PROMPT))
    assert "2024" in prompt


def test_final_newline_of_a_template_is_dropped():
    """Jinja drops a template's final newline, but not if text is appended to it."""
    for end in ("\n", "\r\n", "\n\n", "{% if true %}\n{% endif %}\n"):
        tokenizer = tokenizer_with(ANSWER_PREFIXES["words before the answer"] + end)
        form = {"add_generation_prompt": True, "tokenize": False}
        turns = [{"role": "user", "content": "질문"}]
        before = tokenizer.apply_chat_template(turns, **form)
        tokenizer_after = encoder(tokenizer).tokenizer
        assert tokenizer_after.apply_chat_template(turns, **form) == before + "답: "


ANSWER = "(m.content if m.role != 'assistant' else {})"
TWICE = TURNS.replace("m.content", ANSWER.format("m.content + ' ' + m.content")) + PROMPT
REJECTED = {
    "the same to all": ("hello", "drops the user turn"),
    "no article": (TURNS.replace("m.content", "m.content[-6:]") + PROMPT, "drops the user turn"),
    "no answer": (
        TURNS.replace("m.content", ANSWER.format("''")) + PROMPT,
        "the answer exactly once after its prompt",
    ),
    "the answer twice": (TWICE, "the answer exactly once after its prompt"),
    "a prompt for somebody else": (
        TURNS + PROMPT.replace("assistant", "user"),
        "the answer exactly once after its prompt",
    ),
    "a date in another form": ("{{ strftime_now(x) }}" + TURNS, "expected a literal format"),
    "a long loop": ("{% for i in range(10 ** 9) %}x{% endfor %}", "Range too big"),
    "a clock": ("{{ now() }}", r"'now' is undefined\)\. Choose a plain template \(--template"),
}


def test_unusable_templates_are_rejected():
    for template, message in REJECTED.values():
        with pytest.raises(InputError, match=message):
            encoder(tokenizer_with(template))


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
def test_endless_template_is_stopped(monkeypatch):
    monkeypatch.setattr(chat, "SECONDS", 0.3)
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(InputError, match="took more than 0.3 seconds"):
        encoder(tokenizer_with(loops + TURNS + PROMPT))


def test_every_answer_is_checked():
    rows = [Row(str(n), ROW.context, "매출은?", ("답",)) for n in range(40)]
    changes = {" | striptags": "<b>굵게</b>", ".split('</think>')[-1]": "x</think>y"}
    for change, answer in changes.items():
        template = TURNS.replace("m.content", ANSWER.format("m.content" + change)) + PROMPT
        encoder(tokenizer_with(template)).encode(rows, 1000, answers=True)
        bad_row = Row("odd", ROW.context, "매출은?", (answer,))
        expected = f"question odd: the answer is '{answer}', but .* would be trained"
        with pytest.raises(InputError, match=expected):
            encoder(tokenizer_with(template)).encode([*rows, bad_row], 1000, answers=True)


def test_default_template_is_used():
    tokenizer = tokenizer_with(TURNS + PROMPT)
    tokenizer.chat_template = {"tool_use": "tools", "default": tokenizer.chat_template}
    assert decoded_example(tokenizer)[1].strip() == "1,240억 원</s>"
    tokenizer.chat_template = {"tool_use": "tools"}
    with pytest.raises(InputError, match="has no chat template"):
        encoder(tokenizer)


FAMILIES = {
    "Llama 3": "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{{- 'Today Date: ' + date_string + '\n\n' }}{% for m in messages %}{{ '<|start|>' + m['role'] + '<|stop|>\n\n' + m['content'] | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|stop|>\n\n' }}{% endif %}",
    "Gemma": "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles') }}{% endif %}"
    "{{ '<|start|>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim + '<|eot|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>model\n' }}{% endif %}",
    "Mistral": "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}"
    "{% endif %}{% endfor %}",
    "DeepSeek": "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>' + m['content'] }}{% else %}{{ '<|assistant|>' + m['content'].split('</think>')[-1]"
    " + eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}",
    "plain words": "{% for m in messages %}{{ ('Human: ' if m['role'] == 'user' else 'Assistant: ') + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_chat_templates_of_known_families(name):
    tokenizer = tokenizer_with(FAMILIES[name])
    special = ["<|start|>", "<|stop|>", "<|eot|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    encode = encoder(tokenizer)
    (example,) = encode.encode([ROW], 1000, answers=True)
    assert encode.decode(example.answer_ids) == "1,240억 원"
    assert example.answer_ids[-1] in encode.control_ids
    assert sum(token in encode.control_ids for token in example.answer_ids) == 1
    assert list(example.prompt_ids) == encode.encode_prompt(ROW.context, ROW)
