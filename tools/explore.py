"""Describe a data file: samples, prompt lengths, tokens saved by reading once, data checks.

python -m tools.explore FILE [--test FILE] [--columns context=본문] [--recipe NAME]

The task is recognized by the file's fields. Lengths are those of the recipe's tokenizer and prompt
(default: the demo's recipe for the task).
"""

from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from dandap.cli import Parser, parse, run_script
from dandap.data.checks import check_data, finding_lines
from dandap.data.text import find_files
from dandap.recipe import load_recipe
from tasks import TASKS, checked_template
from tasks.task import read_test

# The demo's recipe of each task.
RECIPES = {"dialogue_inference": "dialogue-demo", "wallpaper_qa": "wallpaper-demo"}
LIMITS = (512, 1024, 2048, 4096)  # tokens
SAMPLES, SHOWN = 3, 100  # rows, and characters of a text


def explore(
    path: Path,
    test_file: str | None = None,
    columns: str | None = None,
    recipe: str | None = None,
    template: str | None = None,
) -> dict[str, Any]:
    """Print a description of a data file, and return its figures."""
    find_files(path)  # raises if there is none
    task = next((task for task in TASKS.values() if task.recognizes(path)), TASKS["economic_qa"])
    chosen = {"columns": columns or {}} | ({"template": template} if template else {})
    settings = load_recipe(recipe or RECIPES.get(task.name, "demo"), chosen)
    table = task.read([path], settings.columns, False)
    test = read_test(task, settings, Path(test_file)).rows if test_file else []
    asked, on = task.nouns
    articles = len({row.article for row in table.rows})
    print(f"{path}: {len(table.rows):,} {asked} on {articles:,} {on}, ", end="")
    print(f"{len(table.rows) / articles:.1f} each ({task.name})")
    for note in table.notes:
        print(f"  {note}")
    for row in table.rows[:SAMPLES]:
        print(f"\n{row.id} ({task.kind(row)})")
        for text in filter(None, (row.context, row.question, "; ".join(row.answers))):
            print(f"  {shorten(text)}")

    from dandap.data.encode import Encoder  # these load torch
    from dandap.model.load import load_tokenizer
    from dandap.training.batching import count_tokens

    encoder = Encoder(
        load_tokenizer(settings), checked_template(settings.template, task.name), task.sample
    )
    rows = task.expand(table.rows) or table.rows  # a test file has no answers to expand
    examples = encoder.encode(rows, 10**9, any(row.answers for row in rows), "error")
    lengths = [len(example.prompt_ids) + len(example.answer_ids) for example in examples]
    every, once = count_tokens(examples, settings)
    figures: dict[str, Any] = {asked: len(table.rows), on: articles}
    figures |= {"lengths": lengths, "every": every, "once": once}
    print(f"\ntokens of prompt and answer ({settings.model}, template {settings.template}):")
    middle, most = np.quantile(lengths, (0.5, 0.95))
    print(f"  median {middle:,.0f}, 95% {most:,.0f}, longest {max(lengths):,}")
    for limit in LIMITS:
        if above := sum(length > limit for length in lengths):
            print(f"  {above:,} ({above / len(lengths):.1%}) exceed {limit:,} tokens")
    print(
        f"each article read once: {once:,} instead of {every:,} tokens ({every / once:.1f}x fewer)"
    )
    if answers := [row for row in table.rows if row.answers]:
        spans = [any(answer in row.context for answer in row.answers) for row in answers]
        figures["literal"] = fmean(spans)
        size = fmean(len(row.answers[0]) for row in answers)
        literal = f", {figures['literal']:.1%} literal spans" if any(spans) else ""
        print(f"answers: {size:.1f} characters on average{literal}")
    figures["kinds"] = Counter(task.kind(row) for row in table.rows)
    print("kinds: " + ", ".join(f"{kind} {n:,}" for kind, n in figures["kinds"].most_common()))
    figures["checks"] = check_data({"file": table.rows} | ({"test": test} if test else {}))
    print(*finding_lines(figures["checks"]), sep="\n")
    return figures


def shorten(text: str) -> str:
    """Return the beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Parse the arguments, run, and return the figures."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("file", metavar="FILE", help="questions, with or without answers")
    test_help = "test file; reports articles it shares with FILE"
    add("--test", dest="test_file", metavar="FILE", help=test_help)
    add("--columns", metavar="NAME=COLUMN,...", help="rename columns, such as context=본문")
    add("--recipe", metavar="NAME", help="recipe for the tokenizer and template")
    add("--template", metavar="NAME", help="prompt template (default: the recipe's)")
    options = vars(parse(parser, argv))
    del options["lang"]
    return explore(Path(options.pop("file")), **options)


if __name__ == "__main__":
    run_script(main)
