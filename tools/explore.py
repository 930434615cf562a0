"""Show what is in a data file.

python -m tools.explore FILE [--test FILE] [--tokenizer NAME] [--refined]

This writes outputs/explore-<name>-<time>/ with report.html, pictures and tables. Economic QA (CSV,
JSON lines, SQuAD JSON), NIKL dialogues and wallpaper QA are told apart by their fields. --refined
cleans dialogues first (tools.refine).
"""

import sys
from pathlib import Path

# So that `python tools/NAME.py` works like `python -m tools.NAME`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dandap.start  # noqa: F401

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import pandas as pd
from matplotlib.axes import Axes
from wordcloud import WordCloud

from dandap.base.model import load_tokenizer
from dandap.command_line import Parser, parse, run_script
from dandap.data.checks import TOLD, check_data
from dandap.data.files import find_files
from dandap.data.korean import PARTICLES
from dandap.data.rows import Row, by_article
from dandap.data.sentences import character_pairs, likeness, split_sentences
from dandap.errors import InputError
from dandap.recipe import Recipe
from dandap.runs.files import new_folder
from dandap.runs.plots import BLUE, bars, draw, font_file
from dandap.runs.report import write_page
from dandap.runs.submission import inert
from tasks import TASKS
from tasks.task import Chart, Description, Task
from tools.refine import refine

PAGE = Path(__file__).with_name("explore.html.jinja")
DEMO_TOKENIZER = "data/demo_model"
LIMITS = (512, 1024, 2048)  # tokens
# Words that end so are verbs and adjectives, which say little of what a file is about.
VERB_ENDINGS = (
    "다",
    "는",
    "한",
    "된",
    "해",
    "고",
    "며",
    "면",
    "서",
    "요",
    "지",
    "할",
    "될",
    "나",
    "어",
    "게",
    "네",
)
COMMON_WORDS = set(
    "이번 지난 대한 때문 이상 모두 가장 등을 있을 다른 많은 "
    "같은 것이 것은 것으 함께 아주 정말 오늘 어제 내일".split()
)
# Questions at most, because each is compared with each: these are half a million pairs.
COMPARED = 1000


@dataclass
class Findings:
    """Hold what goes into the report, in its order.

    `tables` are rows of cells by title, `pictures` are files by title.
    """

    folder: Path
    tables: dict[str, list[tuple]] = field(default_factory=dict)
    pictures: dict[str, Path] = field(default_factory=dict)

    def picture(
        self, name: str, title: str, fill: Callable[[Axes], None], height: float = 3.2
    ) -> None:
        """Draw a picture into the folder as <name>.png, and keep it under its title."""
        self.pictures[title] = draw(self.folder / f"{name}.png", fill, height=height)

    def length(self, of: str, table: pd.DataFrame) -> None:
        """Draw the histogram of the characters of one text ("article", "question", "answer")."""
        values, label = (
            table[f"{of}_characters"],
            f"characters of {'an' if of[0] == 'a' else 'a'} {of}",
        )
        self.picture(f"{of}_length", label, partial(histogram, values=values, label=label))


def main(argv: list[str] | None = None) -> dict:
    """Run the command line; return the report's tables."""
    arguments = parse(command_line(), argv)
    path = Path(arguments.file)
    task = task_of(path)
    if arguments.refined and not task.cleans:
        raise InputError(f"--refined cleans dialogues; this file is {task.name}'s.")
    tokenizer = load_tokenizer(Recipe(model=arguments.tokenizer))

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    rows = task.read([path], {}, False).rows
    test = task.read([Path(arguments.test)], {}, False).rows if arguments.test else []
    name = f"explore-{path.stem}" + ("-refined" if arguments.refined else "")
    findings = Findings(new_folder(arguments.output_dir, name))
    if described := task.describe(path, refine if arguments.refined else None):
        rows = described.rows
        explore_described(findings, described, count)
    else:
        explore_questions(findings, task, rows, count)
    # With the test file beside it the checks also look for questions that stand in both.
    splits = {"file": rows} | ({"test": test} if test else {})
    findings.tables["Data checks"] = [
        (len(found), TOLD[kind]) for kind, found in check_data(splits).items()
    ]
    if test:
        findings.tables["The test file"] = lengths(test)
    title = f"{path.name}{' (refined)' if arguments.refined else ''}: {task.name}"
    report = write_page(
        findings.folder, PAGE, findings.pictures, title=title, tables=findings.tables, cell=_cell
    )
    for title, rows in findings.tables.items():
        print(title)
        for row in rows:
            print("  " + "  ".join(map(_cell, row)))
    print(f"report: {report}")
    return findings.tables


