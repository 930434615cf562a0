"""Describe a data file: samples, lengths, tokens saved by reading once, data checks.

python -m tools.explore FILE [--test FILE] [--columns context=본문] [--tokenizer NAME] [--refined]

Writes outputs/explore-<name>-<time>/ with report.html and charts. The task is recognized by the
file's fields. --refined cleans dialogues first (tools.refine).
"""

import base64
from collections import Counter
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from markupsafe import Markup

from dandap.cli import Parser, parse, run_script
from dandap.data.checks import FINDINGS, check_data
from dandap.data.korean import split_sentences
from dandap.data.rows import Row, by_article
from dandap.data.text import find_files
from dandap.errors import InputError
from dandap.files import new_folder
from dandap.language import t
from dandap.recipe import make_recipe
from tasks import TASKS
from tasks.task import Description, Task, read_test
from tools.refine import refine

PAGE = """{% for name, rows in tables.items() %}
<h2>{{ name }}</h2>
<div class="scroll"><table>
{% for row in rows %}
<tr>
{% for value in row %}
<td class="{{ "n" if value is number }}">
{{ "{:,}".format(value) if value is integer else value }}</td>
{% endfor %}
</tr>
{% endfor %}
</table></div>
{% endfor %}
{{ pictures | join }}
"""
DEMO_TOKENIZER = "data/demo_model"
MOST_TEXTS = 2000  # in the word cloud; Kiwi takes 5 ms per article
PIECE = 2000  # characters per text for Kiwi
Cells = list[tuple[Any, ...]]  # a table's rows


def explore(
    path: Path,
    test_file: str | None = None,
    columns: str | None = None,
    tokenizer: str = DEMO_TOKENIZER,
    refined: bool = False,
    output_dir: str = "outputs",
) -> dict[str, Cells]:
    """Write a report on a data file to a new folder; print and return its tables."""
    find_files(path)  # raises if there is none
    task = next((task for task in TASKS.values() if task.recognizes(path)), TASKS["economic_qa"])
    describe = getattr(task, "describe", None)
    if refined and not describe:
        raise InputError(f"--refined: got a file of {task.name}, expected dialogues.")
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
        tables["Test file"] = size_table(describe_rows(task, test))
    tables = {
        t(name): [tuple(map(t, row)) for row in rows] for name, rows in tables.items() if rows
    }

    folder = new_folder(output_dir, f"explore-{path.stem}{'-refined' * refined}")
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
    import pandas as pd  # takes 0.4 s

    records = pd.DataFrame(
        {
            "kind": task.kind(row),
            "article_characters": len(row.context),
            "question_characters": len(row.question),
            "answer_characters": sum(map(len, row.answers[:1])),
            "answer_words": len(" ".join(row.answers[:1]).split()),
            "is_span": any(text in row.context for text in row.answers),
        }
        for row in rows
    )
    asked, on = task.nouns
    groups = by_article(row.article for row in rows)
    tables: dict[str, Cells] = {"Size": [(asked, len(rows)), (on, len(groups))]}
    answered = records[records["answer_words"] > 0]
    if not records["article_characters"].any():
        texts = {text for row in rows for text in (row.question, *row.answers)}
        tables["Size"].append(("sentences", sum(len(split_sentences(text)) for text in texts)))
    elif len(answered):
        tables["Answers"] = [
            ("literally in their article", f"{answered['is_span'].mean():.1%}"),
            ("one word", f"{(answered['answer_words'] == 1).mean():.1%}"),
        ]
    title = t("{asked} per {on}", asked=t(asked), on=t(on.removesuffix("s")))
    counts = dict(sorted(Counter(map(len, groups)).items()))
    charts = [("questions_per_article", title, counts, asked)]
    kinds = records["kind"].value_counts().to_dict()
    charts += [("kinds", "kinds of questions", kinds, "questions")]
    sizes: dict[str, list[int]] = {}
    for name, title in (
        ("article", "characters of articles"),
        ("question", "characters of questions"),
        ("answer", "characters of answers"),
    ):
        if values := [length for length in records[f"{name}_characters"].tolist() if length]:
            sizes[title] = values
            charts.append((f"{name}_length", title, values, "characters"))
    return Description(
        rows,
        tables=tables,
        sizes=sizes,
        charts=charts,
        shared=[(rows[group[0]].context, [rows[i].question for i in group]) for group in groups],
        texts=[*{row.context for row in rows}, *(row.question for row in rows)],
    )


def size_table(found: Description) -> Cells:
    """Return the numbers of questions and articles, and length statistics."""
    cells = found.tables["Size"]
    for what, values in found.sizes.items():
        numbers = map(int, np.quantile(values, [0.5, 0.95, 1]))
        title = t("{what}: mean, median, 95%, longest", what=t(what))
        cells.append((title, round(fmean(values), 1), *numbers))
    return cells


