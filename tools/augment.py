"""Make more wallpaper-QA rows to train on.

Joined and generated rows are marked (`generated`) and never reach a validation split.

python -m tools.augment pairs IN OUT                  2 questions x 5 answers of a row -> 10 rows of
                                                      one question and one answer
python -m tools.augment join IN OUT --count 500       two questions of one category with "또한,", as
                                                      in the test file
python -m tools.augment generate IN REVIEW SOURCE MODEL
                      SOURCE: --keywords FILE or --from docs/*.txt
                      MODEL: --run RUN, --recipe NAME or --url URL --model NAME
                                                      questions and five answers each by a model;
                                                      --dry_run prints the prompts
python -m tools.augment accept REVIEW OUT             the rows of REVIEW whose `accept` a person has
                                                      set to y
Train on several files with commas between them: --train_file data/wallpaper/train.csv,OUT
"""

import sys
from pathlib import Path

# So that `python tools/NAME.py` works like `python -m tools.NAME`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dandap.startup  # noqa: F401

import argparse
import csv
import hashlib
import io
import os
import random
import re
from collections.abc import Callable, Iterable

from dandap.cli import Parser, parse, positive, run_script
from dandap.data.files import read_bytes
from dandap.data.rows import Row
from dandap.data.sentences import character_pairs, likeness
from dandap.data.tables import read_table
from dandap.data.text import trim
from dandap.errors import InputError, first_line, short_list
from dandap.files import (
    append_json,
    read_json_lines,
    refuse_existing,
    write_json_lines,
    write_text,
)
from dandap.recipe import load_recipe, make_recipe
from dandap.runs.folder import find_run
from tasks.submission import active, inert
from tasks.wallpaper_qa import ANSWERS, QUESTIONS, read_lines

COLUMNS = ("id", "질문", "category", *ANSWERS, "generated", "sources")
# Of two questions' character pairs, the share in both from which they count as the same.
ALIKE = 0.7
LONGEST_SOURCE = 1500  # characters of a document that go into a prompt
Record = dict[str, str]
Ask = Callable[[str], str]  # prompt -> what the model says

QUESTION_PROMPT = (
    "도배와 마감재의 하자에 관해 일반인이 물어볼 만한 질문 하나를 한 문장으로만 써라."
    "\n\n{kind}: {source}\n\n질문:"
)
# Published (Hansol Deco season 2).
ANSWER_PROMPT = (
    "너는 도배업계에서 일하는 전문가야 일반인을 대상으로 "
    "{question}에 대한 전문적인 답변 5가지를 200글자 내로 생성해줘"
)


def pairs(rows: list[Record]) -> list[Record]:
    """Return every question of a row with every answer of it, a row for each pair."""
    # They are the file's own words, so they are not marked as generated. The part of the id before
    # "#" keeps a row's pairs on one side of a split.
    made = []
    for row in rows:
        texts = [(question, answer) for question in _questions(row) for answer in _answers(row)]
        made += [
            {
                "id": f"{row['id']}#{number}",
                "질문": question,
                "category": row.get("category", ""),
                "답변_1": answer,
            }
            for number, (question, answer) in enumerate(texts, 1)
        ]
    return made


def join(rows: list[Record], count: int, seed: int) -> list[Record]:
    """Return up to `count` random pairs of questions of one category, all different.

    The answers are joined in their order, the first with the first.
    """
    rng, made, seen = random.Random(seed), [], set()
    by_category: dict[str, list[Record]] = {}
    for row in rows:
        by_category.setdefault(row.get("category", ""), []).append(row)
    groups = [group for group in by_category.values() if len(group) > 1]
    if not groups:
        raise InputError(
            "no category has two rows to join. Expected a category column with several rows of a "
            "kind."
        )
    # A small file has fewer different pairs than are asked for; 20 draws for each end the search.
    for _ in range(20 * count):
        if len(made) == count:
            break
        # Categories are drawn by their number of rows, so that every row has the same chance.
        one, other = rng.sample(rng.choices(groups, [len(group) for group in groups])[0], 2)
        question = f"{rng.choice(_questions(one))} 또한, {rng.choice(_questions(other))}"
        if question not in seen:
            seen.add(question)
            answers = {
                name: f"{a} {b}"
                for name, a, b in zip(ANSWERS, _answers(one), _answers(other), strict=False)
            }
            named = {
                "id": f"JOIN_{len(made):05d}",
                "질문": question,
                "category": one.get("category", ""),
            }
            made.append(
                {**named, **answers, "generated": "join", "sources": f"{one['id']} {other['id']}"}
            )
    return made