def command_line() -> Parser:
    """Return the options: which file is looked at, and how."""
    parser = Parser(__doc__)
    parser.add_argument("file", metavar="FILE", help="questions, with or without answers")
    parser.add_argument(
        "--test", metavar="FILE", help="a test file, to look for leaks and compare lengths"
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
    return next((task for task in TASKS.values() if task.recognises(path)), TASKS["economic_qa"])


def lengths(rows: Sequence[Row]) -> list[tuple]:
    """Return the numbers of rows and articles, and the lengths of their texts in characters."""
    answers = [answer for row in rows for answer in row.answers[:1]]
    table = [("questions", len(rows)), ("articles or groups", len({row.article for row in rows}))]
    for name, texts in (
        ("article", [row.context for row in rows]),
        ("question", [row.question for row in rows]),
        ("answer", answers),
    ):
        if any(texts):
            sizes = pd.Series([len(text) for text in texts])
            table.append((f"characters of a {name}: mean, median, 95%, longest", *_spread(sizes)))
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
    findings.tables["Size"] = [*lengths(rows), *texts_size(rows)]
    explore_articles(findings, table, by_article(row.article for row in rows))
    explore_answers(findings, table[table["answer_characters"] > 0])
    explore_kinds(findings, table)
    explore_likeness(findings, [row.question for row in rows])
    cloud(findings, [*{row.context for row in rows}, *(row.question for row in rows)])


def explore_articles(findings: Findings, table: pd.DataFrame, groups: list[list[int]]) -> None:
    """Find what the questions of an article share, and how long they are.

    `groups` are the rows' indices, a list for each article.
    """
    sizes = Counter(len(group) for group in groups)
    findings.picture(
        "questions_per_article",
        "questions per article",
        partial(columns, counts=dict(sorted(sizes.items())), label="questions on an article"),
    )
    # Wallpaper questions stand on no article, so nothing of them is read once.
    if table["article_tokens"].any():
        shared = [table["article_tokens"][group[0]] for group in groups]
        findings.tables |= token_tables(
            shared, [table["question_tokens"][group].tolist() for group in groups]
        )
        findings.length("article", table)
    findings.length("question", table)


def explore_answers(findings: Findings, answered: pd.DataFrame) -> None:
    """Find how literal and how long the answers are; `answered` are the rows that have some."""
    if not len(answered):
        return
    findings.tables["Answers"] = [
        ("share that stand in their article as written", f"{answered['is_span'].mean():.1%}"),
        ("share of one word", f"{answered['answer_words'].eq(1).mean():.1%}"),
    ]
    findings.length("answer", answered)


def explore_kinds(findings: Findings, table: pd.DataFrame) -> None:
    """Find what is asked, and how lengths go with it and with one another."""
    kinds = table["kind"].value_counts()
    findings.picture(
        "kinds",
        "what is asked",
        partial(shares, counts=kinds.to_dict()),
        height=1 + 0.35 * len(kinds),
    )
    numbers = table.select_dtypes("number")
    # A column of one value (articles of wallpaper QA) has no correlation.
    numbers = numbers.loc[:, numbers.nunique() > 1]
    findings.picture(
        "correlations",
        "correlations of lengths",
        partial(heatmap, correlations=numbers.corr()),
        height=4.2,
    )
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
        (name.replace("_", " "), round(explained(table[name], table["kind"]), 3))
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
        partial(histogram, values=similar, label="likeness to the most similar other question"),
    )


