"""Measure what is left of articles that are cut to half their length.

They are trimmed at the end, or the sentences nearest to the questions are selected.

python -m benchmarks.overflow --data FILE             share of questions whose gold answer is still
                                                      in the text
python -m benchmarks.overflow --data FILE --run RUN   and the F1 of a run's answers, with the paired
                                                      difference
"""

import sys
from pathlib import Path

# So that `python benchmarks/NAME.py` works like `python -m benchmarks.NAME`.
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

WAYS = ("trim", "select")


def main(argv: list[str] | None = None) -> dict:
    """Run the command line; return the result that its last line prints as JSON."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--data",
        metavar="FILE",
        default=DEMO_DATA,
        help=f"questions with answers (default: {DEMO_DATA})",
    )
    parser.add_argument("--run", metavar="RUN", help="a trained run whose answers are scored")
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

    cut = {way: cut_in_half(encoder, rows, way) for way in WAYS}
    articles = [row.article for row in rows]
    kept = {}
    for way, examples in cut.items():
        kept[way] = [float(any(a in e.context for a in e.row.answers)) for e in examples]
    result = {
        "questions": len(rows),
        "articles": len(set(articles)),
        "answer_in_text": compared(kept, articles),
    }
    if source:
        model = open_model(source)
        f1 = {}
        for way, examples in cut.items():
            records = model.predict_all(examples, "answering").records
            f1[way] = [record["char_f1"] for record in records]
        result["char_f1"] = compared(f1, articles)
    print(json.dumps(result))
    return result


def read_rows(recipe: Recipe, path: str) -> list[Row]:
    """Return the rows with their gold answers, which a test file has in a file beside it."""
    table = read_questions(path)
    if all(row.answers for row in table.rows):
        return table.rows
    return read_test(get_task(recipe.task), recipe, table.path).rows


def cut_in_half(encoder: Encoder, rows: list[Row], way: str) -> list[Example]:
    """Return the encoded rows, each article cut to half its own tokens in the way named."""
    examples: dict[str, Example] = {}
    for indices in track(by_article(row.article for row in rows), way, "articles"):
        group = [rows[index] for index in indices]
        tokens = len(encoder.tokenizer(group[0].context).input_ids)
        # What is given is a limit for prompts: that of the longest question, less half the article.
        longest = max(len(encoder.encode_prompt(row.context, row)) for row in group)
        encoded = encoder.encode(group, longest - tokens // 2, False, way)
        examples |= {example.row.id: example for example in encoded}
    return [examples[row.id] for row in rows]


def compared(values: dict[str, list[float]], articles: list[str]) -> dict:
    """Return each way's mean, and the difference of select to trim with its interval."""
    means = {way: round(sum(value) / len(value), 4) for way, value in values.items()}
    return means | metrics.compare(values["select"], values["trim"], articles)


if __name__ == "__main__":
    run_script(main)
