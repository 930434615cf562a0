"""Fine-tune a Korean LLM to answer in a few words: recipe -> rows -> model -> train -> adapter and validation score.

python fine_tune.py                       the demo, or the default recipe once data/train.csv is there
python fine_tune.py --recipe kanana-1.5-8b --epochs 2
python fine_tune.py --preview             one encoded example, token counts, what would be trimmed
python fine_tune.py --plan                memory of every recipe, or of --recipe, and what would be chosen
python fine_tune.py --resume              continue the newest unfinished run
"""

import dandap.start  # noqa: F401

import argparse
import os
import shutil
import tempfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from safetensors import SafetensorError
from transformers import TrainerState

import prompts
from answers import Validation, encode, loses_answer, make_encoder, some, tell_cut
from dandap.checkpoints import StopSignals, check_space, fault, locked, newest_valid, seal, step_of
from dandap.checks import check_data, tell_findings
from dandap.dataset import Row, Table, split_by_article
from dandap.encoding import Encoder, Example
from dandap.errors import InputError, Stopped, run_script
from dandap.files import ROOT
from dandap.identity import base_identity, same_base
from dandap.memory import GB, Plan, lower_memory, make_plan, parse_size, plan_for_size
from dandap.model import (
    add_adapter,
    check_base,
    check_ids,
    confirm_remote_code,
    load_base,
    load_config,
    load_tokenizer,
    load_weights,
    pick_device,
    why_no_gpu,
)
from dandap.processes import first_one_speaks, from_first, is_first, leave_together
from dandap.progress import TrainingProgress, forget_after, track
from dandap.recipe import RECIPES_DIR, Parser, Recipe, add_options, chosen_options, find_recipe, load_recipe, make_recipe, parse
from dandap.reference import make_trainer
from dandap.run_folder import RunFolder, begin, list_runs, new_run, newest, now, refuse_taken
from dandap.selection import best_step, evaluated_steps
from dandap.shapes import SHAPES, make_config
from dandap.storage import append_json, check_writable, write_json
from dandap.terminal import obeyed_output
from dandap.trainer import count_tokens, make_read_once_trainer
from tasks import get_task, read_test, read_train


def main(argv: list[str] | None = None) -> None:
    """The command line; raises InputError for what cannot be used."""
    arguments = parse(command_line(), argv)
    with first_one_speaks():
        if arguments.plan:
            show_plans(arguments)
        else:
            fine_tune(arguments)


def fine_tune(arguments: argparse.Namespace) -> None:
    """The story, from the recipe to the validation score."""
    name, recipe, run = choose(arguments)
    resumed = run is not None
    confirm_remote_code(recipe, "trust_remote_code" in chosen_options(arguments))
    template = trained_template(run, recipe) if run else prompts.get_template(recipe.template, recipe.task)
    prompts.check_template(template, recipe.template, get_task(recipe.task))
    if not run and not arguments.preview:
        refuse_taken(recipe.output_dir, recipe.run_name)
        check_writable(Path(recipe.output_dir), "Name another --output_dir.")
    table = read_train(recipe)
    tell_data(recipe, table)
    train_rows, validation_rows = split_by_article(table.rows, recipe.validation_fraction)
    findings = check_rows(recipe, train_rows, validation_rows)
    train_rows = get_task(recipe.task).expand(train_rows)

    if why_no_gpu() and recipe.model in SHAPES and not arguments.preview:
        make_plan(recipe, make_config(SHAPES[recipe.model]), pick_device(), training=True)  # says so before anything is fetched
    tokenizer, config = load_tokenizer(recipe), load_config(recipe)
    check_base(recipe, config, tokenizer)
    if run:
        tell_what_changed(run, recipe, table, arguments.resume_anyway)
    if not arguments.preview:  # both while the device's memory is free
        plan = make_plan(recipe, config, pick_device(), training=True)
        answering = make_plan(recipe, config, plan.device, training=False)
    encoder = make_encoder(recipe, template, tokenizer)
    encoding = partial(track, description="encoding")
    examples = encoder.encode_rows(train_rows, recipe.prompt_limit, True, recipe.on_overflow, encoding)
    examples = without_too_long(recipe, examples)
    check_ids(examples, config, tokenizer)
    tell_lengths(recipe, examples)
    validation_examples = encode(recipe, encoder, validation_rows)
    if arguments.preview:
        return preview(encoder, examples[0])
    print(f"{plan}, gradient checkpointing {'on' if plan.gradient_checkpointing else 'off'}")
    tell_saving(recipe, plan, examples)
    model = add_adapter(load_base(recipe, plan.device), recipe)
    trained, total = model.get_nb_trainable_parameters()
    print(f"adapter: {trained:,} of {total:,} parameters are trained")
    check_space(run.path if run else Path(recipe.output_dir), trained)
    run = run or from_first(lambda: start_run(name, recipe, template, table, examples))
    with locked(run.path) if is_first() else nullcontext():
        if is_first():
            write_json(run.findings_file, findings)
        if resumed and is_first():
            run.save_recipe(recipe, template)  # --resume_anyway may have changed it
        validation = Validation(recipe, encoder, model, validation_examples, answering.tokens_per_batch)
        if run.finished:
            print(f"{run.path} is trained; its validation was cut off and is done now")
            load_weights(model, run.adapter)
        else:
            best = train(run, recipe, plan, model, tokenizer, examples, validation, find_checkpoint(run) if resumed else None)
            if best:
                load_weights(model, best)
        leave_together()  # from here on there is one process
        if not run.finished:
            save_adapter(model, tokenizer, run, recipe)
        if validation_rows:
            validation.finish(run)
    print(f"run saved in {run.path}\nanswer a test file: python inference.py --run {run.path}")


