"""Augment wallpaper-QA training data.

python -m tools.augment pairs IN OUT                 one row per question and answer
python -m tools.augment join IN OUT --count 500      pairs of questions of a category, joined with
                                                     "또한," as in the test file

Joined rows are marked (`generated`) and never used for validation. Train on both files:
--train_file data/wallpaper/train.csv,OUT
"""

import random
from collections import defaultdict
from itertools import permutations
from pathlib import Path

from dandap.cli import Parser, parse, positive, run_script
from dandap.data.rows import Row, by_article
from dandap.errors import InputError
from dandap.files import check_output, write_table
from tasks.wallpaper_qa import ANSWERS, TASK

COLUMNS = ("id", "질문", "category", *ANSWERS, "generated", "sources")
Record = dict[str, str]


def pairs(groups: list[list[Row]]) -> list[Record]:
    """Return one row per question and answer."""
    return [
        # The id before "#" keeps a row's pairs on one side of a split.
        {"id": f"{row.group}#{number}", "질문": row.question, "답변_1": row.answers[0]}
        | {"category": row.fields["category"]}
        for group in groups
        for number, row in enumerate(TASK.expand(group), 1)
    ]


def join(groups: list[list[Row]], count: int, seed: int) -> list[Record]:
    """Return up to `count` random pairs of questions of one category, with joined answers."""
    rng, categories = random.Random(seed), defaultdict(list)
    for row in (row for group in groups for row in group):
        categories[row.fields["category"]].append(row)
    joinable = [
        pair
        for rows in categories.values()
        for pair in permutations(rows, 2)
        if pair[0].group != pair[1].group
    ]
    if not joinable:
        raise InputError("no category has two rows to join. Expected several rows per category.")
    made = []
    for one, other in rng.sample(joinable, min(count, len(joinable))):
        record = {"id": f"JOIN_{len(made):05d}", "질문": f"{one.question} 또한, {other.question}"}
        record |= {"generated": "join", "category": one.fields["category"]}
        record["sources"] = f"{one.group} {other.group}"
        for column, *both in zip(ANSWERS, one.answers, other.answers, strict=False):
            record[column] = " ".join(both)
        made.append(record)
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the number of rows written."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("do", choices=["pairs", "join"])
    add("source", metavar="IN", help="wallpaper-QA training rows")
    add("target", metavar="OUT", help="the file to write; must not exist")
    add("--count", type=positive, default=500, help="join: number of rows (default: 500)")
    add("--seed", type=int, default=42, help="join: seed of the random pairs (default: 42)")
    arguments = parse(parser, argv)
    target = Path(arguments.target)
    check_output(target, False, "OUT")
    rows = TASK.read([Path(arguments.source)], {}, True).rows
    groups = [[rows[i] for i in group] for group in by_article(row.group for row in rows)]
    if arguments.do == "pairs":
        made = pairs(groups)
    else:
        made = join(groups, arguments.count, arguments.seed)
    write_table(target, made, COLUMNS)
    print(f"{target}: {len(made):,} rows")
    return len(made)


if __name__ == "__main__":
    run_script(main)
