"""Fine-tune a Korean LLM to answer in a few words.

recipe -> rows -> model -> train -> adapter and validation score

python fine_tune.py                       the demo, or the default recipe once data/train.csv
                                          is there
python fine_tune.py --recipe kanana-1.5-8b --epochs 2
python fine_tune.py --preview             one encoded example, token counts, what would be trimmed
python fine_tune.py --plan                memory of every recipe, or of --recipe, and what
                                          would be chosen
python fine_tune.py --resume              continue the newest unfinished run
python fine_tune.py --folds 5             cross-validate, and let the five answer together
"""

import dandap.startup  # noqa: F401

import argparse
from dataclasses import dataclass
from pathlib import Path

import prompts
from dandap.cli import Parser, add_options, chosen_options, parse, positive, run_script
from dandap.data.checks import check_data, finding_lines
from dandap.data.encode import Encoder
from dandap.data.lengths import preview
from dandap.data.rows import Row, Table, split_by_article
from dandap.errors import InputError
from dandap.files import check_writable, write_json
from dandap.model.distributed import first_one_speaks, held, is_first
from dandap.recipe import Recipe
from dandap.runs.folder import RunFolder, refuse_taken
from dandap.training.start import choose
from tasks import checked_template, get_task


def main(argv: list[str] | None = None) -> None:
    """Run the command line; raise InputError for what cannot be used."""
    arguments = parse(command_line(), argv)
    if arguments.soup and not arguments.folds:
        raise InputError("--soup is the mean of folds: give --folds N as well.")
    # Under a launcher (accelerate launch, torchrun) every process comes here; all would print.
    with first_one_speaks():
        if arguments.plan:
            from dandap.model.plans import show_plans  # with torch, as below

            show_plans(arguments)
        elif arguments.folds and not arguments.preview:
            from folds import train_folds  # with inference.py and ensemble.py, used here alone

            train_folds(arguments, fine_tune)
        else:
            fine_tune(arguments)


def fine_tune(arguments: argparse.Namespace) -> None:
    """Train as the command line says, from the choice of the recipe to the validation score."""
    start = choose(arguments)
    recipe, task = start.recipe, get_task(start.recipe.task)
    template = choose_template(start.run, arguments, recipe)
    data = read_data(recipe)

    # These load torch, which takes 10 s: not before command line and data are understood.
    from dandap.answering.answerer import Answerer
    from dandap.training import session

    base = session.open_base(start, data.table, arguments)
    encoder = Encoder(base.tokenizer, template, task.sample)
    examples = session.encode_training(recipe, encoder, base, task.expand(data.train))
    held_out = session.encode_validation(recipe, encoder, data.validation)
    if arguments.preview:
        return preview(encoder, examples[0])

    job = session.make_job(recipe, base, examples)
    model = session.make_model(job, base.config, start.folder)
    run = session.begin_run(start, job, template, data.table)
    with held(run.path):
        checkpoint = session.find_checkpoint(run, model) if start.run else None
        note(run, data, recipe, template)
        answerer = Answerer(recipe, encoder, model, base.answering)
        validation = session.Validation(task, answerer, held_out)
        session.train_run(run, job, model, validation, checkpoint)
        validation.finish(run)
    print(f"run saved in {run.path}\nanswer a test file: python inference.py --run {run.path}")


