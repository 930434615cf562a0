"""Compare --on_overflow trim and select on articles cut to half their tokens.

python -m benchmarks.overflow --data FILE             share of gold answers left in the text
python -m benchmarks.overflow --data FILE --run RUN   also the F1 of a run's answers
"""

import sys
from pathlib import Path

# For `python benchmarks/NAME.py`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json

import dandap.cli  # noqa: F401
import metrics
from benchmarks.material import DEMO_DATA, DEMO_MODEL
from dandap.answering.run import find_source, open_model
from dandap.cli import Parser, parse, positive, run_script
from dandap.console import track
from dandap.data.encode import Encoder, Example
from dandap.data.read import read_questions
from dandap.data.rows import Row, by_article
from dandap.model.load import load_tokenizer
from dandap.recipe import Recipe, make_recipe
from prompts import get_template
from tasks import get_task
from tasks.task import read_test

MODES = ("trim", "select")


def main(argv: list[str] | None = None) -> dict:
    """Parse the arguments, run, and print the result as JSON on the last line."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--data",
        metavar="FILE",
        default=DEMO_DATA,
        help=f"questions with answers (default: {DEMO_DATA})",
    )
    parser.add_argument("--run", metavar="RUN", help="score the answers of this run")
    parser.add_argument(
        "--questions", metavar="N", type=positive, help="only the first N (default: all)"
    )
    arguments = parse(parser, argv)
    source = find_source(arguments.run) if arguments.run else None
    if source:
        recipe, template = source.recipe, source.template
    else:
        recipe = make_recipe({"model": DEMO_MODEL}, "the command line")
        template = get_template(recipe.template)
    encoder = Encoder(load_tokenizer(recipe), template, get_task(recipe.task).sample)
    rows = read_rows(recipe, arguments.data)[: arguments.questions]

    cut = {mode: cut_in_half(encoder, rows, mode) for mode in MODES}
    articles = [row.article for row in rows]
    in_text = {}
    for mode, examples in cut.items():
        in_text[mode] = [float(any(a in e.context for a in e.row.answers)) for e in examples]
    result = {
        "questions": len(rows),
        "articles": len(set(articles)),
        "answer_in_text": compared(in_text, articles),
    }
    if source:
        model = open_model(source)
        f1 = {}
        for mode, examples in cut.items():
            records = model.predict_all(examples, "answering").records
            f1[mode] = [record["char_f1"] for record in records]
        result["char_f1"] = compared(f1, articles)
    print(json.dumps(result))
    return result


def read_rows(recipe: Recipe, path: str) -> list[Row]:
    """Return the rows with gold answers, which may be in a second file next to a test file."""
    table = read_questions(path)
    if all(row.answers for row in table.rows):
        return table.rows
    return read_test(get_task(recipe.task), recipe, table.path).rows


def cut_in_half(encoder: Encoder, rows: list[Row], mode: str) -> list[Example]:
    """Return the encoded rows, with each article cut to half its tokens."""
    examples: dict[str, Example] = {}
    for indices in track(by_article(row.article for row in rows), mode, "articles"):
        group = [rows[index] for index in indices]
        tokens = len(encoder.tokenizer(group[0].context).input_ids)
        # The encoder takes a prompt limit: the longest prompt minus half the article.
        longest = max(len(encoder.encode_prompt(row.context, row)) for row in group)
        encoded = encoder.encode(group, longest - tokens // 2, False, mode)
        examples |= {example.row.id: example for example in encoded}
    return [examples[row.id] for row in rows]


def compared(values: dict[str, list[float]], articles: list[str]) -> dict:
    """Return both means, and the paired difference of select and trim with its interval."""
    means = {mode: round(sum(value) / len(value), 4) for mode, value in values.items()}
    return means | metrics.compare(values["select"], values["trim"], articles)


if __name__ == "__main__":
    run_script(main)
