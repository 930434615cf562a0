"""Training on token trees equals TRL: losses, gradients and weights, for each model family."""

import functools
import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_models import FAMILIES
from transformers import (
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    TrainerCallback,
)

from dandap.answering.batches import run_batches
from dandap.data.encode import Example
from dandap.data.rows import Row
from dandap.model.adapter import add_adapter
from dandap.model.load import decoder_layers, load_base
from dandap.model.memory import MemoryEstimate, Plan
from dandap.recipe import Recipe
from dandap.training.batching import Batching, Questions, StepSampler, deal, share
from dandap.training.run import print_sharing
from dandap.training.trainer import make_trainer
from tests.conftest import ROOT

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer():
    """SFTTrainer requires a tokenizer; only its padding is used."""
    return AutoTokenizer.from_pretrained(ROOT / "data/demo_model")


def make_examples(seed=0, articles=20, questions=2, answers=1, length=(15, 40)):
    """Return examples of random ids; the answers to a question share its prompt and a token."""
    rng, examples = random.Random(seed), []

    def draw(low, high):
        return [rng.randint(3, 95) for _ in range(rng.randint(low, high))]

    for number in range(articles):
        context = draw(*length)
        for _ in range(questions):
            prompt, first = context + draw(2, 6), draw(1, 1)
            for _ in range(answers):
                row = Row(str(len(examples)), f"article {number}", "q")
                examples.append(Example(row, prompt, first + draw(0, 4) + [1]))
    return examples


def make_recipe(folder, **options):
    """Return a recipe without gradient clipping, so that gradients can be compared.

    The first step has learning rate 0: AdamW's first update is the gradient's sign, which is noise
    for elements below float32's rounding (2e-10 next to neighbors of 1e-2).
    """
    defaults = {"quantization": "none", "questions_per_step": 4, "max_grad_norm": 1e9}
    defaults |= {"learning_rate": 2e-4, "lora_r": 4, "epochs": 1}
    defaults |= {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 1}
    return Recipe(model=str(folder), **(defaults | options))


def make_plan(tokens=4096, checkpointing=False):
    return Plan(CPU, torch.float32, tokens, checkpointing, MemoryEstimate(0, 0, 0, 0), None)


class Record(TrainerCallback):
    """Records the loss and gradients of each step."""

    def __init__(self):
        self.losses, self.gradients = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append(gradients_of(model))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.losses.append(logs["loss"])


def gradients_of(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def trained(model):
    return {n: p.data for n, p in model.named_parameters() if p.requires_grad}


def adapted(recipe):
    """Return the base with an adapter, equal on every call.

    lora_B is random: with zeros, half of the gradients would be zero.
    """
    model = add_adapter(load_base(recipe, CPU), recipe)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05, generator=generator)
    return model


def in_padded_rows(trainer):
    """Let trees of similar size share a padded micro-batch, as on a GPU."""
    assert trainer.batching.alone
    trainer.batching = replace(trainer.batching, alone=False)
    return trainer


def run(recipe, plan, examples, tokenizer, folder, sequential=False):
    """Train for one epoch and return (record, trained weights, trainer)."""
    record, model = Record(), adapted(recipe)
    trainer = make_trainer(recipe, plan, tokenizer, examples, model, folder, [record])
    trainer.args.logging_steps = 1
    trainer.args.save_strategy = "no"
    if recipe.read_once:
        in_padded_rows(trainer)
    if sequential:
        trainer.args.train_sampling_strategy = "sequential"
    trainer.train()
    return record, trained(model), trainer


def relative(got, expected):
    """Return the largest relative difference between tensors of the same name."""
    assert got.keys() == expected.keys()
    differences = {name: (got[name] - expected[name]).norm() for name in expected}
    return max(differences[name] / expected[name].norm().clamp(min=1e-12) for name in expected)


def absolute(got, expected):
    return max((got[name] - expected[name]).abs().max() for name in expected)


def rounding(model):
    """Return the factor on tolerances: small gradients of Qwen 3.5's decay have large errors.

    TRL's own batches of 1 and of 4,096 tokens differ by up to 8e-4 in gradients after ten steps. A
    branch that starts without its state is off by 0.13 in the first.
    """
    return 100 if "qwen3_5" in str(model) else 1


