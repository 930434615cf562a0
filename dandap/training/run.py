"""Train an adapter from a recipe:

from dandap.recipe import load_recipe
from dandap.training.run import train

run = train(load_recipe("demo", {"epochs": 2}))
"""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

import prompts
from dandap.answering.answerer import Answerer
from dandap.answering.branch_check import why_other_gradients
from dandap.answering.run import OpenModel
from dandap.data.checks import (
    answer_share,
    check_data,
    drop_too_long,
    finding_lines,
    preview,
    report_cut,
    report_lengths,
)
from dandap.data.encode import Encoder, Example
from dandap.data.rows import Row, Table, split_by_article
from dandap.errors import InputError, Stopped
from dandap.files import append_json, check_writable, find_damage, read_json, write_json
from dandap.model.adapter import add_adapter, load_weights, verify_adapter
from dandap.model.device import pick_device, why_no_gpu
from dandap.model.distributed import from_main, is_main_process, locked_for_all
from dandap.model.hub import base_identity, same_base
from dandap.model.load import (
    check_base,
    check_ids,
    load_base,
    load_config,
    load_tokenizer,
    report_other_ids,
)
from dandap.model.memory import (
    Plan,
    broadcast_plan,
    empty_model,
    make_plan,
    out_of_memory_advice,
    refit_plan,
    reject_large_on_cpu,
)
from dandap.model.plans import SHAPES, make_config
from dandap.recipe import AUTO_STEPS, MOST_EPOCHS, Recipe, make_recipe
from dandap.runs.folder import RunFolder, check_name, find_path, new_environment, new_run
from dandap.training.batching import count_tokens, densest_tree
from dandap.training.callbacks import StopSignals, Tracker, TrainingProgress, check_trackers
from dandap.training.checkpoints import (
    check_space,
    find_checkpoint,
    load_state,
    save_adapter,
    selected_checkpoint,
    step_of,
)
from dandap.training.evaluate import Evaluate, steps_between, validate
from dandap.training.resume import check_unchanged
from dandap.training.trainer import make_trainer
from tasks import checked_template, get_task
from tasks.task import read_test, read_train

FEW_STEPS = 20  # after 7 steps (120 sample questions) answers are still sentences


def train(
    recipe: Recipe, name: str = "run", resume: RunFolder | None = None, resume_anyway: bool = False
) -> RunFolder:
    """Train and validate an adapter, and return its run.

    `name` is the prefix of the folder's name if the recipe has no run_name. `resume` is an
    unfinished run to continue; its data and base must be unchanged unless `resume_anyway`.
    """
    task = get_task(recipe.task)
    template = run_template(recipe, resume)
    if not resume:
        check_name(recipe.output_dir, recipe.run_name)
        check_writable(Path(recipe.output_dir), "Choose another --output_dir.")
    check_trackers(recipe)
    initial = None
    if recipe.init_adapter and not resume:
        initial = find_initial(recipe, recipe.init_adapter)
    table, rows, validation_rows = read_data(recipe)
    findings = check_rows(recipe, rows, validation_rows)

    # Reject a base that needs a GPU before downloading it.
    if why_no_gpu() and recipe.model in SHAPES:
        reject_large_on_cpu(recipe, empty_model(make_config(SHAPES[recipe.model])))
    tokenizer, config = load_tokenizer(recipe), load_config(recipe)
    check_base(recipe, config, tokenizer)
    base = base_identity(recipe)
    if resume:
        check_unchanged(resume, recipe, table, base, resume_anyway)
    # Plan while the device's memory is free.
    plan = make_plan(recipe, config, pick_device(), training=True)
    answering_plan = broadcast_plan(make_plan(recipe, config, plan.device, training=False))

    encoder = Encoder(tokenizer, template, task.sample)
    examples = encode_training(recipe, encoder, task.expand(rows))
    check_ids(examples, config, tokenizer)
    validation = encoder.encode(validation_rows, recipe.prompt_limit, False, recipe.on_overflow)
    report_cut(recipe, validation)
    plan = refit_plan(plan, recipe, config, answer_share(examples), densest_tree(examples))
    print(plan)

    model = add_adapter(load_base(recipe, plan.device, config, plan.dequantized), recipe)
    if initial:
        load_initial(model, initial, base)
    trained, total = model.get_nb_trainable_parameters()
    print(f"adapter: {trained:,} of {total:,} parameters are trained")
    adapter: Any = model.peft_config["default"]
    if adapter.exclude_modules or adapter.target_parameters:
        adapted = ", ".join(["linear layers", *sorted(adapter.target_parameters or ())])
        print(f"  adapted: {adapted}; excluded: {adapter.exclude_modules or 'the LM head'}")
    answerer = Answerer(recipe, encoder, model, answering_plan)
    used, pad_id = recipe, answerer.decoding.pad_id
    if used.read_once and (reason := answerer.cannot_branch or why_other_gradients(model, pad_id)):
        used = read_separately(recipe, reason)
        plan = replace(plan, flex=False)
    print_sharing(used, examples)
    check_space(resume.path if resume else Path(recipe.output_dir), trained)

    # Create the folder only now: an earlier failure leaves no empty run.
    environment = new_environment([table], base)
    run = resume or from_main(partial(start_run, recipe, name, plan, environment))
    with locked_for_all(run.path):
        checkpoint = find_checkpoint(run, model) if resume and not run.finished else None
        if is_main_process():  # for a resumed run too: resume_anyway may change the recipe
            write_json(run.findings_file, findings)
            run.save_recipe(recipe, template)
        open_model = OpenModel(used, answerer, base, config)
        if run.finished:
            if reason := find_damage(run.adapter, run.run_id):
                raise InputError(f"{run.adapter} cannot be used: {reason}. Delete it and resume.")
            print(f"{run.path} is trained: repeating its interrupted validation")
            load_weights(model, run.adapter)
        else:
            selected = fit(run, plan, examples, open_model, validation, checkpoint)
            if selected:  # in every process
                load_weights(model, selected)
            from_main(partial(save_adapter, model, tokenizer, recipe, run))
        validate(open_model, validation, run)
    print(f"run saved in {run.path}\nanswer a test file: python inference.py --run {run.quoted}")
    return run


