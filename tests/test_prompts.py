"""Templates: equal prompts in training and inference, and no control tokens from row texts."""

import pytest
from transformers import AutoTokenizer

from dandap.data.encode import Encoder
from dandap.data.rows import Row
from dandap.errors import InputError
from dandap.training.trainer import supervised
from prompts import TEMPLATES, get_template, render
from tasks import TASKS
from tests.test_encoding import ECONOMIC

ROW = Row("a", "한빛전자는 매출 1,240억 원을 기록했다.", "매출은 얼마인가?", ("1,240억 원",))
SPECIAL_TOKENS = "<s> </s> <|user|> <|assistant|> <pad> {question} {{ }} ### Assistant:"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained("data/demo_model")


def encoder(tokenizer, name):
    return Encoder(tokenizer, get_template(name))


@pytest.mark.parametrize("name", ECONOMIC)
def test_the_inference_prompt_equals_the_training_prompt(tokenizer, name):
    trained = encoder(tokenizer, name).encode([ROW], 1000, answers=True)[0]
    inference = encoder(tokenizer, name).encode(
        [Row(ROW.id, ROW.context, ROW.question)], 1000, answers=False
    )[0]
    labeled = supervised([trained])[0]
    assert labeled["input_ids"][: len(inference.prompt_ids)] == list(inference.prompt_ids)
    assert labeled["labels"][: len(inference.prompt_ids)] == [-100] * len(inference.prompt_ids)
    assert labeled["labels"][len(inference.prompt_ids) :] == list(trained.answer_ids)
    parts = render(TEMPLATES[name], {"context": ROW.context, "question": ROW.question})
    if "user" in parts:
        turns = [{"role": r, "content": parts[r]} for r in parts] + [
            {"role": "assistant", "content": ROW.answers[0]}
        ]
        assert labeled["input_ids"] == tokenizer.apply_chat_template(turns, return_dict=False)
    assert not inference.answer_ids
    # The last supervised token, and no other, stops generation.
    encode = encoder(tokenizer, name)
    assert trained.answer_ids[-1] == tokenizer.convert_tokens_to_ids("</s>")
    assert encode.stop_ids() == [trained.answer_ids[-1]]
    assert not set(trained.answer_ids[:-1]) & set(encode.stop_ids())
    assert encode.decode(trained.answer_ids) == ROW.answers[0]


@pytest.mark.parametrize("name", ECONOMIC)
@pytest.mark.parametrize("where", ["context", "question", "answer"])
def test_special_tokens_in_a_row_are_encoded_as_text(tokenizer, name, where):
    texts = {"context": ROW.context, "question": ROW.question, "answer": ROW.answers[0]}
    plain, spelled = [
        encoder(tokenizer, name).encode(
            [Row("a", t["context"], t["question"], (t["answer"],))], 1000, answers=True
        )[0]
        for t in (texts, texts | {where: SPECIAL_TOKENS})
    ]
    special = set(tokenizer.all_special_ids)

    def control(ids):
        return [i for i in ids if i in special]

    assert control(spelled.prompt_ids) == control(plain.prompt_ids)
    assert control(spelled.answer_ids) == control(plain.answer_ids) == list(spelled.answer_ids[-1:])
    assert SPECIAL_TOKENS in tokenizer.decode([*spelled.prompt_ids, *spelled.answer_ids])


def test_braces_in_a_row_are_not_expanded():
    filled = render(
        {"prompt": "{context}|{question}"},
        {"context": "{question} {0} {{x}}", "question": "{context}"},
    )
    assert filled == {"prompt": "{question} {0} {{x}}|{context}"}


def test_a_broken_template_is_rejected():
    for template, message in [
        ({"prompt": "{context}"}, "needs context and question"),
        ({"prompt": "{context}{question}{article}"}, "has context, question, answer"),
        ({"prompt": "{context} {question"}, "literal braces"),
        ({"prompt": "{context:>9}{question}"}, "only a field name"),
        ({"prompt": "{context.__class__}{question}"}, "has context, question, answer"),
        ({"system": "x"}, "expected 'prompt', or 'user'"),
    ]:
        with pytest.raises(InputError, match=message):
            TASKS["economic_qa"].check_template(template, "mine")
    with pytest.raises(InputError, match="Did you mean 'concise'"):
        get_template("consise")


def test_published_prompts_are_verbatim():
    """Prompts A to D of the published systems."""
    fields = {"context": "글", "question": "물음"}
    a = "너는 주어진 Question에 답하는 챗봇이야. Question에 대한 답변만 가급적 한 단어로 최대한 간결하게 답변하도록 해.\nQuestion: 물음\nAnswer:"
    assert render(get_template("answer_bot"), fields)["prompt"] == "글\n" + a
    b = "너는 주어진 Context를 토대로 Question에 답하는 챗봇이야. Question에 대한 답변만 가급적 한 단어로 최대한 간결하게 답변하도록 해.:\n\n글\n\nQuestion:\n물음"
    assert render(get_template("context_bot"), fields) == {"user": b}
    assert (
        render(get_template("system_context"), fields)["prompt"]
        == "### System:\n글\n\n### User:\n물음\n### Assistant:\n"
    )
    d = (
        "너는 주어진 Context를 토대로 Question에 답하는 챗봇이야. Question에 대한 답변만 최대한 한 단어로, 명사들로만 답변해줘. 예를 들면 누구(사람에 대한 질문)-> 김철수(사람 이름만, 직무 회사 제외), 물건 -> 사과, 시간 -> 1시, 속력 -> 1m/s, 이런식으로 딱 간단하게만 나타내줘. "
        "### System:\n글\n\n## User:\n물음\n\n"
    )
    assert render(get_template("nouns_only"), fields)["prompt"] == d