def assert_equals_trl(recipe, plan, examples, tokenizer, tmp_path, weights=absolute):
    """Compare with TRL's trainer, one example at a time, on the same steps.

    Losses agree to 1e-6 and gradients to 1e-5, relative; weights to 1e-5, by `weights`. After the
    first step weights differ by rounding: gradients differed by up to 1.1e-5 (10 steps, 12 seeds).
    """
    limit = 1e-5 * rounding(recipe.model)
    record, got, trainer = run(recipe, plan, examples, tokenizer, tmp_path / "ours")
    size, seed = trainer.args.per_device_train_batch_size, trainer.args.seed
    steps = [
        [examples[key.index] for key in s] for s in StepSampler(examples, size, seed, lambda: 0)
    ]
    assert {len(step) for step in steps} == {recipe.questions_per_step}, "as TRL's steps"
    ordered = [example for step in steps for example in step]
    plain = recipe.model_copy(update={"read_once": False})
    one = make_plan(1, plan.gradient_checkpointing)
    theirs = run(plain, one, ordered, tokenizer, tmp_path / "theirs", sequential=True)
    expected, expected_weights, trl = theirs
    assert trl.args.per_device_train_batch_size == 1
    assert len(record.losses) == 10
    assert record.losses == pytest.approx(expected.losses, rel=limit / 10)
    pairs = zip(record.gradients, expected.gradients, strict=True)
    for step, (ours, other) in enumerate(pairs):
        assert all(gradient.norm() > 0 for gradient in other.values()), "a zero gradient"
        assert relative(ours, other) < (2 * limit if step else limit)
    assert weights(got, expected_weights) < max(1e-5, limit / 10)


# The fast suite compares each family with one optimizer.
SGD_FAMILIES = ("llama", "gemma3")


def slow_unless(fast, *values):
    """Return a test case, marked slow unless `fast`."""
    return pytest.param(*values, marks=() if fast else pytest.mark.slow)


SGD = {"optim": "sgd", "learning_rate": 1e-2, "lr_scheduler_type": "constant"}


@pytest.mark.parametrize(
    ("family", "quantization"),
    [
        *(slow_unless(family in SGD_FAMILIES, family, "nf4") for family in FAMILIES),
        *(slow_unless(False, family, "none") for family in FAMILIES),
        ("experts", "none"),
    ],
)
def test_sgd_steps_equal_trl(bases, tokenizer, tmp_path, family, quantization):
    """Two articles per step in padded rows, two answers per question, gradient checkpointing.

    Experts are trained without the router's auxiliary loss, which TRL adds by default.
    """
    recipe = make_recipe(bases / family, quantization=quantization, questions_per_step=8, **SGD)
    examples, plan = make_examples(answers=2), make_plan(checkpointing=family != "experts")
    assert_equals_trl(recipe, plan, examples, tokenizer, tmp_path, relative)


@pytest.mark.parametrize(
    ("family", "quantization", "tokens"),
    [
        *(slow_unless(family not in SGD_FAMILIES, family, "none", 4096) for family in FAMILIES),
        *(slow_unless(False, family, "nf4", 4096) for family in FAMILIES),
        ("llama", "none", 90),
        *(slow_unless(False, "llama", "none", tokens) for tokens in (1, 150)),
    ],
)
def test_adamw_steps_equal_trl(bases, tokenizer, tmp_path, family, quantization, tokens):
    """Nested trees: two questions with five answers each; no checkpointing.

    Micro-batches range from one question to the whole step.
    """
    how = {"optim": "adamw_torch", "questions_per_step": 10}
    recipe = make_recipe(bases / family, quantization=quantization, **how)
    examples = make_examples(articles=10, answers=5)
    assert_equals_trl(recipe, make_plan(tokens), examples, tokenizer, tmp_path)


def plain_gradients(model, examples):
    """Return (loss, gradients) of a plain loop over the examples, one at a time."""
    total, targets = 0.0, sum(len(example.answer_ids) for example in examples)
    for example in examples:
        ids, answer = example.prompt_ids + example.answer_ids, torch.tensor(example.answer_ids)
        logits = model(input_ids=torch.tensor([ids])).logits[0, len(example.prompt_ids) - 1 : -1]
        entropy = torch.nn.functional.cross_entropy(logits.float(), answer, reduction="sum")
        (entropy / targets).backward()
        total += entropy.item() / targets
    return total, take_gradients(model)


def tree_gradients(trainer, examples, targets=None):
    """Return (loss, gradients) of one training step on token trees."""
    step = trainer.batching.collate_step(examples)
    loss = trainer.training_step(trainer.model, step, targets or step["labels"].numel()).item()
    return loss, take_gradients(trainer.model)


def take_gradients(model):
    gradients = gradients_of(model)
    model.zero_grad()
    return gradients


def assert_same_gradients(ours, plain, factor=1):
    assert ours[0] == pytest.approx(plain[0], rel=1e-6)
    assert relative(ours[1], plain[1]) < 1e-5 * factor


