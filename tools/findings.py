"""Find what there is to show of a data file, for tools.explore: tables and pictures."""

import argparse
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from wordcloud import WordCloud

from dandap.data.checks import FINDINGS, check_data
from dandap.data.rows import Row, by_article
from dandap.data.sentences import character_pairs, likeness, split_sentences
from dandap.files import new_folder
from dandap.language import t, translated
from dandap.runs.html import write_page
from dandap.runs.plots import BLUE, INK, bars, draw, font_file, image
from tasks.submission import inert
from tasks.task import Chart, Description, Task
from tools.refine import refine
from tools.words import count_words

PAGE = Path(__file__).with_name("explore.html.jinja")
LIMITS = (512, 1024, 2048)  # tokens
# Questions at most, because each is compared with each: these are half a million pairs.
COMPARED = 1000
# Texts at most whose words are drawn: Kiwi takes 5 ms for an article.
CLOUD_TEXTS = 2000


@dataclass
class Findings:
    """Hold what goes into the report, in its order.

    `tables` are rows of cells by title, `pictures` are elements of a page.
    """

    folder: Path
    tables: dict[str, list[tuple]] = field(default_factory=dict)
    pictures: list[Markup] = field(default_factory=list)

    def picture(
        self, name: str, title: str, fill: Callable[[Axes], None], height: float = 3.2
    ) -> None:
        """Draw a picture into the folder as <name>.png, and keep it for the page."""
        drawn = draw(self.folder / f"{name}.png", translated(title), fill, height)
        self.pictures.append(Markup(drawn))  # made by us, not by a file

    def length(self, of: str, values: pd.Series) -> None:
        """Draw the histogram of the characters of one text ("article", "question", "answer")."""
        title = characters_of(of)
        self.picture(
            f"{of}_length", title, partial(histogram, values=values, label=t("characters"))
        )


def characters_of(name: str) -> str:
    """Return "characters of an answer" for "answer"."""
    return f"characters of an {name}" if name[0] in "aeiou" else f"characters of a {name}"


def one(nouns: str) -> str:
    """Return what one of a task's "questions" or "dialogues" is called."""
    return nouns.removesuffix("s")


def explore(
    task: Task,
    path: Path,
    splits: dict[str, list[Row]],
    count: Callable[[str], int],
    arguments: argparse.Namespace,
) -> Findings:
    """Return what there is to show of a file, whose pictures and tables are in a new folder.

    `splits` are the rows of the file and of its test file, which may have none; `count` counts the
    tokens of a text.
    """
    name = f"explore-{path.stem}" + ("-refined" if arguments.refined else "")
    findings = Findings(new_folder(arguments.output_dir, name))
    if described := task.describe(path, refine if arguments.refined else None):
        splits = splits | {"file": described.rows}
        explore_described(findings, task, described, count)
    else:
        explore_questions(findings, task, splits["file"], count)
    # With the test file beside it the checks also look for questions that stand in both.
    findings.tables["Data checks"] = [
        (len(found), FINDINGS[kind])
        for kind, found in check_data({name: rows for name, rows in splits.items() if rows}).items()
    ]
    if splits["test"]:
        findings.tables["The test file"] = lengths(task, splits["test"])
    return findings


def tell(findings: Findings, title: str) -> None:
    """Write the page, and print the tables and where it is."""
    tables, pictures = findings.tables, findings.pictures
    report = write_page(findings.folder, PAGE, title, tables=tables, pictures=pictures, cell=_cell)
    for name, rows in tables.items():
        print(translated(name))
        for row in rows:
            print("  " + "  ".join(translated(_cell(value)) for value in row))
    print(f"report: {report}")


def lengths(task: Task, rows: Sequence[Row]) -> list[tuple]:
    """Return the numbers of rows and articles, and the lengths of their texts in characters."""
    answers = [answer for row in rows for answer in row.answers[:1]]
    asked, on = task.nouns
    table = [(asked, len(rows)), (on, len({row.article for row in rows}))]
    for name, texts in (
        (one(on), [row.context for row in rows]),
        ("question", [row.question for row in rows]),
        ("answer", answers),
    ):
        if any(texts):
            sizes = pd.Series([len(text) for text in texts])
            table.append((f"{characters_of(name)}: mean, median, 95%, longest", *_spread(sizes)))
    return table


