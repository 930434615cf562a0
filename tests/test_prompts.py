"""Templates: the same prompt in training and inference, a learned stop token, no control text."""

import pytest
from dandap.training.trainer import supervised
from helpers import make_encoder
from transformers import AutoTokenizer

import prompts
from dandap.data.rows import Row
from dandap.errors import InputError
from dandap.recipe import Recipe
from prompts import TEMPLATES, get_template, render
from tasks import TASKS


def fits(name, task):
    try:
        task.check_template(TEMPLATES[name], name)
    except InputError:
        return False
    return True


ECONOMIC = [name for name in TEMPLATES if fits(name, TASKS["economic_qa"])]
ROW = Row("a", "한빛전자는 매출 1,240억 원을 기록했다.", "매출은 얼마인가?", ("1,240억 원",))
SPELLED = "<s> </s> <|user|> <|assistant|> <pad> {question} {{ }} ### Assistant:"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained("data/demo_model")


def encode(tokenizer, name, row, answers=True):
    encoder = make_encoder(Recipe(), get_template(name), tokenizer)
    return encoder.encode_rows([row], 1000, answers=answers)[0]


@pytest.mark.parametrize("name", ECONOMIC)
def test_the_inference_prompt_is_the_training_prompt(tokenizer, name):
    trained = encode(tokenizer, name, ROW)
    asked = encode(tokenizer, name, Row(ROW.id, ROW.context, ROW.question), answers=False)
    (labeled,) = supervised([trained])
    prompt = len(asked.prompt_ids)
    assert labeled["input_ids"][:prompt] == list(asked.prompt_ids)
    assert labeled["labels"][:prompt] == [-100] * prompt
    assert labeled["labels"][prompt:] == list(trained.answer_ids)
    assert not asked.answer_ids
    parts = render(TEMPLATES[name], {"context": ROW.context, "question": ROW.question})
    if "user" in parts:
        turns = [{"role": role, "content": text} for role, text in parts.items()]
        turns.append({"role": "assistant", "content": ROW.answers[0]})
        assert labeled["input_ids"] == tokenizer.apply_chat_template(turns, return_dict=False)


@pytest.mark.parametrize("name", ECONOMIC)
def test_the_last_learned_token_stops_generation(tokenizer, name):
    encoder = make_encoder(Recipe(), get_template(name), tokenizer)
    ids = encode(tokenizer, name, ROW).answer_ids
    assert ids[-1] == tokenizer.convert_tokens_to_ids("</s>")
    assert encoder.stop_ids() == [ids[-1]]
    assert ids[-1] not in ids[:-1]
    assert encoder.decode(ids) == ROW.answers[0]


@pytest.mark.parametrize("name", ECONOMIC)
def test_special_tokens_in_a_row_stay_text(tokenizer, name):
    special = set(tokenizer.all_special_ids)

    def control(ids):
        return [token for token in ids if token in special]

    plain = encode(tokenizer, name, ROW)
    for row in (
        Row("a", SPELLED, ROW.question, ROW.answers),
        Row("a", ROW.context, SPELLED, ROW.answers),
        Row("a", ROW.context, ROW.question, (SPELLED,)),
    ):
        spelled = encode(tokenizer, name, row)
        assert control(spelled.prompt_ids) == control(plain.prompt_ids)
        assert control(spelled.answer_ids) == [plain.answer_ids[-1]]
        assert SPELLED in tokenizer.decode([*spelled.prompt_ids, *spelled.answer_ids])


def test_every_template_fits_a_task():
    for name in TEMPLATES:
        assert any(fits(name, task) for task in TASKS.values()), name


def test_a_row_is_never_read_as_a_template():
    fields = {"context": "{question} {0} {{x}}", "question": "{context}"}
    filled = render({"prompt": "{context}|{question}"}, fields)
    assert filled == {"prompt": "{question} {0} {{x}}|{context}"}


def test_broken_templates_are_rejected():
    for template, message in (
        ({"prompt": "{context}"}, "needs context and question"),
        ({"prompt": "{context}{question}{article}"}, "has context, question, answer"),
        ({"prompt": "{context}{question}{}"}, "has context, question, answer"),
        ({"prompt": "{context} {question"}, "literal braces"),
        ({"prompt": "{context:>9} {question}"}, "alone in braces"),
        ({"system": "x"}, "expected 'prompt', or 'user'"),
        ({}, "expected 'prompt', or 'user'"),
    ):
        with pytest.raises(InputError, match=message):
            TASKS["economic_qa"].check_template(template, "mine")


def test_an_unknown_template_names_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'concise'"):
        get_template("consise")


def test_the_script_prints_a_template(capsys):
    prompts.show(["answer_bot"])
    assert "Question: 한빛전자의 올해 1분기 매출은?\nAnswer:" in capsys.readouterr().out


def test_published_prompts_are_verbatim():
    fields = {"context": "글", "question": "물음"}
    concise = "Question에 대한 답변만 가급적 한 단어로 최대한 간결하게 답변하도록 해."
    a = f"글\n너는 주어진 Question에 답하는 챗봇이야. {concise}\nQuestion: 물음\nAnswer:"
    assert render(get_template("answer_bot"), fields) == {"prompt": a}
    b = f"너는 주어진 Context를 토대로 Question에 답하는 챗봇이야. {concise}:\n\n글\n\nQuestion:\n물음"
    assert render(get_template("context_bot"), fields) == {"user": b}
    c = "### System:\n글\n\n### User:\n물음\n### Assistant:\n"
    assert render(get_template("system_context"), fields) == {"prompt": c}
    d = (
        "너는 주어진 Context를 토대로 Question에 답하는 챗봇이야. "
        "Question에 대한 답변만 최대한 한 단어로, 명사들로만 답변해줘. "
        "예를 들면 누구(사람에 대한 질문)-> 김철수(사람 이름만, 직무 회사 제외), "
        "물건 -> 사과, 시간 -> 1시, 속력 -> 1m/s, 이런식으로 딱 간단하게만 나타내줘. "
        "### System:\n글\n\n## User:\n물음\n\n"
    )
    assert render(get_template("nouns_only"), fields) == {"prompt": d}
