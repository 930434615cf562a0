"""Show a page in the browser: paste an article, ask several questions, see their answers.

finished runs -> a page on this machine -> answers, each with how sure it is and its place

python app.py                                    all finished runs of outputs/, the newest first
python app.py --run outputs/demo-...             this one first
python app.py --share                            also at a public address, behind a password

Programs ask the endpoint /answer with an article and questions (Gradio's API):

from gradio_client import Client
Client("http://127.0.0.1:7860").predict("기사", ["질문", "질문"], api_name="/answer")
"""

import argparse
import getpass
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import inference
from dandap import ROOT
from dandap.cli import Parser, add_options, parse, positive, run_script
from dandap.data.encode import Example
from dandap.data.rows import Row, Table, by_article
from dandap.errors import InputError
from dandap.model.distributed import refuse_several
from dandap.page.desk import Desk, endpoint, show
from dandap.recipe import ANSWERING, Recipe
from dandap.runs.folder import RunFolder, find_run, list_runs, newest
from tasks import get_task
from tasks.task import Task

PORT = 7860
MOST_SAMPLES = 8
SHORTEST_PASSWORD = 10  # characters; a wrong one takes a second


def main(argv: list[str] | None = None) -> None:
    """Run the command line; serve the page until Ctrl-C."""
    arguments = parse(command_line(), argv)
    refuse_several("app.py")
    check_gradio()
    password = ask_password() if arguments.share else None
    desk = make_desk(find_runs(arguments), arguments)
    # The first model is loaded before the page is there: a fault of it ends here in a sentence.
    desk.model(desk.first, adapted=True)
    page = make_page(desk)

    from dandap.page.serve import open_page  # with Gradio, as make_page

    address = open_page(page, arguments.port, password)
    print(f"page: {address} (Ctrl-C ends it)", flush=True)
    while page.is_running:  # its server is a thread, which ends with this one
        time.sleep(1)


def command_line() -> Parser:
    """Return the options: which runs answer, how, in which language, and for whom."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--run", metavar="NAME|PATH", help="the run that answers first (default: the newest)"
    )
    parser.add_argument(
        "--output_dir", metavar="DIR", default="outputs", help="where runs are (default: outputs)"
    )
    parser.add_argument(
        "--port",
        metavar="N",
        type=positive,
        default=PORT,
        help=f"where the page is (default: {PORT})",
    )
    parser.add_argument(
        "--share",
        action="store_true",
        help="ask for a password, and show the page at a public address too, through Gradio's "
        "servers",
    )
    add_options(parser, "how answers come about (over the runs' recipes)", ANSWERING)
    return parser


def check_gradio() -> None:
    """Raise InputError where Gradio is missing, and where it is there let it send nothing home."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        # If a library is missing that it needs itself, to install it again would not help.
        if error.name != "gradio":
            raise
        raise InputError(
            "gradio is not installed: pip install -r requirements-extra.txt"
        ) from error


def ask_password() -> str:
    """Ask for the password of a shared page, twice."""
    try:
        password = getpass.getpass(f"password (at least {SHORTEST_PASSWORD} characters): ")
        again = getpass.getpass("once more: ")
    except EOFError:
        raise InputError("--share asks for a password, and nobody typed one.") from None
    if len(password) < SHORTEST_PASSWORD or password != again:
        raise InputError(
            f"expected the same password twice, of at least {SHORTEST_PASSWORD} characters."
        )
    return password


def find_runs(arguments: argparse.Namespace) -> dict[str, RunFolder]:
    """Return the finished runs by name, the one to begin with first, then the newest."""
    listed = [run for run in list_runs(arguments.output_dir) if run.finished]
    if arguments.run or not listed:
        first = find_run(arguments.run, arguments.output_dir)  # where there is none, it says so
    else:
        first = newest(listed, "finished")
    others = {run.path.name: run for run in reversed(listed) if run.path.name != first.path.name}
    return {first.path.name: first, **others}


def make_desk(runs: dict[str, RunFolder], arguments: argparse.Namespace) -> Desk:
    """Return what answers: the runs, opened and asked by the functions of inference.py."""
    tasks = {name: get_task(run.load_recipe().task) for name, run in runs.items()}

    def open_run(name: str, adapted: bool) -> tuple:
        return open_source(runs[name], adapted, arguments)

    return Desk(tasks, open_run, encode)


def open_source(run: RunFolder, adapted: bool, arguments: argparse.Namespace) -> tuple:
    """Return (recipe, model) as inference.py has them for --run, or for --no_adapter with it.

    The base alone is asked in the wording that the run was trained with.
    """
    from dandap.answering.run import open_model  # this loads torch, which takes 10 s

    given = {"run": str(run.path), "no_adapter": False, "template": None, "recipe": None}
    wanted = argparse.Namespace(**vars(arguments) | given)
    source = inference.with_options(inference.choose(wanted), wanted)
    if not adapted:
        source = replace(source, run=None)
    model = open_model(source.recipe, source.template, source.run)
    return source.recipe, model


def encode(recipe: Recipe, model, rows: list[Row]) -> list[Example]:
    """Return typed rows as inference.py encodes those of a file."""
    questions = inference.Questions(Table(Path("page"), rows, "", []), rows, None)
    return inference.encode(recipe, model.answerer.encoder, questions)


def make_page(desk: Desk):
    """Return the page, with a tab for each task that a run was trained for."""
    from dandap.page.layout import Tab, build_page  # with Gradio: 3 s

    tabs = []
    for task in {task.name: task for task in desk.tasks.values()}.values():
        runs = [run for run, its_task in desk.tasks.items() if its_task is task]
        tabs.append(Tab(task.name, task.title, task.boxes, runs, samples(task)))
    return build_page(tabs, partial(show, desk), endpoint(desk))


def samples(task: Task) -> dict[str, dict[str, str]]:
    """Return what may be tried, by its first words: articles of the bundled file, or one row."""
    rows = [task.sample]
    if task.sample_file:
        rows = task.read([ROOT / task.sample_file], {}, False).rows
    found = {}
    for indices in by_article(row.article for row in rows)[:MOST_SAMPLES]:
        typed = task.typed([rows[index] for index in indices])
        words = " ".join(typed[task.boxes[0].name].split())
        found[f"{len(found) + 1}. {words[:28]}..."] = typed
    return found


if __name__ == "__main__":
    run_script(main)
