"""Test reading once against ordinary training, family by family.

Losses, gradients and weights of the same steps are compared.
"""

import math
import random
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_models import FAMILIES
from transformers import PreTrainedTokenizerFast, TrainerCallback

from dandap.data.encode import Example
from dandap.data.rows import Row
from dandap.model.adapter import add_adapter
from dandap.model.load import load_base
from dandap.model.memory import MemoryEstimate, Plan
from dandap.recipe import Recipe
from dandap.training import run as training_run
from dandap.training.batching import (
    Batching,
    Key,
    Questions,
    StepSampler,
    TreeTokens,
    count_tokens,
    deal,
    share,
    speedup,
)
from dandap.training.trainer import make_trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer():
    """SFTTrainer asks for one; its ids are not used."""
    from tokenizers import Tokenizer, models

    inner = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def make_examples(seed=0, articles=20, questions=2, answers=1, length=(15, 40)):
    """Return examples of random ids; an article's questions differ.

    A question's answers share its prompt and sometimes a first token.
    """
    rng = random.Random(seed)
    draw = lambda low, high: [rng.randint(3, 95) for _ in range(rng.randint(low, high))]  # noqa: E731
    examples = []
    for number in range(articles):
        context, length_of = draw(*length), f"article {number}"
        for _ in range(questions):
            question = draw(2, 6)
            first = draw(1, 1)
            for _ in range(answers):
                answer = first + draw(0, 4) + [1]
                examples.append(
                    Example(Row(str(len(examples)), length_of, "q"), context + question, answer)
                )
    return examples


def make_recipe(folder, **options):
    """All-linear LoRA; gradients are not clipped, so that they can be compared.

    A step of warm-up, because AdamW's first step is the gradient's sign, and that of an element
    whose gradient lies below float32's rounding (2e-10 where its neighbours have 1e-2) is noise.
    """
    defaults = {
        "quantization": "none",
        "questions_per_step": 4,
        "max_grad_norm": 1e9,
        "learning_rate": 2e-4,
        "lora_r": 4,
    }
    schedule = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 1}
    return Recipe(model=str(folder), **(defaults | schedule | options))


def make_plan(tokens=4096, checkpointing=False):
    return Plan(CPU, torch.float32, tokens, checkpointing, MemoryEstimate(0, 0, 0, 0), None)


class Record(TrainerCallback):
    """Loss and gradients of every step."""

    def __init__(self):
        self.losses, self.gradients = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
        )

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.losses.append(logs["loss"])


def adapted(recipe):
    """Return the same base and adapter every time.

    lora_B is not left at zero, where half of the gradients would be.
    """
    model = add_adapter(load_base(recipe, CPU), recipe)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05, generator=generator)
    return model


def in_padded_rows(trainer):
    """Let trees of similar size share a micro-batch, as they do on a GPU.

    On a CPU each would have its own.
    """
    assert trainer.batching.alone
    trainer.batching = replace(trainer.batching, alone=False)
    return trainer


def run(recipe, plan, examples, tokenizer, folder, sequential=False):
    """(record, trained weights, trainer) of one epoch."""
    record, model = Record(), adapted(recipe)
    trainer = make_trainer(recipe, plan, tokenizer, examples, model, folder, [record])
    trainer.args.logging_steps = 1
    trainer.args.save_strategy = "no"
    if recipe.read_once:
        in_padded_rows(trainer)
    if sequential:
        trainer.args.train_sampling_strategy = "sequential"
    trainer.train()
    return record, {n: p.data for n, p in model.named_parameters() if p.requires_grad}, trainer


def in_the_order_of(trainer, examples):
    """Return the examples as the trainer's first epoch had them, and its steps as sets of ids."""
    keys = list(
        StepSampler(
            examples,
            trainer.args.per_device_train_batch_size,
            trainer.args.seed,
            step=lambda: 0,
        )
    )
    return [[examples[key.index] for key in step] for step in keys]


def relative(got, expected):
    return ((got - expected).norm() / expected.norm().clamp(min=1e-12)).item()


