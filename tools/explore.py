"""Show what is in a data file: samples, token lengths, what reading once saves, data checks.

python -m tools.explore FILE [--test FILE] [--columns context=본문] [--tokenizer NAME] [--refined]

Writes outputs/explore-<name>-<time>/ with report.html, pictures and tables. Economic QA, NIKL
dialogues and wallpaper QA are recognized by their fields. --refined cleans dialogues first
(tools.refine).
"""

import math
import re
from collections import Counter
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from dandap.cli import Parser, parse, run_script
from dandap.data.checks import FINDINGS, check_data
from dandap.data.korean import character_pairs, likeness, split_sentences
from dandap.data.rows import Row, by_article
from dandap.data.text import find_files
from dandap.errors import InputError
from dandap.files import new_folder, write_table
from dandap.language import t
from dandap.recipe import make_recipe
from tasks import TASKS
from tasks.submission import inert
from tasks.task import Description, Task, read_test
from tools.refine import refine

PAGE = """{% for name, rows in tables.items() if rows %}
<h2>{{ name }}</h2>
<div class="scroll"><table>
{% for row in rows %}
<tr>
{% for value in row %}
<td class="{{ "n" if value is number }}">
{{ "{:,}".format(value) if value is integer else value }}</td>
{% endfor %}
{% endfor %}
</table></div>
{% endfor %}
{{ pictures | join }}
"""
DEMO_TOKENIZER = "data/demo_model"
LIMITS = (512, 1024, 2048)  # tokens; values of max_length
MOST_COMPARED = 1000  # questions; each is compared with each
MOST_TEXTS = 2000  # of the word cloud: Kiwi needs 5 ms for an article
PIECE = 2000  # characters that Kiwi reads at a time; a whole file at once takes gigabytes
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
    from dandap.runs.html import write_page  # loads matplotlib

    tables: dict[str, Cells] = {"Sample": []} | found.tables
    for row in found.rows[:3]:
        texts = (row.id, task.kind(row), row.context, row.question, *row.answers[:1])
        tables["Sample"].append(tuple(" ".join(text.split())[:100] for text in texts if text))
    tables["Size"] = size_table(found)
    if any(text for text, _ in found.shared):  # wallpaper questions have no article
        tables |= token_tables(task, found.shared, load_tokenizer(recipe))
    checks = check_data({"file": found.rows} | ({"test": test} if test else {}))
    tables["Data checks"] = [(len(each), FINDINGS[kind]) for kind, each in checks.items()]
    if test:
        tables["The test file"] = size_table(describe_rows(task, test))
    tables = {t(title): [tuple(map(t, row)) for row in cells] for title, cells in tables.items()}

    folder = new_folder(output_dir, f"explore-{path.stem}{'-refined' * refined}")
    for name, records in found.lists.items():
        safe = [{key: inert(value) for key, value in record.items()} for record in records]
        write_table(folder / f"{name}.csv", safe)
    pictures = [draw_chart(folder / f"{name}.png", *chart) for name, *chart in found.charts]
    pictures.append(word_cloud(folder / "wordcloud.png", found.texts))
    title = f"{path.name}{' (refined)' * refined}: {task.name}"
    report = write_page(folder, PAGE, title, tables=tables, pictures=pictures)
    for title, cells in tables.items():
        print(title, *("  " + "  ".join(map(str, row)) for row in cells), sep="\n")
    print(f"report: {report}")
    return tables


def describe_rows(task: Task, rows: list[Row]) -> Description:
    """Describe questions with or without articles."""
    records = []
    for row in rows:
        answer = row.answers[0] if row.answers else ""
        records.append(
            {
                "id": row.id,
                "kind": task.kind(row),
                "article_characters": len(row.context),
                "question_characters": len(row.question),
                "answer_characters": len(answer),
                "answer_words": len(answer.split()),
                "is_span": any(text in row.context for text in row.answers),
            }
        )
    asked, on = task.nouns
    groups = by_article(row.article for row in rows)
    tables: dict[str, Cells] = {}
    size: Cells = [(asked, len(rows)), (on, len(groups))]
    answered = [record for record in records if record["answer_words"]]
    if not any(row.context for row in rows):
        tables = wallpaper_tables(rows, records)
        size += tables.pop("Size")
    elif answered:
        spans = fmean(record["is_span"] for record in answered)
        words = fmean(record["answer_words"] == 1 for record in answered)
        tables["Answers"] = [("share that stand in their article as written", f"{spans:.1%}")]
        tables["Answers"].append(("share of one word", f"{words:.1%}"))
    title = t("{asked} per {on}", asked=t(asked), on=t(on.removesuffix("s")))
    counts = dict(sorted(Counter(map(len, groups)).items()))
    kinds = dict(Counter(record["kind"] for record in records).most_common())
    charts = [("questions_per_article", title, counts, asked)]
    charts += [("kinds", "what is asked", kinds, "questions")]
    sizes: dict[str, list[int]] = {}
    for name, text in (
        ("article", "characters of an {name}"),
        ("question", "characters of a {name}"),
        ("answer", "characters of an {name}"),
    ):
        if values := [n for record in records if (n := record[f"{name}_characters"])]:
            title = t(text, name=t(name))
            sizes[title] = values
            charts.append((f"{name}_length", title, values, "characters"))
    return Description(
        rows,
        tables={"Size": size} | tables,
        sizes=sizes,
        charts=charts,
        lists={"rows": records},
        shared=[(rows[group[0]].context, [rows[i].question for i in group]) for group in groups],
        texts=[*{row.context for row in rows}, *(row.question for row in rows)],
    )


