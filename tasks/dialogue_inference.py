"""Dialogue inference (NIKL): what follows from an utterance, chosen from three statements; submitted as the file, filled."""

import codecs
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import metrics
from dandap.data.files import TABLES, decode, encoding_notes, find_files, read_bytes
from dandap.data.json_files import parse_json
from dandap.data.korean import with_ro
from dandap.data.rows import Row, Table, by_article, join, refuse_duplicate_ids
from dandap.data.texts import SURROGATE, clean, trim, writable
from dandap.errors import InputError
from dandap.runs.files import write_bytes
from dandap.terminal import shown
from tasks.task import Chart, Description, Task, refuse_columns

LETTERS = ("A", "B", "C")
INFERENCES = ("inference_1", "inference_2", "inference_3")
CATEGORIES = ("원인", "후행사건", "전제", "동기", "반응")
# A category's official term, and what it means in words of ours. The particle follows the Korean word's last syllable.
TERMS = {
    "원인": "cause",
    "후행사건": "subsequent event",
    "전제": "prerequisite",
    "동기": "motivation",
    "반응": "emotional reaction",
}
TERMS_KO = {
    "원인": "원인",
    "후행사건": "후행 사건",
    "전제": "전제 조건",
    "동기": "내적 동기",
    "반응": "감정 반응",
}
DEFINITIONS = {
    "원인": "대상 발화에 나온 일이 일어나게 한 사건이나 상황",
    "후행사건": "대상 발화의 일이 있고 나서 이어서 일어날 법한 사건",
    "전제": "대상 발화가 말이 되려면 이미 참이어야 하는 사실",
    "동기": "화자가 대상 발화처럼 말하거나 행동하게 만든 마음이나 바람",
    "반응": "대상 발화의 일을 두고 화자나 듣는 사람이 느낄 법한 감정",
}


NUMBER = "\ue000"  # stands around the digits of a number with a point, which would be written in another way
Item = dict  # as the file has it; what is not known here is kept


def load_items(path: Path) -> list[Item]:
    """The file's items, checked; InputError says which item lacks what."""
    find_files(path, "the NIKL dialogue JSON")
    items = parse_json(decode(path.read_bytes(), path)[0], str(path), parse_float=_marked)
    if not isinstance(items, list) or not items:
        raise InputError(
            f"{path}: got {type(items).__name__}; expected a JSON list of at least one item."
        )
    for number, item in enumerate(items, 1):
        fault = _fault(item)
        if fault:
            name = item.get("id", "") if isinstance(item, dict) else ""
            raise InputError(
                f"{path}, item {number} ({shown(str(name))}): {fault}. Expected id, input (conversation, reference_id, category, "
                "inference_1, inference_2, inference_3) and output."
            )
    return items


def _fault(item: Item) -> str | None:
    if not isinstance(item, dict) or not isinstance(item.get("input"), dict):
        return "it is no object, or lacks 'input'"
    try:
        content = item["input"]
        texts = [item["id"], content["category"], *(content[name] for name in INFERENCES)]
        if not all(isinstance(text, str) for text in texts) or not all(map(trim, texts[:2])):
            return "id or category is empty, or one of them or an inference is no text"
        if category_of(content) not in CATEGORIES:
            return (
                f"got the category {content['category']!r}; expected one of {', '.join(CATEGORIES)}"
            )
        turns = [(turn["speaker"], turn["utterance"]) for turn in content["conversation"]]
        if not turns or not all(isinstance(text, str) for _, text in turns):
            return "the conversation is empty, or an utterance is no text"
        if not isinstance(content["reference_id"], list):
            return f"reference_id is {type(content['reference_id']).__name__}, expected a list of utterance ids"
        known = {name for turn in content["conversation"] for name in utterance_ids(turn)}
        missing = [name for name in content["reference_id"] if name not in known]
        if missing:
            return f"reference_id names the utterance {missing[0]}, which the conversation does not have"
        if (item.get("output") or "") not in ("", *INFERENCES):
            return f"got the output {item['output']!r}; expected one of {', '.join(INFERENCES)}, or nothing in a test file"
    except (KeyError, TypeError, AttributeError) as error:
        return f"it lacks {error}"
    return None