def command_line() -> Parser:
    """--recipe, --preview, --resume and every field of Recipe."""
    parser = Parser(__doc__)
    parser.add_argument("--recipe", metavar="NAME|PATH", help="an experiment of recipes/, by name or as a YAML file")
    parser.add_argument("--preview", action="store_true", help="show one encoded example and stop")
    parser.add_argument("--plan", action="store_true", help="show the memory of every recipe, or of --recipe, and stop")
    parser.add_argument("--gpu_memory", metavar="SIZE", help="with --plan: for a GPU of this size, as 16GB (default: this one)")
    parser.add_argument("--resume", metavar="RUN", nargs="?", const="", help="continue a run (the newest unfinished one)")
    parser.add_argument("--resume_anyway", action="store_true", help="with --resume: although recipe or data have changed")
    add_options(parser, "recipe options (over those of --recipe)")
    return parser


def show_plans(arguments: argparse.Namespace) -> None:
    """A line per recipe and GPU size: what the estimate comes to with the batch and checkpointing it leads to."""
    options = chosen_options(arguments)
    names = [arguments.recipe] if arguments.recipe else sorted(path.stem for path in RECIPES_DIR.glob("*.yaml"))
    sizes = [parse_size(arguments.gpu_memory)] if arguments.gpu_memory else sizes_of_interest()
    width = max(map(len, names))
    unknown = []
    for name in names:
        recipe = load_recipe(name, options)
        confirm_remote_code(recipe, "trust_remote_code" in options)
        if not arguments.recipe and recipe.model not in SHAPES and not Path(recipe.model).is_dir():
            unknown.append(name)
            continue
        for size in sizes:
            try:
                config = make_config(SHAPES[recipe.model]) if recipe.model in SHAPES else load_config(recipe)
                plan = plan_for_size(recipe, config, size)
                checkpointing = "checkpointing" if plan.gradient_checkpointing else "no checkpointing"
                choice = f"{plan.tokens_per_batch:>6} tokens per batch, {checkpointing:<16}  {plan.estimate}"
            except InputError as error:
                choice = str(error)
            print(f"{find_recipe(name).stem:<{width}} {size / GB:>4.0f} GB  {choice}")
    if unknown:
        print(f"not known here: {', '.join(unknown)}; --plan --recipe NAME asks the hub for one")
    print("Estimated, not measured on a GPU. Above 16 GB the GPU is taken to run FlexAttention (sm_80 and newer).")


def sizes_of_interest() -> list[float]:
    """This GPU's memory, or those that people rent."""
    if why_no_gpu():
        return [16 * GB, 24 * GB, 48 * GB, 80 * GB]
    return [float(torch.cuda.mem_get_info()[0])]


def choose(arguments: argparse.Namespace) -> tuple[str, Recipe, RunFolder | None]:
    """(name, recipe, run to resume): the bare command's recipe is decided by the data and the machine."""
    options = chosen_options(arguments)
    if arguments.resume is not None:
        return choose_unfinished(arguments, options)
    if arguments.recipe:
        return find_recipe(arguments.recipe).stem, load_recipe(arguments.recipe, options), None
    train_file = Path(options.get("train_file", Recipe.model_fields["train_file"].default))
    demo = load_recipe("demo", options)
    if not train_file.exists() and "train_file" not in options:
        if not Path(demo.train_file).is_file():
            raise InputError(f"this folder holds neither {train_file} nor the demo's data. Start the script in {ROOT}: cd {ROOT}")
        Console(file=obeyed_output(), soft_wrap=True).print(
            "[bold yellow]DEMO: there is no data/train.csv, so this trains the bundled tiny model on made-up articles. For the "
            "real job put train.csv (id, context, question, answer) and test.csv (id, context, question) into data/.[/]"
        )
        return "demo", demo, None
    recipe = load_recipe(None, options)
    reason = why_no_gpu()
    if reason and not arguments.preview and recipe.model == Recipe.model_fields["model"].default:
        raise InputError(
            f"{train_file} is there, and the default recipe ({recipe.model}) needs a CUDA GPU: {reason}. "
            "To try everything without one: python fine_tune.py --recipe demo"
        )
    return "default", recipe, None