def read_separately(recipe: Recipe, reason: str) -> Recipe:
    """Return the recipe with read_once off, for a base whose prompts cannot branch."""
    print(f"training reads the article for every question: {reason}")
    return make_recipe(recipe.model_dump() | {"read_once": False}, reason)


def find_initial(recipe: Recipe, name: str) -> Path:
    """Return the folder of the adapter `name`: a run's, or one that PEFT saved."""
    path = find_path(name, recipe.output_dir) or Path(name)
    adapter = RunFolder(path).adapter
    folder = adapter if adapter.is_dir() else path
    if not (folder / "adapter_config.json").is_file():
        expected = f"expected a finished run in {recipe.output_dir} or a folder with an adapter"
        raise InputError(f"init_adapter: got {str(path)!r}, {expected}.")
    alpha = read_json(folder / "adapter_config.json").get("lora_alpha")
    if alpha != recipe.lora_alpha:
        expected = f"got lora_alpha {recipe.lora_alpha:g}, expected that of {path}"
        raise InputError(f"init_adapter: {expected}. Use --lora_alpha {alpha}.")
    verify_adapter(folder)
    return folder


def load_initial(model: PeftModel, folder: Path, base: dict[str, str]) -> None:
    """Load an adapter to train further; reject one that was trained on another base."""
    run = RunFolder(folder.parent)
    if run.environment_file.is_file() and not same_base(run.environment().get("base", base), base):
        raise InputError(f"init_adapter: {run.path} has another base. Use the model of its recipe.")
    load_weights(model, folder)
    print(f"starting from the adapter {folder}")


def fit(
    run: RunFolder,
    plan: Plan,
    examples: list[Example],
    open_model: OpenModel,
    validation: list[Example],
    checkpoint: Path | None,
) -> Path | None:
    """Train, and return the selected checkpoint, or None for the last step."""
    recipe, model = open_model.recipe, open_model.answerer.model
    assert isinstance(model, PeftModel)
    every = steps_between(recipe, len(examples))
    evaluate = Evaluate(open_model, validation, every, run) if every and validation else None
    state = load_state(checkpoint) if checkpoint else None
    if checkpoint and state and evaluate and evaluate.patience_exceeded(state):
        # Interrupted between the last checkpoint and the adapter.
        print("training had already stopped early (patience)")
        load_weights(model, checkpoint)
    else:
        progress, stop = TrainingProgress(run.metrics_file), StopSignals()
        trackers = (
            [Tracker(name, run.path) for name in recipe.report_to] if is_main_process() else []
        )
        callbacks = [stop, *([progress] if is_main_process() else []), *trackers]
        if evaluate:
            evaluate.trackers = trackers
            callbacks.append(evaluate)
        tokenizer = open_model.encoder.tokenizer
        trainer = make_trainer(recipe, plan, tokenizer, examples, model, run.checkpoints, callbacks)
        trainer.run_id, trainer.args.run_name = run.run_id, run.path.name
        try:
            with stop:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except torch.OutOfMemoryError as error:
            raise InputError(out_of_memory_advice(recipe, plan)) from error
        finally:
            progress.close()
        state = trainer.state
        if stop.received:
            code = 128 + stop.received
            if not is_main_process():
                raise SystemExit(code)  # the main process prints the reason
            raise Stopped(
                f"{stop.received.name} after step {state.global_step} of {state.max_steps}. "
                f"Continue with python fine_tune.py --resume {run.quoted}",
                code,
            )
    if not evaluate:
        return None
    selected = selected_checkpoint(run, state)
    if is_main_process():
        step = step_of(selected) if selected else state.global_step
        append_json(run.metrics_file, {"kept": step})
    return selected


