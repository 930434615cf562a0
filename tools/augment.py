"""Make more wallpaper-QA rows to train on.

Joined and generated rows are marked (`generated`) and are never in a validation split.

python -m tools.augment pairs IN OUT                  2 questions x 5 answers of a row -> 10 rows
python -m tools.augment join IN OUT --count 500       two questions of one category with "또한,", as
                                                      in the test file
python -m tools.augment generate IN REVIEW ...        questions and five answers each by a model
python -m tools.augment accept REVIEW OUT             the rows of REVIEW where a person has set
                                                      `accept` to y
Train on several files with commas between them: --train_file data/wallpaper/train.csv,OUT
"""

import argparse
import hashlib
import os
import random
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path

from dandap.cli import Parser, parse, positive, run_script
from dandap.data.korean import character_pairs, similarity
from dandap.data.rows import Row, by_article
from dandap.data.tables import read_table
from dandap.data.text import decode, read_bytes
from dandap.errors import InputError, first_line
from dandap.files import check_output, read_json_lines, write_json_lines, write_table
from dandap.recipe import load_recipe
from tasks.submission import escape_formula, unescape_formula
from tasks.wallpaper_qa import ANSWERS, TASK

COLUMNS = ("id", "질문", "category", *ANSWERS, "generated", "sources")
SIMILAR = 0.7  # share of common character pairs from which two questions count as the same
MARK = re.compile(r"(?:\d+\s*[.):]|답변\s*\d*\s*[.:)]|[-*•])\s*")  # of a list's item
LONGEST_SOURCE = 1500  # characters of a document in a prompt
Record = dict[str, str]
Ask = Callable[[str], str]  # prompt -> the model's text

QUESTION_PROMPT = (
    "도배와 마감재의 하자에 관해 일반인이 물어볼 만한 질문 하나를 한 문장으로만 써라."
    "\n\n{kind}: {source}\n\n질문:"
)
# Published (Hansol Deco season 2).
ANSWER_PROMPT = (
    "너는 도배업계에서 일하는 전문가야 일반인을 대상으로 "
    "{question}에 대한 전문적인 답변 5가지를 200글자 내로 생성해줘"
)


def join(groups: list[list[Row]], count: int, seed: int) -> list[Record]:
    """Return up to `count` different random pairs of questions of one category.

    The answers are joined in order, the first with the first.
    """
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
        raise InputError("no category has two rows to join. Expected several rows of a category.")
    made = []
    for one, other in rng.sample(joinable, min(count, len(joinable))):
        record = {"id": f"JOIN_{len(made):05d}", "질문": f"{one.question} 또한, {other.question}"}
        record |= {"generated": "join", "category": one.fields["category"]}
        record["sources"] = f"{one.group} {other.group}"
        for column, *both in zip(ANSWERS, one.answers, other.answers, strict=False):
            record[column] = " ".join(both)
        made.append(record)
    return made


def generate(
    sources: list[tuple[str, str]], known: list[str], model: str, ask: Ask, journal: Path
) -> list[Record]:
    """Return rows of a question and five answers; questions similar to a known one are skipped.

    `sources` are (kind, text). The model's texts are saved in `journal`, so that an interrupted
    run continues.
    """
    texts = {line["key"]: line for line in read_json_lines(journal)}

    def cached(prompt: str) -> str:
        key = hashlib.sha256(f"{model}\n{prompt}".encode()).hexdigest()[:16]
        if key not in texts:
            texts[key] = {"key": key, "prompt": prompt, "said": ask(prompt)}
            write_json_lines(journal, texts.values())
        return texts[key]["said"]

    made: list[Record] = []
    seen = [character_pairs("".join(question.split())) for question in known]
    for kind, source in sources:
        text = cached(QUESTION_PROMPT.format(kind=kind, source=source))
        question = text.strip().partition("\n")[0].removeprefix("질문:").strip()
        found = character_pairs("".join(question.split()))
        if question and all(similarity(found, other) < SIMILAR for other in seen):
            seen.append(found)
            text = cached(ANSWER_PROMPT.format(question=question))
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            # If some lines are marked, the others are a chat model's words around its list.
            marked = [MARK.sub("", line, count=1).strip() for line in lines if MARK.match(line)]
            record = {"id": f"GEN_{len(made):05d}", "질문": question, "generated": "model"}
            record |= dict(zip(ANSWERS, filter(None, marked or lines), strict=False))
            made.append(record | {"source": source[:80]})
    print(f"{len(sources) - len(made)} questions were empty or similar to another and are skipped")
    return made


def local_model(arguments: argparse.Namespace) -> Ask:
    """Return a function that asks a run's model, or a recipe's untuned base."""
    from dandap.answering.run import base_source, find_source, open_model  # loads torch
    from dandap.model.load import load_tokenizer

    # One greedy text of up to 400 tokens, whatever the recipe's options for short answers are.
    options = {"samples": 1, "temperature": 0, "choices": [], "grounded": False, "beams": 1}
    options |= {"max_length": 2048, "max_new_tokens": 400, "on_overflow": "error"}
    options |= {"repetition_penalty": 1.1}
    if arguments.run:
        source = find_source(arguments.run, options=options)
    else:
        source = base_source(load_recipe(arguments.recipe, {}), options=options)
    tokenizer = load_tokenizer(source.recipe, source.run.adapter if source.run else None)
    part = "user" if tokenizer.chat_template else "prompt"
    model = open_model(replace(source, template={part: "{question}"}))
    return lambda prompt: model.predict_all(model.encode([Row("", "", prompt)])).predictions[0]