def _spread(sizes: pd.Series) -> tuple:
    return (
        round(float(sizes.mean()), 1),
        int(sizes.median()),
        int(sizes.quantile(0.95)),
        int(sizes.max()),
    )


def explore_questions(
    findings: Findings, task: Task, rows: list[Row], count: Callable[[str], int]
) -> None:
    """Find what there is to show of economic and wallpaper QA, and write rows.csv."""
    table = describe_rows(task, rows, count)
    table.to_csv(findings.folder / "rows.csv", index=False, encoding="utf-8-sig")
    findings.tables["Size"] = [*lengths(task, rows), *texts_size(rows)]
    explore_articles(findings, task, table, by_article(row.article for row in rows))
    explore_answers(findings, table[table["answer_characters"] > 0])
    explore_kinds(findings, table)
    explore_likeness(findings, [row.question for row in rows])
    cloud(findings, [*{row.context for row in rows}, *(row.question for row in rows)])


def explore_articles(
    findings: Findings, task: Task, table: pd.DataFrame, groups: list[list[int]]
) -> None:
    """Find what the questions of an article share, and how long they are.

    `groups` are the rows' indices, a list for each article.
    """
    sizes = Counter(len(group) for group in groups)
    asked, on = task.nouns
    findings.picture(
        "questions_per_article",
        f"{asked} per {one(on)}",
        partial(columns, counts=dict(sorted(sizes.items())), label=t(asked)),
    )
    # Wallpaper questions stand on no article, so nothing of them is read once.
    if table["article_tokens"].any():
        # As lists: pandas takes half a millisecond to look a group up.
        articles, questions = (table[f"{of}_tokens"].tolist() for of in ("article", "question"))
        shared = [articles[group[0]] for group in groups]
        own = [[questions[index] for index in group] for group in groups]
        findings.tables |= token_tables(task, shared, own)
        findings.length("article", table["article_characters"])
    findings.length("question", table["question_characters"])


def explore_answers(findings: Findings, answered: pd.DataFrame) -> None:
    """Find how literal and how long the answers are; `answered` are the rows that have some."""
    if not len(answered):
        return
    findings.tables["Answers"] = [
        ("share that stand in their article as written", f"{answered['is_span'].mean():.1%}"),
        ("share of one word", f"{answered['answer_words'].eq(1).mean():.1%}"),
    ]
    findings.length("answer", answered["answer_characters"])


def explore_kinds(findings: Findings, table: pd.DataFrame) -> None:
    """Find what is asked, and how lengths go with it and with one another."""
    kinds = table["kind"].value_counts()
    findings.picture(
        "kinds",
        "what is asked",
        partial(shares, counts=kinds.to_dict()),
        height=1.1 + 0.6 * len(kinds),
    )
    numbers = table.select_dtypes("number")
    # A column of one value (articles of wallpaper QA) has no correlation.
    numbers = numbers.loc[:, numbers.nunique() > 1]
    if len(numbers.columns) > 1:
        fill = partial(heatmap, correlations=numbers.corr())
        findings.picture("correlations", "correlations of lengths", fill, height=5.0)
    by_kind = (
        table.groupby("kind")[["question_characters", "answer_characters", "article_characters"]]
        .mean()
        .round(1)
    )
    by_kind.to_csv(findings.folder / "lengths_by_kind.csv", encoding="utf-8-sig")
    findings.tables["Mean characters by kind: question, answer, article"] = [
        (kind, *values)
        for kind, values in zip(by_kind.index, by_kind.to_numpy().tolist(), strict=True)
    ]
    findings.tables["Share of a length's variance that lies between kinds"] = [
        (
            characters_of(name.removesuffix("_characters")),
            round(explained(table[name], table["kind"]), 3),
        )
        for name in by_kind.columns
    ]


def explore_likeness(findings: Findings, questions: list[str]) -> None:
    """Find how alike questions are."""
    similar = nearest_questions(questions)
    spread = (similar.mean(), similar.median(), similar.quantile(0.95), similar.max())
    findings.tables["Likeness of a question to the most similar other (shared character pairs)"] = [
        ("mean, median, 95%, largest", *(round(float(value), 2) for value in spread))
    ]
    findings.picture(
        "question_similarity",
        "likeness of questions",
        partial(histogram, values=similar, label=t("likeness to the most similar other question")),
    )


