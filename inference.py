"""Answer a test file with a trained run, or with an untuned base model.

run + test file -> answers -> submission.csv, and a score if gold answers are known

python inference.py                              the newest finished run, that run's test file
python inference.py --run outputs/demo-... --test_file data/test.csv
python inference.py --split validation           score the run's validation questions again
python inference.py --recipe eeve-10.8b --no_adapter --template context_bot
                                                 zero-shot: the untuned base model
"""

import argparse
import json
from pathlib import Path
from typing import Any

from dandap import ROOT
from dandap.cli import Parser, add_options, chosen_options, parse, positive, run_script
from dandap.errors import InputError
from dandap.model.distributed import only_main_prints
from dandap.recipe import ANSWERING, Recipe, load_recipe
from dandap.runs.folder import find_run
from tasks import get_task

# A test file may have other column names than the training file.
OPTIONS = (*ANSWERING, "columns")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Parse the arguments, run, and return the result, which --json prints."""
    arguments = parse(command_line(), argv)
    with only_main_prints():
        check(arguments)

        from dandap.answering.run import answer, base_source, find_source  # loads torch

        options = {name: v for name, v in chosen_options(arguments).items() if name in OPTIONS}
        if arguments.no_adapter:
            recipe = (
                load_recipe(arguments.recipe, {})
                if arguments.recipe
                else find_run(arguments.run, arguments.output_dir).load_recipe()
            )
            source = base_source(recipe, arguments.template, options)
        else:
            source = find_source(arguments.run, arguments.output_dir, arguments.template, options)
            reject_demo_run(arguments, source.recipe)
        result = answer(
            source,
            arguments.test_file,
            split=arguments.split,
            limit=arguments.limit,
            output_dir=arguments.output_dir,
            answers_dir=arguments.answers_dir,
            output=arguments.output,
            overwrite=arguments.overwrite,
        )
        headline, scores = get_task(source.recipe.task).headline, result.scores
        summary = {
            **{name: scores and round(scores[name], 4) for name in headline},
            "questions": len(result.answers.rows),
            "seconds": round(result.seconds, 1),
            "submission": result.submission and str(result.submission),
        }
        if arguments.json:
            print(json.dumps(summary, ensure_ascii=False))
        return summary


def check(arguments: argparse.Namespace) -> None:
    """Reject contradictory options, and a run that does not exist."""
    if arguments.recipe and not arguments.no_adapter:
        raise InputError(
            "--recipe selects a base model to answer without training. Add --no_adapter, or select "
            "a trained run with --run."
        )
    if arguments.recipe and arguments.run:
        raise InputError("got --run and --recipe; expected one of them with --no_adapter.")
    if not arguments.recipe:
        find_run(arguments.run, arguments.output_dir)


def reject_demo_run(arguments: argparse.Namespace, recipe: Recipe) -> None:
    """Reject data/test.csv if the newest run is the demo: the user forgot to train."""
    test_file = Path(arguments.test_file or recipe.test_file).resolve()
    is_demo = Path(recipe.test_file).resolve() == (ROOT / "data/sample/test.csv").resolve()
    if is_demo and not arguments.run and test_file == Path(Recipe().test_file).resolve():
        raise InputError(
            f"the newest finished run is the demo, which cannot answer {test_file.name}. Train on "
            "your data first, or select the demo run with --run."
        )


def command_line() -> Parser:
    """Return the argument parser."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--run", metavar="NAME|PATH", help="trained run (default: the newest finished one)")
    add("--test_file", metavar="FILE", help="questions to answer (default: the run's test_file)")
    add("--split", choices=["validation"], help="answer the run's validation questions instead")
    add("--template", metavar="NAME", help="a template other than the run's")
    add("--recipe", metavar="NAME|PATH", help="with --no_adapter: the recipe of the base model")
    add("--no_adapter", action="store_true", help="answer with the untuned base model (zero-shot)")
    add("--output_dir", metavar="DIR", default="outputs", help="folder of runs (default: outputs)")
    add(
        "--answers_dir", metavar="DIR", help="folder for the answers (default: in the run's folder)"
    )
    add("--limit", metavar="N", type=positive, help="answer only the first N; no submission")
    add("--output", metavar="FILE", help="copy the submission to this file")
    add("--overwrite", action="store_true", help="allow --output to replace a file")
    add("--json", action="store_true", help="also print the result as JSON")
    add_options(parser, "generation (overrides the run's recipe)", OPTIONS)
    return parser


if __name__ == "__main__":
    run_script(main)
