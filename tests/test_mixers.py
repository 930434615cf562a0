"""Segments of token trees for recurrent and convolutional layers."""

from functools import wraps

import pytest
import torch
from test_trainer import make_plan, make_recipe, plain_gradients, relative, tree_gradients
from transformers import AutoModelForCausalLM, AutoTokenizer, Lfm2Config, Mamba2Config
from transformers.models.mamba2 import modeling_mamba2

from dandap.answering.answer import Decoding
from dandap.answering.branch_check import why_no_tree, why_other_gradients
from dandap.answering.generate import generate_answers
from dandap.answering.tree_decoder import answer_examples
from dandap.data.encode import Example
from dandap.data.rows import Row
from dandap.model.adapter import add_adapter
from dandap.model.load import load_base
from dandap.training.trainer import make_trainer
from dandap.tree.mixers import State, levels_of, mixers_of, segments_of
from dandap.tree.token_tree import collate, grow
from tests.conftest import ROOT

SIZES = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "initializer_range": 0.1}
BASES = {
    "mamba2": Mamba2Config(**SIZES, num_heads=8, head_dim=16, state_size=16, n_groups=1, expand=2),
    "lfm2": Lfm2Config(
        **(SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2}),
        intermediate_size=128,
        layer_types=["conv", "full_attention"],
    ),
}
# Shared prefixes of one token, prompts that are prefixes of others, and equal questions.
PROMPTS = ([5, 6, 7], [5, 6, 7, 8], [5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 8, 12], [5, 6, 7, 8, 12])
ANSWERS = ([20, 1], [21, 22, 1], [23, 1], [24, 25, 26, 1], [24, 27, 1])


def make_examples(articles):
    return [
        Example(Row(f"{n}-{number}", f"article {n}", "q"), [*range(30, 40 + n), *prompt], answer)
        for n in range(articles)
        for number, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True))
    ]


@pytest.fixture(params=BASES)
def adapted(request, tmp_path):
    """Return a recipe and its model, with a random adapter."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(BASES[request.param]).save_pretrained(tmp_path / "base")
    recipe = make_recipe(tmp_path / "base")
    model = add_adapter(load_base(recipe, torch.device("cpu")), recipe)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05)
    return recipe, model


def test_segments():
    """After 1 2 3, the tree branches to 4 5 and to 6, and after 6 to 7 and 8 8."""
    tree = grow([([1, 2, 3, 4], [5, 0]), ([1, 2, 3, 6], [7, 0]), ([1, 2, 3, 6], [8, 8, 0])])
    assert tree.input_ids == [1, 2, 3, 4, 5, 6, 7, 8, 8]
    in_training = [tuple(segment) for segment in segments_of(tree.subtree_end, None)]
    assert in_training == [
        ([0, 1, 2], -1, 0),
        ([3, 4], 0, 1),
        ([5], 0, 1),
        ([5, 6], 0, 1),
        ([5, 7, 8], 0, 1),
    ]
    in_answering = [tuple(segment) for segment in segments_of(tree.subtree_end, {3, 5})]
    assert in_answering == [
        ([0, 1, 2], -1, 0),
        ([3], 0, 1),
        ([4], 1, 2),
        ([5], 0, 1),
        ([6], 3, 2),
        ([7, 8], 3, 2),
    ]


def test_calls_cover_every_token_of_a_batch():
    trees = [grow([([1, 2, 3], [4, 5, 0]), ([1, 2, 6], [7, 0])]), grow([([1], [2, 0])])]
    batch = collate(trees, pad_id=0, segments="train")
    levels = levels_of(batch)
    outputs = torch.cat([call.tokens.flatten() for calls in levels.calls for call in calls])
    length = batch["input_ids"].shape[1]
    tokens = [row * length + token for row, tree in enumerate(trees) for token in range(len(tree))]
    assert outputs[levels.order][tokens].tolist() == tokens


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_a_plain_loop(adapted, tmp_path, checkpointing):
    recipe, model = adapted
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data/demo_model")
    examples, plan = make_examples(articles=2), make_plan(checkpointing=checkpointing)
    trainer = make_trainer(recipe, plan, tokenizer, examples, model, str(tmp_path), [])
    ours, plain = tree_gradients(trainer, examples), plain_gradients(trainer.model, examples)
    assert ours[0] == pytest.approx(plain[0], rel=1e-6)
    assert relative(ours[1], plain[1]) < 1e-4


def test_answers_and_samples_equal_generate(adapted):
    """In one batch, with branches that stop early and rows of different lengths."""
    _, model = adapted
    decoding = Decoding([1, 2, 3, 4], pad_id=0, max_new_tokens=8)
    assert why_no_tree(model, decoding) is None
    examples = make_examples(articles=3)
    answers = dict(answer_examples(model, examples, decoding, 100_000))
    for index, example in enumerate(examples):
        ((_, expected),) = generate_answers(model, [example.prompt_ids], decoding, 1)
        assert answers[index][0].token_ids == expected.token_ids
        assert answers[index][0].log_probability == pytest.approx(
            expected.log_probability, abs=1e-4
        )


def test_a_tree_does_not_change_later_plain_forwards(adapted):
    _, model = adapted
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        mixers = mixers_of(model)
        mixers.read_next(collate([grow([([5, 6, 7], [8, 0])])], pad_id=0, segments="train"))
        model(input_ids=ids[:, :4], use_cache=False)
        assert torch.equal(model(input_ids=ids, use_cache=False).logits, expected)


def test_wrong_gradients_of_a_state_are_found(adapted, monkeypatch):
    _, model = adapted
    assert why_other_gradients(model, 0) is None
    at = State.at
    monkeypatch.setattr(
        State,
        "at",
        lambda self, index: State(*(s if s is None else s.detach() for s in at(self, index))),
    )
    assert "gradients of a small tree" in why_other_gradients(model, 0)


@pytest.mark.parametrize("adapted", ["mamba2"], indirect=True)
def test_a_kernel_with_wrong_gradients_is_replaced(adapted, monkeypatch, capsys):
    """A kernel that does not differentiate its initial state."""
    reference = modeling_mamba2.mamba2_chunk_scan

    @wraps(reference)
    def kernel(*args, initial_states=None, **options):
        state = initial_states if initial_states is None else initial_states.detach()
        return reference(*args, initial_states=state, **options)

    monkeypatch.setattr(modeling_mamba2, "mamba2_chunk_scan", kernel)
    assert why_other_gradients(adapted[1], 0) is None
    assert "using transformers' reference" in capsys.readouterr().out
