"""Dialogue inference: which of three statements follows from an utterance (NIKL 2024).

The submission is the test file with every output filled in.
"""

import codecs
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import metrics
from dandap.console import printable
from dandap.data.korean import with_ro
from dandap.data.qa_formats import parse_json
from dandap.data.rows import Row, Table, join, refuse_duplicate_ids
from dandap.data.text import (
    SURROGATE,
    TABLES,
    clean,
    decode,
    encoding_notes,
    read_bytes,
    trim,
    writable,
)
from dandap.errors import InputError
from dandap.files import write_bytes
from tasks.exploration import Chart, Description
from tasks.task import Box, PageForm, Task, reject_columns, submit_like_member

Item = dict[str, Any]  # an item of the file, with all its fields

LETTERS = ("A", "B", "C")
INFERENCES = ("inference_1", "inference_2", "inference_3")


class Category(NamedTuple):
    """A category's official terms, and its meaning in our words."""

    english: str
    korean: str
    definition: str


CATEGORIES = {
    "원인": Category("cause", "원인", "대상 발화에 나온 일이 일어나게 한 사건이나 상황"),
    "후행사건": Category(
        "subsequent event", "후행 사건", "대상 발화의 일이 있고 나서 이어서 일어날 법한 사건"
    ),
    "전제": Category(
        "prerequisite", "전제 조건", "대상 발화가 말이 되려면 이미 참이어야 하는 사실"
    ),
    "동기": Category(
        "motivation", "내적 동기", "화자가 대상 발화처럼 말하거나 행동하게 만든 마음이나 바람"
    ),
    "반응": Category(
        "emotional reaction",
        "감정 반응",
        "대상 발화의 일을 두고 화자나 듣는 사람이 느낄 법한 감정",
    ),
}


def load_items(path: Path) -> list[Item]:
    """Return the items of a file; InputError names the first one that is wrong."""
    data, _ = read_bytes(path)
    items = parse_json(decode(data, path)[0], str(path), parse_float=_mark_number)
    if not isinstance(items, list) or not items:
        raise InputError(
            f"{path}: got {type(items).__name__}; expected a JSON list of at least one item."
        )
    for number, item in enumerate(items, 1):
        if fault := find_fault(item):
            name = item.get("id", "") if isinstance(item, dict) else ""
            raise InputError(
                f"{path}, item {number} ({printable(str(name))}): {fault}. Expected id, input "
                "(conversation, reference_id, category, inference_1, inference_2, inference_3) "
                "and output."
            )
    return items


def find_fault(item: Item) -> str | None:
    """Return what is wrong with an item, or None."""
    try:
        content, output = item["input"], item.get("output") or ""
        turns = [(turn["speaker"], turn["utterance"]) for turn in content["conversation"]]
        names = [item["id"], content["category"]]
        texts = [*names, *(content[name] for name in INFERENCES), *(text for _, text in turns)]
        if not all(isinstance(text, str) for text in texts) or not all(map(trim, names)):
            return "the id or category is empty, or a text is not a string"
        if category_of(content) not in CATEGORIES:
            return f"got the category {names[1]!r}; expected one of {', '.join(CATEGORIES)}"
        if not turns:
            return "the conversation is empty"
        if not isinstance(content["reference_id"], list):
            return f"reference_id is {type(content['reference_id']).__name__}, not a list"
        known = {name for turn in content["conversation"] for name in utterance_ids(turn)}
        for name in content["reference_id"]:
            if name not in known:
                return f"reference_id names the utterance {name}, which is not in the conversation"
        if output not in ("", *INFERENCES):
            return f"got the output {output!r}; expected one of {', '.join(INFERENCES)}, or empty"
    except KeyError as error:
        return f"it lacks {error}"
    except (TypeError, AttributeError) as error:  # a text, for example, where an object belongs
        return f"it has another structure ({error})"
    return None


def category_of(content: Item) -> str:
    """Return the category as `CATEGORIES` spells it; files from a Mac decompose Hangul."""
    return trim(unicodedata.normalize("NFC", content["category"]))


def utterance_ids(turn: Item) -> list[str]:
    """Return the ids of a turn's utterances; turns that tools.refine merged have several."""
    ids = turn["utterance_id"]
    return ids if isinstance(ids, list) else [ids]


