"""Compare runs on the same questions: python -m tools.compare RUN...

RUN is a run, a folder of answers or a prediction file. Shown are scores with intervals, the
difference of every pair with a paired bootstrap over articles, what differs between the recipes,
and a bar chart. A difference whose interval holds 0 is not one that these questions can show.
"""

import sys
from pathlib import Path

# So that `python tools/NAME.py` works like `python -m tools.NAME`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
from collections.abc import Sequence
from functools import partial
from itertools import combinations

import yaml

import metrics
from dandap.cli import Parser, parse, run_script
from dandap.errors import InputError
from dandap.files import check_writable, new_folder, read_json, write_json
from dandap.recipe import Recipe
from dandap.runs.predictions import (
    add_search_options,
    find_predictions,
    load_predictions,
    run_of,
    same_questions,
)
from tasks import get_task
from tasks.task import Task

SILENT = ("output_dir", "run_name", "tokens_per_batch")  # fields that change no answer


def main(argv: list[str] | None = None) -> dict:
    """Run the command line; return what compare.json holds."""
    arguments = parse(command_line(), argv)
    check_writable(Path(arguments.output_dir), "Name another --output_dir.")
    paths = find_all(arguments)
    names = short_names(paths)
    answers = dict(
        zip(
            names,
            same_questions({str(path): load_predictions(path) for path in paths}),
            strict=True,
        )
    )
    golds, articles = gold_of(list(answers.values()))

    f1: dict[str, list[float]] = {}
    scores: dict[str, dict] = {}
    for name, records in answers.items():
        predictions = [record["prediction"] for record in records]
        f1[name] = list(map(metrics.char_f1, predictions, golds))
        scores[name] = metrics.score(predictions, golds, articles)
    # Paired, question by question: two runs' own intervals may overlap where one is better on every
    # article.
    differences = [
        {"of": b, "to": a} | metrics.compare(f1[b], f1[a], articles)
        for a, b in combinations(answers, 2)
    ]
    recipes = {name: recipe_of(path) for name, path in zip(names, paths, strict=True)}
    fields = different_fields(recipes)
    # A bare file says nothing of its task; character F1 is then the score.
    task = get_task(next((r["task"] for r in recipes.values() if "task" in r), Recipe().task))
    tell(task, scores, differences, fields)

    result = {
        "files": dict(zip(names, map(str, paths), strict=True)),
        "scores": scores,
        "differences": differences,
        "recipes": fields,
    }
    folder = new_folder(arguments.output_dir, "compare")
    write_json(folder / "compare.json", result)
    # matplotlib takes a second to load: not before what is compared is known to be right.
    from dandap.runs.plots import draw

    title = f"{task.label(task.headline[0])}, 95% interval over {task.nouns[1]}"
    draw(folder / "compare.png", title, partial(chart, scores=scores), 1.2 + 0.6 * len(scores))
    print(f"chart: {folder / 'compare.png'}")
    return result


def command_line() -> Parser:
    """Return the options: which answers are compared."""
    parser = Parser(__doc__)
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN|FILE",
        help="answers to the same questions, with gold answers",
    )
    add_search_options(parser)
    return parser