def assert_same(ours, theirs, weights_tolerance):
    """Assert losses within 1e-6 and gradients within 1e-5, relative.

    Weights must be within what is given, absolute or relative. After the first step they differ by
    rounding already, and ten steps of twelve seeds came to 1.1e-5 in gradients.
    """
    (record, weights, _), (expected, expected_weights, _) = ours, theirs
    assert len(record.losses) == len(expected.losses) == 10
    for got, want in zip(record.losses, expected.losses, strict=True):
        assert got == pytest.approx(want, rel=1e-6)
    pairs = zip(record.gradients, expected.gradients, strict=True)
    for step, (got, want) in enumerate(pairs):
        assert got.keys() == want.keys()
        assert all(want[name].norm() > 0 for name in want), "a gradient of zero proves nothing"
        limit = 2e-5 if step else 1e-5
        assert max(relative(got[name], want[name]) for name in want) < limit
    weights_tolerance(weights, expected_weights)


def relative_weights(got, want):
    assert max(relative(got[name], want[name]) for name in want) < 1e-5


def absolute_weights(got, want):
    assert max((got[name] - want[name]).abs().max().item() for name in want) < 1e-5


def compare(recipe, plan, examples, tokenizer, tmp_path, weights_tolerance):
    """Ours against TRL's trainer, one example at a time, on the same steps."""
    ours = run(recipe, plan, examples, tokenizer, tmp_path / "ours")
    steps = in_the_order_of(ours[2], examples)
    assert {len(step) for step in steps} == {recipe.questions_per_step}, (
        "TRL's steps all have the same size"
    )
    one_at_a_time = Plan(CPU, torch.float32, 1, plan.gradient_checkpointing, plan.estimate, None)
    ordered = [example for step in steps for example in step]
    plain = recipe.model_copy(update={"read_once": False})
    theirs = run(plain, one_at_a_time, ordered, tokenizer, tmp_path / "theirs", sequential=True)
    assert theirs[2].args.per_device_train_batch_size == 1
    assert_same(ours, theirs, weights_tolerance)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_sgd_steps_equal_trl(bases, tokenizer, tmp_path, family, quantization):
    """Steps have two articles in padded rows, two questions with two answers each.

    There is gradient checkpointing.
    """
    recipe = make_recipe(
        bases / family,
        quantization=quantization,
        optim="sgd",
        learning_rate=1e-2,
        questions_per_step=8,
    )
    recipe = recipe.model_copy(update={"lr_scheduler_type": "constant"})
    examples = make_examples(articles=20, questions=2, answers=2)
    compare(recipe, make_plan(checkpointing=True), examples, tokenizer, tmp_path, relative_weights)


def test_steps_of_experts_equal_trl(bases, tokenizer, tmp_path):
    """Without a loss of how unevenly tokens are routed, which TRL's default adds to its own."""
    recipe = make_recipe(
        bases / "experts",
        quantization="none",
        optim="sgd",
        learning_rate=1e-2,
        questions_per_step=8,
    )
    recipe = recipe.model_copy(update={"lr_scheduler_type": "constant"})
    examples = make_examples(articles=20, questions=2, answers=2)
    compare(recipe, make_plan(), examples, tokenizer, tmp_path, relative_weights)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_adamw_steps_equal_trl(bases, tokenizer, tmp_path, family, quantization):
    """Nested trees, two questions with five answers each, no checkpointing."""
    recipe = make_recipe(
        bases / family, quantization=quantization, optim="adamw_torch", questions_per_step=10
    )
    examples = make_examples(articles=10, questions=2, answers=5)
    compare(recipe, make_plan(), examples, tokenizer, tmp_path, absolute_weights)


@pytest.mark.parametrize("tokens", [1, 90, 150, 100_000])
def test_micro_batches_change_nothing(bases, tokenizer, tmp_path, tokens):
    """From one question at a time to the whole step at once."""
    recipe = make_recipe(bases / "llama", optim="adamw_torch", questions_per_step=8)
    examples = make_examples(articles=20, questions=4)
    compare(recipe, make_plan(tokens), examples, tokenizer, tmp_path, absolute_weights)


def plain_gradients(model, examples):
    """Return the loss and gradients of a plain loop over the examples, one at a time.

    Cross-entropy of answer tokens is divided by the number of all of them.
    """
    total, targets = 0.0, sum(len(example.answer_ids) for example in examples)
    for example in examples:
        ids = torch.tensor([example.prompt_ids + example.answer_ids])
        logits = model(input_ids=ids).logits[0, len(example.prompt_ids) - 1 : -1]
        loss = (
            torch.nn.functional.cross_entropy(
                logits.float(), torch.tensor(example.answer_ids), reduction="sum"
            )
            / targets
        )
        loss.backward()
        total += loss.item()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return total, gradients