def category_of(content: dict) -> str:
    """The category in its usual form: composed Hangul, no space around."""
    return trim(unicodedata.normalize("NFC", content["category"]))


def utterance_ids(turn: dict) -> list[str]:
    """Of one turn; after cleaning a merged turn has a list of them."""
    ids = turn["utterance_id"]
    return ids if isinstance(ids, list) else [ids]


def read(paths: list[Path], need_answers: bool) -> Table:
    """One row per item of all files: the dialogue is the article, the letter of the right inference the answer."""
    tables = [_read_one(path, need_answers) for path in paths]
    return tables[0] if len(tables) == 1 else join(tables)


def _read_one(path: Path, need_answers: bool) -> Table:
    rows = [to_row(item) for item in load_items(path)]
    refuse_duplicate_ids(rows, path)
    without = [row.id for row in rows if not row.answers]
    blank = [
        row.id for row in rows if not all(row.fields[f"option_{letter}"] for letter in LETTERS)
    ]
    if need_answers and blank:
        raise InputError(
            f"{path}: an inference is empty or no text in {len(blank)} items, first {blank[0]}. Fill it in."
        )
    if need_answers and without:
        raise InputError(
            f"{path}: {len(without)} items have no output, first {without[0]}. Training needs one in every item."
        )
    data, digest = read_bytes(path)
    return Table(path, rows, digest, encoding_notes(path, decode(data, path)[1]))


def to_row(item: Item) -> Row:
    """An item as a question; the dialogue is its article."""
    content, output = item["input"], item.get("output") or ""
    category = category_of(content)
    options = dict(zip(LETTERS, (trim(clean(content[name])) for name in INFERENCES), strict=True))
    fields = {
        "category": category,
        "reference": "\n".join(_line(turn) for turn in referred(content)),
        **{f"option_{letter}": text for letter, text in options.items()},
    }
    answers = (LETTERS[INFERENCES.index(output)],) if output else ()
    dialogue = "\n".join(map(_line, content["conversation"]))
    return Row(writable(item["id"]), dialogue, category, answers, choices=LETTERS, fields=fields)


def referred(content: dict) -> list[dict]:
    """The turns that reference_id names."""
    names = set(content["reference_id"])
    return [turn for turn in content["conversation"] if names & set(utterance_ids(turn))]


def _line(turn: dict) -> str:
    return f"화자{turn['speaker']}: {clean(turn['utterance']).strip()}"


SAMPLE = to_row(
    {
        "id": "sample",
        "input": {
            "conversation": [
                {"speaker": 1, "utterance": "비가 와서 우산을 샀어.", "utterance_id": "sample.1"},
                {"speaker": 2, "utterance": "잘했네. 나는 다 젖었어.", "utterance_id": "sample.2"},
            ],
            "reference_id": ["sample.1"],
            "category": "원인",
            **dict(
                zip(
                    INFERENCES,
                    (
                        "화자1이 우산을 챙겨 오지 않았다.",
                        "화자1이 비를 좋아한다.",
                        "화자2가 우산을 팔았다.",
                    ),
                    strict=True,
                )
            ),
        },
        "output": "inference_1",
    }
)


def filled(items: list[Item], letters: list[str]) -> list[Item]:
    """The items with `output` filled from the letters, all else as it was."""
    return [
        {**item, "output": INFERENCES[LETTERS.index(letter)]}
        for item, letter in zip(items, letters, strict=True)
    ]


