"""Dialogue inference: select the statement that follows from an utterance (NIKL 2024).

The submission is the test file with all outputs filled in.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import metrics
from dandap.console import printable
from dandap.data.korean import with_ro
from dandap.data.qa_formats import parse_json
from dandap.data.rows import Row, Table, join, reject_duplicate_ids
from dandap.data.text import (
    TABLES,
    clean,
    decode,
    encoding_notes,
    read_bytes,
    replace_surrogates,
    trim,
)
from dandap.errors import InputError
from dandap.files import write_bytes
from tasks.submission import submission_like, write_submission
from tasks.task import Box, PageForm, Task, reject_columns

Item = dict[str, Any]  # an item of the file, with all its fields

LETTERS = ("A", "B", "C")
INFERENCES = ("inference_1", "inference_2", "inference_3")

# Official terms in English and Korean, and a definition.
CATEGORIES = {
    "원인": ("cause", "원인", "대상 발화에 나온 일이 일어나게 한 사건이나 상황"),
    "후행사건": (
        "subsequent event",
        "후행 사건",
        "대상 발화의 일이 있고 나서 이어서 일어날 법한 사건",
    ),
    "전제": ("prerequisite", "전제 조건", "대상 발화가 말이 되려면 이미 참이어야 하는 사실"),
    "동기": (
        "motivation",
        "내적 동기",
        "화자가 대상 발화처럼 말하거나 행동하게 만든 마음이나 바람",
    ),
    "반응": (
        "emotional reaction",
        "감정 반응",
        "대상 발화의 일을 두고 화자나 듣는 사람이 느낄 법한 감정",
    ),
}


def load_items(path: Path) -> list[Item]:
    """Return the items of a file; raise InputError for the first invalid one."""
    items = parse_json(decode(read_bytes(path)[0], path)[0], str(path))
    if not isinstance(items, list) or not items:
        raise InputError(f"{path}: expected a JSON list of at least one item.")
    for number, item in enumerate(items, 1):
        if fault := find_error(item):
            name = item.get("id") if isinstance(item, dict) else item
            raise InputError(
                f"{path}, item {number} ({printable(str(name)[:80])}): {fault}. Expected fields as "
                "in data/sample/dialogue_train.json."
            )
    return items


def find_error(item: Item) -> str | None:
    """Return the error in an item, or None."""
    try:
        content, output = item["input"], item.get("output") or ""
        turns, names = content["conversation"], [item["id"], content["category"]]
        texts = [*(content[name] for name in INFERENCES), *(turn["utterance"] for turn in turns)]
        if not all(isinstance(text, str) for text in names + texts) or not all(map(trim, names)):
            return "the id or category is empty, or a text is not a string"
        if trim(clean(names[1])) not in CATEGORIES:
            return f"got the category {names[1]!r}; expected one of {', '.join(CATEGORIES)}"
        if not turns or not all("speaker" in turn for turn in turns):
            return "the conversation is empty, or a turn lacks 'speaker'"
        known = {name for turn in turns for name in utterance_ids(turn)}
        if not isinstance(content["reference_id"], list) or set(content["reference_id"]) - known:
            return f"got reference_id {content['reference_id']}; expected a list of utterance_ids"
        if output not in ("", *INFERENCES):
            return f"got the output {output!r}; expected one of {', '.join(INFERENCES)}, or empty"
    except (KeyError, TypeError, AttributeError) as error:
        return f"a field is missing or has the wrong structure ({error!r})"
    return None


def utterance_ids(turn: Item) -> list[str]:
    """Return the ids of a turn's utterances, several if tools.refine merged them."""
    ids = turn["utterance_id"]
    return ids if isinstance(ids, list) else [ids]


def to_row(item: Item) -> Row:
    """Convert an item to a row."""
    content, output = item["input"], item.get("output") or ""
    name = trim(clean(content["category"]))
    english, korean, definition = CATEGORIES[name]
    options = dict(zip(LETTERS, (trim(clean(content[key])) for key in INFERENCES), strict=True))
    referred = set(content["reference_id"])
    targets = [turn for turn in content["conversation"] if referred & set(utterance_ids(turn))]
    best = "가장 알맞은 것은 무엇인가?"
    fields = {
        "category": name,
        "reference": "\n".join(map(_line, targets)),
        "options": "\n".join(f"{letter}. {text}" for letter, text in options.items()),
        # Three ways to name the category in a template. with_ro appends 로 or 으로.
        "question": f"대상 발화의 {with_ro(name)} {best}",
        "question_term": f"대상 발화의 {with_ro(korean, english)} {best}",
        "question_definition": f"다음 설명에 {best} 설명: {definition}",
        "instruction_definition": "아래 설명에 가장 알맞은 선택지를 골라 그 기호와 내용을 "
        f"적어라. 설명: {definition}",
        **{f"option_{letter}": text for letter, text in options.items()},
    }
    fields["details"] = "\n".join([name, fields["reference"], fields["options"]])  # for the report
    answers = (LETTERS[INFERENCES.index(output)],) if output else ()
    dialogue = "\n".join(map(_line, content["conversation"]))
    return Row(
        replace_surrogates(item["id"]), dialogue, name, answers, choices=LETTERS, fields=fields
    )


def _line(turn: Item) -> str:
    return f"화자{turn['speaker']}: {clean(turn['utterance']).strip()}"  # 화자: speaker