def _questions(row: Record) -> list[str]:
    return [row[name] for name in (*QUESTIONS, "질문") if row.get(name, "").strip()]


def _answers(row: Record) -> list[str]:
    return [row[name] for name in ANSWERS if row.get(name, "").strip()]


def generate(
    sources: list[tuple[str, str]], known: list[str], who: str, ask: Ask, journal: Path
) -> tuple[list[Record], int]:
    """Return rows of a question and five answers, and how many questions were left out.

    `sources` are (kind, text). A question is left out if it is empty, or too like a known one or
    one made before. What the model (`who`) said is kept in `journal`, so that a run that was cut
    off goes on where it was.
    """
    said = _read_journal(journal)

    def remembered(prompt: str) -> str:
        # With the model's name in the key another model is asked anew over the same journal.
        key = hashlib.sha256(f"{who}\n{prompt}".encode()).hexdigest()[:16]
        if key not in said:
            said[key] = ask(prompt)
            append_json(journal, {"key": key, "prompt": prompt, "said": said[key]})
        return said[key]

    made, alike = [], 0
    pairs_of_known = [_pairs(question) for question in known]
    for kind, source in sources:
        question = _first_line(
            remembered(QUESTION_PROMPT.format(kind=kind, source=source[:LONGEST_SOURCE]))
        )
        if not question or any(
            likeness(_pairs(question), other) >= ALIKE for other in pairs_of_known
        ):
            alike += 1
            continue
        pairs_of_known.append(_pairs(question))
        answers = split_answers(remembered(ANSWER_PROMPT.format(question=question)))
        record = {
            "id": f"GEN_{len(made):05d}",
            "질문": question,
            "category": "",
            **dict(zip(ANSWERS, answers, strict=False)),
        }
        made.append(
            {**record, "generated": "model", "sources": "", "source": source[:80], "accept": ""}
        )
    return made, alike


def _read_journal(path: Path) -> dict[str, str]:
    """Return what was said by its key; a torn last line is dropped, and so asked again."""
    kept = [
        record for record in read_json_lines(path) if {"key", "prompt", "said"} <= record.keys()
    ]
    # Written again without the torn line, because the next record would be glued to it.
    if path.is_file():
        write_json_lines(path, kept)
    return {record["key"]: record["said"] for record in kept}


def _first_line(text: str) -> str:
    return next(
        (line.strip().removeprefix("질문:").strip() for line in text.splitlines() if line.strip()),
        "",
    )


