"""Show what is in a data file: samples, token lengths, what reading once saves, data checks.

python -m tools.explore FILE [--test FILE] [--columns context=본문] [--tokenizer NAME] [--refined]

Writes outputs/explore-<name>-<time>/ with report.html, pictures and tables. Economic QA, NIKL
dialogues and wallpaper QA are recognized by their fields. --refined cleans dialogues first
(tools.refine).
"""

import sys
from pathlib import Path

# So that `python tools/NAME.py` works like `python -m tools.NAME`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import math
import re
from collections import Counter
from functools import partial
from statistics import fmean, median
from typing import Any

import numpy as np
from markupsafe import Markup

from dandap.cli import Parser, parse, run_script
from dandap.data.checks import FINDINGS, check_data
from dandap.data.files import find_files
from dandap.data.rows import Row, by_article
from dandap.data.sentences import character_pairs, likeness, split_sentences
from dandap.errors import InputError
from dandap.files import new_folder, write_table
from dandap.language import t
from dandap.recipe import make_recipe
from tasks import TASKS
from tasks.exploration import Chart, Description
from tasks.submission import inert
from tasks.task import Task, read_test
from tools.refine import refine
from tools.words import count_words

PAGE = Path(__file__).with_name("explore.html.jinja")
DEMO_TOKENIZER = "data/demo_model"
LIMITS = (512, 1024, 2048)  # tokens; values of max_length
MOST_COMPARED = 1000  # questions; each is compared with each
MOST_TEXTS = 2000  # of the word cloud: Kiwi needs 5 ms for an article
Cells = list[tuple[Any, ...]]  # a table's rows


def explore(
    path: Path,
    test_file: str | None = None,
    columns: str | None = None,
    tokenizer: str = DEMO_TOKENIZER,
    refined: bool = False,
    output_dir: str = "outputs",
) -> dict[str, Cells]:
    """Write a report on a data file into a new folder, print its tables and return them."""
    find_files(path)  # InputError if there is none
    task = next((task for task in TASKS.values() if task.recognizes(path)), TASKS["economic_qa"])
    describe = getattr(task, "describe", None)  # of tasks that are more than questions on articles
    if refined and not describe:
        raise InputError(f"--refined cleans dialogues; this file is {task.name}'s.")
    recipe = make_recipe({"columns": columns or {}, "model": tokenizer}, "the command line")
    if describe:
        found = describe(path, refine if refined else None)
    else:
        found = describe_rows(task, task.read([path], recipe.columns, False).rows)
    test = read_test(task, recipe, Path(test_file)).rows if test_file else []

    from dandap.model.load import load_tokenizer  # loads torch
    from dandap.runs.html import (
        draw,
        write_page,  # loads matplotlib
    )

    tokenizer = load_tokenizer(recipe)
    tables = {"Sample": [sample(task, row) for row in found.rows[:3]], **found.tables}
    tables["Size"] += [spread(name, values) for name, values in found.sizes.items()]
    if any(text for text, _ in found.shared):  # wallpaper questions have no article
        tables |= token_tables(task, found.shared, tokenizer)
    checks = check_data({"file": found.rows} | ({"test": test} if test else {}))
    tables["Data checks"] = [(len(each), FINDINGS[kind]) for kind, each in checks.items()]
    if test:
        lengths = text_lengths(task, test).items()
        sizes = [spread(characters_of(name), values) for name, values in lengths]
        tables["The test file"] = [*count(task, test), *sizes]
    tables = {
        t(title): [tuple(map(t, row)) for row in cells]
        for title, cells in (tables | found.more_tables).items()
    }

    folder = new_folder(output_dir, f"explore-{path.stem}{'-refined' if refined else ''}")
    for name, records in found.lists.items():
        safe = [{key: inert(value) for key, value in record.items()} for record in records]
        write_table(folder / f"{name}.csv", safe)
    pictures = []
    for name, title, values, label in found.charts:
        fill = partial(histogram if isinstance(values, list) else bars, values, t(label))
        height = 3.2 if isinstance(values, list) else 1.1 + 0.35 * len(values)
        pictures.append(Markup(draw(folder / f"{name}.png", t(title), fill, height)))
    pictures.append(word_cloud(folder / "wordcloud.png", found.texts))
    title = f"{path.name}{' (refined)' if refined else ''}: {task.name}"
    report = write_page(folder, PAGE, title, tables=tables, pictures=pictures, cell=cell_text)
    for title, cells in tables.items():
        print(title, *("  " + "  ".join(map(cell_text, row)) for row in cells), sep="\n")
    print(f"report: {report}")
    return tables