def choose_unfinished(arguments: argparse.Namespace, options: dict[str, str]) -> tuple[str, Recipe, RunFolder]:
    """The run to continue, with the recipe it was started with."""
    output_dir = options.get("output_dir", Recipe.model_fields["output_dir"].default)
    if arguments.resume:
        run = RunFolder(
            next((p for p in (Path(arguments.resume), Path(output_dir) / arguments.resume) if p.is_dir()), Path(arguments.resume))
        )
    else:
        unfinished = [run for run in list_runs(output_dir) if is_unfinished(run)]
        if not unfinished:
            raise InputError(f"{output_dir} holds no unfinished run with a checkpoint. Start one without --resume.")
        run = newest(unfinished, "started")
    if run.finished and not lacks_validation(run):
        raise InputError(
            f"{run.path} has finished training; nothing is left to resume. "
            f"To answer a test file: python inference.py --run {run.path}"
        )
    saved = run.load_recipe()
    changed = (
        load_recipe(arguments.recipe, options) if arguments.recipe else make_recipe(saved.model_dump() | options, "--resume")
    )
    different = [field for field in type(saved).model_fields if getattr(saved, field) != getattr(changed, field)]
    different = [field for field in different if field not in ("output_dir", "run_name")]
    if different and arguments.resume_anyway:
        print(f"resuming with another recipe (--resume_anyway): {', '.join(different)}")
        return run.path.name, changed, run
    if different:
        raise InputError(
            f"{run.path} was started with "
            + ", ".join(f"{field}={getattr(saved, field)!r} (now {getattr(changed, field)!r})" for field in different)
            + ". A resumed run keeps its recipe: drop these options, insist with --resume_anyway, or start a new run."
        )
    return run.path.name, saved, run


def is_unfinished(run: RunFolder) -> bool:
    """Whether there is something to go on from; a run whose files cannot be read is passed over."""
    try:
        return lacks_validation(run) if run.finished else any(run.checkpoints.glob("checkpoint-*"))
    except InputError as error:
        print(f"{run.path} is passed over: {error}")
        return False


def lacks_validation(run: RunFolder) -> bool:
    """Whether a trained run was cut off in its last validation, before its report."""
    return (
        run.finished
        and run.findings_file.is_file()
        and not run.report_file.is_file()
        and run.load_recipe().validation_fraction > 0
    )


def trained_template(run: RunFolder, recipe: Recipe) -> prompts.Template:
    """The wording a run was started with, unless it goes on with another (--resume_anyway)."""
    name, template = run.load_template()
    return template if name == recipe.template else prompts.get_template(recipe.template, recipe.task)


def tell_what_changed(run: RunFolder, recipe: Recipe, table: Table, anyway: bool) -> None:
    """Refuse to go on over other data or another base, tell other versions; what is new is noted beside the old."""
    before, now = run.environment(), begin([table], base_identity(recipe))
    changed = []
    if table.sha256 not in before.get("data", {}).values():
        was = ", ".join(f"{path} {digest[:12]}..." for path, digest in before.get("data", {}).items())
        changed.append(f"the data {table.path} (SHA-256 {table.sha256[:12]}..., then {was})")
    if "base" in before and not same_base(before["base"], now["base"]):
        changed.append(f"the base {recipe.model}")
    if changed and not anyway:
        raise InputError(
            f"{' and '.join(changed)} differ from what {run.path} was started with. Put the old files back, insist with "
            "--resume_anyway, or start a new run."
        )
    for what in changed:
        print(f"resuming although it differs from the start (--resume_anyway): {what}")
    packages = {
        name: (before.get("packages", {}).get(name), version)
        for name, version in now["packages"].items()
        if before.get("packages", {}).get(name) != version
    }
    for name, (old, new) in packages.items():
        print(f"WARNING: {name} is {new}, and was {old} when the run started; its steps may come out differently")
    if before.get("commit") != now["commit"]:
        print(f"WARNING: the project is at {now['commit']}, and was at {before.get('commit')} when the run started")
    if not is_first():
        return
    again = {name: now[name] for name in ("packages", "commit", "data", "base", "platform", "gpu")} | {"when": now["started"]}
    run.note(resumed=[*before.get("resumed", []), again])


