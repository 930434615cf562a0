"""Answer a test file: run + test file -> answers -> submission.csv and, where gold answers are known, a score.

python inference.py                              the newest finished run, that run's test file
python inference.py --run outputs/demo-... --test_file data/test.csv
python inference.py --split validation           rescore the run's validation questions
python inference.py --recipe eeve-10.8b --no_adapter --template context_bot    zero-shot: the base alone
"""

import dandap.start  # noqa: F401

import argparse
import json
import time
from pathlib import Path

import prompts
from answers import answer_rows, encode, final_score, make_encoder, print_score
from answers import report as write_report
from dandap.checkpoints import locked
from dandap.dataset import Row, Table, split_by_article
from dandap.errors import InputError, run_script
from dandap.identity import base_identity, same_base
from dandap.journal import Journal, answers_folder, hash_settings
from dandap.memory import make_plan
from dandap.model import (
    check_base,
    check_ids,
    confirm_remote_code,
    load_adapter,
    load_base,
    load_config,
    load_tokenizer,
    pick_device,
)
from dandap.processes import refuse_several
from dandap.recipe import (
    ANSWERING,
    Parser,
    Recipe,
    add_options,
    chosen_options,
    find_recipe,
    load_recipe,
    make_recipe,
    parse,
    positive,
)
from dandap.run_folder import RunFolder, begin, describe_environment, find_run, list_runs, new_run
from dandap.storage import check_writable, copy_whole, refuse_output, write_json
from tasks import (
    SubmissionForm,
    get_task,
    read_test,
    read_train,
    write_predictions,
    write_review,
)

DEMO_TEST = "data/sample/test.csv"


def main(argv: list[str] | None = None) -> dict:
    """The command line; returns the result that its last line prints as JSON."""
    arguments = parse(command_line(), argv)
    refuse_several("inference.py")
    refuse_output(arguments.output, arguments.overwrite)
    run, recipe, template = choose(arguments)
    options = {name: value for name, value in chosen_options(arguments).items() if name in ANSWERING}
    recipe = make_recipe(recipe.model_dump() | options, "the command line")
    confirm_remote_code(recipe, "trust_remote_code" in options)
    prompts.check_template(template, recipe.template, get_task(recipe.task))
    table = read_rows(recipe, arguments)
    rows = table.rows[: arguments.limit]
    print(f"{table.path}: {len(rows):,} questions on {len({row.article for row in rows}):,} articles")
    for note in table.notes:
        print(f"  {note}")

    # What could be found bad after hours of answering is looked at before: the sample, the folder for the answers.
    form = get_task(recipe.task).form(table.path, rows) if arguments.limit is None and not arguments.split else None
    if form and form.note:
        print(form.note)
    parent = choose_parent(arguments, run)
    check_writable(parent, "Name another with --answers_dir.")

    started = time.perf_counter()
    config = load_config(recipe)
    plan = make_plan(recipe, config, pick_device(), training=False)
    tokenizer = load_tokenizer(recipe, run.adapter if run else None)
    check_base(recipe, config, tokenizer)
    base = base_identity(recipe)
    trained_on = run.environment().get("base", base) if run else base
    if not same_base(trained_on, base):
        print(f"WARNING: the base {recipe.model} is not the one that {run.path} was trained on; its answers will differ")
    encoder = make_encoder(recipe, template, tokenizer)
    print(plan)
    model = load_base(recipe, plan.device)
    if run:
        model = load_adapter(model, run.adapter)

    settings = hash_settings(
        {
            "recipe": recipe.model_dump(),
            "template": template,
            "data": table.sha256,
            "gold": [row.answers for row in rows],
            "limit": arguments.limit,
            "split": arguments.split,
            "packages": describe_environment([])["packages"],
            "base": base,
        },
        run.adapter if run else None,
    )
    parent = parent if run or arguments.answers_dir else start_base_run(arguments, recipe, template, table).answers
    folder = answers_folder(parent, Path(arguments.split or table.path), settings)
    with locked(folder):
        examples = encode(recipe, encoder, with_neighbours(table.rows, rows))[: len(rows)]
        check_ids(examples, config, tokenizer)
        journal = Journal(folder, settings, examples)
        if kept := journal.read():
            print(f"going on in {folder}, which holds {kept:,} of {len(rows):,} answers")
        for record in answer_rows(recipe, encoder, model, examples, plan.tokens_per_batch, "answering", journal.records):
            journal.add(record)
        records = journal.finish([row.id for row in rows])
        seconds = time.perf_counter() - started
        made_by = None if arguments.no_adapter else run
        return report(arguments, recipe, template, table, rows, records, folder, seconds, made_by, form)