def to_row(item: Item) -> Row:
    """Return an item as a question about its dialogue."""
    content, output = item["input"], item.get("output") or ""
    name = category_of(content)
    category = CATEGORIES[name]
    options = dict(zip(LETTERS, (trim(clean(content[key])) for key in INFERENCES), strict=True))
    referred = set(content["reference_id"])
    targets = [turn for turn in content["conversation"] if referred & set(utterance_ids(turn))]
    best = "가장 알맞은 것은 무엇인가?"
    fields = {
        "category": name,
        "reference": "\n".join(map(_line, targets)),
        "options": "\n".join(f"{letter}. {text}" for letter, text in options.items()),
        # Templates choose how a question names its category. with_ro appends 로 or 으로.
        "question": f"대상 발화의 {with_ro(name)} {best}",
        "question_term": f"대상 발화의 {with_ro(category.korean, category.english)} {best}",
        "question_definition": f"다음 설명에 {best} 설명: {category.definition}",
        "instruction_definition": "아래 설명에 가장 알맞은 선택지를 골라 그 기호와 내용을 "
        f"적어라. 설명: {category.definition}",
        **{f"option_{letter}": text for letter, text in options.items()},
    }
    fields["details"] = "\n".join([name, fields["reference"], fields["options"]])  # for the report
    answers = (LETTERS[INFERENCES.index(output)],) if output else ()
    dialogue = "\n".join(map(_line, content["conversation"]))
    return Row(writable(item["id"]), dialogue, name, answers, choices=LETTERS, fields=fields)


def _line(turn: Item) -> str:
    return f"화자{turn['speaker']}: {clean(turn['utterance']).strip()}"  # 화자: speaker


# Layouts of json.dumps; a file in another one is written in the first.
LAYOUTS: list[dict[str, Any]] = [
    {"indent": indent, "separators": separators, "ensure_ascii": ensure_ascii}
    for ensure_ascii in (False, True)
    for indent, separators in ((2, None), (4, None), (1, None), (None, None), (None, (",", ":")))
]
# A private-use character around the digits of a number with a point: as a float, 1.00 would be
# written as 1.0.
MARK = "\ue000"


def _mark_number(digits: str) -> str:
    return f"{MARK}{digits}{MARK}"


def _dump(value: Any, layout: dict[str, Any]) -> str:
    # Half surrogate pairs stay escaped: UTF-8 cannot encode them.
    text = SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", json.dumps(value, **layout))
    mark = rf"(?:{MARK}|\\ue000)"
    return re.sub(rf'"{mark}([^"]*?){mark}"', r"\1", text)


def to_json(items: list[Item], like: bytes, path: Path) -> bytes:
    """Return items as JSON in the layout of `like`, the bytes of the file at `path`."""
    text = decode(like, path)[0]
    unix = text.replace("\r\n", "\n")
    content = parse_json(unix, str(path), parse_float=_mark_number)
    same = (layout for layout in LAYOUTS if _dump(content, layout) == unix.strip())
    written = _dump(items, next(same, LAYOUTS[0])) + "\n" * unix.endswith("\n")
    # Line feeds within texts are escaped, so all others end lines.
    written = written.replace("\n", "\r\n") if "\r\n" in text else written
    return codecs.BOM_UTF8 * like.startswith(codecs.BOM_UTF8) + written.encode()


def write_filled(path: Path, like: Path, letters: list[str]) -> Path:
    """Write the file `like` with its outputs filled in, read it back and return the path."""
    items = load_items(like)
    if len(items) != len(letters):
        raise InputError(
            f"{like} has {len(items)} items, got {len(letters)} answers. Name answers to that file."
        )
    outputs = [INFERENCES[LETTERS.index(letter)] for letter in letters]
    filled = [item | {"output": output} for item, output in zip(items, outputs, strict=True)]
    write_bytes(path, to_json(filled, like.read_bytes(), like))
    if [item["output"] for item in load_items(path)] != outputs:
        raise RuntimeError(f"{path} reads back differently from what was written")
    return path


