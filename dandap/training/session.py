"""A training from its base model to its adapter.

It is opened, trained from the right checkpoint, and the adapter to keep is saved.
"""

import argparse
import math
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig, PreTrainedTokenizerBase, TrainerState

from dandap.data.encode import Encoder, Example
from dandap.data.lengths import (
    answer_share,
    drop_too_long,
    loses_answer,
    report_cut,
    report_lengths,
)
from dandap.data.rows import Row, Table, by_article
from dandap.errors import InputError, Stopped
from dandap.files import append_json, write_json
from dandap.manifest import fault, seal
from dandap.model.adapter import add_adapter, load_weights
from dandap.model.device import pick_device, why_no_gpu
from dandap.model.distributed import from_first, is_first, process_count
from dandap.model.identity import base_identity
from dandap.model.load import check_base, check_ids, load_base, load_config, load_tokenizer
from dandap.model.memory import (
    Plan,
    empty_model,
    for_these_answers,
    lower_memory,
    make_plan,
    refuse_without_gpu,
    same_plan,
)
from dandap.model.shapes import SHAPES, make_config
from dandap.recipe import Recipe
from dandap.runs.folder import RunFolder, begin, new_run, now
from dandap.training.batching import deal
from dandap.training.checkpoints import STAGING, check_space, newest_valid, step_of
from dandap.training.evaluate import best_step, evaluated_steps, step_to_keep
from dandap.training.job import Job
from dandap.training.plain import make_trainer
from dandap.training.progress import TrainingProgress, forget_after
from dandap.training.sharing import FED, TreeTokens, gain
from dandap.training.start import Start, tell_what_changed
from dandap.training.stop import StopSignals
from dandap.training.trackers import make_trackers, refuse_missing_trackers
from dandap.training.trainer import count_tokens, make_read_once_trainer
from dandap.training.validation import Validation

FEW_STEPS = 20  # 120 questions of the sample make 7, after which answers are still sentences
COUNTED_STEPS = 500  # of an epoch, for what reading once saves: a few seconds


@dataclass(frozen=True)
class Base:
    """Holds the base model's tokenizer and architecture, and the plans for this machine.

    A mere preview has no plans.
    """

    tokenizer: PreTrainedTokenizerBase
    config: PretrainedConfig
    plan: Plan | None
    answering: Plan | None


def open_base(start: Start, table: Table, arguments: argparse.Namespace) -> Base:
    """Load tokenizer and architecture, and plan while the device's memory is free.

    Both are compared with the recipe. A run that goes on must have the data and the base that it
    was started with.
    """
    recipe, preview = start.recipe, arguments.preview
    refuse_missing_trackers(recipe)
    if why_no_gpu() and recipe.model in SHAPES and not preview:
        # Where there is no GPU, a base that needs one is refused before anything is fetched.
        refuse_without_gpu(recipe, empty_model(make_config(SHAPES[recipe.model])))
    tokenizer, config = load_tokenizer(recipe), load_config(recipe)
    check_base(recipe, config, tokenizer)
    if start.run:
        tell_what_changed(start.run, recipe, table, arguments.resume_anyway)
    if preview:
        return Base(tokenizer, config, None, None)
    plan = make_plan(recipe, config, pick_device(), training=True)
    answering = same_plan(make_plan(recipe, config, plan.device, training=False))
    return Base(tokenizer, config, plan, answering)


def encode_training(recipe: Recipe, encoder: Encoder, base: Base, rows: list[Row]) -> list[Example]:
    """Encode the rows that are trained on.

    What is too long is left out by name, and what was cut is told.
    """
    examples = encoder.encode(rows, recipe.prompt_limit, True, recipe.on_overflow)
    examples = drop_too_long(recipe, examples)
    check_ids(examples, base.config, base.tokenizer)
    report_lengths(recipe, examples)
    return examples


