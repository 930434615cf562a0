"""Select articles by hash: python -m benchmarks.take FILE OUT --train 300 --test 40.

Write all questions of the selected articles, with answers, to OUT/train.csv and OUT/test.csv. The
selection does not depend on the order of rows, and --train 50 is a subset of --train 100.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/take.py`

from dandap.cli import Parser, parse, positive, run_script
from dandap.data.read import read_questions
from dandap.data.rows import Row
from dandap.errors import InputError
from dandap.files import write_table

COLUMNS = ("id", "context", "question", "answers")


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments and run."""
    parser = Parser(__doc__)
    parser.add_argument("file", metavar="FILE", help="questions with answers")
    parser.add_argument("target", metavar="OUT", help="folder for train.csv and test.csv")
    parser.add_argument(
        "--train", metavar="N", type=positive, default=300, help="training articles"
    )
    parser.add_argument("--test", metavar="N", type=positive, default=40, help="test articles")
    arguments = parse(parser, argv)
    rows = read_questions(arguments.file, need_answers=True).rows
    articles = sorted({row.article for row in rows})  # named by the hash of the text
    if len(articles) < arguments.train + arguments.test:
        raise InputError(
            f"{arguments.file}: got {len(articles)} articles, expected at least "
            f"{arguments.train + arguments.test}. Lower --train or --test."
        )
    folder = Path(arguments.target)
    folder.mkdir(parents=True, exist_ok=True)
    # Test articles come first, so that they do not depend on --train.
    write(folder / "test.csv", rows, articles[: arguments.test])
    write(folder / "train.csv", rows, articles[arguments.test :][: arguments.train])


def write(path: Path, rows: list[Row], articles: list[str]) -> None:
    """Write all questions of the given articles with their answers."""
    selected = set(articles)
    questions = [row for row in rows if row.article in selected]
    table = [
        dict(zip(COLUMNS, (row.id, row.context, row.question, list(row.answers)), strict=True))
        for row in questions
    ]
    write_table(path, table, COLUMNS)
    print(f"{path}: {len(questions):,} questions on {len(selected):,} articles")


if __name__ == "__main__":
    run_script(main)