def split_answers(text: str) -> list[str]:
    """Return up to five answers: the numbered or bulleted lines of a text, else its lines."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # Where some lines are marked, the others are what a chat model says before and after its list.
    marked = [
        re.sub(r"^(?:\d+\s*[.):]|답변\s*\d*\s*[.:)]|[-*•])\s*", "", line)
        for line in lines
        if re.match(r"\d+\s*[.):]|답변|[-*•]", line)
    ]
    return [answer.strip() for answer in marked or lines if answer.strip()][: len(ANSWERS)]


def _pairs(text: str) -> set[str]:
    return character_pairs(re.sub(r"\s+", "", text))


def local_model(arguments: argparse.Namespace) -> Ask:
    """Return what asks a run's model, or a recipe's base alone, in its chat template."""
    run = find_run(arguments.run, arguments.output_dir) if arguments.run else None
    recipe = run.load_recipe() if run else load_recipe(arguments.recipe, {})
    # A recipe's way of answering is for short answers on articles: one greedy text of up to 400
    # tokens is wanted here, and a prompt that does not fit must not be cut.
    plain = {
        "samples": 1,
        "temperature": 0,
        "choices": [],
        "grounded": False,
        "beams": 1,
        "on_overflow": "error",
    }
    long = {
        "max_new_tokens": 400,
        "max_length": max(recipe.max_length, 2048),
        "repetition_penalty": 1.1,
    }
    recipe = make_recipe(recipe.model_dump() | plain | long, "tools.augment")

    # These load torch, which only a model of this machine's needs.
    from dandap.answering.run import open_model
    from dandap.model.hub import confirm_remote_code
    from dandap.model.load import load_tokenizer

    confirm_remote_code(recipe, arguments.trust_remote_code == "true")
    template = {"user": "{question}"}
    if not load_tokenizer(recipe, run.adapter if run else None).chat_template:
        template = {"prompt": "{question}"}
    answerer = open_model(recipe, template, run).answerer

    def ask(prompt: str) -> str:
        examples = answerer.encoder.encode(
            [Row("prompt", "", prompt)], recipe.prompt_limit, answers=False
        )
        ((_, (answer,)),) = answerer.answers(examples)
        return answer.text

    return ask


def endpoint(url: str, model: str) -> Ask:
    """Return what asks an OpenAI-compatible chat endpoint.

    A key is taken from OPENAI_API_KEY and goes nowhere else.
    """
    from httpx2 import Client, HTTPError  # what huggingface_hub speaks HTTP with
    from huggingface_hub import InferenceClient, set_client_factory

    # Without a key of its own the client would send the hub's token.
    key = os.environ.get("OPENAI_API_KEY", "none")
    # The hub's own client refuses every address where HF_HUB_OFFLINE is set.
    set_client_factory(Client)
    client = InferenceClient(
        base_url=f"{url.rstrip('/')}/chat/completions", api_key=key, timeout=300
    )

    def ask(prompt: str) -> str:
        try:
            said = (
                client.chat_completion([{"role": "user", "content": prompt}], model=model)
                .choices[0]
                .message.content
            )
        # Which error it is depends on where an answer of another shape fails: JSON, keys, types.
        except (OSError, ValueError, LookupError, TypeError, AttributeError, HTTPError) as error:
            raise InputError(
                f"{url} did not answer as a chat endpoint does ({first_line(error)}). "
                "Check --url and --model."
            ) from error
        if not isinstance(said, str):
            raise InputError(
                f"{url} did not answer as a chat endpoint does (got {said!r}). "
                "Check --url and --model."
            )
        return said

    return ask


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return how many rows were written."""
    arguments = parse(command_line(), argv)
    source, target = Path(arguments.source), Path(arguments.target)
    # `generate` may replace an untouched review; refuse_reviewed looks at what it would replace.
    refuse_existing(target, arguments.do == "generate", "OUT", "Choose another name.")
    rows = read_rows(source)
    if arguments.do == "pairs":
        return write_rows(target, pairs(rows), COLUMNS)
    if arguments.do == "join":
        return write_rows(target, join(rows, arguments.count, arguments.seed), COLUMNS)
    if arguments.do == "accept":
        accepted = [
            row for row in rows if row.get("accept", "").strip().lower() in ("y", "yes", "o", "1")
        ]
        if not accepted:
            raise InputError(
                f"{source} has no row whose accept is y. Read it, and set accept to y or n in "
                "every row."
            )
        # The review has an apostrophe before what a spreadsheet would run; `active` takes it off.
        return write_rows(
            target,
            [{name: active(value) for name, value in row.items()} for row in accepted],
            COLUMNS,
        )
    return generate_rows(arguments, rows, target)


def read_rows(path: Path) -> list[Record]:
    """Read wallpaper-QA rows; each must have an id of its own, a question and an answer."""
    header, lines, _ = read_lines(path)
    lacking = [name for name in ("id", "답변_1") if name not in header]
    if lacking or not {"질문", "질문_1"} & set(header):
        raise InputError(
            f"{path} has no column {(lacking or ['질문'])[0]!r}; it has {short_list(header)}. "
            "Expected wallpaper-QA rows: id, 질문 or 질문_1 and 질문_2, and 답변_1 to 답변_5."
        )
    seen: set[str] = set()
    for place, cells in lines:
        name = cells.get("id", "")
        if not trim(name) or name in seen:
            raise InputError(
                f"{path}, {place}: the id {name!r} is empty or stands there twice. "
                "Every row needs its own."
            )
        if not _questions(cells) or not _answers(cells):
            raise InputError(
                f"{path}, {place} (id {name}): it has no question or no answer. "
                "Fill it in or delete the row."
            )
        seen.add(name)
    return [cells for _, cells in lines]