def to_json(items: list[Item], like: bytes, path: Path) -> bytes:
    """JSON in the layout of the bytes of a file at `path`, from which the items were read."""
    text = decode(like, path)[0]
    unix, indent, options = text.replace("\r\n", "\n"), 2, {"ensure_ascii": False}
    read = json.loads(unix, parse_float=_marked)
    for indent_of, separators in [
        *((None, pair) for pair in ((", ", ": "), (",", ":"))),
        *((i, None) for i in (1, 2, 4, "\t")),
    ]:
        for ascii_only in (False, True):
            style = {"indent": indent_of, "separators": separators, "ensure_ascii": ascii_only}
            if _dump(read, **style) == unix.strip():
                indent, options = indent_of, {"separators": separators, "ensure_ascii": ascii_only}
    written = _dump(items, indent=indent, **options) + "\n" * unix.endswith("\n")
    written = (
        written.replace("\n", "\r\n") if "\r\n" in text else written
    )  # within texts a line feed is escaped
    return like.startswith(codecs.BOM_UTF8) * codecs.BOM_UTF8 + written.encode()


def _marked(digits: str) -> str:
    return f"{NUMBER}{digits}{NUMBER}"


def _escaped(half: re.Match) -> str:
    return f"\\u{ord(half[0]):04x}"


def _dump(value, **style) -> str:
    """As json.dumps has it; halves of surrogate pairs stay escaped, since no UTF-8 file can hold them."""
    text = SURROGATE.sub(_escaped, json.dumps(value, **style))
    return re.sub(rf'"(?:{NUMBER}|\\ue000)([^"]*?)(?:{NUMBER}|\\ue000)"', r"\1", text)


def write_filled(path: Path, like: Path, letters: list[str]) -> Path:
    """Write the file `like` with `output` filled, in its layout; read it back, and return the path."""
    items = load_items(like)
    if len(items) != len(letters):
        raise InputError(
            f"{like} holds {len(items)} items, and {len(letters)} were answered. Name answers to that file."
        )
    write_bytes(path, to_json(filled(items, letters), like.read_bytes(), like))
    back = [(row.id, row.answers) for row in read([path], need_answers=True).rows]
    if back != [
        (writable(item["id"]), (letter,)) for item, letter in zip(items, letters, strict=True)
    ]:
        raise RuntimeError(
            f"{path} reads back differently from what was written ({len(back)} items)"
        )
    return path


class DialogueInference(Task):
    """Questions of five categories on an utterance of a dialogue, with three statements to choose from."""

    name = "dialogue_inference"
    needs = ("context", "options")
    sample = SAMPLE
    headline = ("accuracy",)
    cleans = True

    def recognises(self, path):
        return (
            path.is_file()
            and path.suffix.lower() not in TABLES
            and b'"conversation"' in path.read_bytes()[:100_000]
        )

    def read(self, paths, columns, need_answers):
        refuse_columns(columns)
        return read(paths, need_answers)

    def fields(self, context, row, answer):
        category, definition = row.fields["category"], DEFINITIONS[row.fields["category"]]
        options = {letter: row.fields[f"option_{letter}"] for letter in LETTERS}
        return {
            "context": context,
            "reference": row.fields["reference"],
            "options": "\n".join(f"{letter}. {text}" for letter, text in options.items()),
            "question": f"대상 발화의 {with_ro(category)} 가장 알맞은 것은 무엇인가?",
            "question_term": f"대상 발화의 {with_ro(TERMS_KO[category], TERMS[category])} 가장 알맞은 것은 무엇인가?",
            "question_definition": f"다음 설명에 가장 알맞은 것은 무엇인가? 설명: {definition}",
            "instruction_definition": f"아래 설명에 가장 알맞은 선택지를 골라 그 기호와 내용을 적어라. 설명: {definition}",
            "answer": answer,
            "answer_text": options.get(answer, ""),
        }

    def kind(self, row):
        return row.fields["category"]

    def score(self, rows, predictions):
        """Return accuracy with its interval over dialogues, per category, and which letter was said for which."""
        scores = super().score(rows, predictions)
        categories, confusion = {}, {gold: dict.fromkeys(LETTERS, 0) for gold in LETTERS}
        for row, prediction in zip(rows, predictions, strict=True):
            hits, count = categories.get(row.fields["category"], (0, 0))
            categories[row.fields["category"]] = (hits + (prediction in row.answers), count + 1)
            confusion[row.answers[0]][prediction] = confusion[row.answers[0]].get(prediction, 0) + 1
        return scores | {
            "metric": f"accuracy, {metrics.METRIC_VERSION}",
            "accuracy": scores["exact_match"],
            "accuracy_interval": scores["exact_match_interval"],
            "by_category": {
                name: {"accuracy": hits / count, "questions": count}
                for name, (hits, count) in categories.items()
            },
            "confusion": confusion,
        }

    def submit(self, recipe, folder, test_file, answered, form):
        return write_filled(folder / "submission.json", test_file, answered.predictions), None

    def submit_joined(self, recipe, folder, member, records):
        letters = [record["prediction"] for record in records]
        return write_filled(
            folder / "final-result.json", member.with_name("submission.json"), letters
        ), None

    def remarks(self, scores):
        return [
            f"{name} {of['accuracy']:.4f} of {of['questions']}"
            for name, of in sorted(scores["by_category"].items())
        ]

    def table(self, scores):
        header = ("right", *(f"said {letter}" for letter in scores["confusion"]))
        return [header, *((gold, *said.values()) for gold, said in scores["confusion"].items())]

    def evaluation(self, scores):
        return self.with_interval("accuracy", scores)

    def describe(self, path, clean):
        return describe(load_items(path), clean)