def size_table(found: Description) -> Cells:
    """Return the numbers of questions and articles, and the spread of each length."""
    cells = found.tables["Size"]
    for what, values in found.sizes.items():
        numbers = map(int, np.quantile(values, [0.5, 0.95, 1]))
        title = t("{what}: mean, median, 95%, longest", what=t(what))
        cells.append((title, round(fmean(values), 1), *numbers))
    return cells


def token_tables(task: Task, shared: list[tuple[str, list[str]]], tokenizer) -> dict[str, Cells]:
    """Return what decides max_length, and what reading once saves."""

    def length(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    articles = [length(text) for text, _ in shared]
    own = [list(map(length, texts)) for _, texts in shared]
    prompts = np.array([a + n for a, each in zip(articles, own, strict=True) for n in each])
    every, once = int(prompts.sum()), sum(articles) + sum(map(sum, own))
    one, on = (t(noun.removesuffix("s")) for noun in task.nouns)
    names = {"asked": t(task.nouns[0]), "on": on, "one": one}
    return {
        t("Tokens of {on} and {asked}", on=on, asked=one): [
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
    lengths = pd.DataFrame(records)[["question_characters", "answer_characters", "answer_words"]]
    # A test file has no answers, and no correlations with their lengths.
    correlations = lengths.loc[:, lengths.nunique() > 1].corr().round(2)
    questions = [*dict.fromkeys(row.question for row in rows)]
    pairs = [character_pairs(question) for question in questions[:MOST_COMPARED]]
    nearest = [max((likeness(a, b) for b in pairs if b is not a), default=0.0) for a in pairs]
    numbers = np.quantile(nearest, [0.5, 0.95, 1]).tolist()
    return {
        "Size": [
            ("bytes (UTF-8)", sum(len(text.encode()) for text in texts)),
            ("syllables (Hangul)", sum(len(re.findall("[가-힣]", text)) for text in texts)),
            ("sentences", sum(len(split_sentences(text)) for text in texts)),
        ],
        "correlations of lengths": [("", *correlations), *correlations.itertuples(name=None)],
        "Likeness of a question to the most similar other (shared character pairs)": [
            ("mean, median, 95%, largest", *(round(n, 2) for n in (fmean(nearest), *numbers)))
        ],
    }


def draw_chart(path: Path, title: str, values: dict[Any, int] | list[int], label: str) -> Markup:
    """Draw a bar per name with its count, or a histogram with a dotted line at the median."""
    from dandap.runs.html import BLUE, INK, draw

    def histogram(axes):
        low, high, middle = min(values), max(values), median(values)
        # A bin per length: bins of 1.1 lengths would now and then add up two of them.
        each = [edge - 0.5 for edge in range(low, high + 2)]
        axes.hist(values, bins=each if high - low < 40 else 40, color=BLUE)
        axes.locator_params(axis="x", integer=True)
        axes.axvline(middle, color=INK, linewidth=1, linestyle=":")
        axes.set_xlabel(
            t("{label} (dotted: median {median})", label=t(label), median=f"{middle:g}")
        )

    def bars(axes):
        names = [str(name).replace("$", r"\$") for name in values]  # $ would start a formula
        axes.bar_label(axes.barh(names, list(values.values()), color=BLUE), padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.15)  # room for the numbers
        axes.set_xlabel(t(label))

    kind, height = (
        (histogram, 3.2) if isinstance(values, list) else (bars, 1.1 + 0.35 * len(values))
    )
    return Markup(draw(path, t(title), kind, height))


def word_cloud(path: Path, texts: list[str]) -> Markup:
    """Draw the nouns of the texts, which kiwipiepy finds; return an element with a title."""
    try:
        from kiwipiepy import Kiwi
        from wordcloud import WordCloud
    except ImportError:
        print("no word cloud: pip install -r requirements-extra.txt")
        return Markup()
    from dandap.runs.html import BLUE, font_file, image

    read = texts[:: math.ceil(len(texts) / MOST_TEXTS) or 1]
    pieces = [text[start : start + PIECE] for text in read for start in range(0, len(text), PIECE)]
    # Kiwi reads some pieces ahead, in its own threads. NNG, NNP, SL: nouns, names, Latin letters.
    tokens = (token for found in Kiwi().tokenize(pieces) for token in found)
    nouns = (token.form for token in tokens if token.tag in ("NNG", "NNP", "SL"))
    words = Counter(word for word in nouns if len(word) > 1).most_common(150)
    cloud = WordCloud(
        font_file(),
        width=1000,
        height=600,
        mode="RGBA",
        background_color=None,
        max_font_size=110,
        random_state=0,
        color_func=lambda *_, **__: BLUE,
    )
    # WordCloud rejects an empty dict, which a file without words would give.
    cloud.generate_from_frequencies(dict(words) or {"-": 1}).to_file(str(path))
    title = t("words of {some} of {all} texts", some=f"{len(read):,}", all=f"{len(texts):,}")
    return Markup("<h3>{}</h3>").format(title) + Markup(image(path))


def main(argv: list[str] | None = None) -> dict[str, Cells]:
    """Run the command line; return the report's tables."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("file", metavar="FILE", help="questions, with or without answers")
    add("--test", dest="test_file", metavar="FILE", help="a test file, for leaks and lengths")
    add("--columns", metavar="NAME=COLUMN,...", help="our names for the file's columns")
    help_text = f"whose tokens are counted (default: {DEMO_TOKENIZER})"
    add("--tokenizer", metavar="NAME", default=DEMO_TOKENIZER, help=help_text)
    add("--refined", action="store_true", help="clean dialogues first")
    add("--output_dir", metavar="DIR", default="outputs", help="parent of the folder")
    options = vars(parse(parser, argv))
    del options["lang"]
    return explore(Path(options.pop("file")), **options)


if __name__ == "__main__":
    run_script(main)