def to_json(items: list[Item], like: Path) -> bytes:
    """Return items as JSON with the indentation and escapes of the file `like`."""
    text = decode(read_bytes(like)[0], like)[0]
    indent = re.match(r"\s*\[\s*?\n( *)", text)
    width = len(indent[1]) if indent else None
    written = json.dumps(items, ensure_ascii=text.isascii(), indent=width)
    # "backslashreplace" escapes lone surrogates as JSON does.
    return (written + "\n" * text.endswith("\n")).encode("utf-8", "backslashreplace")


def write_filled(path: Path, like: Path, letters: list[str]) -> Path:
    """Write the file `like` with its outputs filled in, verify it, and return the path."""
    outputs = [INFERENCES[LETTERS.index(letter)] for letter in letters]
    pairs = zip(load_items(like), outputs, strict=True)
    filled = [item | {"output": output} for item, output in pairs]
    write_bytes(path, to_json(filled, like))
    if [item["output"] for item in load_items(path)] != outputs:
        raise RuntimeError(f"{path} differs from what was written")
    return path


# For checking templates.
SAMPLE = {
    "id": "sample",
    "input": {
        "conversation": [
            {"speaker": 1, "utterance": "비가 와서 우산을 샀어.", "utterance_id": "1"}
        ],
        "reference_id": ["1"],
        "category": "원인",
        "inference_1": "화자1이 우산을 챙겨 오지 않았다.",
        "inference_2": "화자1이 비를 좋아한다.",
        "inference_3": "화자2가 우산을 팔았다.",
    },
    "output": "inference_1",
}


@dataclass(frozen=True)
class DialogueForm(PageForm):
    """The page's inputs for one item."""

    title: str = "Dialogues"
    boxes: tuple[Box, ...] = (
        Box("dialogue", "Dialogue (one utterance per line, like 1: hello)", 8),
        Box("target", "Line number of the target utterance"),
        Box("category", "Kind of inference", choices=tuple(CATEGORIES)),
        Box("inference_1", "Inference A"),
        Box("inference_2", "Inference B"),
        Box("inference_3", "Inference C"),
    )
    sample_file: str = "data/sample/dialogue_test.json"

    def to_rows(self, typed):
        expected = "Expected lines like 1: 안녕, and the line number of the target utterance."
        turns = []
        for number, line in enumerate(filter(trim, typed["dialogue"].splitlines()), 1):
            match = re.fullmatch(r"\s*(?:화자\s*)?(\w+)\s*[:：]\s*(.+)", line)
            if not match:
                raise InputError(f"got {line[:100]!r} as line {number} of the dialogue. {expected}")
            turns.append({"speaker": match[1], "utterance": match[2], "utterance_id": str(number)})
        targets = re.findall(r"\d+", typed["target"])
        content = {name: typed[name] for name in ("category", *INFERENCES)}
        item = {"id": "1", "input": content | {"conversation": turns, "reference_id": targets}}
        if fault := find_error(item) or (None if targets else "the target line is missing"):
            raise InputError(f"{fault}. {expected}")
        return [to_row(item)]

    def to_text(self, rows):
        row = rows[0]
        referred = row.fields["reference"].split("\n")
        lines = enumerate(row.context.split("\n"), 1)
        typed = {"dialogue": row.context, "category": row.fields["category"]}
        typed["target"] = ", ".join(str(number) for number, line in lines if line in referred)
        options = (row.fields[f"option_{letter}"] for letter in LETTERS)
        return typed | dict(zip(INFERENCES, options, strict=True))


class DialogueInference(Task):
    """Questions of five categories about an utterance, with three options."""

    name = "dialogue_inference"
    # Either the prompt has the options, or the answer is an option's text.
    needs = ("context", "options|answer_text")
    sample = to_row(SAMPLE)
    headline = ("accuracy",)
    nouns = ("items", "dialogues")
    page = DialogueForm()
    submission = "submission.json"

    def recognizes(self, path):
        is_json = path.is_file() and path.suffix.lower() not in TABLES
        # Parsing megabytes is slow; the beginning suffices.
        return is_json and b'"conversation"' in path.read_bytes()[:100_000]

    def read(self, paths, columns, need_answers):
        reject_columns(columns)
        tables = []
        for path in paths:
            rows = [to_row(item) for item in load_items(path)]
            reject_duplicate_ids(rows, path)
            for row in rows if need_answers else []:
                if not row.answers or not all(row.fields[f"option_{letter}"] for letter in LETTERS):
                    raise InputError(
                        f"{path}: {row.id} has no output or an empty inference. Fill it in, or "
                        "remove the item."
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
        """Return accuracy (exact match), accuracy by category, and a confusion matrix."""
        scores = super().score(rows, predictions)
        hits, confusion = {}, {gold: dict.fromkeys(LETTERS, 0) for gold in LETTERS}
        for row, prediction in zip(rows, predictions, strict=True):
            hits.setdefault(row.fields["category"], []).append(prediction in row.answers)
            # Other predictions get columns of their own.
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
        table, confusion = [], scores["confusion"]
        predicted = dict.fromkeys(name for counts in confusion.values() for name in counts)
        for gold, counts in confusion.items():
            table.append((gold, *(counts.get(name, 0) for name in predicted)))
        return [("right", *(f"predicted {name}" for name in predicted)), *table]

    def submit(self, recipe, folder, test_file, answers, form):
        return write_filled(folder / self.submission, test_file, answers.predictions), None

    def submit_combined(self, recipe, folder, member, records):
        like = member.with_name(self.submission)
        letters = [record["prediction"] for record in records]
        if like.is_file():
            return write_filled(folder / "final-result.json", like, letters), None
        # Validation answers, or a part of the file (--limit).
        ids, path = [record["id"] for record in records], folder / "submission.csv"
        write_submission(path, submission_like(member, ids), ids, letters)
        return path, None


TASK = DialogueInference()
