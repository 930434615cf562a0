"""Runs side by side on the same questions: python -m tools.compare RUN... (runs, folders of answers, prediction files).

Scores with intervals, the difference of every pair with a paired bootstrap over articles, what differs between the recipes,
and a bar chart. A difference whose interval holds 0 is not one that these questions can show.
"""

import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # `python tools/NAME.py` works like `python -m tools.NAME`

import dandap.start  # noqa: F401

from collections.abc import Sequence
from functools import partial
from itertools import combinations

import yaml

import metrics
from dandap.command_line import Parser, parse, run_script
from dandap.errors import InputError
from dandap.runs.files import check_writable, new_folder, read_json, write_json
from dandap.runs.plots import bars, draw
from dandap.runs.predictions import find_predictions, load_predictions, run_of, same_questions

SILENT = ("output_dir", "run_name", "tokens_per_batch")  # fields that change no answer


def main(argv: list[str] | None = None) -> dict:
    """The command line; returns what compare.json holds."""
    parser = Parser(__doc__)
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN|FILE",
        help="answers to the same questions, with gold answers",
    )
    parser.add_argument(
        "--split", choices=["validation"], help="of runs, the answers on their validation questions"
    )
    parser.add_argument(
        "--output_dir",
        metavar="DIR",
        default="outputs",
        help="where runs are and the result goes (default: outputs)",
    )
    arguments = parse(parser, argv)
    check_writable(Path(arguments.output_dir), "Name another --output_dir.")
    paths = [
        find_predictions(name, arguments.output_dir, arguments.split) for name in arguments.runs
    ]
    different = {path.resolve() for path in paths}
    if len(different) < max(len(paths), 2):
        raise InputError(
            f"got {len(different)} different files of answers for {len(paths)} runs; expected two or more, each once."
        )
    names = short_names(paths)
    answers = dict(
        zip(
            names,
            same_questions({str(path): load_predictions(path) for path in paths}),
            strict=True,
        )
    )
    golds, articles = gold_of(list(answers.values()))

    f1 = {
        name: [
            metrics.char_f1(r["prediction"], gold) for r, gold in zip(records, golds, strict=True)
        ]
        for name, records in answers.items()
    }
    scores = {
        name: metrics.score([r["prediction"] for r in records], golds, articles)
        for name, records in answers.items()
    }
    differences = [
        {"of": b, "to": a} | metrics.compare(f1[b], f1[a], articles)
        for a, b in combinations(answers, 2)
    ]
    fields = different_fields(
        {name: recipe_of(path) for name, path in zip(names, paths, strict=True)}
    )
    tell(scores, differences, fields)

    result = {
        "files": dict(zip(names, map(str, paths), strict=True)),
        "scores": scores,
        "differences": differences,
        "recipes": fields,
    }
    folder = new_folder(arguments.output_dir, "compare")
    write_json(folder / "compare.json", result)
    draw(folder / "compare.png", partial(chart, scores=scores), height=1.0 + 0.6 * len(scores))
    print(f"chart: {folder / 'compare.png'}")
    return result


def short_names(paths: Sequence[Path]) -> list[str]:
    """The run's name (outside of runs the folder's) where that tells the files apart, else with the folder, else the path."""
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
    """(gold answers, article) of every question, from whichever file has them."""
    known = [
        next((r for r in records if r.get("gold") and r.get("article")), None)
        for records in zip(*members, strict=True)
    ]
    lacking = [
        records[0]["id"]
        for records, found in zip(zip(*members, strict=True), known, strict=True)
        if found is None
    ]
    if lacking:
        raise InputError(
            f"no file has the gold answer and article of {len(lacking)} questions, first {lacking[0]}. Name runs that were "
            "answered with gold answers (an answer column, or <name>_answers.csv beside the test file)."
        )
    return [r["gold"] for r in known], [r["article"] for r in known]


def recipe_of(path: Path) -> dict:
    """The recipe that answered: as inference noted it, else the run's; {} for a bare file."""
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
    """field -> {run: value} where the values are not all the same; of those that have a recipe."""
    recipes = {name: recipe for name, recipe in recipes.items() if recipe}
    fields = dict.fromkeys(
        field for recipe in recipes.values() for field in recipe if field not in SILENT
    )
    values = {
        field: {name: recipe.get(field) for name, recipe in recipes.items()} for field in fields
    }
    return {
        field: by_run
        for field, by_run in values.items()
        if len({repr(value) for value in by_run.values()}) > 1
    }


def tell(scores: dict[str, dict], differences: list[dict], fields: dict[str, dict]) -> None:
    """Print the tables; runs are numbered as they were named."""
    number = {name: f"[{place}]" for place, name in enumerate(scores, 1)}
    first = next(iter(scores.values()))
    print(f"{first['questions']} questions, {first['articles']} articles, {first['metric']}")
    for name, score in scores.items():
        low, high = score["char_f1_interval"]
        said = f"char F1 {score['char_f1']:.4f} (95% {low:.4f} to {high:.4f})  exact match {score['exact_match']:.4f}"
        print(f"  {number[name]} {said}  {name}")
    print("differences in char F1, paired over articles:")
    for row in differences:
        low, high = row["interval"]
        verdict = "not shown" if low <= 0 <= high else "higher" if low > 0 else "lower"
        print(
            f"  {number[row['of']]} - {number[row['to']]}  {row['difference']:+.4f} (95% {low:+.4f} to {high:+.4f})  {verdict}"
        )
    print("recipes differ in:" if fields else "no field differs between the recipes that are known")
    for field, values in fields.items():
        print(
            f"  {field}: " + ", ".join(f"{number[name]} {value}" for name, value in values.items())
        )


def chart(axes, scores: dict[str, dict]) -> None:
    """A bar per run."""
    values = [score["char_f1"] for score in scores.values()]
    labels = [f"[{place}] " + name.replace("/", "\n") for place, name in enumerate(scores, 1)]
    bars(
        axes,
        labels,
        values,
        [s["char_f1_interval"] for s in scores.values()],
        [s["questions"] for s in scores.values()],
    )
    axes.set_xlabel("character F1, 95% interval over articles")


if __name__ == "__main__":
    run_script(main)