def token_tables(task: Task, shared: list[int], own: list[list[int]]) -> dict[str, list[tuple]]:
    """Return the tables of what reading once saves, and of the share of long prompts.

    `shared` are the tokens of each article, `own` those of each of its questions.
    """
    prompts = []
    for article, questions in zip(shared, own, strict=True):
        prompts += [article + tokens for tokens in questions]
    lengths = pd.Series(prompts)
    asked, on = task.nouns
    every, once = int(lengths.sum()), int(sum(shared) + sum(map(sum, own)))
    return {
        "Reading once": [
            (f"{asked} per {one(on)}", round(len(lengths) / len(shared), 2)),
            (f"tokens of {on} and {asked}, read for every {one(asked)}", every),
            (f"the same, each {one(on)} read once", once),
            ("times fewer", round(every / once, 2)),
        ],
        f"Tokens of {one(on)} and {one(asked)}": [
            (f"share above {limit:,}", f"{(lengths > limit).mean():.1%}") for limit in LIMITS
        ],
    }


def explained(values: pd.Series, kinds: pd.Series) -> float:
    """Return the share of the values' variance that lies between kinds, in [0, 1].

    This is the squared correlation ratio.
    """
    means = kinds.map(values.groupby(kinds).mean())
    return float(means.var(ddof=0) / values.var(ddof=0)) if values.nunique() > 1 else 0.0


def describe_rows(task: Task, rows: list[Row], count: Callable[[str], int]) -> pd.DataFrame:
    """Return a line per question: its lengths, its kind and whether its answer is a span."""
    # Each article is counted once, however many questions stand on it.
    contexts = {row.article: row.context for row in rows}
    tokens = {article: count(text) if text else 0 for article, text in contexts.items()}
    return pd.DataFrame(
        {
            # Texts of others, which a spreadsheet that opens rows.csv would run as formulas.
            "id": [inert(row.id) for row in rows],
            "kind": [inert(task.kind(row)) for row in rows],
            "article_characters": [len(row.context) for row in rows],
            "article_tokens": [tokens[row.article] for row in rows],
            "question_characters": [len(row.question) for row in rows],
            "question_tokens": [count(row.question) for row in rows],
            "answer_characters": [len(row.answers[0]) if row.answers else 0 for row in rows],
            "answer_words": [len(row.answers[0].split()) if row.answers else 0 for row in rows],
            "is_span": [
                float(any(answer in row.context for answer in row.answers)) for row in rows
            ],
        }
    )


def texts_size(rows: list[Row]) -> list[tuple]:
    """Return the bytes, syllables and sentences of all texts, equal texts counted once."""
    texts = [
        *{row.context for row in rows},
        *{row.question for row in rows},
        *{answer for row in rows for answer in row.answers},
    ]
    return [
        ("bytes (UTF-8)", sum(len(text.encode()) for text in texts)),
        ("syllables (Hangul)", sum(len(re.findall("[가-힣]", text)) for text in texts)),
        ("sentences", sum(len(split_sentences(text)) for text in texts)),
    ]


def nearest_questions(questions: list[str]) -> pd.Series:
    """Return how alike each question is to the most similar other, in [0, 1].

    Likeness is the share of character pairs in common. Equal questions are taken once, and of
    different ones the first COMPARED.
    """
    pairs = [character_pairs(question) for question in list(dict.fromkeys(questions))[:COMPARED]]
    best = [0.0] * len(pairs)
    for i, one in enumerate(pairs):
        for j in range(i):
            alike = likeness(one, pairs[j])
            best[i], best[j] = max(best[i], alike), max(best[j], alike)
    return pd.Series(best)