def command_line() -> Parser:
    """Which run answers which questions, and where the answers go."""
    parser = Parser(__doc__)
    parser.add_argument("--run", metavar="NAME|PATH", help="the run whose adapter answers (default: the newest finished one)")
    parser.add_argument("--test_file", metavar="FILE", help="questions to answer (default: the run's test_file)")
    parser.add_argument("--split", choices=["validation"], help="answer the run's validation questions instead of a test file")
    parser.add_argument("--template", metavar="NAME", help="another wording than the run was trained with (prompts.py)")
    parser.add_argument("--recipe", metavar="NAME|PATH", help="with --no_adapter: whose base model answers")
    parser.add_argument("--no_adapter", action="store_true", help="answer with the base model alone (zero-shot)")
    parser.add_argument("--output_dir", metavar="DIR", default="outputs", help="where runs are (default: outputs)")
    parser.add_argument("--answers_dir", metavar="DIR", help="where the answers' folder goes (default: into the run's folder)")
    parser.add_argument("--limit", metavar="N", type=positive, help="only the first N questions; writes no submission")
    parser.add_argument("--output", metavar="FILE", help="also write the submission there")
    parser.add_argument("--overwrite", action="store_true", help="let --output replace a file")
    add_options(parser, "how answers come about (over the run's recipe)", ANSWERING)
    return parser


def choose_parent(arguments: argparse.Namespace, run: RunFolder | None) -> Path:
    """Where the folder of these answers goes; a run that is only read (Kaggle's inputs) needs another place."""
    if arguments.answers_dir:
        return Path(arguments.answers_dir)
    return run.answers if run else Path(arguments.output_dir)


def choose(arguments: argparse.Namespace) -> tuple[RunFolder | None, Recipe, prompts.Template]:
    """(run, recipe, template) that answer; no run with --no_adapter."""
    if arguments.no_adapter:
        return choose_base(arguments)
    if arguments.recipe:
        raise InputError(
            "--recipe names a base model to answer without training: add --no_adapter. A trained run is named with --run."
        )
    run = find_run(arguments.run, arguments.output_dir)
    recipe = run.load_recipe()
    if not run.finished:
        raise InputError(
            f"{run.path} holds no adapter: its training has not finished, or it is a zero-shot run (--no_adapter). "
            f"Continue training with fine_tune.py --resume {run.path}, or name another --run."
        )
    trained_name, template = run.load_template()
    if arguments.template:
        print(f"template: {arguments.template} (--template) instead of {trained_name}, which the run was trained with")
        template = prompts.get_template(arguments.template, recipe.task)
        recipe = make_recipe(recipe.model_dump() | {"template": arguments.template}, "--template")
    elif prompts.TEMPLATES.get(trained_name) != template:
        print(
            f"WARNING: template {trained_name!r} in prompts.py is not what it was at training; the one saved with the run is used"
        )
    print(f"run: {run.path}")
    return run, recipe, template


def choose_base(arguments: argparse.Namespace) -> tuple[None, Recipe, prompts.Template]:
    """A base model alone: of a recipe, or of a run's recipe."""
    if arguments.run and arguments.recipe:
        raise InputError("got --run and --recipe; with --no_adapter give one of them.")
    if arguments.recipe:
        recipe = load_recipe(arguments.recipe, {})
    else:
        recipe = find_run(arguments.run, arguments.output_dir).load_recipe()
    if arguments.template:
        recipe = make_recipe(recipe.model_dump() | {"template": arguments.template}, "--template")
    print(f"base model {recipe.model} alone, template {recipe.template}")
    return None, recipe, prompts.get_template(recipe.template, recipe.task)