def command_line() -> Parser:
    """Return the options: --recipe, --preview, --resume and every field of Recipe."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--recipe", metavar="NAME|PATH", help="an experiment of recipes/, by name or as a YAML file"
    )
    parser.add_argument("--preview", action="store_true", help="show one encoded example and stop")
    parser.add_argument(
        "--plan",
        action="store_true",
        help="show the memory of every recipe, or of --recipe, and stop",
    )
    parser.add_argument(
        "--gpu_memory",
        metavar="SIZE",
        help="with --plan: for a GPU of this size, as 16GB (default: this one)",
    )
    parser.add_argument(
        "--resume",
        metavar="RUN",
        nargs="?",
        const="",
        help="continue a run (the newest unfinished one)",
    )
    parser.add_argument(
        "--resume_anyway",
        action="store_true",
        help="with --resume: although recipe or data have changed",
    )
    parser.add_argument(
        "--folds",
        metavar="N",
        type=positive,
        help="train on each complement of N parts of the articles, answer the part that is held "
        "out, and the test file by all; with --resume goes on",
    )
    parser.add_argument(
        "--soup",
        action="store_true",
        help="with --folds: answer the test file by one adapter, the mean of all",
    )
    add_options(parser, "recipe options (over those of --recipe)")
    return parser


def choose_template(
    run: RunFolder | None, arguments: argparse.Namespace, recipe: Recipe
) -> prompts.Template:
    """Return the checked wording, and refuse an output folder that no new run can be written to.

    Both are settled before any data are read.
    """
    from dandap.model.hub import confirm_remote_code

    confirm_remote_code(recipe, "trust_remote_code" in chosen_options(arguments))
    template = (
        trained_template(run, recipe) if run else checked_template(recipe.template, recipe.task)
    )
    get_task(recipe.task).check_template(template, recipe.template)
    if not run and not arguments.preview:
        refuse_taken(recipe.output_dir, recipe.run_name)
        check_writable(Path(recipe.output_dir), "Name another --output_dir.")
    return template


def trained_template(run: RunFolder, recipe: Recipe) -> prompts.Template:
    """Return the wording that a run was started with, or the recipe's if that is another now.

    The recipe can differ from the run's only with --resume_anyway.
    """
    name, template = run.load_template()
    return template if name == recipe.template else checked_template(recipe.template, recipe.task)


@dataclass(frozen=True)
class Data:
    """Hold the training file, its split, and the findings of the data checks by kind."""

    table: Table
    train: list[Row]
    validation: list[Row]
    findings: dict[str, list[dict]]


def read_data(recipe: Recipe) -> Data:
    """Read, split and check the training file, and print what was found."""
    table = get_task(recipe.task).read_train(recipe)
    tell_data(recipe, table)
    train, validation = split_by_article(table.rows, recipe.validation_fraction, recipe.fold)
    if validation:
        asked, on = get_task(recipe.task).nouns
        articles = len({row.article for row in validation})
        print(f"held out to validate: {len(validation):,} {asked} on {articles:,} {on}")
    return Data(table, train, validation, check_rows(recipe, train, validation))


def tell_data(recipe: Recipe, table: Table) -> None:
    """Print the size of the training file, the notes of its reading, and the recipe's options."""
    articles = len({row.article for row in table.rows})
    asked, on = get_task(recipe.task).nouns
    print(f"{table.path}: {len(table.rows):,} {asked} on {articles:,} {on}")
    for note in table.notes:
        print(f"  {note}")
    differences = recipe.differences()
    print(
        "recipe: "
        + (", ".join(f"{name}={value}" for name, value in differences.items()) or "all defaults")
    )


def check_rows(
    recipe: Recipe, train_rows: list[Row], validation_rows: list[Row]
) -> dict[str, list[dict]]:
    """Return what is wrong with the data, by kind, and print it."""
    # Large data take some seconds, so one process of several checks them for all.
    if not is_first():
        return {}
    findings = check_data(
        {"train": train_rows, "validation": validation_rows, "test": test_rows(recipe)}
    )
    for line in finding_lines(findings):
        print(f"  {line}")
    return findings


def test_rows(recipe: Recipe) -> list[Row]:
    """Return the rows of the test file for the data checks; none if it is missing or unusable."""
    if not Path(recipe.test_file).is_file():
        return []
    try:
        return get_task(recipe.task).read_test(recipe, Path(recipe.test_file)).rows
    except InputError as error:
        # Training does not need the test file, so a bad one stops only inference.py.
        print(f"WARNING: the test file cannot be used yet: {error}")
        return []


def note(run: RunFolder, data: Data, recipe: Recipe, template: prompts.Template) -> None:
    """Write the data's findings, the recipe and the wording into the run's folder."""
    # A continued run is written again, because --resume_anyway may have changed its recipe.
    if is_first():
        write_json(run.findings_file, data.findings)
        run.save_recipe(recipe, template)


if __name__ == "__main__":
    run_script(main)