def find_all(arguments: argparse.Namespace) -> list[Path]:
    """Return the files of answers of all that are named; InputError where they are not several."""
    paths = [
        find_predictions(name, arguments.output_dir, arguments.split) for name in arguments.runs
    ]
    # A run and its own folder of answers may be one file; it would be compared with itself.
    different = {path.resolve() for path in paths}
    if len(different) < max(len(paths), 2):
        raise InputError(
            f"got {len(different)} different files of answers for {len(paths)} runs; "
            "expected two or more, each once."
        )
    return paths


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest names that tell the files apart.

    These are the runs' names, else with the folder of answers, else the paths. A file that lies in
    no run goes by the name of its folder, else by its path.
    """
    runs = [run_of(path) for path in paths]
    short = [
        run.path.name if run else path.parent.name for path, run in zip(paths, runs, strict=True)
    ]
    long = [
        f"{run.path.name}/{path.parent.name}" if run else str(path)
        for path, run in zip(paths, runs, strict=True)
    ]
    return next(
        (names for names in (short, long) if len(set(names)) == len(names)), list(map(str, paths))
    )


def gold_of(members: list[list[dict]]) -> tuple[list[list[str]], list[str]]:
    """Return the gold answers and the article of every question, from whichever file has them."""
    golds, articles, lacking = [], [], []
    for records in zip(*members, strict=True):
        whole = [record for record in records if record.get("gold") and record.get("article")]
        if whole:
            golds.append(whole[0]["gold"])
            articles.append(whole[0]["article"])
        else:
            lacking.append(records[0]["id"])
    if lacking:
        raise InputError(
            f"no file has the gold answer and article of {len(lacking)} questions, "
            f"first {lacking[0]}. Name runs that were answered with gold answers (an answer "
            "column, or <name>_answers.csv beside the test file)."
        )
    return golds, articles


def recipe_of(path: Path) -> dict:
    """Return the recipe that answered: what inference noted, else the run's; {} for a bare file."""
    # Inference's note comes first, because its options (samples, grounded) are not in the run's.
    noted = path.with_name("scores.json")
    if noted.is_file():
        scores = read_json(noted)
        if "recipe" in scores:
            return scores["recipe"] | {
                "adapter": "none (zero-shot)" if scores["run"] is None else "trained"
            }
    run = run_of(path)
    return (
        {**yaml.safe_load(run.recipe_file.read_text(encoding="utf-8")), "adapter": "trained"}
        if run
        else {}
    )


def different_fields(recipes: dict[str, dict]) -> dict[str, dict]:
    """Return the fields whose values differ between the recipes, each as {run: value}.

    Runs without a known recipe are left out.
    """
    recipes = {name: recipe for name, recipe in recipes.items() if recipe}
    fields = dict.fromkeys(
        field for recipe in recipes.values() for field in recipe if field not in SILENT
    )
    different = {}
    for field in fields:
        by_run = {name: recipe.get(field) for name, recipe in recipes.items()}
        # Values may be lists, which no set takes; their spelling stands for them.
        if len({repr(value) for value in by_run.values()}) > 1:
            different[field] = by_run
    return different


def tell(
    task: Task, scores: dict[str, dict], differences: list[dict], fields: dict[str, dict]
) -> None:
    """Print the tables; runs are numbered as they were named."""
    # Long names would break the lines of differences, so these have numbers.
    number = {name: f"[{place}]" for place, name in enumerate(scores, 1)}
    first = next(iter(scores.values()))
    label, (asked, on) = task.label(task.headline[0]), task.nouns
    print(f"{first['questions']} {asked}, {first['articles']} {on}, {first['metric']}")
    for name, score in scores.items():
        low, high = score["char_f1_interval"]
        said = f"{label} {score['char_f1']:.4f} (95% {low:.4f} to {high:.4f})"
        # Where answers are letters, both scores are the accuracy.
        if "char_f1" in task.headline:
            said += f"  exact match {score['exact_match']:.4f}"
        print(f"  {number[name]} {said}  {name}")
    print(f"differences in {label}, paired over {on}:")
    for row in differences:
        low, high = row["interval"]
        verdict = "not shown" if low <= 0 <= high else "higher" if low > 0 else "lower"
        print(
            f"  {number[row['of']]} - {number[row['to']]}  {row['difference']:+.4f} "
            f"(95% {low:+.4f} to {high:+.4f})  {verdict}"
        )
    print("recipes differ in:" if fields else "no field differs between the recipes that are known")
    for field, values in fields.items():
        print(
            f"  {field}: " + ", ".join(f"{number[name]} {value}" for name, value in values.items())
        )


def chart(axes, scores: dict[str, dict]) -> None:
    """Draw a bar per run with its interval."""
    from dandap.runs.plots import bars

    values = [score["char_f1"] for score in scores.values()]
    labels = [f"[{place}] " + name for place, name in enumerate(scores, 1)]
    bars(
        axes,
        labels,
        values,
        [s["char_f1_interval"] for s in scores.values()],
        [s["questions"] for s in scores.values()],
    )


if __name__ == "__main__":
    run_script(main)
