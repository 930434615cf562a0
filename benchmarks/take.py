"""Take articles by a hash: python -m benchmarks.take FILE OUT --train 300 --test 40.

Writes OUT/train.csv and OUT/test.csv, the second with its answers, with all questions of so many
articles each. The same articles are taken whatever the file's order; --train 50 is a part of
--train 100, so that scores by the number of training articles can be compared.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # started by its path, too

from dandap.cli import Parser, parse, positive, run_script
from dandap.data.read import read_questions
from dandap.data.rows import Row
from dandap.errors import InputError
from dandap.files import write_table

COLUMNS = ("id", "context", "question", "answers")


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = Parser(__doc__)
    parser.add_argument("file", metavar="FILE", help="questions with answers")
    parser.add_argument("target", metavar="OUT", help="the folder for train.csv and test.csv")
    parser.add_argument(
        "--train", metavar="N", type=positive, default=300, help="articles to learn"
    )
    parser.add_argument("--test", metavar="N", type=positive, default=40, help="articles to answer")
    arguments = parse(parser, argv)
    rows = read_questions(arguments.file, need_answers=True).rows
    articles = sorted({row.article for row in rows})  # the names are hashes of the texts
    if len(articles) < arguments.train + arguments.test:
        raise InputError(
            f"{arguments.file} has {len(articles)} articles; expected at least "
            f"{arguments.train + arguments.test}. Take fewer."
        )
    folder = Path(arguments.target)
    folder.mkdir(parents=True, exist_ok=True)
    # The test articles come first, so that they are the same whatever --train is.
    write(folder / "test.csv", rows, articles[: arguments.test])
    write(folder / "train.csv", rows, articles[arguments.test :][: arguments.train])


def write(path: Path, rows: list[Row], articles: list[str]) -> None:
    """Write the questions of some articles, all their answers with them."""
    chosen = set(articles)
    taken = [row for row in rows if row.article in chosen]
    table = [
        dict(zip(COLUMNS, (row.id, row.context, row.question, list(row.answers)), strict=True))
        for row in taken
    ]
    write_table(path, table, COLUMNS)
    print(f"{path}: {len(taken):,} questions on {len(chosen):,} articles")


if __name__ == "__main__":
    run_script(main)