def tree_gradients(trainer, examples, targets=None):
    """Return the same by one training_step of ours."""
    step = trainer.batching.collate_step(examples)
    targets = targets or step["labels"].numel()
    loss = trainer.training_step(trainer.model, step, targets).item()
    gradients = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.model.zero_grad()
    return loss, gradients


@pytest.fixture(scope="module")
def trainers(bases, tokenizer, tmp_path_factory):
    """Return what makes a trainer per family, fp32, never trained."""
    made = {}

    def get(family, **options):
        key = (family, *options.items())
        if key not in made:
            recipe = make_recipe(bases / family, **options)
            folder = str(tmp_path_factory.mktemp("trainer"))
            trainer = make_trainer(
                recipe, make_plan(200), tokenizer, make_examples(), adapted(recipe), folder, []
            )
            made[key] = in_padded_rows(trainer)
        return made[key]

    return get


def assert_same_gradients(ours, plain):
    assert ours[0] == pytest.approx(plain[0], rel=1e-6)
    assert max(relative(ours[1][name], plain[1][name]) for name in plain[1]) < 1e-5


ids = st.lists(st.integers(3, 6), max_size=8)
questions = st.lists(st.tuples(st.integers(0, 2), ids.filter(len), ids), min_size=1, max_size=10)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=questions)
def test_trees_grown_at_random(trainers, family, drawn):
    """There are few different tokens, so prompts and answers share beginnings in every way.

    Duplicates are included.
    """
    stems = [[*range(10 + 30 * a, 10 + 30 * a + 5 + 9 * a)] for a in range(3)]
    examples = [
        Example(Row(str(i), f"{a}", "q"), stems[a] + p, [*x, 1])
        for i, (a, p, x) in enumerate(drawn)
    ]
    trainer = trainers(family)
    assert_same_gradients(
        tree_gradients(trainer, examples), plain_gradients(trainer.model, examples)
    )


def test_an_adapter_on_the_head_trains(trainers):
    """TRL refuses it, so the comparison is the plain loop.

    Nothing of the refusal's detour is left.
    """
    trainer = trainers("llama", lora_target_modules="q_proj,lm_head")
    assert "get_output_embeddings" not in vars(trainer.model)
    examples = make_examples()[:8]
    ours, plain = tree_gradients(trainer, examples), plain_gradients(trainer.model, examples)
    assert any("lm_head" in name and gradient.norm() > 0 for name, gradient in ours[1].items())
    assert_same_gradients(ours, plain)


def test_checkpoints_hold_lora_tensors_only(bases, tokenizer, tmp_path):
    """PEFT writes the whole head beside its adapter, 262 MB for SOLAR."""
    recipe = make_recipe(bases / "llama", lora_target_modules="q_proj,lm_head")
    trainer = make_trainer(
        recipe, make_plan(), tokenizer, make_examples(), adapted(recipe), str(tmp_path), []
    )
    trainer.train()
    saved = load_file(next(tmp_path.glob("checkpoint-*")) / "adapter_model.safetensors")
    assert any("lm_head.lora_B" in name for name in saved)
    assert all(".lora_" in name for name in saved)