def run_template(recipe: Recipe, resume: RunFolder | None) -> prompts.Template:
    """Return the checked template: the saved one of a resumed run, unless the recipe changed it."""
    if resume:
        name, template = resume.load_template()
        if name == recipe.template:
            get_task(recipe.task).check_template(template, name)
            return template
    return checked_template(recipe.template, recipe.task)


def read_data(recipe: Recipe) -> tuple[Table, list[Row], list[Row]]:
    """Read the training file; return (table, training rows, validation rows) and print counts."""
    task = get_task(recipe.task)
    table = read_train(task, recipe)
    unit, source = task.nouns
    articles = len({row.article for row in table.rows})
    print(f"{table.path}: {len(table.rows):,} {unit} on {articles:,} {source}")
    for note in table.notes:
        print(f"  {note}")
    changed = [f"{name}={value}" for name, value in recipe.differences().items()]
    print(f"recipe: {', '.join(changed) or 'all defaults'}")
    rows, validation = split_by_article(table.rows, recipe.validation_fraction, recipe.fold)
    if validation:
        articles = len({row.article for row in validation})
        print(f"validation: {len(validation):,} {unit} on {articles:,} {source}, held out")
    return table, rows, validation


def check_rows(recipe: Recipe, rows: list[Row], validation: list[Row]) -> dict[str, list[dict]]:
    """Print and return problems in the data, including the test file, by kind."""
    if not is_main_process():
        return {}
    test: list[Row] = []
    if Path(recipe.test_file).is_file():
        try:
            test = read_test(get_task(recipe.task), recipe, Path(recipe.test_file)).rows
        except InputError as error:
            # Training does not need the test file.
            print(f"WARNING: the test file is not usable yet: {error}")
    findings = check_data({"train": rows, "validation": validation, "test": test})
    for line in finding_lines(findings):
        print(f"  {line}")
    return findings


def encode_training(recipe: Recipe, encoder: Encoder, rows: list[Row]) -> list[Example]:
    """Encode the training rows; print and skip rows that are too long."""
    texts = list(dict.fromkeys(row.context for row in rows[:100]))
    report_other_ids(encoder.tokenizer, recipe, texts)
    examples = encoder.encode(rows, recipe.prompt_limit, True, recipe.on_overflow)
    examples = drop_too_long(recipe, examples)
    report_lengths(recipe, examples)
    return examples


def print_sharing(recipe: Recipe, examples: list[Example]) -> None:
    """Print the tokens saved by sharing; warn about few steps."""
    articles = len({example.row.article for example in examples})
    if recipe.read_once:
        every_time, once = count_tokens(examples, recipe)
        tokens = f"{every_time:,} -> {once:,}"
        if once >= 20_000:
            tokens = f"{every_time / 1e6:.2f} M -> {once / 1e6:.2f} M"
        print(
            f"reading once: {len(examples):,} questions on {articles:,} articles: {tokens} tokens "
            f"per epoch ({every_time / once:.1f}x fewer)"
        )
        if every_time < 1.05 * once and articles < len(examples):
            way_out = "In the template, put {context} before {question}."
            if recipe.questions_per_step < 16:
                way_out = "Use --questions_per_step 16."
            print(f"WARNING: the steps of this run share almost no tokens. {way_out}")
    epochs, epoch = recipe.epochs_for(len(examples)), recipe.steps_per_epoch(len(examples))
    steps = math.ceil(epoch * epochs)
    limits = f"about {AUTO_STEPS} steps, at most {MOST_EPOCHS} epochs"
    reason = f" (auto: {limits})" if recipe.epochs == "auto" else ""
    print(f"epochs: {epochs:g}{reason}, {epoch} optimizer steps each")
    if steps < FEW_STEPS:
        print(
            f"Only {steps} optimizer steps: the model may not learn to answer briefly. Try "
            f"--epochs {math.ceil(epochs * FEW_STEPS / steps)}."
        )


def start_run(recipe: Recipe, name: str, plan: Plan, environment: dict) -> RunFolder:
    """Create a run's folder with environment.json."""
    run = new_run(recipe.output_dir, recipe.run_name, name)
    run.metrics_file.unlink(missing_ok=True)  # of a run that stopped before a checkpoint
    # The dtype that "auto" selected, for exports on other machines.
    dtype = str(plan.compute_dtype).removeprefix("torch.")
    write_json(run.environment_file, environment | {"compute_dtype": dtype})
    return run


def preview_training(recipe: Recipe, resume: RunFolder | None = None) -> None:
    """Print token counts, shortened articles and one encoded example."""
    task = get_task(recipe.task)
    template = run_template(recipe, resume)
    _, rows, validation_rows = read_data(recipe)
    check_rows(recipe, rows, validation_rows)
    tokenizer, config = load_tokenizer(recipe), load_config(recipe)
    check_base(recipe, config, tokenizer)
    encoder = Encoder(tokenizer, template, task.sample)
    examples = encode_training(recipe, encoder, task.expand(rows))
    check_ids(examples, config, tokenizer)
    print_sharing(recipe, examples)
    preview(encoder, examples[0])