@pytest.fixture(scope="module")
def trainers(bases, tokenizer, tmp_path_factory):
    """Return a cached function that makes an untrained float32 trainer of a family."""

    @functools.cache
    def get(family, **options):
        recipe, folder = make_recipe(bases / family, **options), tmp_path_factory.mktemp("t")
        model, plan = adapted(recipe), make_plan(200)
        return in_padded_rows(
            make_trainer(recipe, plan, tokenizer, make_examples(), model, folder, [])
        )

    return get


ids = st.lists(st.integers(3, 6), max_size=8)
questions = st.lists(st.tuples(st.integers(0, 2), ids.filter(len), ids), min_size=1, max_size=10)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=questions)
def test_random_trees_have_the_gradients_of_a_plain_loop(trainers, family, drawn):
    """A vocabulary of four tokens makes prompts and answers share prefixes, or be equal."""
    contexts = [[*range(10 + 30 * a, 10 + 30 * a + 5 + 9 * a)] for a in range(3)]
    examples = [
        Example(Row(str(i), f"{a}", "q"), contexts[a] + p, [*x, 1])
        for i, (a, p, x) in enumerate(drawn)
    ]
    trainer = trainers(family)
    plain = plain_gradients(trainer.model, examples)
    assert_same_gradients(tree_gradients(trainer, examples), plain, rounding(family))


def test_an_adapter_on_the_head_trains_and_is_saved_alone(trainers):
    """Compare with a plain loop: TRL rejects it. PEFT would also save SOLAR's head of 262 MB."""
    trainer = trainers("llama", lora_target_modules="q_proj,lm_head")
    examples = make_examples()[:8]
    ours, plain = tree_gradients(trainer, examples), plain_gradients(trainer.model, examples)
    assert any("lm_head" in name and gradient.norm() > 0 for name, gradient in ours[1].items())
    assert_same_gradients(ours, plain)
    trainer.train()
    folder = next(Path(trainer.args.output_dir).glob("checkpoint-*"))
    saved = load_file(folder / "adapter_model.safetensors")
    assert any("lm_head.lora_B" in name for name in saved)
    assert all(".lora_" in name for name in saved)


