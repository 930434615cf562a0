"""Answer questions with a trained run or an untuned base model:

    from dandap.answering.run import answer, find_source

    result = answer(find_source("demo-20261130-180000"), "data/test.csv")
    result.scores, result.submission

To keep a model loaded, use `open_model`, `encode` and `predict`.
"""

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftModel
from transformers import PretrainedConfig

import prompts
from dandap.answering.answer import make_record
from dandap.answering.answerer import Answerer
from dandap.console import track
from dandap.data.checks import report_cut
from dandap.data.encode import Encoder, Example
from dandap.data.rows import Answers, Row, Table, split_by_article
from dandap.errors import InputError
from dandap.files import check_output, check_writable, copy_file, folder_hash, write_json
from dandap.model.adapter import for_answering, load_adapter
from dandap.model.device import pick_device
from dandap.model.distributed import (
    end_other_processes,
    from_main,
    gather,
    locked_for_all,
    process_rank,
    share_of,
)
from dandap.model.hub import base_identity, confirm_remote_code, same_base
from dandap.model.load import (
    check_base,
    check_ids,
    load_base,
    load_config,
    load_tokenizer,
    report_other_ids,
)
from dandap.model.memory import broadcast_plan, make_plan
from dandap.recipe import Recipe, make_recipe
from dandap.runs.folder import (
    RunFolder,
    describe_environment,
    find_run,
    list_runs,
    new_environment,
    new_run,
)
from dandap.runs.predictions import Journal, answers_folder, answers_name, hash_settings
from dandap.runs.report import write_report
from tasks import checked_template, get_task
from tasks.submission import write_review
from tasks.task import compute_scores, print_scores, read_test, read_train


@dataclass(frozen=True)
class Source:
    """A run's adapter on its base, or an untuned base if `run` is None."""

    run: RunFolder | None
    recipe: Recipe
    template: prompts.Template


class Result(NamedTuple):
    """The answers of one inference with their folder, scores and submission."""

    folder: Path
    answers: Answers
    scores: dict[str, Any] | None
    submission: Path | None
    seconds: float