def token_tables(shared: list[int], own: list[list[int]]) -> dict[str, list[tuple]]:
    """Return the tables of what reading once saves, and of the share of long prompts.

    `shared` are the tokens of each article, `own` those of each of its questions.
    """
    prompts = []
    for article, questions in zip(shared, own, strict=True):
        prompts += [article + tokens for tokens in questions]
    lengths = pd.Series(prompts)
    every, once = int(lengths.sum()), int(sum(shared) + sum(map(sum, own)))
    return {
        "Reading once": [
            ("questions per article", round(len(lengths) / len(shared), 2)),
            ("tokens of articles and questions, read for every question", every),
            ("the same, each article read once", once),
            ("times fewer", round(every / once, 2)),
        ],
        "Tokens of article and question": [
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
    findings: Findings, described: Description, count: Callable[[str], int]
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
    findings.tables |= token_tables(shared, own) | described.more_tables
    for name, rows in described.lists.items():
        table = pd.DataFrame(rows).map(inert)
        table.to_csv(findings.folder / f"{name}.csv", index=False, encoding="utf-8-sig")
    for chart in described.charts:
        findings.picture(chart.name, chart.title, chart_filler(chart))
    cloud(findings, described.texts)


def chart_filler(chart: Chart) -> Callable[[Axes], None]:
    """Return what draws a chart: columns of counts, or the distribution of numbers."""
    if isinstance(chart.values, dict):
        return partial(columns, counts=chart.values, label=chart.label)
    return partial(histogram, values=pd.Series(chart.values), label=chart.label)


def histogram(axes: Axes, values: pd.Series, label: str) -> None:
    """Draw the distribution of the values, with a dotted line at their median."""
    bins = 40
    low, high = values.min(), values.max()
    if pd.api.types.is_integer_dtype(values) and high - low < bins:
        # A bin per length: bins of 1.1 lengths would now and then add up two of them.
        bins = [edge - 0.5 for edge in range(low, high + 2)]
    axes.hist(values, bins=bins, color=BLUE)
    axes.axvline(
        values.median(),
        color="black",
        linewidth=1,
        linestyle=":",
        label=f"median {round(values.median(), 2):g}",
    )
    axes.set_xlabel(label)
    axes.legend(frameon=False)


def columns(axes: Axes, counts: dict, label: str) -> None:
    """Draw a column per value, its count above it."""
    drawn = axes.bar([str(name) for name in counts], list(counts.values()), color=BLUE)
    axes.bar_label(drawn, fontsize=9)
    axes.set_xlabel(label)


def shares(axes: Axes, counts: dict[str, int]) -> None:
    """Draw horizontal bars of each kind's share of the questions."""
    total = sum(counts.values())
    values = [count / total for count in counts.values()]
    # The shares have no interval: each one's begins and ends at its value.
    bars(axes, list(counts), values, [(value, value) for value in values], list(counts.values()))
    axes.set_xlabel("share of questions")


def heatmap(axes: Axes, correlations: pd.DataFrame) -> None:
    """Draw Pearson's r of each pair of columns, with its number in its cell."""
    axes.imshow(correlations, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    axes.grid(visible=False)
    names = [name.replace("_", " ") for name in correlations.columns]
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    for i, row in enumerate(correlations.to_numpy()):
        for j, value in enumerate(row):
            axes.text(
                j,
                i,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if abs(value) > 0.6 else "black",
            )


def cloud(findings: Findings, texts: list[str]) -> None:
    """Draw wordcloud.png of the words of two characters and more, without their particles."""
    every = (
        without_particle(word) for text in texts for word in re.findall(r"[가-힣A-Za-z]+", text)
    )
    words = Counter(
        word
        for word in every
        if len(word) > 1 and not word.endswith(VERB_ENDINGS) and word not in COMMON_WORDS
    )
    path = findings.folder / "wordcloud.png"
    picture = WordCloud(
        font_path=font_file(), width=1000, height=500, background_color="white", random_state=0
    )
    # WordCloud refuses an empty dict, which a file without words would give.
    picture.generate_from_frequencies(dict(words.most_common(200)) or {"-": 1}).to_file(str(path))
    findings.pictures["words"] = path


def without_particle(word: str) -> str:
    """Return a word without the longest particle at its end, if two characters are left."""
    particle = max(
        (p for p in PARTICLES if word.endswith(p) and len(word) - len(p) > 1), key=len, default=""
    )
    return word[: len(word) - len(particle)]


def _cell(value) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    run_script(main)
