"""Answer a test file with a trained run or with a base model alone.

run + test file -> answers -> submission.csv and, where gold answers are known, a score

python inference.py                              the newest finished run, that run's test file
python inference.py --run outputs/demo-... --test_file data/test.csv
python inference.py --split validation           rescore the run's validation questions
python inference.py --recipe eeve-10.8b --no_adapter --template context_bot
                                                 zero-shot: the base alone
"""

import dandap.startup  # noqa: F401

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import prompts
from dandap import ROOT
from dandap.cli import Parser, add_options, chosen_options, parse, positive, run_script
from dandap.console import track
from dandap.data.lengths import report_cut
from dandap.data.rows import Answered, Row, Table, split_by_article
from dandap.errors import InputError
from dandap.files import check_writable, copy_whole, refuse_output, write_json
from dandap.model.distributed import (
    first_one_speaks,
    from_first,
    held,
    leave_together,
    process_number,
    share_of,
)
from dandap.recipe import ANSWERING, Recipe, find_recipe, load_recipe, make_recipe
from dandap.runs.folder import RunFolder, begin, describe_environment, find_run, list_runs, new_run
from dandap.runs.journal import Journal, answers_folder, answers_name, hash_settings
from dandap.runs.predictions import write_predictions
from tasks import checked_template, get_task
from tasks.submission import SubmissionForm, write_review

DEMO_TEST = ROOT / "data/sample/test.csv"
# A test file may name its columns in another way than the training file did.
OPTIONS = (*ANSWERING, "columns")


@dataclass(frozen=True)
class Source:
    """Hold what answers: a run's adapter on its base, or a base alone where `run` is None."""

    run: RunFolder | None
    recipe: Recipe
    template: prompts.Template


@dataclass(frozen=True)
class Questions:
    """Hold what is answered: `rows`, which are the table's or its first ones, and a form.

    The form is that of the submission; None where no submission will be written.
    """

    table: Table
    rows: list[Row]
    form: SubmissionForm | None


class Timing(NamedTuple):
    """Hold the seconds of loading the model and of answering, and how many answers were new.

    Answers that an inference which was cut off had left are not among the new ones. tools.submit
    estimates by it how long other questions will take.
    """

    loading: float
    answering: float
    questions: int


def main(argv: list[str] | None = None) -> dict:
    """Run the command line; return the result that its last line prints as JSON."""
    arguments = parse(command_line(), argv)
    # Under a launcher (accelerate launch, torchrun) every process comes here; all would print.
    with first_one_speaks():
        return answer_file(arguments)


def answer_file(arguments: argparse.Namespace) -> dict:
    """Answer as the command line says, from the choice of the run to the result."""
    refuse_output(arguments.output, arguments.overwrite)
    source = with_options(choose(arguments), arguments)
    questions = read_questions(source.recipe, arguments)
    parent = choose_parent(arguments, source.run)
    check_writable(parent, "Name another with --answers_dir.")
    open_source = opener(arguments, source, questions)
    started = time.perf_counter()
    model = open_source()
    # Only now, because the folder of a base alone notes which files of the base were loaded.
    if not source.run and not arguments.answers_dir:
        parent = from_first(
            partial(start_base_run, arguments, source, questions, model.base)
        ).answers
    settings = settings_of(arguments, source, questions, model)
    name = name_answers(arguments, source, questions)
    folder = from_first(partial(answers_folder, parent, name, settings))
    loaded = time.perf_counter()
    # Two inferences on one folder would write over each other's journal.
    with held(folder):
        answered, new = answer(source.recipe, questions, model, folder, settings)
        timing = Timing(loaded - started, time.perf_counter() - loaded, new)
        return report(arguments, source, questions, answered, folder, timing)