def encode_validation(recipe: Recipe, encoder: Encoder, rows: list[Row]) -> list[Example]:
    """Encode the rows that are validated on, as inference will; what was cut is told."""
    examples = encoder.encode(rows, recipe.prompt_limit, False, recipe.on_overflow)
    report_cut(recipe, examples)
    return examples


def make_job(recipe: Recipe, base: Base, examples: list[Example]) -> Job:
    """Return the job, its plan made for what these questions' answers take."""
    plan = for_these_answers(base.plan, recipe, base.config, answer_share(examples))
    return Job(recipe, plan, base.tokenizer, examples)


def make_model(job: Job, config: PretrainedConfig, folder: Path) -> PeftModel:
    """Load the base with a fresh adapter, and refuse a folder without room for its checkpoints."""
    plan = job.plan
    print(f"{plan}, gradient checkpointing {'on' if plan.gradient_checkpointing else 'off'}")
    tell_saving(job)
    tell_few_steps(job)
    tell_gain(job)
    model = add_adapter(load_base(job.recipe, plan.device, config, plan.dequantised), job.recipe)
    trained, total = model.get_nb_trainable_parameters()
    print(f"adapter: {trained:,} of {total:,} parameters are trained")
    check_space(folder, trained)
    return model


def tell_saving(job: Job) -> None:
    """Print what reading once saves, in tokens of an epoch."""
    recipe, examples = job.recipe, job.examples
    if not recipe.read_once:
        return
    every_time, once = count_tokens(examples, recipe, job.plan, COUNTED_STEPS)
    articles = len({example.row.article for example in examples})
    print(
        f"reading once: {len(examples):,} questions on {articles:,} articles: "
        f"{_counts(every_time, once)} tokens per epoch ({every_time / once:.1f}x fewer)"
    )


def _counts(every_time: int, once: int) -> str:
    """Return both numbers of tokens in millions, or whole where that would be 0.00 or 0.01 M."""
    if once < 20_000:
        return f"{every_time:,} -> {once:,}"
    return f"{every_time / 1e6:.2f} M -> {once / 1e6:.2f} M"


def tell_few_steps(job: Job) -> None:
    """Print that a small file makes few steps, from which a model learns little, and what would."""
    recipe = job.recipe
    steps = math.ceil(len(job.examples) / recipe.questions_per_step * recipe.epochs)
    if steps < FEW_STEPS:
        epochs = math.ceil(recipe.epochs * FEW_STEPS / steps)
        print(
            f"{steps} steps are few: answers may stay as long as the base's. --epochs {epochs} "
            f"takes at least {FEW_STEPS}"
        )


def tell_gain(job: Job) -> None:
    """Print how much faster than one the launcher's processes are at best.

    A step of few articles cannot feed many processes: then the number of questions that would is
    named.
    """
    recipe, processes = job.recipe, process_count()
    if processes == 1 or not recipe.read_once or not is_first():
        return
    articles = by_article(example.row.article for example in job.examples)
    tokens = TreeTokens(job.examples, articles)

    def at(questions: int) -> float:
        return gain(deal(articles, questions, random.Random(recipe.seed)), tokens, processes)

    now_at = at(recipe.questions_per_step)
    line = f"{processes} processes train at best {now_at:.1f} times as fast as one"
    more = recipe.questions_per_step
    if now_at < FED * processes:
        # Doubled, until it is enough or a step would be a tenth of all questions.
        while more < len(job.examples) / 10 and at(more) < FED * processes:
            more *= 2
    if more == recipe.questions_per_step:
        print(line)
        return
    print(
        f"WARNING: {line}: {recipe.questions_per_step} questions a step are too few. With "
        f"--questions_per_step {more} it is {at(more):.1f} times; steps become "
        f"{more / recipe.questions_per_step:.0f} times fewer, and may want a higher learning_rate."
    )


def begin_run(start: Start, job: Job, template: dict[str, str], table: Table) -> RunFolder:
    """Return the run that is continued, or a new one that the first process makes for all.

    Its folder is made only now, when model and data have proved usable: what fails before leaves
    no empty run behind.
    """
    return start.run or from_first(partial(start_run, start.name, job, template, table))