def explore_described(
    findings: Findings, task: Task, described: Description, count: Callable[[str], int]
) -> None:
    """Show what a task says of its file: tables, sizes, pictures, lists and words."""
    findings.tables |= described.tables
    for what, sizes in described.sizes.items():
        findings.tables["Size"].append(
            (f"{what}: mean, median, 95%, longest", *_spread(pd.Series(sizes)))
        )
    shared, own = [], []
    for text, after in described.shared:
        shared.append(count(text))
        own.append([count(question) for question in after])
    findings.tables |= token_tables(task, shared, own) | described.more_tables
    for name, rows in described.lists.items():
        table = pd.DataFrame(rows).map(inert)
        table.to_csv(findings.folder / f"{name}.csv", index=False, encoding="utf-8-sig")
    for chart in described.charts:
        findings.picture(chart.name, chart.title, chart_filler(chart))
    cloud(findings, described.texts)


def chart_filler(chart: Chart) -> Callable[[Axes], None]:
    """Return what draws a chart: columns of counts, or the distribution of numbers."""
    if isinstance(chart.values, dict):
        return partial(columns, counts=chart.values, label=t(chart.label))
    return partial(histogram, values=pd.Series(chart.values), label=t(chart.label))


def histogram(axes: Axes, values: pd.Series, label: str) -> None:
    """Draw the distribution of the values, with a dotted line at their median."""
    bins = 40
    low, high = values.min(), values.max()
    if pd.api.types.is_integer_dtype(values) and high - low < bins:
        # A bin per length: bins of 1.1 lengths would now and then add up two of them.
        bins = [edge - 0.5 for edge in range(low, high + 2)]
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.hist(values, bins=bins, color=BLUE)
    axes.axvline(values.median(), color=INK, linewidth=1, linestyle=":")
    # Under the axes, where it covers no bar.
    median = f"{round(values.median(), 2):g}"
    axes.set_xlabel(t("{label} (dotted: median {median})", label=label, median=median))


def columns(axes: Axes, counts: dict, label: str) -> None:
    """Draw a column per value, its count above it."""
    drawn = axes.bar([str(name) for name in counts], list(counts.values()), color=BLUE)
    axes.bar_label(drawn, fontsize=9)
    axes.margins(y=0.1)  # room for the numbers
    axes.set_xlabel(label)


def shares(axes: Axes, counts: dict[str, int]) -> None:
    """Draw horizontal bars of each kind's share of the questions."""
    total = sum(counts.values())
    values = [count / total for count in counts.values()]
    # The shares have no interval: each one's begins and ends at its value.
    bars(axes, list(counts), values, [(value, value) for value in values], list(counts.values()))
    axes.set_xlabel(t("share of questions"))


def heatmap(axes: Axes, correlations: pd.DataFrame) -> None:
    """Draw Pearson's r of each pair of columns, with its number in its cell."""
    axes.imshow(correlations, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    axes.grid(visible=False)
    names = [t(name).replace("_", " ") for name in correlations.columns]
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=9)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    for i, row in enumerate(correlations.to_numpy()):
        for j, value in enumerate(row):
            axes.text(
                j,
                i,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=9,
                color="white" if abs(value) > 0.6 else "black",
            )


def cloud(findings: Findings, texts: list[str]) -> None:
    """Draw wordcloud.png of the words that the texts are about."""
    path = findings.folder / "wordcloud.png"
    # Colours of the middle, and no ground of its own: legible on a light and on a dark page.
    picture = WordCloud(
        font_path=font_file(),
        width=1000,
        height=600,
        mode="RGBA",
        background_color=None,
        max_font_size=110,
        random_state=0,
        color_func=middle_colour,
    )
    # WordCloud refuses an empty dict, which a file without words would give.
    counted = texts[:: math.ceil(len(texts) / CLOUD_TEXTS)] if texts else []
    words = dict(count_words(counted).most_common(150)) or {"-": 1}
    picture.generate_from_frequencies(words).to_file(str(path))
    title = t("words")
    if len(counted) < len(texts):
        title = t("words of {some} of {all} texts", some=f"{len(counted):,}", all=f"{len(texts):,}")
    findings.pictures.append(Markup("<h3>{}</h3>").format(title) + Markup(image(path)))


def middle_colour(word: str, random_state, **of_word) -> str:
    """Return one of five colours with a contrast of 3 and more on white and on near-black."""
    return random_state.choice(["#2f7fc1", "#c9621c", "#4a8f3c", "#a05fb8", "#7d838d"])


def _cell(value) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