def endpoint(url: str, model: str) -> Ask:
    """Return a function that asks an OpenAI-compatible endpoint; the key is OPENAI_API_KEY's."""
    import httpx2

    headers = {"Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', 'none')}"}
    place = f"{url.rstrip('/')}/chat/completions"

    def ask(prompt: str) -> str:
        body = {"model": model, "messages": [{"role": "user", "content": prompt}]}
        try:
            response = httpx2.post(place, json=body, headers=headers, timeout=300)
            choice = response.raise_for_status().json()["choices"][0]
            return choice["message"]["content"].strip()
        # The errors after those of httpx2 are of an answer in another shape.
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, LookupError, TypeError) as error:
            raise InputError(
                f"{url} did not answer as a chat endpoint ({first_line(error)}). Check --url and "
                "--model."
            ) from error

    return ask


def read_review(path: Path) -> list[Record]:
    """Return the rows of a review; InputError if the file is another."""
    sheet = read_table(path)
    if "accept" not in sheet.header:
        raise InputError(f"{path} is not a review: it has no column `accept`. Name another file.")
    return [cells for _, cells in sheet.rows]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the number of rows written."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("do", choices=["pairs", "join", "generate", "accept"])
    add("source", metavar="IN", help="wallpaper-QA rows; for accept the reviewed file")
    add("target", metavar="OUT", help="the file to write")
    add("--count", type=positive, default=500, help="join: number of rows (default: 500)")
    add("--seed", type=int, default=42, help="join: seed of the random pairs (default: 42)")
    add("--keywords", metavar="FILE", help="generate: a keyword a line")
    add("--from", dest="documents", nargs="+", metavar="FILE", help="generate: text files")
    add("--run", metavar="RUN", help="generate: with a run's model")
    add("--recipe", metavar="NAME", help="generate: with a recipe's base model")
    add("--url", metavar="URL", help="generate: with an endpoint, as http://host/v1")
    add("--model", metavar="NAME", help="generate: the model's name at --url")
    arguments = parse(parser, argv)
    source, target, do = Path(arguments.source), Path(arguments.target), arguments.do
    check_output(target, do == "generate", "OUT")
    columns: tuple[str, ...] = COLUMNS
    if do == "accept":
        yes = ("y", "yes", "o", "1")
        made = [row for row in read_review(source) if row["accept"].strip().lower() in yes]
        if not made:
            raise InputError(f"{source} has no row with accept y. Set it to y or n in every row.")
        # The review has an apostrophe before what a spreadsheet would run.
        made = [{name: unescape_formula(row[name]) for name in row} for row in made]
    else:
        rows = TASK.read([source], {}, True).rows
        # The questions of one row of the file.
        groups = [[rows[i] for i in group] for group in by_article(row.group for row in rows)]
    if do == "pairs":
        made = [
            # The id before "#" keeps a row's pairs on one side of a split.
            {"id": f"{row.group}#{number}", "질문": row.question, "답변_1": row.answers[0]}
            | {"category": row.fields["category"]}
            for group in groups
            for number, row in enumerate(TASK.expand(group), 1)
        ]
    elif do == "join":
        made = join(groups, arguments.count, arguments.seed)
    elif do == "generate":
        url, name = arguments.url, arguments.model
        if bool(arguments.keywords) == bool(arguments.documents):
            raise InputError("name either --keywords FILE or --from FILE...")
        paths = map(Path, arguments.documents or [arguments.keywords])
        texts = [decode(read_bytes(path)[0], path)[0].strip() for path in paths]
        sources = [("문서", text[:LONGEST_SOURCE]) for text in texts]
        if arguments.keywords:
            sources = [("키워드", line.strip()) for line in texts[0].splitlines() if line.strip()]
        if sum(map(bool, (url, arguments.run, arguments.recipe))) != 1:
            raise InputError("name one model: --run RUN, --recipe NAME, or --url URL --model NAME.")
        if target.exists() and any(row["accept"].strip() for row in read_review(target)):
            raise InputError(f"{target} has been reviewed in part. Choose another name.")
        ask = endpoint(url, name or "default") if url else local_model(arguments)
        model = f"{url} {name} {arguments.run} {arguments.recipe}"
        known, journal = [row.question for row in rows], target.with_suffix(".journal.jsonl")
        made = generate(sources, known, model, ask, journal)
        made = [{column: escape_formula(value) for column, value in row.items()} for row in made]
        columns = (*COLUMNS, "source", "accept")
    write_table(target, made, columns)
    print(f"{target}: {len(made):,} rows")
    if do == "generate":
        print(f"Set accept to y or n, then: python -m tools.augment accept {target} OUT")
    return len(made)


if __name__ == "__main__":
    run_script(main)