def start_run(name: str, job: Job, template: dict[str, str], table: Table) -> RunFolder:
    """Make a run folder that holds what the run depends on.

    It is made once model and data have proved usable.
    """
    recipe, examples = job.recipe, job.examples
    run = new_run(recipe.output_dir, recipe.run_name, name)
    run.metrics_file.unlink(missing_ok=True)  # of a start that left nothing to resume
    # What "auto" came to here; whoever exports the run on another machine cannot tell.
    dtype = {"compute_dtype": str(job.plan.compute_dtype).removeprefix("torch.")}
    write_json(run.environment_file, begin([table], base_identity(recipe)) | dtype)
    run.save_recipe(recipe, template)
    trimmed = {example.row.id: example.trimmed for example in examples if example.trimmed}
    if trimmed:
        lost = [example.row.id for example in examples if loses_answer(example)]
        said = {
            "characters cut from the article, by question": trimmed,
            "whose answer was cut off with it": lost,
        }
        write_json(run.path / "trimmed.json", said)
    return run


def train_run(
    run: RunFolder,
    job: Job,
    model: PeftModel,
    validation: Validation,
    checkpoint: Path | None,
) -> None:
    """Train the run's adapter to its end, and save it."""
    if run.finished:
        print(f"{run.path} is trained; its validation was cut off and is done now")
        load_weights(model, run.adapter)
        return
    best = train(run, job, model, validation, checkpoint)
    # In every process, because all of them answer the validation questions with it.
    if best:
        load_weights(model, best)
    from_first(partial(save_adapter, model, run, job))


def train(
    run: RunFolder,
    job: Job,
    model: PeftModel,
    validation: Validation,
    checkpoint: Path | None,
) -> Path | None:
    """Train the adapter, from a checkpoint if there is one.

    The checkpoint whose adapter is kept is returned, or None if it is the last step's.
    """
    keepers = validation.callbacks(run, len(job.examples))
    # Cut off between its last checkpoint and its adapter, a run that has ended is not trained on.
    if checkpoint and keepers and keepers[0].has_ended(state := load_state(checkpoint)):
        print("training had ended already, for want of a higher score (patience)")
        load_weights(model, checkpoint)
        return note_best(run, state, validation.task.compare)
    progress, stop = TrainingProgress(run.metrics_file), StopSignals()
    trackers = make_trackers(job.recipe, run) if is_first() else []
    for keeper in keepers:
        keeper.trackers = trackers
    callbacks = [stop, *([progress] if is_first() else []), *trackers, *keepers]
    make = make_read_once_trainer if job.recipe.read_once else make_trainer
    trainer = make(job, model, str(run.checkpoints), callbacks)
    trainer.run, trainer.args.run_name = run.name_of_run, run.path.name
    try:
        with stop:
            trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    except torch.OutOfMemoryError as error:
        raise InputError(lower_memory(job.recipe, job.plan)) from error
    finally:
        progress.close()
    if stop.received:
        if not is_first():
            raise SystemExit(128 + stop.received)  # the first one says why
        raise Stopped(
            f"{stop.received.name} after step {trainer.state.global_step} of "
            f"{trainer.state.max_steps}. Continue with python fine_tune.py --resume {run.path}",
            128 + stop.received,
        )
    return note_best(run, trainer.state, validation.task.compare) if keepers else None


def find_checkpoint(run: RunFolder, model: PeftModel) -> Path | None:
    """Return the newest valid checkpoint, or None where training has ended.

    Checkpoints that are skipped are told, and what metrics.jsonl holds of later steps is forgotten.
    """
    if run.finished:
        return None
    checkpoint, skipped = newest_valid(run.checkpoints, run.name_of_run)
    for line in skipped:
        print(line)
    if checkpoint is None:
        raise InputError(
            f"{run.path} has no valid checkpoint to resume from; start it again without --resume."
        )
    _refuse_other_shape(model, checkpoint)
    if is_first():  # a kill after the last checkpoint leaves it for good: no later one is written
        shutil.rmtree(run.checkpoints / STAGING, ignore_errors=True)
    print(f"resuming {run.path} from {checkpoint.name}")
    if is_first():
        forget_after(run.metrics_file, step_of(checkpoint), evaluated_steps(load_state(checkpoint)))
    return checkpoint