def find_checkpoint(run: RunFolder) -> Path:
    """The newest valid checkpoint; those that are skipped are told, and metrics after it forgotten."""
    checkpoint, skipped = newest_valid(run.checkpoints, run.name_of_run)
    for line in skipped:
        print(line)
    if checkpoint is None:
        raise InputError(f"{run.path} has no valid checkpoint to resume from; start it again without --resume.")
    print(f"resuming {run.path} from {checkpoint.name}")
    if is_first():
        forget_after(run.metrics_file, step_of(checkpoint), evaluated_steps(load_state(checkpoint)))
    return checkpoint


def tell_data(recipe: Recipe, table: Table) -> None:
    articles = len({row.article for row in table.rows})
    print(f"{table.path}: {len(table.rows):,} questions on {articles:,} articles")
    for note in table.notes:
        print(f"  {note}")
    differences = recipe.differences()
    print("recipe: " + (", ".join(f"{name}={value}" for name, value in differences.items()) or "all defaults"))


def check_rows(recipe: Recipe, train_rows: list[Row], validation_rows: list[Row]) -> dict[str, list[dict]]:
    """What is wrong with the data, told; large data take some seconds, so one process looks."""
    if not is_first():
        return {}
    findings = check_data({"train": train_rows, "validation": validation_rows, "test": test_rows(recipe)})
    for line in tell_findings(findings):
        print(f"  {line}")
    return findings


def test_rows(recipe: Recipe) -> list[Row]:
    """Of the test file, for the checks; it need not be there yet."""
    if not Path(recipe.test_file).is_file():
        return []
    try:
        return read_test(recipe, Path(recipe.test_file)).rows
    except InputError as error:
        print(f"WARNING: the test file cannot be used yet: {error}")
        return []


def tell_lengths(recipe: Recipe, examples: list[Example]) -> None:
    """Token counts, what was trimmed, and answers that inference could not finish."""
    lengths = [len(example.prompt_ids) + len(example.answer_ids) for example in examples]
    mean = sum(lengths) / len(lengths)
    print(f"{len(examples):,} training examples, {sum(lengths):,} tokens (mean {mean:.0f}, longest {max(lengths)})")
    tell_cut(recipe, examples)
    long_answers = [example.row.id for example in examples if len(example.answer_ids) > recipe.max_new_tokens]
    if long_answers:
        print(f"{len(long_answers)} answers have more than max_new_tokens={recipe.max_new_tokens} tokens: {some(long_answers)}")


def without_too_long(recipe: Recipe, examples: list[Example]) -> list[Example]:
    """Leave out examples of more than max_length tokens, which the memory plan does not count on; they are named.

    A prompt leaves room for max_new_tokens, so these have answers that inference could not finish either.
    """
    kept, long = [], []
    for example in examples:
        fits = len(example.prompt_ids) + len(example.answer_ids) <= recipe.max_length
        (kept if fits else long).append(example)
    if long:
        longest = max(len(example.answer_ids) for example in long)
        print(
            f"{len(long)} questions are left out of training: with their answers (up to {longest:,} tokens) they take more than "
            f"max_length={recipe.max_length}: {some([example.row.id for example in long])}"
        )
    if not kept:
        raise InputError(f"every answer is too long for max_length={recipe.max_length}. Raise max_length.")
    return kept


def tell_saving(recipe: Recipe, plan: Plan, examples: list[Example]) -> None:
    """What reading once saves, in tokens of an epoch."""
    if not recipe.read_once:
        return
    every_time, once = count_tokens(examples, recipe, plan)
    articles = len({example.row.article for example in examples})
    print(
        f"reading once: {len(examples):,} questions on {articles:,} articles: {every_time / 1e6:.2f} M -> {once / 1e6:.2f} M "
        f"tokens per epoch ({every_time / once:.1f}x fewer)"
    )


def preview(encoder: Encoder, example: Example) -> None:
    """One example as the model sees it, the supervised tokens marked."""
    tokens = encoder.tokenizer.convert_ids_to_tokens
    counts = f"{len(example.prompt_ids)} prompt tokens, {len(example.answer_ids)} answer tokens"
    print(f"\n--- example {example.row.id}: {counts}, {example.trimmed} characters trimmed")
    print(encoder.tokenizer.decode(example.prompt_ids))
    print("--- answer tokens (the only ones in the loss; the last one stops generation)")
    for token_id, token in zip(example.answer_ids, tokens(example.answer_ids), strict=True):
        print(f"  {token_id:>7}  {token!r}  {encoder.tokenizer.decode([token_id])!r}")