def test_an_eval_forward_between_steps_does_not_change_training(bases, tokenizer, tmp_path):
    """Regression: on AVX512-BF16 CPUs it repacked 4-bit weights, so gradients were wrong."""

    class Evaluate(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            with torch.no_grad():
                model.eval()(input_ids=torch.arange(3, 40)[None])

    recipe = make_recipe(bases / "llama", quantization="nf4", optim="adamw_torch")
    plan, examples, results = make_plan(), make_examples(), []
    for callbacks in ([], [Evaluate()]):
        model = adapted(recipe)
        make_trainer(recipe, plan, tokenizer, examples, model, str(tmp_path), callbacks).train()
        results.append(trained(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_shared_tokens_have_one_dropout_mask(bases, tokenizer, tmp_path):
    """Equal questions have equal losses, because they are one branch; TRL draws two masks."""
    recipe = make_recipe(bases / "llama", lora_dropout=0.5)
    one = make_examples(articles=1, questions=1)
    trainer = make_trainer(recipe, make_plan(), tokenizer, one, adapted(recipe), str(tmp_path), [])
    losses = []
    for seed, examples in ((0, one), (0, one * 2), (1, one)):
        torch.manual_seed(seed)
        losses.append(tree_gradients(trainer, examples)[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] != pytest.approx(losses[2], rel=1e-3), "dropout is on"


def test_a_multimodal_base_trains(tokenizer, tmp_path):
    """Its class sets accepts_loss_kwargs = False, but our loss needs the number of tokens."""
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(text_config=FAMILIES["gemma3"], vision_config=vision)
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    recipe, examples = make_recipe(tmp_path / "base", questions_per_step=40), make_examples()
    record, _, _ = run(recipe, make_plan(), examples, tokenizer, tmp_path)
    loss, _ = plain_gradients(adapted(recipe), examples)
    assert record.losses == pytest.approx([loss], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_compiled_layers_match_eager_training(
    bases, tokenizer, tmp_path, capsys, family, checkpointing
):
    """Losses and adapters match, dropout included; validation runs uncompiled."""
    runs = []
    for compiled in (False, True):
        options = {"questions_per_step": 8, "lora_dropout": 0.1, "compile": compiled}
        recipe = make_recipe(bases / family, **options)
        plan = make_plan(checkpointing=checkpointing)
        torch.manual_seed(0)
        runs.append(run(recipe, plan, make_examples(answers=2), tokenizer, tmp_path))
        assert ("compiled the layers in" in capsys.readouterr().out) == compiled
    (expected, weights, _), (record, got, trainer) = runs
    assert record.losses == pytest.approx(expected.losses, rel=1e-5)
    assert relative(got, weights) < 1e-5
    torch._dynamo.utils.counters.clear()
    trainer.model.eval()(input_ids=torch.tensor([[1, 2, 3]]))
    assert not torch._dynamo.utils.counters["stats"]


@pytest.mark.parametrize(
    ("factor", "mode", "message"),
    [
        (1.0, True, "compiled the layers in"),
        (1.5, True, "layers are not compiled: losses differ by"),
        (float("nan"), True, "layers are not compiled: losses differ by nan"),
        (None, True, "layers are not compiled: RuntimeError: no compiler"),
        (1.0, "auto", None),  # a short run
        (1.0, False, None),
    ],
)
def test_compiled_layers_are_kept_only_if_they_match(
    bases, tokenizer, tmp_path, monkeypatch, capsys, factor, mode, message
):
    def fake_compile(forward, dynamic):
        def changed(*args, **options):
            if factor is None:
                raise RuntimeError("no compiler")
            return forward(*args, **options) * factor

        return changed

    monkeypatch.setattr(torch, "compile", fake_compile)
    recipe = make_recipe(bases / "llama", questions_per_step=8, compile=mode)
    record, _, trainer = run(recipe, make_plan(), make_examples(answers=2), tokenizer, tmp_path)
    out = capsys.readouterr().out
    assert (message in out) if message else ("layers" not in out)
    changed = [
        isinstance(layer.forward, functools.partial) for layer in decoder_layers(trainer.model)
    ]
    assert set(changed) == {message == "compiled the layers in"}
    assert all(map(math.isfinite, record.losses))


def test_bfloat16_on_a_cpu_keeps_the_adapter_in_float32(tokenizer, tmp_path):
    """On the demo's base, losses are within 1% of float32; matrix products are in bfloat16."""
    losses, kinds = {}, set()
    for name in ("float32", "bfloat16"):
        recipe = make_recipe("data/demo_model", quantization="nf4", compute_dtype=name)
        plan = replace(make_plan(), compute_dtype=getattr(torch, name), dequantized=True)
        model, record = adapted(recipe), Record()
        for path, module in model.named_modules():
            if path.endswith("base_layer"):
                module.register_forward_hook(lambda *call: kinds.add(call[-1].dtype))
        folder = tmp_path / name
        make_trainer(recipe, plan, tokenizer, make_examples(), model, folder, [record]).train()
        assert kinds == {getattr(torch, name)}
        kinds.clear()
        losses[name] = record.losses
        assert {tensor.dtype for tensor in trained(model).values()} == {torch.float32}
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=1e-2)
    assert losses["bfloat16"] != losses["float32"]


article_sizes = st.lists(st.integers(1, 30), min_size=1, max_size=40)


def number_questions(sizes):
    """Return the question numbers of each article, for articles of these sizes."""
    ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
    return [list(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]


@given(article_sizes, st.integers(1, 20), st.integers(0, 2**32))
def test_every_question_is_dealt_once(sizes, questions_per_step, seed):
    """The number of steps is as planned, none is empty, and only larger articles are split."""
    total = sum(sizes)
    steps = deal(number_questions(sizes), questions_per_step, random.Random(seed))
    assert len(steps) == math.ceil(total / questions_per_step)
    assert all(steps)
    pieces = [piece for step in steps for piece in step]
    assert Counter(question for piece in pieces for question in piece) == Counter(range(total))
    assert max(map(len, pieces)) <= questions_per_step
    assert len(pieces) == sum(math.ceil(size / questions_per_step) for size in sizes)


@given(article_sizes, st.integers(1, 4), st.integers(0, 100))
def test_processes_share_a_step(sizes, processes, seed):
    """No question is lost or duplicated."""
    total, rng = sum(sizes), random.Random(seed)
    lengths = [rng.randint(1, 900) for _ in range(total)]
    step = number_questions(sizes)
    shares = share(step, lambda piece: sum(lengths[index] for index in piece), processes)
    assert len(shares) == processes
    dealt = [index for mine in shares for piece in mine for index in piece]
    assert sorted(dealt) == list(range(total))
    assert all(shares) or total < processes


def test_a_process_without_a_question_has_zero_gradients(trainers):
    examples = make_examples(articles=1, questions=2)
    steps = [next(iter(StepSampler(examples, 2, 42, lambda: 0, rank, 3))) for rank in range(3)]
    (idle,) = [step for step in steps if not step[0].learned]
    assert sorted(step[0].index for step in steps if step is not idle) == [0, 1]
    unlabeled = Questions(examples)[idle[0]]
    assert unlabeled.prompt_ids and not unlabeled.answer_ids
    loss, gradients = tree_gradients(trainers("llama"), [unlabeled], targets=5)
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients.values())


def test_the_order_changes_every_epoch_and_is_reproducible():
    examples = make_examples(articles=16)  # eight steps an epoch
    first, again, second, other = (
        list(StepSampler(examples, 4, seed, lambda done=done: done))
        for seed, done in ((42, 0), (42, 0), (42, 8), (43, 0))
    )
    assert first == again and first != second and first != other


@pytest.mark.parametrize("one_row", [False, True])
def test_micro_batches_stay_within_the_token_limit(one_row):
    examples = make_examples(articles=12, questions=3)
    batching = Batching(150, one_row, pad_id=0)
    batches = batching.micro_batches(examples)
    batched = [example.row.id for batch in batches for part, _ in batch for example in part]
    assert sorted(batched) == sorted(example.row.id for example in examples)
    assert all(sum(len(tree) for _, tree in batch) <= 150 for batch in batches)
    assert any(len(batch) > 1 for batch in batches)
    packed = batching.collate_step(examples)["packed"].on(CPU)
    assert not one_row or {each["input_ids"].shape[0] for each in packed} == {1}


PAIRS = SimpleNamespace(  # batches of two questions
    batches=lambda indices, tokens: [indices[at : at + 2] for at in range(0, len(indices), 2)],
    members=lambda batch: batch,
    size=len,
)


def test_processes_share_the_unfinished_batches(monkeypatch):
    """If finished batches were dealt too, a resumed inference could leave a process idle."""
    done = {0, 1, 3, 4, 5, 9}  # 3 is answered again, together with 2, and dropped
    for count in (1, 2, 3, 7):
        shares, results = [], []
        for number in range(count):
            monkeypatch.setenv("RANK", str(number))
            monkeypatch.setenv("WORLD_SIZE", str(count))
            batches = []

            def work(batch, batches=batches):
                batches.append(batch)
                return {index: index for index in batch}

            results += [index for index, _ in run_batches(PAIRS, 12, 2, work, done)]
            shares.append(batches)
        dealt = sorted(batch for share in shares for batch in share)
        assert dealt == [[2, 3], [6, 7], [8, 9], [10, 11]]
        assert sorted(results) == [2, 6, 7, 8, 10, 11]
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.fixture
def limited(trainers, monkeypatch):
    """Yield a trainer and a list of one number, the most tokens that fit in a forward."""
    trainer, tokens = trainers("llama"), [math.inf]
    compute = trainer.compute_loss

    def compute_loss(model, inputs, **others):
        loss = compute(model, inputs, **others)
        if inputs["input_ids"].numel() > tokens[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss

    monkeypatch.setattr(trainer, "compute_loss", compute_loss)
    monkeypatch.setattr(trainer, "batching", trainer.batching)  # restored afterwards
    yield trainer, tokens
    trainer.model.zero_grad()


def test_out_of_memory_halves_the_batches(limited, capsys):
    """The step is repeated with the same loss and gradients; later steps keep the size."""
    trainer, tokens = limited
    examples, before = make_examples(articles=3, questions=6), trainer.batching
    whole, ahead = tree_gradients(trainer, examples), before.collate_step(examples)
    tokens[0] = 0.6 * max(map(before.size, before.micro_batches(examples)))
    assert_same_gradients(tree_gradients(trainer, examples), whole)
    assert "continuing with" in capsys.readouterr().out
    after = trainer.batching
    assert after.tokens_per_batch < before.tokens_per_batch
    tree_gradients(trainer, examples)
    # A step that was collated before, with the old size, does not halve it again.
    trainer.training_step(trainer.model, ahead, ahead["labels"].numel())
    assert trainer.batching is after


def test_a_question_that_does_not_fit_raises(limited):
    """Regression: next to an article that can be split, it was halved forever."""
    trainer, tokens = limited
    (long,) = make_examples(articles=1, questions=1, length=(90, 90))
    short = [replace(e, row=Row("s", "short", "q")) for e in make_examples(1, articles=1)]
    tokens[0] = 80
    with pytest.raises(torch.OutOfMemoryError, match="a single question"):
        tree_gradients(trainer, [long, *short])


def test_steps_without_shared_tokens_are_reported(capsys):
    examples = make_examples()
    print_sharing(Recipe(questions_per_step=1), examples)
    assert "share almost no tokens. Use --questions_per_step 16." in capsys.readouterr().out
    print_sharing(Recipe(), examples)
    assert "WARNING" not in capsys.readouterr().out