def describe(items: list[Item], clean: Callable[[Item, Counter], Item] | None) -> Description:
    """Return the pictures and tables that the winner of 2024 published, by their names; `clean` is tools.refine's, or None."""
    tables, counts = {}, Counter()
    if clean:
        items = [clean(item, counts) for item in items]
        tables["Cleaning, utterances changed"] = [(count, name) for name, count in counts.items()]
    dialogues = {
        json.dumps([turn["utterance"] for turn in item["input"]["conversation"]]): item
        for item in items
    }
    turns = [len(item["input"]["conversation"]) for item in dialogues.values()]
    totals = [
        sum(len(turn["utterance"]) for turn in item["input"]["conversation"]) for item in items
    ]
    categories = Counter(item["input"]["category"] for item in items)
    outputs = Counter(item.get("output") or "(none)" for item in items)
    tables["Size"] = [("items", len(items)), ("dialogues", len(dialogues))]
    tables["Category and output"] = [*categories.most_common(), *sorted(outputs.items())]
    rows = list(map(to_row, items))
    shared = []
    for group in by_article(row.article for row in rows):
        asked = [
            " ".join(
                [
                    rows[i].fields["reference"],
                    *(rows[i].fields[f"option_{letter}"] for letter in LETTERS),
                ]
            )
            for i in group
        ]
        shared.append((rows[group[0]].context, asked))
    return Description(
        rows,
        tables,
        sizes={"turns of a dialogue": turns, "characters of all utterances": totals},
        charts=[
            Chart(
                "category_distribution", "categories", dict(categories.most_common()), "category"
            ),
            Chart("conversation_length_distribution", "turns of a dialogue", turns, "turns"),
            Chart("output_distribution", "outputs", dict(sorted(outputs.items())), "output"),
            Chart(
                "total_utterance_length_distribution",
                "characters of all utterances",
                totals,
                "characters",
            ),
        ],
        lists={
            "total_utterance_lengths": [
                {"id": item["id"], "total_utterance_length": total}
                for item, total in zip(items, totals, strict=True)
            ]
        },
        shared=shared,
        texts=[
            turn["utterance"]
            for item in dialogues.values()
            for turn in item["input"]["conversation"]
        ],
    )


TASK = DialogueInference()