def start_run(name: str, recipe: Recipe, template: prompts.Template, table: Table, examples: list[Example]) -> RunFolder:
    """A new run folder that holds what the run depends on; made once model and data have proved usable."""
    run = new_run(recipe.output_dir, recipe.run_name, name)
    run.metrics_file.unlink(missing_ok=True)  # of a start that left nothing to resume
    write_json(run.environment_file, begin([table], base_identity(recipe)))
    run.save_recipe(recipe, template)
    trimmed = {example.row.id: example.trimmed for example in examples if example.trimmed}
    if trimmed:
        lost = [example.row.id for example in examples if loses_answer(example)]
        said = {"characters cut from the article, by question": trimmed, "whose answer was cut off with it": lost}
        write_json(run.path / "trimmed.json", said)
    return run


def train(
    run: RunFolder,
    recipe: Recipe,
    plan: Plan,
    model,
    tokenizer,
    examples: list[Example],
    validation: Validation,
    checkpoint: Path | None,
) -> Path | None:
    """Train the adapter, from a checkpoint if there is one; the checkpoint of the best evaluation unless it is the last step."""
    keepers = validation.callback(run, len(examples))
    if checkpoint and keepers and keepers[0].has_ended(state := load_state(checkpoint)):
        print("training had ended already, for want of a higher score (patience)")
        load_weights(model, checkpoint)
        return note_best(run, state)
    progress, stop = TrainingProgress(run.metrics_file), StopSignals()
    callbacks = [stop, *([progress] if is_first() else []), *keepers]
    make = make_read_once_trainer if recipe.read_once else make_trainer
    trainer = make(model, tokenizer, examples, recipe, plan, str(run.checkpoints), callbacks)
    trainer.run = run.name_of_run
    try:
        with stop:
            trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    except torch.OutOfMemoryError as error:
        raise InputError(lower_memory(recipe, plan)) from error
    finally:
        progress.close()
    if stop.received:
        if not is_first():
            raise SystemExit(128 + stop.received)  # the first one says why
        raise Stopped(
            f"{stop.received.name} after step {trainer.state.global_step} of {trainer.state.max_steps}. Continue with "
            f"python fine_tune.py --resume {run.path}",
            128 + stop.received,
        )
    return note_best(run, trainer.state) if keepers else None


def load_state(checkpoint: Path) -> TrainerState:
    """What the trainer knew when the checkpoint was written."""
    return TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def note_best(run: RunFolder, state: TrainerState) -> Path | None:
    """`find_best`, and a line in metrics.jsonl that says which step it is."""
    best = find_best(run, state)
    if is_first():
        append_json(run.metrics_file, {"kept": step_of(best) if best else state.global_step})
    return best


def find_best(run: RunFolder, state: TrainerState) -> Path | None:
    """The checkpoint to take the adapter from; None where the last step is the best, or the best was lost."""
    step = best_step(state)
    if step is None or step == state.global_step:
        return None
    checkpoint = run.checkpoints / f"checkpoint-{step}"
    if reason := fault(checkpoint):
        print(f"WARNING: the best adapter, of step {step}, cannot be used ({reason}); the last one is kept")
        return None
    print(f"the adapter of step {step} is kept, whose evaluation had the highest score")
    return checkpoint


def save_adapter(model, tokenizer, run: RunFolder, recipe: Recipe) -> None:
    """Write adapter and tokenizer beside their place first: a run is finished when adapter/ is there whole, with a manifest."""
    folder = Path(tempfile.mkdtemp(prefix=".adapter.", dir=run.path))
    try:
        # The base's name goes along, a path of this machine does not; our recipe knows the path.
        model.peft_config["default"].base_model_name_or_path = (
            Path(recipe.model).name if Path(recipe.model).is_dir() else recipe.model
        )
        model.save_pretrained(str(folder), save_embedding_layers=False)  # else a copy of an adapted LM head goes along
        tokenizer.save_pretrained(str(folder))
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card names the base by its path
        seal(folder, run.name_of_run)
        run.note(finished=now())  # the time; what counts is the adapter's folder, which appears whole
        folder.chmod(run.path.stat().st_mode)
        os.replace(folder, run.adapter)
    except (OSError, SafetensorError) as error:  # safetensors has errors of its own for a full disk
        raise InputError(
            f"the adapter could not be written: {str(error).splitlines()[0]}. Free some space in {run.path}; training is done, "
            f"and python fine_tune.py --resume {run.path} saves it."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    run_script(main)