def start_base_run(arguments: argparse.Namespace, recipe: Recipe, template: prompts.Template, table: Table) -> RunFolder:
    """A run folder without an adapter, which the bare command skips; the one there is for this recipe and template."""
    for run in list_runs(arguments.output_dir):
        try:
            same = "-base-" in run.path.name and not run.finished and run.load_recipe() == recipe
            if same and run.load_template()[1] == template:
                return run
        except InputError as error:
            print(f"{run.path} is passed over: {error}")
    source = find_recipe(arguments.recipe).stem if arguments.recipe else find_run(arguments.run, arguments.output_dir).path.name
    run = new_run(arguments.output_dir, None, f"{source}-base")
    write_json(run.environment_file, begin([table], base_identity(recipe)))
    run.save_recipe(recipe, template)
    return run


def with_neighbours(every: list[Row], rows: list[Row]) -> list[Row]:
    """The rows, then the others on their articles: what is cut of an article depends on all its questions."""
    articles, ids = {row.article for row in rows}, {row.id for row in rows}
    return [*rows, *(row for row in every if row.article in articles and row.id not in ids)]


def read_rows(recipe: Recipe, arguments: argparse.Namespace) -> Table:
    """The questions to answer."""
    if arguments.split and arguments.test_file:
        raise InputError("got --split and --test_file; give one of them.")
    test_file = Path(arguments.test_file or recipe.test_file)
    is_demo = recipe.test_file == DEMO_TEST
    if is_demo and not arguments.run and not arguments.recipe and test_file.resolve() == Path(Recipe().test_file).resolve():
        raise InputError(
            f"the newest finished run is the demo, which cannot answer {test_file} well. Train on your data first, "
            "or name the demo run with --run to answer all the same."
        )
    if not arguments.split:
        return read_test(recipe, test_file)
    table = read_train(recipe)
    _, validation = split_by_article(table.rows, recipe.validation_fraction)
    if not validation:
        raise InputError("the run has validation_fraction 0, so there is no validation split to answer.")
    return Table(table.path, validation, table.sha256, table.notes)


def report(
    arguments: argparse.Namespace,
    recipe: Recipe,
    template: prompts.Template,
    table: Table,
    rows: list[Row],
    records: list[dict],
    folder: Path,
    seconds: float,
    run: RunFolder | None,
    form: SubmissionForm | None,
) -> dict:
    """Write predictions.csv, the submission and scores.json; print the score and the last line."""
    predictions = [record["prediction"] for record in records]
    scores = final_score(recipe, rows, records)
    write_predictions(folder / "predictions.csv", records)
    write_review(folder / "review.csv", records)
    submission = None
    if form:
        written, note = get_task(recipe.task).submit(recipe, folder, table.path, rows, predictions, form)
        submission = str(written)
        if note:
            print(note)
        print(f"submission: {submission} ({len(rows):,} rows, read back and checked)")
    elif arguments.output:
        print("no submission was written: --limit and --split answer only some questions")
    cut = sum(record["ended"] == "cut" for record in records)
    print(f"{len(rows):,} answers in {seconds:.1f} s, {cut} cut at max_new_tokens={recipe.max_new_tokens}")
    print(f"record: {folder}/predictions.jsonl")
    without_gold = sum(not row.answers and not row.fields.get("impossible") for row in rows)
    if scores:
        print_score(get_task(recipe.task), Path(arguments.split or table.path).stem, scores)
    elif without_gold < len(rows):
        print(f"no score: {without_gold} of {len(rows)} questions have no gold answer")
    made_by = {"run": run and str(run.path), "model": recipe.model, "template": template}
    answered = {"limit": arguments.limit, "split": arguments.split, "recipe": recipe.model_dump()}
    environment = describe_environment([table])
    if scores:
        judged = [(row, record) for row, record in zip(rows, records, strict=True) if row.answers]
        title = f"{run.path.name if run else recipe.model}: {folder.name}"
        write_report(folder, title, recipe, [r for r, _ in judged], [r for _, r in judged], scores, environment)
    write_json(folder / "scores.json", {"scores": scores, **answered, **made_by, **environment})
    if submission and arguments.output:  # the last thing: an inference that is cut off before may go on
        copy_whole(Path(submission), Path(arguments.output))
    result = {
        **{name: scores and scores[name] for name in get_task(recipe.task).headline},
        "questions": len(rows),
        "seconds": round(seconds, 1),
        "submission": submission,
    }
    print(json.dumps(result, ensure_ascii=False))
    return result


if __name__ == "__main__":
    run_script(main)
