"""Fields of an answer, and the three ways of decoding: trees, choices and generate."""

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from dandap.answering import tree_decoder
from dandap.answering.answer import Decoding, find_span
from dandap.answering.answerer import Answerer
from dandap.answering.branch_check import why_no_tree
from dandap.answering.generate import generate_answers
from dandap.answering.tree_decoder import answer_examples
from dandap.data.encode import Encoder
from dandap.data.rows import Row
from dandap.errors import InputError
from dandap.model.load import load_base, load_tokenizer
from dandap.recipe import Recipe, load_recipe, make_recipe
from dandap.tree import masks
from dandap.tree.masks import additive

CPU = torch.device("cpu")
CONTEXT = "한빛전자는 올해 1분기 매출 1,240억 원을 기록했다고 4월 3일 밝혔다. 본사는 부산에 있다."
DEMO = {"model": "data/demo_model", "quantization": "none", "max_new_tokens": 6}


@pytest.fixture(scope="module")
def encoder():
    template = {"user": "기사:\n{context}\n\n질문: {question}"}
    return Encoder(load_tokenizer(Recipe(**DEMO)), template)


@pytest.fixture(scope="module")
def decoding(encoder):
    return Decoding(encoder.stop_ids(), encoder.tokenizer.pad_token_id, max_new_tokens=6)


@pytest.fixture(scope="module")
def demo():
    return load_base(Recipe(**DEMO), CPU)


def examples(encoder, *questions):
    rows = [Row(str(number), CONTEXT, text) for number, text in enumerate(questions)]
    return encoder.encode(rows, 1000, False, "trim")


def ask(model, encoder, *questions, **options):
    """Return the answers of each question, in order."""
    plan = SimpleNamespace(tokens_per_batch=4096)
    answerer = Answerer(Recipe(**(DEMO | options)), encoder, model, plan)
    found = {e.row.id: answers for e, answers in answerer.answers(examples(encoder, *questions))}
    return [found[str(number)] for number in range(len(questions))]


def ids_of(answers):
    return [answer.token_ids for (answer,) in answers]


def generate_token_ids(model, prompt_ids, stop_ids, **options):
    options |= {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
    out = model.generate(torch.tensor([prompt_ids]), eos_token_id=stop_ids, **options)
    return out[0, len(prompt_ids) :].tolist()


def test_answer_has_text_span_and_log_probability(demo, encoder):
    for (answer,) in ask(demo, encoder, "매출은?", "본사는 어디에 있는가?", grounded=True):
        assert answer.span == find_span(answer.text, CONTEXT)
        assert CONTEXT[slice(*answer.span)] == answer.text
        assert answer.log_probability < 0
        assert answer.stopped == (answer.token_ids[-1] in encoder.stop_ids(demo.generation_config))
        assert encoder.decode(answer.token_ids) == answer.text
    assert find_span("서울", CONTEXT) is find_span("", CONTEXT) is None


def test_text_excludes_a_stop_token_that_is_not_special(demo, encoder, monkeypatch):
    ((free,),) = ask(demo, encoder, "매출은?")
    third = free.token_ids[2]
    assert third not in free.token_ids[:2]
    monkeypatch.setattr(encoder, "stop_ids", lambda config: [third])
    ((answer,),) = ask(demo, encoder, "매출은?")
    assert (answer.token_ids, answer.stopped) == (free.token_ids[:3], True)
    assert answer.text == encoder.decode(free.token_ids[:2])


def test_beams_equal_generate(demo, encoder, capsys):
    ((answer,),) = ask(demo, encoder, "본사는 어디에 있는가?", beams=3)
    (example,) = examples(encoder, "본사는 어디에 있는가?")
    stops = encoder.stop_ids(demo.generation_config)
    pad = encoder.tokenizer.pad_token_id
    expected = generate_token_ids(demo, example.prompt_ids, stops, num_beams=3)
    assert answer.token_ids == [token for token in expected if token != pad]
    assert -10 < answer.log_probability < 0
    assert "beams=3" in capsys.readouterr().out


@pytest.mark.parametrize("by", ["whole", "first_token"])
def test_choice_with_the_highest_log_probability_is_selected(demo, encoder, by):
    question, cities = "본사는 어디에 있는가?", ["부산", "서울", "대전"]
    ((one,),) = ask(demo, encoder, question, choices=cities, choices_by=by)
    ((other,),) = ask(demo, encoder, question, choices=cities[::-1], choices_by=by)
    assert (one.text, one.token_ids) == (other.text, other.token_ids)
    assert one.choices == pytest.approx(other.choices, abs=1e-4)
    (example,) = examples(encoder, question)
    scores, prompt_ids = {}, example.prompt_ids
    for city in cities:
        ids = encoder.encode_answer(CONTEXT, example.row, city, prompt_ids)
        with torch.inference_mode():
            logits = demo(torch.tensor([[*prompt_ids, *ids]])).logits[0, len(prompt_ids) - 1 : -1]
        count = len(ids) if by == "whole" else 1
        scores[city] = logits.log_softmax(-1)[range(count), ids[:count]].sum().item()
    assert one.text == max(scores, key=scores.get)
    assert one.choices == pytest.approx(scores, abs=1e-4)


def test_choices_with_the_same_first_token_are_compared_by_more_tokens(demo, encoder):
    ((answer,),) = ask(demo, encoder, "언제?", choices=["1월", "1일"], choices_by="first_token")
    assert 1 < len(answer.token_ids) < 4
    assert len(set(answer.choices.values())) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 2, "samples": 2}, "beams and samples"),
        ({"beams": 2, "grounded": True}, "beams and grounded"),
        ({"choices": "예,아니오", "temperature": 1}, "choices and samples or temperature"),
    ],
)
def test_incompatible_decoding_options_are_rejected(options, message):
    with pytest.raises(InputError, match=message):
        make_recipe(options, "the command line")