# A made-up item, on which templates are checked.
SAMPLE = to_row(
    {
        "id": "sample",
        "input": {
            "conversation": [
                {"speaker": 1, "utterance": "비가 와서 우산을 샀어.", "utterance_id": "1"},
                {"speaker": 2, "utterance": "잘했네. 나는 다 젖었어.", "utterance_id": "2"},
            ],
            "reference_id": ["1"],
            "category": "원인",
            "inference_1": "화자1이 우산을 챙겨 오지 않았다.",
            "inference_2": "화자1이 비를 좋아한다.",
            "inference_3": "화자2가 우산을 팔았다.",
        },
        "output": "inference_1",
    }
)


@dataclass(frozen=True)
class DialogueForm(PageForm):
    """The page's inputs for one item."""

    title: str = "Dialogues"
    boxes: tuple[Box, ...] = (
        Box("dialogue", "Dialogue (an utterance a line, as 1: hello)", 8),
        Box("target", "Number of the line that is asked about"),
        Box("category", "Kind of inference", choices=tuple(CATEGORIES)),
        Box("inference_1", "Inference A"),
        Box("inference_2", "Inference B"),
        Box("inference_3", "Inference C"),
    )
    sample_file: str = "data/sample/dialogue_test.json"

    def to_rows(self, typed):
        turns = []
        for number, line in enumerate(filter(trim, typed["dialogue"].splitlines()), 1):
            match = re.fullmatch(r"\s*(?:화자\s*)?(\w+)\s*[:：]\s*(.+)", line)
            if not match:
                raise InputError(
                    f"line {number} of the dialogue: got {line[:100]!r}; expected the speaker and "
                    "the utterance, as 1: 안녕."
                )
            turn = {"speaker": match[1], "utterance": match[2], "utterance_id": str(number)}
            turns.append(turn)
        targets = re.findall(r"\d+", typed["target"])
        content = {name: typed[name] for name in ("category", *INFERENCES)}
        content |= {"conversation": turns, "reference_id": targets}
        item = {"id": "1", "input": content}
        if fault := find_fault(item) or (None if targets else "no line is named as the target"):
            raise InputError(
                f"{fault}. Expected a line for each utterance, as 1: 안녕, and the number of the "
                "line that is asked about."
            )
        return [to_row(item)]

    def to_text(self, rows):
        row = rows[0]
        referred = row.fields["reference"].split("\n")
        lines = enumerate(row.context.split("\n"), 1)
        options = [row.fields[f"option_{letter}"] for letter in LETTERS]
        return {
            "dialogue": row.context,
            "target": ", ".join(str(number) for number, line in lines if line in referred),
            "category": row.fields["category"],
            **dict(zip(INFERENCES, options, strict=True)),
        }

    def show_question(self, row):
        return row.fields["question"]

    def show_answer(self, row, answer):
        return f"{answer}. {row.fields[f'option_{answer}']}" if answer in LETTERS else answer