def test_an_evaluation_between_steps_changes_nothing(bases, tokenizer, tmp_path):
    """On CPUs with AVX512-BF16 a forward in eval mode once repacked 4-bit weights.

    That spoilt all later gradients.
    """

    class Evaluate(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            with torch.no_grad():
                model.eval()(input_ids=torch.arange(3, 40)[None])

    recipe, examples = (
        make_recipe(bases / "llama", quantization="nf4", optim="adamw_torch"),
        make_examples(),
    )
    results = []
    for callbacks in ([], [Evaluate()]):
        model = adapted(recipe)
        assert any(isinstance(module, Linear4bit) for module in model.modules())
        make_trainer(
            recipe, make_plan(), tokenizer, examples, model, str(tmp_path), callbacks
        ).train()
        results.append({n: p.data for n, p in model.named_parameters() if p.requires_grad})
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_dropout_draws_once_per_shared_token(bases, tokenizer, tmp_path):
    """Two equal questions under dropout have one loss: they are one branch.

    TRL would draw twice.
    """
    recipe = make_recipe(bases / "llama", lora_dropout=0.5)
    one = make_examples(articles=1, questions=1)
    trainer = make_trainer(recipe, make_plan(), tokenizer, one, adapted(recipe), str(tmp_path), [])
    losses = []
    for examples in (one, one * 2):
        torch.manual_seed(0)
        losses.append(tree_gradients(trainer, examples)[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    torch.manual_seed(1)
    assert tree_gradients(trainer, one)[0] != pytest.approx(losses[0], rel=1e-3), "dropout is on"


articles_of = st.lists(st.integers(1, 30), min_size=1, max_size=40)


@given(articles_of, st.integers(1, 20), st.integers(0, 2**32))
def test_dealing(sizes, questions_per_step, seed):
    """Every question comes once, in the promised number of steps, none of them empty.

    Articles are whole unless they are larger than a step.
    """
    total, articles = sum(sizes), []
    for size in sizes:
        articles.append(list(range(sum(map(len, articles)), sum(map(len, articles)) + size)))
    steps = deal(articles, questions_per_step, random.Random(seed))
    assert len(steps) == math.ceil(total / questions_per_step)
    assert all(steps)
    assert Counter(question for step in steps for piece in step for question in piece) == Counter(
        range(total)
    )
    assert max(len(piece) for step in steps for piece in step) <= questions_per_step
    pieces = sum(len(step) for step in steps)
    assert pieces == sum(math.ceil(size / questions_per_step) for size in sizes)


def test_steps_are_near_their_size():
    steps = deal([list(range(6 * n, 6 * n + 6)) for n in range(200)], 16, random.Random(0))
    sizes = [sum(map(len, step)) for step in steps]
    assert len(sizes) == 75
    assert set(sizes) <= {12, 18}


def test_one_question_a_step_is_ordinary_training():
    assert all(
        len(step) == len(step[0]) == 1 for step in deal([[0, 1, 2], [3]], 1, random.Random(0))
    )


@given(articles_of, st.integers(1, 4), st.integers(0, 100))
def test_processes_share_a_step(sizes, processes, seed):
    """No question lost or doubled."""
    step, start = [], 0
    for size in sizes:
        step.append(list(range(start, start := start + size)))
    rng = random.Random(seed)
    lengths = [rng.randint(1, 900) for _ in range(start)]
    shares = share(step, lambda piece: sum(lengths[index] for index in piece), processes)
    assert len(shares) == processes
    questions = [index for mine in shares for piece in mine for index in piece]
    assert sorted(questions) == list(range(start))
    assert all(shares) or start < processes


def test_shares_are_as_long_as_their_trees():
    """An article is read once, its answers each: by the prompts alone A would be the shortest."""
    article = {"A": [3] * 20, "B": [4] * 30, "C": [5] * 25}
    asked = {"A": [50] * 3, "B": [1], "C": [2]}  # tokens of the answers to a question each
    examples = []
    for name, answers in asked.items():
        for number, length in enumerate(answers):
            prompt = [*article[name], 10 + number]
            examples.append(Example(Row(f"{name}{number}", name, "q"), prompt, [1] * length))
    articles = [[0, 1, 2], [3], [4]]
    tokens = TreeTokens(examples, articles)
    assert [tokens(piece) for piece in articles] == [20 + 3 * 51, 31 + 1, 26 + 2]
    assert tokens([1]) == 20 + 51
    assert share(articles, tokens, 2) == [[[0, 1, 2]], [[3], [4]]]
    recipe = Recipe(questions_per_step=5)
    assert speedup(examples, recipe, 2) == (173 + 32 + 28) / 173


def test_few_questions_cannot_feed_many_processes(monkeypatch, capsys):
    """Five questions an article, as in KorQuAD: three articles are halved for eight processes."""
    examples = make_examples(articles=200, questions=5, length=(300, 500))
    few, many = Recipe(questions_per_step=16), Recipe(questions_per_step=64)
    assert 2.5 < speedup(examples, few, 8) < 4.5
    assert 6 < speedup(examples, many, 8) < 7.5
    assert speedup(examples, many, 2) > 1.9
    assert speedup(examples, few, 1) == 1
    lines = {}
    for questions, processes in ((16, 1), (64, 8), (16, 8)):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        training_run.print_sharing(
            Recipe(questions_per_step=questions, epochs=9), make_plan(), examples
        )
        lines[questions, processes] = capsys.readouterr().out.splitlines()[1:]
    assert lines[16, 1] == []
    assert lines[64, 8][0].startswith("8 processes train at best 6.")
    assert lines[16, 8][0].startswith("WARNING: 8 processes train at best 3.")


def test_a_process_without_a_question_reads_one_of_the_step_without_learning_it():
    examples = make_examples(articles=1, questions=2)
    steps = [
        next(iter(StepSampler(examples, 2, 42, lambda: 0, process, 3))) for process in range(3)
    ]
    (idle,) = [step for step in steps if not step[0].learned]
    assert sorted(step[0].index for step in steps if step is not idle) == [0, 1]
    assert idle[0].index in (0, 1)


def test_a_question_read_without_its_answer_adds_nothing(trainers):
    examples = make_examples()
    silent = Questions(examples)[Key(3, learned=False)]
    assert (silent.prompt_ids, silent.answer_ids) == (examples[3].prompt_ids, [])
    loss, gradients = tree_gradients(trainers("llama"), [silent], targets=5)
    assert loss == 0
    assert all(gradient.abs().max() == 0 for gradient in gradients.values())


def test_the_order_changes_every_epoch_and_comes_back():
    examples = make_examples(articles=30)

    def order(epoch, seed=42):
        return list(StepSampler(examples, 4, seed, lambda: epoch * math.ceil(len(examples) / 4)))

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0) != order(0, seed=43)


def test_micro_batches_keep_to_their_size():
    examples = make_examples(articles=12, questions=3)
    for one_row in (False, True):
        batching = Batching(150, one_row, pad_id=0)
        batches = batching.micro_batches(examples)
        assert sorted(e.row.id for batch in batches for part, _ in batch for e in part) == sorted(
            e.row.id for e in examples
        )
        assert all(sum(len(tree) for _, tree in batch) <= 150 for batch in batches)
        assert any(len(batch) > 1 for batch in batches)
        rows = [
            batching.collate_step([e for part, _ in batch for e in part])["packed"].on(CPU)
            for batch in batches
        ]
        assert all(
            (b["input_ids"].shape[0] == 1) == one_row or not one_row for r in rows for b in r
        )
    small = Batching(60, False, pad_id=0).micro_batches(examples)
    assert any(
        len({e.row.article for e in part}) == 1 and len(part) < 3
        for batch in small
        for part, _ in batch
    ), "split"


def test_what_reading_once_saves():
    article, rows = list(range(3, 90)), [Row(str(n), "a", "q") for n in range(6)]
    examples = [Example(row, [*article, 90 + n], [1]) for n, row in enumerate(rows)]
    assert count_tokens(examples, Recipe(), make_plan()) == (6 * 89, 87 + 6)
    assert count_tokens(examples, Recipe(questions_per_step=1), make_plan()) == (6 * 89, 6 * 88)


def test_few_steps_are_a_warning_with_the_epochs_that_are_enough(capsys):
    for epochs, warning in ((2, "Only 6 optimizer steps: .* Try --epochs 7."), (7, None)):
        recipe = Recipe(questions_per_step=2, epochs=epochs)
        training_run.print_sharing(recipe, make_plan(), make_examples()[:6])
        line = "\n".join(capsys.readouterr().out.splitlines()[1:])
        assert re.fullmatch(warning, line) if warning else not line


def test_of_many_steps_some_are_counted_for_all():
    rng, examples = random.Random(0), []
    for article in range(400):
        tokens = [rng.randrange(3, 90) for _ in range(rng.randrange(20, 200))]
        for number in range(rng.randrange(1, 9)):
            row = Row(f"{article}-{number}", str(article), "q")
            examples.append(Example(row, [*tokens, 90 + number], [1]))
    whole = count_tokens(examples, Recipe(), make_plan())
    assert count_tokens(examples, Recipe(), make_plan(), 1000) == whole
    every_time, once = count_tokens(examples, Recipe(), make_plan(), 25)
    assert every_time == whole[0]
    assert once != whole[1]
    assert once == pytest.approx(whole[1], rel=0.05)


def test_bfloat16_on_a_cpu_keeps_the_adapter_in_float32(tokenizer, tmp_path):
    """Compare with float32 on the demo's base: losses within a hundredth, products in 16 bit."""
    examples, losses, kinds = make_examples(), {}, set()

    def note(module, inputs, output):
        kinds.add(output.dtype)

    for name in ("float32", "bfloat16"):
        recipe = make_recipe("data/demo_model", quantization="nf4", compute_dtype=name)
        plan = replace(make_plan(), compute_dtype=getattr(torch, name), dequantized=True)
        model, record = adapted(recipe), Record()
        handles = [
            module.register_forward_hook(note)
            for layer, module in model.named_modules()
            if layer.endswith("base_layer")
        ]
        folder = tmp_path / name
        make_trainer(recipe, plan, tokenizer, examples, model, folder, [record]).train()
        assert handles and kinds == {getattr(torch, name)}
        kinds.clear()
        losses[name] = record.losses
        trained = [p for p in model.parameters() if p.requires_grad]
        assert all(p.dtype is torch.float32 for p in trained)
    for low, full in zip(losses["bfloat16"], losses["float32"], strict=True):
        assert low == pytest.approx(full, rel=1e-2) and low != full


def limit_memory(monkeypatch, trainer, tokens):
    """Let a forward of more than so many tokens run out of memory."""
    real = trainer.compute_loss

    def compute_loss(model, inputs, **others):
        loss = real(model, inputs, **others)
        if inputs["input_ids"].numel() > tokens():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss

    monkeypatch.setattr(trainer, "compute_loss", compute_loss)


def test_memory_that_runs_out_halves_the_batches(trainers, monkeypatch, capsys):
    """The step is done again, to the same loss and gradients; a later step keeps the size."""
    trainer = trainers("llama")
    examples = make_examples(articles=3, questions=6)
    whole, gradients = tree_gradients(trainer, examples)
    size = max(map(trainer.batching.size, trainer.batching.micro_batches(examples)))
    before = trainer.batching
    limit_memory(monkeypatch, trainer, lambda: 0.6 * size)
    try:
        got, again = tree_gradients(trainer, examples)
        assert "continuing with" in capsys.readouterr().out
        assert trainer.batching.tokens_per_batch < before.tokens_per_batch
        assert_same_gradients((got, again), (whole, gradients))
        tree_gradients(trainer, examples)
        assert not capsys.readouterr().out
        size = 1  # not even one question fits
        with pytest.raises(torch.OutOfMemoryError, match="a single question"):
            tree_gradients(trainer, examples)
    finally:
        trainer.batching = before
        trainer.model.zero_grad()


def test_a_question_that_does_not_fit_ends_the_search(trainers, monkeypatch):
    """A long question beside an article that can still be split: it was halved for ever."""
    trainer, before = trainers("llama"), trainers("llama").batching
    (long,) = make_examples(articles=1, questions=1, length=(90, 90))
    short = make_examples(seed=1, articles=1, questions=2)
    short = [replace(e, row=Row(f"short {e.row.id}", "short", "q")) for e in short]
    limit_memory(monkeypatch, trainer, lambda: 80)
    try:
        with pytest.raises(torch.OutOfMemoryError, match="a single question"):
            tree_gradients(trainer, [long, *short])
    finally:
        trainer.batching = before
        trainer.model.zero_grad()


def test_a_step_collated_before_memory_ran_out_is_not_halved_again(trainers, monkeypatch, capsys):
    """The next step is loaded ahead, in batches of the old size."""
    trainer, before = trainers("llama"), trainers("llama").batching
    examples = make_examples(articles=3, questions=6)
    ahead = before.collate_step(examples)
    size = max(map(before.size, before.micro_batches(examples)))
    limit_memory(monkeypatch, trainer, lambda: 0.6 * size)
    try:
        tree_gradients(trainer, examples)
        halved = trainer.batching
        capsys.readouterr()
        trainer.training_step(trainer.model, ahead, ahead["labels"].numel())
        assert trainer.batching is halved
        assert not capsys.readouterr().out
    finally:
        trainer.batching = before
        trainer.model.zero_grad()