def find_source(
    name: str | None = None,
    output_dir: str = "outputs",
    template: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Source:
    """Return a finished run, by default the newest, with `options` overriding its recipe.

    `template` names a template other than the trained one. Only `options` can enable
    remote code; a run folder cannot.
    """
    run = find_run(name, output_dir)
    recipe = run.load_recipe()
    if not run.finished:
        raise InputError(
            f"{run.path} has no adapter: training is unfinished, or it is a zero-shot run. "
            f"Continue with fine_tune.py --resume {run.quoted}, or choose another --run."
        )
    trained_name, wording = run.load_template()
    print(f"run: {run.path}")
    if template:
        print(f"template: {template} (trained with {trained_name})")
        wording = checked_template(template, recipe.task)
        recipe = make_recipe(recipe.model_dump() | {"template": template}, "--template")
    elif prompts.TEMPLATES.get(trained_name) != wording:
        print(
            f"WARNING: template {trained_name!r} in prompts.py changed since training. Using the "
            "one saved with the run."
        )
    return with_options(Source(run, recipe, wording), options or {})


def base_source(
    recipe: Recipe, template: str | None = None, options: Mapping[str, Any] | None = None
) -> Source:
    """Return the untuned base model of a recipe."""
    if template:
        recipe = make_recipe(recipe.model_dump() | {"template": template}, "--template")
    print(f"untuned base model {recipe.model}, template {recipe.template}")
    source = Source(None, recipe, checked_template(recipe.template, recipe.task))
    return with_options(source, options or {})


def with_options(source: Source, options: Mapping[str, Any]) -> Source:
    """Return the source with other options, after checking its template."""
    where = str(source.run.path if source.run else source.recipe.model)
    recipe = make_recipe(source.recipe.model_dump() | dict(options), where, list(options))
    confirm_remote_code(recipe, "trust_remote_code" in options)
    get_task(recipe.task).check_template(source.template, recipe.template)
    return Source(source.run, recipe, source.template)


@dataclass(frozen=True)
class OpenModel:
    """A loaded model that answers rows."""

    recipe: Recipe
    answerer: Answerer
    base: dict[str, str]  # the base's identity
    config: PretrainedConfig

    @property
    def encoder(self) -> Encoder:
        """Return the encoder of the model's tokenizer and template."""
        return self.answerer.encoder

    def encode(self, rows: list[Row], all_rows: Collection[Row] = ()) -> list[Example]:
        """Encode rows, and print which articles were shortened.

        Shortening depends on all questions of an article: `all_rows` includes those that are not
        answered, so that a part of a file gets the prompts of the whole file.
        """
        articles, ids = {row.article for row in rows}, {row.id for row in rows}
        others = [row for row in all_rows if row.article in articles and row.id not in ids]
        limit = self.recipe.prompt_limit
        examples = self.encoder.encode([*rows, *others], limit, False, self.recipe.on_overflow)
        report_cut(self.recipe, examples)
        check_ids(examples, self.config, self.encoder.tokenizer)
        return examples[: len(rows)]

    def predict(
        self, examples: list[Example], known: Collection[str] = ()
    ) -> Iterator[dict[str, Any]]:
        """Yield the records of predictions.jsonl as batches finish.

        Skip examples with `known` ids, without changing the batches of the others.
        """
        task = get_task(self.recipe.task)
        for example, answers in self.answerer.answers(examples, known):
            yield make_record(task, example, answers)

    def predict_all(self, examples: list[Example], description: str | None = None) -> Answers:
        """Return all rows and records in order; show progress if there is a description.

        Processes share the work, and all return everything.
        """
        records = self.predict(examples)
        if description:
            records = track(records, description, "questions", share_of(len(examples)))
        by_id: dict[str, dict] = {}
        for part in gather({record["id"]: record for record in records}):
            by_id |= part
        return Answers(
            [example.row for example in examples], [by_id[example.row.id] for example in examples]
        )


def open_model(source: Source) -> OpenModel:
    """Load a source's model, after all checks that need no weights."""
    recipe, run = source.recipe, source.run
    config = load_config(recipe)
    tokenizer = load_tokenizer(recipe, run.adapter if run else None)
    check_base(recipe, config, tokenizer)
    base = base_identity(recipe)
    if run and not same_base(run.environment().get("base", base), base):
        print(
            f"WARNING: the base {recipe.model} changed since {run.path} was trained. Answers will "
            "differ."
        )
    encoder = Encoder(tokenizer, source.template, get_task(recipe.task).sample)
    plan = broadcast_plan(make_plan(recipe, config, pick_device(), training=False))
    print(plan)
    base_model = load_base(recipe, plan.device, config, plan.dequantized)
    model = load_adapter(base_model, run.adapter) if run else base_model
    if isinstance(model, PeftModel) and plan.device.type == "cuda":
        model = for_answering(model, plan.merged)  # saves kernel launches
    return OpenModel(recipe, Answerer(recipe, encoder, model, plan), base, config)


def read_questions(recipe: Recipe, test_file: str | None = None, split: str | None = None) -> Table:
    """Return the rows of a test file, by default the recipe's, or of the validation split."""
    task = get_task(recipe.task)
    if split and test_file:
        raise InputError("got --split and --test_file; expected one of them.")
    if not split:
        return read_test(task, recipe, Path(test_file or recipe.test_file))
    table = read_train(task, recipe)
    _, rows = split_by_article(table.rows, recipe.validation_fraction, recipe.fold)
    if not rows:
        raise InputError(
            "the run has no validation split (validation_fraction 0). Use --test_file."
        )
    return replace(table, rows=rows)


def answer(
    source: Source,
    test_file: str | None = None,
    *,
    split: str | None = None,
    limit: int | None = None,
    output_dir: str = "outputs",
    answers_dir: str | None = None,
    output: str | None = None,
    overwrite: bool = False,
) -> Result:
    """Answer a test file or the validation split, score it, and write the submission.

    Writes to a new folder in the run or in `answers_dir`, or continues an unfinished inference with
    equal settings. With a launcher, processes share the work and only the main process returns.
    """
    check_output(output, overwrite)
    run, recipe, task = source.run, source.recipe, get_task(source.recipe.task)
    table = read_questions(recipe, test_file, split)
    rows, (asked, on) = table.rows[:limit], task.nouns
    print(f"{table.path}: {len(rows):,} {asked} on {len({row.article for row in rows}):,} {on}")
    for note in table.notes:
        print(f"  {note}")
    # Read sample_submission.csv before hours of answering.
    form = None if limit or split else task.submission_form(table.path, rows)
    if form and form.note:
        print(form.note)
    parent = Path(answers_dir) if answers_dir else run.answers if run else Path(output_dir)
    check_writable(parent, "Choose another --answers_dir.")

    started = time.perf_counter()
    model = open_model(source)
    loaded = time.perf_counter()
    if not run:
        report_other_ids(model.encoder.tokenizer, recipe, [row.context for row in rows[:20]])

    if not run and not answers_dir:
        environment = new_environment([table], model.base)
        parent = from_main(partial(_base_run, source, environment, output_dir)).answers
    of = split or table.path.stem
    name = answers_name(of, recipe, run.load_recipe() if run else recipe, limit)
    # Continue only if everything that answers depend on is equal.
    settings = hash_settings(
        {
            **{"recipe": recipe.model_dump(), "template": source.template},
            **{"data": table.sha256, "gold": [row.answers for row in rows]},
            **{"limit": limit, "split": split, "base": model.base},
            "packages": describe_environment([])["packages"],
        },
        run.adapter if run else None,
    )
    folder = from_main(partial(answers_folder, parent, name, settings))
    # One inference per folder at a time.
    with locked_for_all(folder):
        examples = model.encode(rows, table.rows)
        journal = Journal(folder, settings, examples, process_rank())
        known = from_main(journal.read)
        if known:
            print(f"continuing in {folder}: {len(known):,} of {len(examples):,} answers exist")
        total, done = share_of(len(examples)), share_of(len(known))
        records = model.predict(examples, known)
        for record in track(records, "answering", "questions", total, done):
            journal.add(record)
        end_other_processes()
        answers = Answers(rows, journal.finish([row.id for row in rows]))
        answered = time.perf_counter()

        scores = compute_scores(task, answers, recipe)
        write_review(folder / "review.csv", answers.records)
        submission: Path | None = None
        if form:
            submission, remark = task.submit(recipe, folder, table.path, answers, form)
            if remark:
                print(remark)
            print(f"submission: {submission} ({len(rows):,} rows, read back and checked)")
        cut = sum(record["ended"] == "cut" for record in answers.records)
        print(
            f"{len(rows):,} answers in {answered - started:.1f} s, {cut} cut at max_new_tokens="
            f"{recipe.max_new_tokens}: {folder}/predictions.jsonl"
        )
        environment = describe_environment([table])
        without_gold = [r for r in rows if not r.answers and not r.fields.get("impossible")]
        if scores:
            print_scores(task, of, scores)
            title = f"{run.path.name if run else recipe.model}: {folder.name}"
            pairs = [pair for pair in zip(*answers, strict=True) if pair[0].answers]
            judged = Answers(*map(list, zip(*pairs, strict=True)))
            write_report(folder, title, task, recipe, judged, scores, environment)
        elif len(without_gold) < len(rows):
            print(f"no score: {len(without_gold)} of {len(rows)} questions have no gold answer")
        content = {
            **{"scores": scores, "limit": limit, "split": split},
            **{"run": run and str(run.path), "model": recipe.model, "template": source.template},
            "adapter": folder_hash(run.adapter) if run else None,
            "timing": {
                "loading": loaded - started,
                "answering": answered - loaded,
                "questions": len(examples) - len(known),
            },
            "recipe": recipe.model_dump(),
        }
        write_json(folder / "scores.json", content | environment)
        # Last, so that an interrupted inference can continue.
        if output and submission:
            copy_file(submission, Path(output))
        elif output:
            print("no submission: --limit and --split answer only some questions")
    return Result(folder, answers, scores, submission, answered - started)


def _base_run(source: Source, environment: dict[str, Any], output_dir: str) -> RunFolder:
    """Return a run folder for an untuned base, an existing one if possible."""
    for run in list_runs(output_dir):
        if "-base-" not in run.path.name or run.finished:
            continue
        try:
            if run.load_recipe() == source.recipe and run.load_template()[1] == source.template:
                return run
        except InputError as error:
            print(f"{run.path} is skipped: {error}")
    run = new_run(output_dir, None, f"{Path(source.recipe.model).name}-base")
    write_json(run.environment_file, environment)
    run.save_recipe(source.recipe, source.template)
    return run