def generate_rows(arguments: argparse.Namespace, rows: list[Record], target: Path) -> int:
    """Write the review file that a model fills, or with --dry_run print the prompts.

    Return how many rows were written.
    """
    sources = read_sources(arguments)
    if arguments.dry_run:
        for kind, text in sources:
            print(QUESTION_PROMPT.format(kind=kind, source=text[:LONGEST_SOURCE]), end="\n\n")
        print(ANSWER_PROMPT.format(question="{question}"))
        return 0
    if sum(map(bool, (arguments.run, arguments.recipe, arguments.url))) != 1:
        raise InputError(
            "name one model: --run RUN, --recipe NAME, or --url URL with --model NAME."
        )
    refuse_reviewed(target)
    ask = (
        endpoint(arguments.url, arguments.model or "default")
        if arguments.url
        else local_model(arguments)
    )
    # The journal tells models apart by this name.
    who = (
        f"{arguments.url} {arguments.model}"
        if arguments.url
        else f"{arguments.run} {arguments.recipe}"
    )
    known = [question for row in rows for question in _questions(row)]
    made, alike = generate(sources, known, who, ask, target.with_suffix(".journal.jsonl"))
    print(f"{alike} questions were empty or too like another and were left out")
    count = write_rows(
        target,
        [{name: inert(value) for name, value in row.items()} for row in made],
        (*COLUMNS, "source", "accept"),
    )
    print(
        "set accept to y or n in every row, then: python -m tools.augment accept "
        + str(target)
        + " OUT"
    )
    return count


def refuse_reviewed(target: Path) -> None:
    """Refuse to replace a review that a person has begun, or another file."""
    if not target.exists():
        return
    sheet = read_table(target, read_bytes(target)[0])
    if "accept" not in sheet.header or any(
        cells.get("accept", "").strip() for _, cells in sheet.rows
    ):
        raise InputError(
            f"{target} has been reviewed in part, or is no review; choose another name, "
            "so that nothing is lost."
        )


def read_sources(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Return what is asked about as (kind, text): a keyword a line, or a document a file."""
    if bool(arguments.keywords) == bool(arguments.documents):
        raise InputError("name either --keywords FILE or --from FILE...")
    if arguments.keywords:
        lines = _text(Path(arguments.keywords)).splitlines()
        return [("키워드", line.strip()) for line in lines if line.strip()]
    return [("문서", _text(Path(name)).strip()) for name in arguments.documents]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read ({first_line(error)}); expected a UTF-8 text file."
        ) from error


def write_rows(path: Path, rows: Iterable[Record], columns: tuple[str, ...]) -> int:
    """Write a CSV with these columns, whole or not at all, and return the number of rows."""
    rows, text = list(rows), io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue(), encoding="utf-8-sig")
    print(f"{path}: {len(rows):,} rows")
    return len(rows)


def command_line() -> Parser:
    """Return the options: what to do, with which files and which model."""
    parser = Parser(__doc__)
    parser.add_argument("do", choices=["pairs", "join", "generate", "accept"])
    parser.add_argument(
        "source", metavar="IN", help="wallpaper-QA rows; of accept the reviewed file"
    )
    parser.add_argument("target", metavar="OUT", help="the file to write")
    parser.add_argument(
        "--count", type=positive, default=500, help="join: how many rows (default: 500)"
    )
    parser.add_argument(
        "--seed", type=int, default=42, help="join: of the random pairs (default: 42)"
    )
    parser.add_argument("--keywords", metavar="FILE", help="generate: a keyword a line")
    parser.add_argument(
        "--from",
        dest="documents",
        nargs="+",
        metavar="FILE",
        help="generate: text files to ask about",
    )
    parser.add_argument("--run", metavar="RUN", help="generate: with a run's model")
    parser.add_argument("--recipe", metavar="NAME", help="generate: with a recipe's base model")
    parser.add_argument(
        "--url",
        metavar="URL",
        help="generate: with an OpenAI-compatible endpoint, as http://host/v1",
    )
    parser.add_argument("--model", metavar="NAME", help="generate: the model's name at --url")
    parser.add_argument(
        "--output_dir",
        metavar="DIR",
        default="outputs",
        help="generate: where runs are (default: outputs)",
    )
    parser.add_argument(
        "--trust_remote_code",
        metavar="VALUE",
        help="generate: true to run code of the model's repository",
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="generate: print the prompts and stop"
    )
    return parser


if __name__ == "__main__":
    run_script(main)