def command_line() -> Parser:
    """Return the options: which run answers which questions, and where the answers go."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--run",
        metavar="NAME|PATH",
        help="the run whose adapter answers (default: the newest finished one)",
    )
    parser.add_argument(
        "--test_file", metavar="FILE", help="questions to answer (default: the run's test_file)"
    )
    parser.add_argument(
        "--split",
        choices=["validation"],
        help="answer the run's validation questions instead of a test file",
    )
    parser.add_argument(
        "--template",
        metavar="NAME",
        help="another wording than the run was trained with (prompts.py)",
    )
    parser.add_argument(
        "--recipe", metavar="NAME|PATH", help="with --no_adapter: whose base model answers"
    )
    parser.add_argument(
        "--no_adapter", action="store_true", help="answer with the base model alone (zero-shot)"
    )
    parser.add_argument(
        "--output_dir", metavar="DIR", default="outputs", help="where runs are (default: outputs)"
    )
    parser.add_argument(
        "--answers_dir",
        metavar="DIR",
        help="where the answers' folder goes (default: into the run's folder)",
    )
    parser.add_argument(
        "--limit",
        metavar="N",
        type=positive,
        help="only the first N questions; writes no submission",
    )
    parser.add_argument("--output", metavar="FILE", help="also write the submission there")
    parser.add_argument("--overwrite", action="store_true", help="let --output replace a file")
    add_ways(parser)
    return parser


def add_ways(parser: Parser) -> None:
    """Add the options that say how answers come about."""
    parser.add_argument(
        "--engine",
        choices=["ours", "vllm"],
        default="ours",
        help="what computes the answers: our trees of questions (default), or vLLM, which must be "
        "installed",
    )
    add_options(parser, "how answers come about (over the run's recipe)", OPTIONS)


def choose_parent(arguments: argparse.Namespace, run: RunFolder | None) -> Path:
    """Return the folder that the folder of these answers goes into.

    A run that is only read (one of Kaggle's inputs) needs --answers_dir.
    """
    if arguments.answers_dir:
        return Path(arguments.answers_dir)
    return run.answers if run else Path(arguments.output_dir)


def choose(arguments: argparse.Namespace) -> Source:
    """Return what answers: a finished run, or with --no_adapter a base model alone."""
    if arguments.no_adapter:
        return choose_base(arguments)
    if arguments.recipe:
        raise InputError(
            "--recipe names a base model to answer without training: add --no_adapter. "
            "A trained run is named with --run."
        )
    run = find_run(arguments.run, arguments.output_dir)
    recipe = run.load_recipe()
    if not run.finished:
        raise InputError(
            f"{run.path} holds no adapter: its training has not finished, or it is a zero-shot "
            "run (--no_adapter). "
            f"Continue training with fine_tune.py --resume {run.path}, or name another --run."
        )
    trained_name, template = run.load_template()
    if arguments.template:
        print(
            f"template: {arguments.template} (--template) instead of {trained_name}, "
            "which the run was trained with"
        )
        template = checked_template(arguments.template, recipe.task)
        recipe = make_recipe(recipe.model_dump() | {"template": arguments.template}, "--template")
    # prompts.py may have been edited since; the adapter has learned the wording that was saved.
    elif prompts.TEMPLATES.get(trained_name) != template:
        print(
            f"WARNING: template {trained_name!r} in prompts.py is not what it was at training; "
            "the one saved with the run is used"
        )
    print(f"run: {run.path}")
    return Source(run, recipe, template)


def choose_base(arguments: argparse.Namespace) -> Source:
    """Return a base model alone: that of --recipe, else that of a run's recipe."""
    if arguments.run and arguments.recipe:
        raise InputError("got --run and --recipe; with --no_adapter give one of them.")
    if arguments.recipe:
        recipe = load_recipe(arguments.recipe, {})
    else:
        recipe = find_run(arguments.run, arguments.output_dir).load_recipe()
    if arguments.template:
        recipe = make_recipe(recipe.model_dump() | {"template": arguments.template}, "--template")
    print(f"base model {recipe.model} alone, template {recipe.template}")
    return Source(None, recipe, checked_template(recipe.template, recipe.task))


def with_options(source: Source, arguments: argparse.Namespace) -> Source:
    """Return the source with the command line's ways of answering, its wording checked."""
    # This loads the hub's library, which --help need not wait for.
    from dandap.model.hub import confirm_remote_code

    options = {name: value for name, value in chosen_options(arguments).items() if name in OPTIONS}
    recipe = make_recipe(
        source.recipe.model_dump() | options,
        str(source.run.path if source.run else source.recipe.model),
        options,
    )
    # A recipe or somebody's run folder alone must not start code of a repository.
    confirm_remote_code(recipe, "trust_remote_code" in options)
    get_task(recipe.task).check_template(source.template, recipe.template)
    return replace(source, recipe=recipe)


def read_questions(recipe: Recipe, arguments: argparse.Namespace) -> Questions:
    """Read the questions, and the form of the submission from the organiser's sample."""
    table = read_rows(recipe, arguments)
    rows = table.rows[: arguments.limit]
    asked, on = get_task(recipe.task).nouns
    print(f"{table.path}: {len(rows):,} {asked} on {len({row.article for row in rows}):,} {on}")
    for note in table.notes:
        print(f"  {note}")
    answers_all = arguments.limit is None and not arguments.split
    # Read now, because a bad sample that is found after hours of answering would cost them.
    form = get_task(recipe.task).form(table.path, rows) if answers_all else None
    if form and form.note:
        print(form.note)
    return Questions(table, rows, form)


def read_rows(recipe: Recipe, arguments: argparse.Namespace) -> Table:
    """Return the questions to answer: a test file's, or with --split the run's held-out rows."""
    if arguments.split and arguments.test_file:
        raise InputError("got --split and --test_file; give one of them.")
    task = get_task(recipe.task)
    test_file = Path(arguments.test_file or recipe.test_file)
    is_demo = Path(recipe.test_file).resolve() == DEMO_TEST.resolve()
    # Whoever puts data/test.csv there and forgets to train would get the demo's answers to it.
    if (
        is_demo
        and not arguments.run
        and not arguments.recipe
        and test_file.resolve() == Path(Recipe().test_file).resolve()
    ):
        raise InputError(
            f"the newest finished run is the demo, which cannot answer {test_file} well. "
            "Train on your data first, or name the demo run with --run to answer all the same."
        )
    if not arguments.split:
        return task.read_test(recipe, test_file)
    table = task.read_train(recipe)
    _, validation = split_by_article(table.rows, recipe.validation_fraction, recipe.fold)
    if not validation:
        raise InputError(
            "the run has validation_fraction 0, so there is no validation split to answer."
        )
    return Table(table.path, validation, table.sha256, table.notes)


def opener(arguments: argparse.Namespace, source: Source, questions: Questions) -> Callable:
    """Return what opens the model: our own engine, or vLLM where that can do what is asked."""
    opened = (source.recipe, source.template, source.run)
    # This loads torch, which takes 10 s: not before the input is known to be right.
    if arguments.engine == "ours":
        from dandap.answering.run import open_model

        return partial(open_model, *opened)
    from dandap.answering.vllm import open_vllm, refuse

    refuse(source.recipe, questions.rows)
    return partial(open_vllm, *opened, Path(arguments.output_dir) / "bases")


def start_base_run(
    arguments: argparse.Namespace, source: Source, questions: Questions, base: dict
) -> RunFolder:
    """Return a run folder without an adapter for the answers of a base model alone.

    An earlier one with the same recipe and template is taken again. The bare command passes such
    folders over, because they hold no finished training.
    """
    recipe, template = source.recipe, source.template
    for run in list_runs(arguments.output_dir):
        try:
            same = "-base-" in run.path.name and not run.finished and run.load_recipe() == recipe
            if same and run.load_template()[1] == template:
                return run
        except InputError as error:
            print(f"{run.path} is passed over: {error}")
    name = (
        find_recipe(arguments.recipe).stem
        if arguments.recipe
        else find_run(arguments.run, arguments.output_dir).path.name
    )
    run = new_run(arguments.output_dir, None, f"{name}-base")
    write_json(run.environment_file, begin([questions.table], base))
    run.save_recipe(recipe, template)
    return run


def settings_of(arguments: argparse.Namespace, source: Source, questions: Questions, model) -> str:
    """Return a hash of all that the answers of an OpenModel depend on.

    An inference that was cut off is gone on with only where this hash is the same.
    """
    return hash_settings(
        {
            "recipe": source.recipe.model_dump(),
            "template": source.template,
            "data": questions.table.sha256,
            "gold": [row.answers for row in questions.rows],
            "limit": arguments.limit,
            "split": arguments.split,
            "packages": describe_environment([])["packages"],
            "base": model.base,
            "engine": model.engine,
        },
        source.run.adapter if source.run else None,
    )


def name_answers(arguments: argparse.Namespace, source: Source, questions: Questions) -> str:
    """Return what the folder of these answers is called: what they answer, and in which way."""
    of_run = source.run.load_recipe() if source.run else source.recipe
    of = arguments.split or questions.table.path.stem
    of += "" if arguments.engine == "ours" else f"-{arguments.engine}"
    return answers_name(of, source.recipe, of_run, arguments.limit)


def encode(recipe: Recipe, encoder, questions: Questions) -> list:
    """Return the encoded questions, in their order, and print what was cut of long articles."""
    articles, ids = {row.article for row in questions.rows}, {row.id for row in questions.rows}
    # What is cut of an article depends on all its questions, also on those that --limit leaves
    # out: with them a limited run gives the answers of a whole one.
    neighbours = [
        row for row in questions.table.rows if row.article in articles and row.id not in ids
    ]
    rows = [*questions.rows, *neighbours]
    every = encoder.encode(rows, recipe.prompt_limit, False, recipe.on_overflow)
    report_cut(recipe, every)
    return every[: len(questions.rows)]


def answer(
    recipe: Recipe, questions: Questions, model, folder: Path, settings: str
) -> tuple[Answered, int]:
    """Answer what the folder does not hold yet; return all answers in the questions' order.

    With them the number of those that were not there before. `model` is an OpenModel. An
    unfinished inference with the same settings is gone on with. Of several processes each answers
    its share into a journal of its own, and the first one returns.
    """
    task = get_task(recipe.task)
    examples = encode(recipe, model.answerer.encoder, questions)
    model.check(examples)
    journal = Journal(folder, settings, examples, process_number())
    known = from_first(journal.read)
    if known:
        print(f"going on in {folder}, which holds {len(known):,} of {len(examples):,} answers")
    # Batches of which the journal holds every answer are not read by the model again.
    answers = model.answerer.answers(examples, known)
    total, done = share_of(len(examples)), share_of(len(known))
    for example, said in track(answers, "answering", "questions", total, done):
        journal.add(task.record(example, said))
    leave_together()
    records = journal.finish([example.row.id for example in examples])
    return Answered(questions.rows, records), len(examples) - len(known)


def report(
    arguments: argparse.Namespace,
    source: Source,
    questions: Questions,
    answered: Answered,
    folder: Path,
    timing: Timing,
) -> dict:
    """Write the submission, scores.json and the report; print and return the result."""
    recipe, task, run = source.recipe, get_task(source.recipe.task), source.run
    scores = task.final_scores(recipe, answered)
    write_predictions(folder / "predictions.csv", answered.records)
    write_review(folder / "review.csv", answered.records)
    submission = write_submission(arguments, recipe, questions, answered, folder)
    cut = sum(record["ended"] == "cut" for record in answered.records)
    seconds = timing.loading + timing.answering
    print(
        f"{len(answered.rows):,} answers in {seconds:.1f} s, "
        f"{cut} cut at max_new_tokens={recipe.max_new_tokens}"
    )
    print(f"record: {folder}/predictions.jsonl")
    tell_scores(task, scores, Path(arguments.split or questions.table.path).stem, answered.rows)
    environment = describe_environment([questions.table])
    if scores:
        # A file may know gold answers for some of its questions only; the report shows those.
        judged = [(row, record) for row, record in zip(*answered, strict=True) if row.answers]
        title = f"{run.path.name if run else recipe.model}: {folder.name}"
        task.report(
            folder,
            title,
            recipe,
            Answered(*zip(*judged, strict=True)),
            scores,
            environment=environment,
        )
    made_by = {"run": run and str(run.path), "model": recipe.model, "template": source.template}
    made_as = {name: vars(arguments)[name] for name in ("limit", "split", "engine")}
    noted = {"scores": scores, "timing": timing._asdict(), "recipe": recipe.model_dump()}
    write_json(folder / "scores.json", noted | made_as | made_by | environment)
    # --output is written last: an inference that is cut off before may go on.
    if submission and arguments.output:
        copy_whole(submission, Path(arguments.output))
    result = {
        **{name: scores and round(scores[name], 4) for name in task.headline},  # for people
        "questions": len(answered.rows),
        "seconds": round(seconds, 1),
        "submission": submission and str(submission),
    }
    print(json.dumps(result, ensure_ascii=False))
    return result


def write_submission(
    arguments: argparse.Namespace,
    recipe: Recipe,
    questions: Questions,
    answered: Answered,
    folder: Path,
) -> Path | None:
    """Write the submission, print where it is, and return its path.

    None is returned, and nothing written, where only some questions were answered.
    """
    if not questions.form:
        if arguments.output:
            print("no submission was written: --limit and --split answer only some questions")
        return None
    path, note = get_task(recipe.task).submit(
        recipe, folder, questions.table.path, answered, questions.form
    )
    if note:
        print(note)
    print(f"submission: {path} ({len(answered.rows):,} rows, read back and checked)")
    return path


def tell_scores(task, scores: dict | None, name: str, rows: list[Row]) -> None:
    """Print the scores, or why there are none although some gold answers are known."""
    # An unanswerable question (SQuAD 2) has no gold answer and lacks none.
    without_gold = sum(not row.answers and not row.fields.get("impossible") for row in rows)
    if scores:
        task.tell(name, scores)
    elif without_gold < len(rows):
        print(f"no score: {without_gold} of {len(rows)} questions have no gold answer")


if __name__ == "__main__":
    run_script(main)