def token_tables(task: Task, shared: list[tuple[str, list[str]]], tokenizer) -> dict[str, Cells]:
    """Return prompt lengths, and the tokens saved by reading once."""
    encode = partial(tokenizer, add_special_tokens=False)
    articles = [len(encode(text).input_ids) for text, _ in shared]
    own = [[len(encode(text).input_ids) for text in texts] for _, texts in shared]
    prompts = np.array([a + n for a, each in zip(articles, own, strict=True) for n in each])
    every, once = int(prompts.sum()), sum(articles) + sum(map(sum, own))
    one, on = (t(noun.removesuffix("s")) for noun in task.nouns)
    names = {"asked": t(task.nouns[0]), "on": on, "one": one}
    return {
        t("Tokens of {on} and {asked}", on=on, asked=one): [
            (t("share above {limit}", limit=f"{limit:,}"), f"{(prompts > limit).mean():.1%}")
            for limit in (512, 1024, 2048)
        ],
        "Reading once": [
            (t("{asked} per {on}", **names), round(len(prompts) / len(shared), 2)),
            (t("tokens, {on} read for every {one}", **names), every),
            (t("tokens, each {on} read once", **names), once),
            ("ratio", round(every / once, 2)),
        ],
    }


def draw_chart(path: Path, title: str, values: dict[Any, int] | list[int], label: str) -> Markup:
    """Draw a bar chart of counts, or a histogram with the median."""
    from dandap.runs.html import BLUE, INK, draw

    def fill(axes):
        if isinstance(values, list):
            # At most one bin per length.
            axes.hist(values, bins=min(40, max(values) - min(values) + 1), color=BLUE)
            axes.axvline(median(values), color=INK, linewidth=1, linestyle=":")
            middle = f"{median(values):g}"
            axes.set_xlabel(t("{label} (dotted: median {median})", label=t(label), median=middle))
        else:
            names = [str(name).replace("$", r"\$") for name in values]  # $ starts a formula
            axes.bar_label(axes.barh(names, list(values.values()), color=BLUE), padding=3)
            axes.invert_yaxis()
            axes.margins(x=0.15)  # space for numbers
            axes.set_xlabel(t(label))

    height = 3.2 if isinstance(values, list) else 1.1 + 0.35 * len(values)
    return Markup(draw(path, t(title), fill, height))


def word_cloud(path: Path, texts: list[str]) -> Markup:
    """Draw a word cloud of the nouns (kiwipiepy), and return it as HTML."""
    try:
        from kiwipiepy import Kiwi
        from wordcloud import WordCloud
    except ImportError:
        print("no word cloud. Run pip install -r requirements-extra.txt")
        return Markup()
    from dandap.runs.html import BLUE, font_file

    # Tags of common nouns, proper nouns and words in Latin letters.
    found = Kiwi().tokenize(text[:PIECE] for text in texts[:MOST_TEXTS])
    tokens = (token for each in found for token in each)
    nouns = (token.form for token in tokens if token.tag in ("NNG", "NNP", "SL"))
    words = Counter(word for word in nouns if len(word) > 1).most_common(150)
    cloud = WordCloud(
        font_file(),
        width=1000,
        height=600,
        mode="RGBA",
        background_color=None,
        random_state=0,
        color_func=lambda *_, **__: BLUE,
    )
    # WordCloud rejects an empty dict.
    cloud.generate_from_frequencies(dict(words) or {"-": 1}).to_file(str(path))
    data = base64.b64encode(path.read_bytes()).decode()
    element = '<h3>{}</h3><img class="plot" alt="" src="data:image/png;base64,{}">'
    return Markup(element).format(t("words"), data)


def main(argv: list[str] | None = None) -> dict[str, Cells]:
    """Run the command line and return the report's tables."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("file", metavar="FILE", help="questions, with or without answers")
    add("--test", dest="test_file", metavar="FILE", help="a test file, for leaks and lengths")
    add("--columns", metavar="NAME=COLUMN,...", help="columns with other names")
    help_text = f"model whose tokenizer counts tokens (default: {DEMO_TOKENIZER})"
    add("--tokenizer", metavar="NAME", default=DEMO_TOKENIZER, help=help_text)
    add("--refined", action="store_true", help="clean dialogues first")
    add("--output_dir", metavar="DIR", default="outputs", help="parent of the folder")
    options = vars(parse(parser, argv))
    del options["lang"]
    return explore(Path(options.pop("file")), **options)


if __name__ == "__main__":
    run_script(main)
