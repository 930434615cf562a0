"""What is left of articles cut to half their length: trimmed at the end, or selected by the sentences nearest to the questions.

python -m benchmarks.overflow --data FILE             share of questions whose gold answer is still in the text
python -m benchmarks.overflow --data FILE --run RUN   and the F1 of a run's answers, with the paired difference
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # started by its path, too

import dandap.start  # noqa: F401

import json

import metrics
from answers import answer_rows, make_encoder
from benchmarks.material import DEMO_DATA, DEMO_MODEL
from dandap.dataset import Row, by_article, read
from dandap.encoding import Encoder, Example
from dandap.errors import run_script
from dandap.memory import make_plan
from dandap.model import load_adapter, load_base, load_config, load_tokenizer, pick_device
from dandap.progress import track
from dandap.recipe import Parser, Recipe, make_recipe, parse, positive
from dandap.run_folder import RunFolder, find_run
from prompts import get_template
from tasks import read_test

WAYS = ("trim", "select")


def main(argv: list[str] | None = None) -> dict:
    """The command line; returns the result that its last line prints as JSON."""
    parser = Parser(__doc__)
    parser.add_argument("--data", metavar="FILE", default=DEMO_DATA, help=f"questions with answers (default: {DEMO_DATA})")
    parser.add_argument("--run", metavar="RUN", help="a trained run whose answers are scored")
    parser.add_argument("--questions", metavar="N", type=positive, help="only the first N (default: all)")
    arguments = parse(parser, argv)
    run = find_run(arguments.run, "outputs") if arguments.run else None
    recipe = run.load_recipe() if run else make_recipe({"model": DEMO_MODEL}, "the command line")
    template = run.load_template()[1] if run else get_template(recipe.template)
    encoder = make_encoder(recipe, template, load_tokenizer(recipe))
    rows = read_rows(recipe, arguments.data)[: arguments.questions]

    cut = {way: cut_in_half(encoder, rows, way) for way in WAYS}
    articles = [row.article for row in rows]
    kept = {way: [float(any(a in e.context for a in e.row.answers)) for e in examples] for way, examples in cut.items()}
    result = {"questions": len(rows), "articles": len(set(articles)), "answer_in_text": compared(kept, articles)}
    if run:
        result["char_f1"] = compared({way: answer(run, recipe, encoder, examples) for way, examples in cut.items()}, articles)
    print(json.dumps(result))
    return result


def read_rows(recipe: Recipe, path: str) -> list[Row]:
    """With gold answers, which a test file has beside it."""
    table = read(path)
    return table.rows if all(row.answers for row in table.rows) else read_test(recipe, table.path).rows


def cut_in_half(encoder: Encoder, rows: list[Row], way: str) -> list[Example]:
    """Each article cut to half its own tokens."""
    examples: dict[str, Example] = {}
    for indices in track(by_article(row.article for row in rows), way):
        group = [rows[index] for index in indices]
        tokens = len(encoder.tokenizer(group[0].context).input_ids)
        longest = max(len(encoder.encode_prompt(row.context, row)) for row in group)
        examples |= {e.row.id: e for e in encoder.encode_rows(group, longest - tokens // 2, False, way)}
    return [examples[row.id] for row in rows]


def answer(run: RunFolder, recipe: Recipe, encoder: Encoder, examples: list[Example]) -> list[float]:
    """F1 of the run's answers."""
    plan = make_plan(recipe, load_config(recipe), pick_device(), training=False)
    model = load_adapter(load_base(recipe, plan.device), run.adapter)
    records = {r["id"]: r for r in answer_rows(recipe, encoder, model, examples, plan.tokens_per_batch, "answering")}
    return [records[example.row.id]["char_f1"] for example in examples]


def compared(values: dict[str, list[float]], articles: list[str]) -> dict:
    """Means, and the difference of select to trim with its interval."""
    means = {way: round(sum(value) / len(value), 4) for way, value in values.items()}
    return means | metrics.compare(values["select"], values["trim"], articles)


if __name__ == "__main__":
    run_script(main)
