"""Compare runs on the same questions: python -m tools.compare RUN...

RUN is a run, a folder of answers or a prediction file. Prints scores with intervals, the paired
difference of every two runs (bootstrap over articles), and the recipe fields that differ. A
difference is "not shown" if its interval contains 0.
"""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import metrics
from dandap.cli import Parser, parse, run_script
from dandap.errors import InputError
from dandap.files import check_writable, new_folder, read_json, write_json
from dandap.recipe import Recipe
from dandap.runs.predictions import load_members, recipe_of, run_of
from tasks import get_task
from tasks.task import label

IGNORED_FIELDS = ("output_dir", "run_name", "tokens_per_batch")  # fields that do not affect answers


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Parse the arguments, run, and return the content of compare.json."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN|FILE", help="answers to the same questions, with gold")
    add("--split", choices=["validation"], help="compare the validation answers of runs")
    add("--output_dir", metavar="DIR", default="outputs", help="folder of runs and result")
    arguments = parse(parser, argv)
    return compare(arguments.runs, arguments.output_dir, arguments.split)


def compare(
    names: Sequence[str], output_dir: str = "outputs", split: str | None = None
) -> dict[str, Any]:
    """Print, return and write to compare.json: scores, differences and differing recipe fields."""
    check_writable(Path(output_dir), "Choose another --output_dir.")
    members = load_members(names, output_dir, split)
    first = next(iter(members.values()))
    if lacking := [r["id"] for r in first if not r.get("gold") or not r.get("article")]:
        raise InputError(
            f"{len(lacking)} questions have no gold answer or article, first {lacking[0]}. Choose "
            "runs with gold answers."
        )
    golds, articles = [r["gold"] for r in first], [r["article"] for r in first]
    runs = [(run_of(path), path) for path in members]
    short = [run.path.name if run else path.parent.name for run, path in runs]
    if len(set(short)) < len(short):
        short = [*map(str, members)]
    f1: dict[str, list[float]] = {}
    scores: dict[str, dict] = {}
    for name, records in zip(short, members.values(), strict=True):
        predictions = [record["prediction"] for record in records]
        f1[name] = list(map(metrics.char_f1, predictions, golds))
        scores[name] = metrics.score(predictions, golds, articles)
    # Paired by question, because intervals of separate runs overlap easily.
    differences = [
        {"of": other, "to": one} | metrics.compare(f1[other], f1[one], articles)
        for one, other in combinations(short, 2)
    ]
    recipes = {}
    for name, path in zip(short, members, strict=True):
        if recipe := recipe_of(path):  # none for files outside runs
            saved = path.with_name("scores.json")
            is_base = saved.is_file() and read_json(saved).get("run", "") is None
            recipes[name] = recipe | {"adapter": "none (zero-shot)" if is_base else "trained"}
    fields: dict[str, dict] = {}
    for field in dict.fromkeys(field for recipe in recipes.values() for field in recipe):
        values = {name: recipe.get(field) for name, recipe in recipes.items()}
        # By repr, because lists are not hashable.
        if field not in IGNORED_FIELDS and len(set(map(repr, values.values()))) > 1:
            fields[field] = values
    # Files without a recipe have the default task.
    task = get_task(next((r["task"] for r in recipes.values() if "task" in r), Recipe().task))

    score_name = label(task.headline[0])
    number = {name: f"[{place}]" for place, name in enumerate(short, 1)}
    asked, on = task.nouns
    print(f"{len(first)} {asked}, {len(set(articles))} {on}, {metrics.METRIC_VERSION}")
    for name, score in scores.items():
        low, high = score["char_f1_interval"]
        print(
            f"  {number[name]} {score_name} {score['char_f1']:.4f} "
            f"(95% {low:.4f} to {high:.4f})  exact match {score['exact_match']:.4f}  {name}"
        )
    print(f"differences in {score_name}, paired over {on}:")
    for row in differences:
        low, high = row["interval"]
        verdict = "not shown" if low <= 0 <= high else "higher" if low > 0 else "lower"
        print(
            f"  {number[row['of']]} - {number[row['to']]}  {row['difference']:+.4f} "
            f"(95% {low:+.4f} to {high:+.4f})  {verdict}"
        )
    print("recipes differ in:" if fields else "recipes are equal")
    for field, values in fields.items():
        cells = ", ".join(f"{number[name]} {value}" for name, value in values.items())
        print(f"  {field}: {cells}")

    files = dict(zip(short, map(str, members), strict=True))
    result = {"files": files, "scores": scores, "differences": differences, "recipes": fields}
    folder = new_folder(output_dir, "compare")
    write_json(folder / "compare.json", result)
    print(f"saved: {folder / 'compare.json'}")
    return result


if __name__ == "__main__":
    run_script(main)