def _refuse_other_shape(model: PeftModel, checkpoint: Path) -> None:
    """Refuse a recipe whose adapter is not the checkpoint's.

    --resume_anyway with another rank or other modules comes to that.
    """
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    ours = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    with safe_open(checkpoint / "adapter_model.safetensors", "pt") as file:
        names = file.keys()  # it is no dict: it cannot be iterated over itself
        theirs = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    if ours != theirs:
        every = sorted(ours.keys() | theirs.keys())
        name = next(name for name in every if ours.get(name) != theirs.get(name))
        raise InputError(
            f"the recipe's adapter is not that of {checkpoint}: {name} is {ours.get(name)}, there "
            f"{theirs.get(name)}. lora_r and lora_target_modules cannot change in a run; start a "
            "new one."
        )


def load_state(checkpoint: Path) -> TrainerState:
    """Return what the trainer knew when the checkpoint was written."""
    return TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def note_best(run: RunFolder, state: TrainerState, compare: Callable[..., dict]) -> Path | None:
    """Return `find_best`, and write a line to metrics.jsonl that says which step it is."""
    best = find_best(run, state, compare)
    if is_first():
        append_json(run.metrics_file, {"kept": step_of(best) if best else state.global_step})
    return best


def find_best(run: RunFolder, state: TrainerState, compare: Callable[..., dict]) -> Path | None:
    """Return the checkpoint to take the adapter from.

    None is returned where the last step is the best, or the best was lost.
    """
    step = step_to_keep(state, compare)
    if step is None:
        return None
    if step == state.global_step:
        if best_step(state) != step:
            print(
                f"step {best_step(state)} had the highest score, but by no more than chance: the "
                "last adapter is kept"
            )
        return None
    checkpoint = run.checkpoints / f"checkpoint-{step}"
    if reason := fault(checkpoint):
        print(
            f"WARNING: the best adapter, of step {step}, cannot be used ({reason}); the last one "
            "is kept"
        )
        return None
    print(f"the adapter of step {step} is kept, which answered better than the last")
    return checkpoint


def save_adapter(model: PeftModel, run: RunFolder, job: Job) -> None:
    """Write adapter and tokenizer to the run's adapter/, with a manifest.

    They are written beside their place first: a run is finished when adapter/ is there whole.
    """
    recipe = job.recipe
    folder = Path(tempfile.mkdtemp(prefix=".adapter.", dir=run.path))
    try:
        # The base's name goes along, a path of this machine does not; our recipe knows the path.
        model.peft_config["default"].base_model_name_or_path = (
            Path(recipe.model).name if Path(recipe.model).is_dir() else recipe.model
        )
        # Without the embeddings: else a copy of an adapted LM head goes along.
        model.save_pretrained(str(folder), save_embedding_layers=False)
        job.tokenizer.save_pretrained(str(folder))
        # PEFT's empty model card names the base by its path.
        (folder / "README.md").unlink(missing_ok=True)
        seal(folder, run.name_of_run)
        if run.adapter.exists():  # damaged, or the run would count as finished
            os.replace(run.adapter, Path(tempfile.mkdtemp(prefix="adapter-damaged-", dir=run.path)))
        run.note(finished=now())  # the time; what counts is the adapter's folder
        os.replace(folder, run.adapter)
    except (OSError, SafetensorError) as error:  # safetensors has errors of its own for a full disk
        raise InputError(
            f"the adapter could not be written: {str(error).splitlines()[0]}. Free some space in "
            f"{run.path}; training is done, and python fine_tune.py --resume {run.path} saves it."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