def describe_rows(task: Task, rows: list[Row]) -> Description:
    """Describe questions with or without articles."""
    records = []
    for row in rows:
        answer = row.answers[0] if row.answers else ""
        record = {"id": row.id, "kind": task.kind(row), "article_characters": len(row.context)}
        record |= {"question_characters": len(row.question), "answer_characters": len(answer)}
        record |= {"answer_words": len(answer.split())}
        records.append(record | {"is_span": any(text in row.context for text in row.answers)})
    answered = [record for record in records if record["answer_words"]]
    groups = by_article(row.article for row in rows)
    tables: dict[str, Cells] = {"Size": count(task, rows)}
    if not any(row.context for row in rows):
        tables = wallpaper_tables(rows, records)
    elif answered:
        spans = fmean(record["is_span"] for record in answered)
        words = fmean(record["answer_words"] == 1 for record in answered)
        tables["Answers"] = [("share that stand in their article as written", f"{spans:.1%}")]
        tables["Answers"].append(("share of one word", f"{words:.1%}"))
    asked, on = task.nouns
    kinds = Counter(record["kind"] for record in records)
    lengths = text_lengths(task, rows)
    title = t("{asked} per {on}", asked=t(asked), on=t(one(on)))
    counts = dict(sorted(Counter(map(len, groups)).items()))
    return Description(
        rows,
        tables={"Size": tables.pop("Size")},
        more_tables=tables,
        sizes={characters_of(name): values for name, values in lengths.items()},
        charts=[
            Chart("questions_per_article", title, counts, asked),
            *(Chart(f"{n}_length", characters_of(n), v, "characters") for n, v in lengths.items()),
            Chart("kinds", "what is asked", dict(kinds.most_common()), "questions"),
        ],
        lists={"rows": records},
        shared=[(rows[group[0]].context, [rows[i].question for i in group]) for group in groups],
        texts=[*{row.context for row in rows}, *(row.question for row in rows)],
    )


def sample(task: Task, row: Row) -> tuple[str, ...]:
    """Return a question for people, its article shortened."""
    texts = (row.id, task.kind(row), row.context, row.question, *row.answers[:1])
    lines = [" ".join(text.split()) for text in texts if text]
    return tuple(line if len(line) <= 100 else f"{line[:100]}…" for line in lines)


def count(task: Task, rows: list[Row]) -> Cells:
    """Return the numbers of questions and articles."""
    asked, on = task.nouns
    return [(asked, len(rows)), (on, len({row.article for row in rows}))]


def text_lengths(task: Task, rows: list[Row]) -> dict[str, list[int]]:
    """Return the characters of articles, questions and first answers."""
    texts = {
        one(task.nouns[1]): [row.context for row in rows if row.context],
        "question": [row.question for row in rows],
        "answer": [answer for row in rows for answer in row.answers[:1]],
    }
    return {name: list(map(len, each)) for name, each in texts.items() if each}


def spread(what: str, values: list[int]) -> tuple[Any, ...]:
    """Return a table's row: mean, median, 95% and longest."""
    numbers = round(fmean(values), 1), *map(int, np.quantile(values, [0.5, 0.95, 1]))
    return t("{what}: mean, median, 95%, longest", what=t(what)), *numbers


