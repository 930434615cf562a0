"""Show what is in a data file.

python -m tools.explore FILE [--test FILE] [--columns context=본문] [--tokenizer NAME] [--refined]

This writes outputs/explore-<name>-<time>/ with report.html, pictures and tables. Economic QA (CSV,
JSON lines, SQuAD JSON), NIKL dialogues and wallpaper QA are told apart by their fields. --refined
cleans dialogues first (tools.refine).
"""

import sys
from pathlib import Path

# So that `python tools/NAME.py` works like `python -m tools.NAME`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dandap.cli import Parser, parse, run_script
from dandap.data.files import find_files
from dandap.errors import InputError
from dandap.recipe import make_recipe
from tasks import TASKS
from tasks.task import Task

DEMO_TOKENIZER = "data/demo_model"


def main(argv: list[str] | None = None) -> dict:
    """Run the command line; return the report's tables."""
    arguments = parse(command_line(), argv)
    path = Path(arguments.file)
    task = task_of(path)
    if arguments.refined and not task.cleans:
        raise InputError(f"--refined cleans dialogues; this file is {task.name}'s.")
    # Parsed as a recipe's, and demo_model found as a recipe's is.
    recipe = make_recipe(
        {"columns": arguments.columns or {}, "model": arguments.tokenizer}, "the command line"
    )
    rows = task.read([path], recipe.columns, False).rows
    test = task.read_test(recipe, Path(arguments.test)).rows if arguments.test else []

    # These load torch, pandas and matplotlib: not before the files are known to be readable.
    from dandap.model.load import load_tokenizer
    from tools.findings import explore, tell

    tokenizer = load_tokenizer(recipe)

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    found = explore(task, path, {"file": rows, "test": test}, count, arguments)
    tell(found, f"{path.name}{' (refined)' if arguments.refined else ''}: {task.name}")
    return found.tables


def command_line() -> Parser:
    """Return the options: which file is looked at, and how."""
    parser = Parser(__doc__)
    parser.add_argument("file", metavar="FILE", help="questions, with or without answers")
    parser.add_argument(
        "--test", metavar="FILE", help="a test file, to look for leaks and compare lengths"
    )
    parser.add_argument(
        "--columns", metavar="NAME=COLUMN,...", help="our names for the file's columns"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        default=DEMO_TOKENIZER,
        help=f"whose tokens are counted (default: {DEMO_TOKENIZER})",
    )
    parser.add_argument("--refined", action="store_true", help="clean dialogues first")
    parser.add_argument(
        "--output_dir",
        metavar="DIR",
        default="outputs",
        help="where the folder goes (default: outputs)",
    )
    return parser


def task_of(path: Path) -> Task:
    """Return the task whose file it is, by its fields; economic QA takes what no other knows."""
    # Raises if there is no such file, which `recognises` takes for granted.
    find_files(path)
    return next((task for task in TASKS.values() if task.recognizes(path)), TASKS["economic_qa"])


if __name__ == "__main__":
    run_script(main)