class DialogueInference(Task):
    """Questions of five categories about an utterance, with three statements to choose from."""

    name = "dialogue_inference"
    # The prompt shows the options, or the answer is the text of the right one.
    needs = ("context", "options|answer_text")
    sample = SAMPLE
    headline = ("accuracy",)
    nouns = ("items", "dialogues")
    page = DialogueForm()
    submission = "submission.json"

    def recognizes(self, path):
        # The beginning is enough: parsing takes long for a file of megabytes.
        return (
            path.is_file()
            and path.suffix.lower() not in TABLES
            and b'"conversation"' in path.read_bytes()[:100_000]
        )

    def read(self, paths, columns, need_answers):
        reject_columns(columns)
        tables = []
        for path in paths:
            rows = [to_row(item) for item in load_items(path)]
            refuse_duplicate_ids(rows, path)
            for row in rows if need_answers else []:
                if not row.answers or not all(row.fields[f"option_{letter}"] for letter in LETTERS):
                    raise InputError(
                        f"{path}: {row.id} has no output or an empty inference. Training needs "
                        "both: fill them in, or remove the item."
                    )
            data, digest = read_bytes(path)
            tables.append(Table(path, rows, digest, encoding_notes(path, decode(data, path)[1])))
        return tables[0] if len(tables) == 1 else join(tables)

    def kind(self, row):
        return row.fields["category"]

    def score_each(self, rows, predictions):
        pairs = zip(predictions, rows, strict=True)
        return [metrics.exact_match(prediction, row.answers) for prediction, row in pairs]

    def score(self, rows, predictions):
        """Return accuracy (exact match by its usual name), also by category, and a confusion."""
        scores = super().score(rows, predictions)
        hits, confusion = {}, {gold: dict.fromkeys(LETTERS, 0) for gold in LETTERS}
        for row, prediction in zip(rows, predictions, strict=True):
            hits.setdefault(row.fields["category"], []).append(prediction in row.answers)
            # A prediction that is no letter gets a column of its own.
            counts = confusion[row.answers[0]]
            counts[prediction] = counts.get(prediction, 0) + 1
        return scores | {
            "metric": "accuracy",
            "accuracy": scores["exact_match"],
            "accuracy_interval": scores["exact_match_interval"],
            "by_category": {
                name: {"accuracy": sum(values) / len(values), "questions": len(values)}
                for name, values in hits.items()
            },
            "confusion": confusion,
        }

    def summarize(self, scores):
        return [
            f"{name} {of['accuracy']:.4f} (n={of['questions']})"
            for name, of in sorted(scores["by_category"].items())
        ]

    def table(self, scores):
        confusion = scores["confusion"]
        predicted = list(dict.fromkeys(name for counts in confusion.values() for name in counts))
        rows = [
            (gold, *(counts.get(name, 0) for name in predicted))
            for gold, counts in confusion.items()
        ]
        return [("right", *(f"predicted {name}" for name in predicted)), *rows]

    def submit(self, recipe, folder, test_file, answers, form):
        return write_filled(folder / self.submission, test_file, answers.predictions), None

    def submit_combined(self, recipe, folder, member, records):
        like = member.with_name(self.submission)
        if not like.is_file():  # answers to validation questions, or with --limit
            return submit_like_member(folder, member, records)
        letters = [record["prediction"] for record in records]
        return write_filled(folder / "final-result.json", like, letters), None

    def describe(self, path: Path, clean: Callable[[Item, Counter[str]], Item] | None):
        """Return the charts and tables that the winner of 2024 published.

        `clean` is tools.refine.refine, or None to describe the file as it is.
        """
        items = load_items(path)
        tables: dict[str, list[tuple]] = {}
        if clean:
            changes: Counter[str] = Counter()
            items = [clean(item, changes) for item in items]
            tables["Cleaning, utterances changed"] = [(n, name) for name, n in changes.items()]
        rows = [to_row(item) for item in items]
        conversations = [item["input"]["conversation"] for item in items]
        # Items on the same dialogue repeat it.
        dialogues = {row.context: turns for row, turns in zip(rows, conversations, strict=True)}
        following: dict[str, list[str]] = {}
        for row in rows:
            options = (row.fields[f"option_{letter}"] for letter in LETTERS)
            text = " ".join([row.fields["reference"], *options])
            following.setdefault(row.context, []).append(text)
        counts = [len(turns) for turns in dialogues.values()]
        lengths = [sum(len(turn["utterance"]) for turn in turns) for turns in conversations]
        categories = dict(Counter(row.question for row in rows).most_common())
        outputs = dict(sorted(Counter(item.get("output") or "(none)" for item in items).items()))
        tables["Size"] = [("items", len(items)), ("dialogues", len(dialogues))]
        length, lengths_title = "total_utterance_length", "characters of all utterances"
        return Description(
            rows,
            tables,
            more_tables={"Category and output": [*categories.items(), *outputs.items()]},
            sizes={"turns of a dialogue": counts, lengths_title: lengths},
            charts=[
                Chart("category_distribution", "categories", categories, "category"),
                Chart("conversation_length_distribution", "turns of a dialogue", counts, "turns"),
                Chart("output_distribution", "outputs", outputs, "output"),
                Chart(f"{length}_distribution", lengths_title, lengths, "characters"),
            ],
            lists={
                f"{length}s": [
                    {"id": item["id"], length: characters}
                    for item, characters in zip(items, lengths, strict=True)
                ]
            },
            shared=list(following.items()),
            texts=[turn["utterance"] for turns in dialogues.values() for turn in turns],
        )


TASK = DialogueInference()