class MasklessLlama(LlamaForCausalLM):
    """A model that ignores masks."""

    def forward(self, attention_mask=None, **others):
        return super().forward(**others)


SIZES = {"vocab_size": 5000, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3}


@pytest.fixture(params=["ignores masks", "mamba"])
def model(request):
    """Return a model whose prompts cannot branch."""
    torch.manual_seed(0)
    if request.param == "mamba":
        return MambaForCausalLM(MambaConfig(**SIZES)).eval()
    return MasklessLlama(LlamaConfig(**SIZES, intermediate_size=64, num_attention_heads=2)).eval()


def test_models_that_cannot_branch_use_generate(model, encoder, decoding, capsys):
    assert why_no_tree(model, decoding)
    questions = ("매출은?", "본사는?")
    got = ids_of(ask(model, encoder, *questions))
    assert capsys.readouterr().out.count("separately with generate") == 1
    assert got == [
        generate_token_ids(model, example.prompt_ids, decoding.stop_ids)
        for example in examples(encoder, *questions)
    ]
    with pytest.raises(InputError, match="samples, temperature: not supported"):
        ask(model, encoder, "매출은?", samples=2, temperature=1)


@pytest.mark.parametrize("beams", [1, 2])
def test_out_of_memory_in_generate_halves_the_batch(model, encoder, monkeypatch, capsys, beams):
    questions = ["매출은?", "본사는?", "언제?", "누구?"]
    expected = ids_of(ask(model, encoder, *questions, beams=beams))
    forward, most = type(model).forward, 2 * beams

    def limited(self, input_ids=None, **others):
        if len(input_ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, input_ids=input_ids, **others)

    monkeypatch.setattr(type(model), "forward", limited)
    assert ids_of(ask(model, encoder, *questions, beams=beams)) == expected
    assert "out of memory with" in capsys.readouterr().out
    most = 0
    with pytest.raises(InputError, match="out of memory while answering"):
        ask(model, encoder, *questions, beams=beams)


def test_generation_config_penalties_are_ignored(demo, encoder, decoding, monkeypatch):
    """Neither trees nor generate apply its penalties, suppressed tokens and minimum length."""
    (example,) = examples(encoder, "매출은?")
    ((_, expected),) = generate_answers(demo, [list(example.prompt_ids)], decoding, 1)
    monkeypatch.setattr(demo.generation_config, "no_repeat_ngram_size", 1)
    monkeypatch.setattr(demo.generation_config, "suppress_tokens", list(range(100, 2000)))
    monkeypatch.setattr(demo.generation_config, "min_length", 300)
    ((_, got),) = generate_answers(demo, [list(example.prompt_ids)], decoding, 1)
    ((_, (tree,)),) = answer_examples(demo, [example], decoding, 1000)
    assert got == expected
    assert tree.token_ids == expected.token_ids


def see_all(sees, dtype):
    """Return a plain causal mask, in which branches see each other."""
    before = torch.ones(sees.shape[-2:], dtype=torch.bool).tril(sees.shape[-1] - sees.shape[-2])
    return additive(before.expand_as(sees), dtype)


def test_damaged_weights_and_models_that_see_later_tokens_are_rejected(decoding, monkeypatch):
    model = load_base(load_recipe("demo", {}), CPU)

    def see_later(self, input_ids=None, **others):
        whole = forward(self, input_ids=input_ids, **others)
        whole.logits = whole.logits + whole.logits.mean(1, keepdim=True)
        return whole

    forward = type(model).forward
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "forward", see_later)
        with pytest.raises(InputError, match="llama is not causal"):
            why_no_tree(model, decoding)
    model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(InputError, match="model.norm.weight contains NaN"):
        why_no_tree(model, decoding)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_branch_check_finds_branches_that_see_each_other(decoding, monkeypatch, dtype):
    """Models that branch correctly pass, also in bfloat16."""
    for dequantized in (True, False):
        model = load_base(load_recipe("demo", {"compute_dtype": dtype}), CPU, None, dequantized)
        assert why_no_tree(model, decoding) is None
    for module in (masks, tree_decoder):  # during prefill and during decoding
        with monkeypatch.context() as patch:
            patch.setattr(module, "additive", see_all)
            assert "were off by" in why_no_tree(model, decoding)