def token_tables(task: Task, shared: list[tuple[str, list[str]]], tokenizer) -> dict[str, Cells]:
    """Return what decides max_length, and what reading once saves."""

    def length(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    articles = [length(text) for text, _ in shared]
    own = [list(map(length, texts)) for _, texts in shared]
    prompts = np.array([a + n for a, each in zip(articles, own, strict=True) for n in each])
    every, once = int(prompts.sum()), sum(articles) + sum(map(sum, own))
    names = {"asked": t(task.nouns[0]), "on": t(one(task.nouns[1])), "one": t(one(task.nouns[0]))}
    return {
        t("Tokens of {on} and {asked}", on=names["on"], asked=names["one"]): [
            (t("share above {limit}", limit=f"{limit:,}"), f"{(prompts > limit).mean():.1%}")
            for limit in LIMITS
        ],
        "Reading once": [
            (t("{asked} per {on}", **names), round(len(prompts) / len(shared), 2)),
            (t("tokens of {on} and {asked}, read for every {one}", **names), every),
            (t("the same, each {on} read once", **names), once),
            ("times fewer", round(every / once, 2)),
        ],
    }


def wallpaper_tables(rows: list[Row], records: list[dict]) -> dict[str, Cells]:
    """Return what the published explorations of wallpaper QA report."""
    texts = {text for row in rows for text in (row.question, *row.answers)}
    names = ("question_characters", "answer_characters", "answer_words")
    names = [name for name in names if len({record[name] for record in records}) > 1]
    lengths = [[record[name] for record in records] for name in names]
    correlations = np.atleast_2d(np.corrcoef(lengths)).round(2).tolist() if names else []
    pairs = [character_pairs(question) for question in dict.fromkeys(row.question for row in rows)]
    pairs = pairs[:MOST_COMPARED]
    nearest = [max((likeness(a, b) for b in pairs if b is not a), default=0.0) for a in pairs]
    numbers = np.quantile(nearest, [0.5, 0.95, 1]).tolist()
    return {
        "Size": [
            *count(TASKS["wallpaper_qa"], rows),
            ("bytes (UTF-8)", sum(len(text.encode()) for text in texts)),
            ("syllables (Hangul)", sum(len(re.findall("[가-힣]", text)) for text in texts)),
            ("sentences", sum(len(split_sentences(text)) for text in texts)),
        ],
        "correlations of lengths": [
            ("", *names),
            *((name, *values) for name, values in zip(names, correlations, strict=True)),
        ],
        "Likeness of a question to the most similar other (shared character pairs)": [
            ("mean, median, 95%, largest", *(round(n, 2) for n in (fmean(nearest), *numbers)))
        ],
    }


def one(nouns: str) -> str:
    """Return "question" for "questions"."""
    return nouns.removesuffix("s")


def characters_of(name: str) -> str:
    """Return "characters of an answer" for "answer"."""
    if name[0] in "aeiou":
        return t("characters of an {name}", name=t(name))
    return t("characters of a {name}", name=t(name))


def cell_text(value: Any) -> str:
    """Return a cell for people."""
    return f"{value:,}" if isinstance(value, int) else str(value)


def histogram(values: list[float], label: str, axes) -> None:
    """Draw the distribution of whole numbers, with a dotted line at the median."""
    from matplotlib.ticker import MaxNLocator

    from dandap.runs.html import BLUE, INK

    low, high, middle = min(values), max(values), median(values)
    # A bin per length: bins of 1.1 lengths would now and then add up two of them.
    each = [edge - 0.5 for edge in range(low, high + 2)]
    axes.hist(values, bins=each if high - low < 40 else 40, color=BLUE)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.axvline(middle, color=INK, linewidth=1, linestyle=":")
    axes.set_xlabel(t("{label} (dotted: median {median})", label=label, median=f"{middle:g}"))


def bars(counts: dict[Any, int], label: str, axes) -> None:
    """Draw a bar per value, with its count."""
    from dandap.runs.html import BLUE

    names = [str(name).replace("$", r"\$") for name in counts]  # $ would start a formula
    axes.bar_label(axes.barh(names, list(counts.values()), color=BLUE), padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)  # room for the numbers
    axes.set_xlabel(label)


def word_cloud(path: Path, texts: list[str]) -> Markup:
    """Draw the words of the texts into a file; return it as an element with a title."""
    from wordcloud import WordCloud

    from dandap.runs.html import font_file, image

    # Colors with a contrast of at least 3 on white and on near-black.
    colors = ["#2f7fc1", "#c9621c", "#4a8f3c", "#a05fb8", "#7d838d"]
    cloud = WordCloud(
        font_file(),
        width=1000,
        height=600,
        mode="RGBA",
        background_color=None,
        max_font_size=110,
        random_state=0,
        color_func=lambda word, random_state, **of_word: random_state.choice(colors),
    )
    counted = texts[:: math.ceil(len(texts) / MOST_TEXTS) or 1]
    # WordCloud rejects an empty dict, which a file without words would give.
    words = dict(count_words(counted).most_common(150)) or {"-": 1}
    cloud.generate_from_frequencies(words).to_file(str(path))
    title = t("words")
    if len(counted) < len(texts):
        title = t("words of {some} of {all} texts", some=f"{len(counted):,}", all=f"{len(texts):,}")
    return Markup("<h3>{}</h3>").format(title) + Markup(image(path))


def main(argv: list[str] | None = None) -> dict[str, Cells]:
    """Run the command line; return the report's tables."""
    arguments = parse(command_line(), argv)
    names = ("columns", "tokenizer", "refined", "output_dir")
    options = {name: getattr(arguments, name) for name in names}
    return explore(Path(arguments.file), arguments.test, **options)


def command_line() -> Parser:
    """Return the options."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("file", metavar="FILE", help="questions, with or without answers")
    add("--test", metavar="FILE", help="a test file, for leaks and lengths")
    add("--columns", metavar="NAME=COLUMN,...", help="our names for the file's columns")
    help_text = f"whose tokens are counted (default: {DEMO_TOKENIZER})"
    add("--tokenizer", metavar="NAME", default=DEMO_TOKENIZER, help=help_text)
    add("--refined", action="store_true", help="clean dialogues first")
    add("--output_dir", metavar="DIR", default="outputs", help="parent of the folder")
    return parser


if __name__ == "__main__":
    run_script(main)
