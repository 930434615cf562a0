"""Ask what follows from an utterance of a dialogue, chosen from three statements (NIKL).

A submission is the test file with its outputs filled in.
"""

import codecs
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import metrics
from dandap.console import shown
from dandap.data.files import TABLES, find_files, read_bytes
from dandap.data.korean import with_ro
from dandap.data.qa_formats import parse_json
from dandap.data.rows import Row, Table, by_article, join, refuse_duplicate_ids
from dandap.data.text import SURROGATE, clean, decode, encoding_notes, trim, writable
from dandap.errors import InputError
from dandap.files import write_bytes
from tasks.task import Box, Chart, Description, Task, refuse_columns

LETTERS = ("A", "B", "C")
INFERENCES = ("inference_1", "inference_2", "inference_3")
CATEGORIES = ("원인", "후행사건", "전제", "동기", "반응")
# A category's official term in English and Korean, and what it means in words of ours.
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

# A sign of the private use area around the digits of a number with a point: Python would write the
# number in another way, as 1.0 for 1.00.
NUMBER = "\ue000"
Item = dict  # as the file has it; what is not known here is kept


def load_items(path: Path) -> list[Item]:
    """Read a file's items and check them; the InputError says which item lacks what."""
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
                f"{path}, item {number} ({shown(str(name))}): {fault}. Expected id, input "
                "(conversation, reference_id, category, inference_1, inference_2, inference_3) "
                "and output."
            )
    return items


def _fault(item: Item) -> str | None:
    """Say what is wrong with an item, or return None."""
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
            return (
                f"reference_id is {type(content['reference_id']).__name__}, "
                "expected a list of utterance ids"
            )
        known = {name for turn in content["conversation"] for name in utterance_ids(turn)}
        missing = [name for name in content["reference_id"] if name not in known]
        if missing:
            return (
                f"reference_id names the utterance {missing[0]}, "
                "which the conversation does not have"
            )
        # Test files have no output, an empty one or null.
        if (item.get("output") or "") not in ("", *INFERENCES):
            return (
                f"got the output {item['output']!r}; "
                f"expected one of {', '.join(INFERENCES)}, or nothing in a test file"
            )
    # Besides a key that is missing, what should be an object or a list and is not.
    except (KeyError, TypeError, AttributeError) as error:
        return f"it lacks {error}"
    return None


def category_of(content: dict) -> str:
    """Return the category in its usual form: composed Hangul, no space around."""
    # Decomposed, as files from a Mac may have it, 원인 would equal no name of CATEGORIES.
    return trim(unicodedata.normalize("NFC", content["category"]))


def utterance_ids(turn: dict) -> list[str]:
    """Return the ids of one turn's utterances; a turn that cleaning merged has several."""
    ids = turn["utterance_id"]
    return ids if isinstance(ids, list) else [ids]


def read(paths: list[Path], need_answers: bool) -> Table:
    """Read one row per item of all files.

    The dialogue is the article, and the letter of the right inference the answer.
    """
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
            f"{path}: an inference is empty or no text in {len(blank)} items, first {blank[0]}. "
            "Fill it in."
        )
    if need_answers and without:
        raise InputError(
            f"{path}: {len(without)} items have no output, first {without[0]}. "
            "Training needs one in every item."
        )
    data, digest = read_bytes(path)
    return Table(path, rows, digest, encoding_notes(path, decode(data, path)[1]))


def to_row(item: Item) -> Row:
    """Return an item as a question; the dialogue is its article."""
    content, output = item["input"], item.get("output") or ""
    category = category_of(content)
    options = dict(zip(LETTERS, (trim(clean(content[name])) for name in INFERENCES), strict=True))
    definition = DEFINITIONS[category]
    # The template chooses how a question names its category: by the file's term, the official one
    # or the definition. with_ro adds 로 or 으로: 전제로, 원인으로.
    fields = {
        "category": category,
        "reference": "\n".join(_line(turn) for turn in referred(content)),
        "options": "\n".join(f"{letter}. {text}" for letter, text in options.items()),
        "question": f"대상 발화의 {with_ro(category)} 가장 알맞은 것은 무엇인가?",
        "question_term": f"대상 발화의 {with_ro(TERMS_KO[category], TERMS[category])} "
        "가장 알맞은 것은 무엇인가?",
        "question_definition": f"다음 설명에 가장 알맞은 것은 무엇인가? 설명: {definition}",
        "instruction_definition": "아래 설명에 가장 알맞은 선택지를 골라 그 기호와 내용을 "
        f"적어라. 설명: {definition}",
        **{f"option_{letter}": text for letter, text in options.items()},
    }
    answers = (LETTERS[INFERENCES.index(output)],) if output else ()
    dialogue = "\n".join(map(_line, content["conversation"]))
    return Row(writable(item["id"]), dialogue, category, answers, choices=LETTERS, fields=fields)


def referred(content: dict) -> list[dict]:
    """Return the turns that reference_id names."""
    names = set(content["reference_id"])
    return [turn for turn in content["conversation"] if names & set(utterance_ids(turn))]


def _line(turn: dict) -> str:
    """Return a turn as templates show it, "화자1: ..." with 화자 for speaker."""
    return f"화자{turn['speaker']}: {clean(turn['utterance']).strip()}"


def typed_turns(text: str) -> list[dict]:
    """Return the turns of a dialogue that somebody typed, a line each, named by their numbers."""
    turns = []
    for number, line in enumerate(filter(trim, text.splitlines()), 1):
        match = re.fullmatch(r"\s*(?:화자\s*)?(\w+)\s*[:：]\s*(.+)", line)
        if not match:
            raise InputError(
                f"line {number} of the dialogue: got {line[:100]!r}; expected who speaks and what "
                "is said, as 1: 안녕."
            )
        turns.append({"speaker": match[1], "utterance": match[2], "utterance_id": str(number)})
    return turns


# Templates are tried on this made-up item before any file is read.
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
    """Return the items with `output` filled from the letters, and all else as it was."""
    return [
        {**item, "output": INFERENCES[LETTERS.index(letter)]}
        for item, letter in zip(items, letters, strict=True)
    ]


def to_json(items: list[Item], like: bytes, path: Path) -> bytes:
    """Return JSON in the layout of `like`, the bytes of the file at `path` that held the items."""
    text = decode(like, path)[0]
    # The layout is the style of json.dumps that makes the file's own text of what it holds; for a
    # file that no style makes it is an indent of two.
    unix, indent, options = text.replace("\r\n", "\n"), 2, {"ensure_ascii": False}
    read = json.loads(unix, parse_float=_marked)
    styles = [(None, (", ", ": ")), (None, (",", ":"))]
    styles += [(width, None) for width in (1, 2, 4, "\t")]
    for indent_of, separators in styles:
        for ascii_only in (False, True):
            style = {"indent": indent_of, "separators": separators, "ensure_ascii": ascii_only}
            if _dump(read, **style) == unix.strip():
                indent, options = indent_of, {"separators": separators, "ensure_ascii": ascii_only}
    written = _dump(items, indent=indent, **options) + "\n" * unix.endswith("\n")
    # Within texts a line feed is escaped, so that all others end lines.
    written = written.replace("\n", "\r\n") if "\r\n" in text else written
    return like.startswith(codecs.BOM_UTF8) * codecs.BOM_UTF8 + written.encode()


def _marked(digits: str) -> str:
    """Return a number's digits as a text, which `_dump` makes a number again."""
    return f"{NUMBER}{digits}{NUMBER}"


def _escaped(half: re.Match) -> str:
    return f"\\u{ord(half[0]):04x}"


def _dump(value, **style) -> str:
    """Return JSON as json.dumps has it, with marked numbers as their digits.

    Halves of surrogate pairs stay escaped, since no UTF-8 file can hold them.
    """
    text = SURROGATE.sub(_escaped, json.dumps(value, **style))
    # With ensure_ascii the mark itself is escaped.
    return re.sub(rf'"(?:{NUMBER}|\\ue000)([^"]*?)(?:{NUMBER}|\\ue000)"', r"\1", text)


def write_filled(path: Path, like: Path, letters: list[str]) -> Path:
    """Write the file `like` with `output` filled in its layout, read it back, return the path."""
    items = load_items(like)
    if len(items) != len(letters):
        raise InputError(
            f"{like} holds {len(items)} items, and {len(letters)} were answered. "
            "Name answers to that file."
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
    """Asks questions of five categories on an utterance, with three statements to choose from."""

    name = "dialogue_inference"
    # Either the prompt shows the options, or the answer is what the right one says.
    needs = ("context", "options|answer_text")
    sample = SAMPLE
    headline = ("accuracy",)
    nouns = ("items", "dialogues")
    cleans = True
    title = "Dialogues"
    boxes = (
        Box("dialogue", "Dialogue (an utterance a line, as 1: hello)", 8),
        Box("target", "Number of the line that is asked about"),
        Box("category", "Kind of inference", choices=CATEGORIES),
        Box("inference_1", "Inference A"),
        Box("inference_2", "Inference B"),
        Box("inference_3", "Inference C"),
    )
    sample_file = "data/sample/dialogue_test.json"
    submission = "submission.json"

    def recognises(self, path):
        # The first 100,000 bytes tell, without parsing a file of megabytes.
        return (
            path.is_file()
            and path.suffix.lower() not in TABLES
            and b'"conversation"' in path.read_bytes()[:100_000]
        )

    def read(self, paths, columns, need_answers):
        refuse_columns(columns)
        return read(paths, need_answers)

    def kind(self, row):
        return row.fields["category"]

    def asked(self, row):
        options = [f"{letter}. {row.fields[f'option_{letter}']}" for letter in LETTERS]
        return "\n".join([row.fields["category"], row.fields["reference"], *options])

    def each(self, rows, predictions):
        """Return 1 for every right answer, else 0."""
        pairs = zip(predictions, rows, strict=True)
        return [metrics.exact_match(prediction, row.answers) for prediction, row in pairs]

    def score(self, rows, predictions):
        """Return accuracy with its interval over dialogues, and what was said for which answer.

        Accuracy is exact match under its usual name, and told for each category, too.
        """
        scores = super().score(rows, predictions)
        categories, confusion = {}, {gold: dict.fromkeys(LETTERS, 0) for gold in LETTERS}
        for row, prediction in zip(rows, predictions, strict=True):
            hits, count = categories.get(row.fields["category"], (0, 0))
            categories[row.fields["category"]] = (hits + (prediction in row.answers), count + 1)
            # What is said and is no letter is counted, too, beside the letters.
            confusion[row.answers[0]][prediction] = confusion[row.answers[0]].get(prediction, 0) + 1
        return scores | {
            "metric": "accuracy",
            "accuracy": scores["exact_match"],
            "accuracy_interval": scores["exact_match_interval"],
            "by_category": {
                name: {"accuracy": hits / count, "questions": count}
                for name, (hits, count) in categories.items()
            },
            "confusion": confusion,
        }

    def ask(self, typed):
        """Return the one question that was typed; `target` holds numbers of lines."""
        turns = typed_turns(typed["dialogue"])
        names = re.findall(r"\d+", typed["target"])
        inferences = {name: typed[name] for name in INFERENCES}
        content = {"conversation": turns, "reference_id": names, "category": typed["category"]}
        item = {"id": "1", "input": content | inferences}
        if fault := _fault(item) or ("" if names else "no line is named as the target"):
            raise InputError(
                f"{fault}. Expected a line a turn, as 1: 안녕, and the number of the line that is "
                "asked about."
            )
        return [to_row(item)]

    def typed(self, rows):
        row = rows[0]
        lines, referred_to = row.context.split("\n"), row.fields["reference"].split("\n")
        target = [str(number) for number, line in enumerate(lines, 1) if line in referred_to]
        inferences = [row.fields[f"option_{letter}"] for letter in LETTERS]
        return {
            "dialogue": row.context,
            "target": ", ".join(target),
            "category": row.fields["category"],
            **dict(zip(INFERENCES, inferences, strict=True)),
        }

    def question(self, row):
        return row.fields["question"]

    def spoken(self, row, answer):
        return f"{answer}. {row.fields[f'option_{answer}']}" if answer in LETTERS else answer

    def submit(self, recipe, folder, test_file, answered, form):
        return write_filled(folder / self.submission, test_file, answered.predictions), None

    def submit_joined(self, recipe, folder, member, records):
        like = member.with_name(self.submission)
        if not like.is_file():  # answers to some items, or to validation questions
            return self.submit_csv(folder, member, records)
        letters = [record["prediction"] for record in records]
        return write_filled(folder / "final-result.json", like, letters), None

    def remarks(self, scores):
        return [
            f"{name} {of['accuracy']:.4f} (n={of['questions']})"
            for name, of in sorted(scores["by_category"].items())
        ]

    def table(self, scores):
        confusion = scores["confusion"]
        # All rows have the same columns, also where one answer was said that is no letter.
        columns = list(dict.fromkeys(letter for said in confusion.values() for letter in said))
        rows = [
            (gold, *(said.get(name, 0) for name in columns)) for gold, said in confusion.items()
        ]
        return [("right", *(f"said {name}" for name in columns)), *rows]

    def evaluation(self, scores):
        return self.with_interval("accuracy", scores)

    def describe(self, path, clean):
        return describe(load_items(path), clean)


def describe(items: list[Item], clean: Callable[[Item, Counter], Item] | None) -> Description:
    """Return the pictures and tables that the winner of 2024 published, by their names.

    `clean` is tools.refine's, or None.
    """
    tables, counts = {}, Counter()
    if clean:
        items = [clean(item, counts) for item in items]
        tables["Cleaning, utterances changed"] = [(count, name) for name, count in counts.items()]
    # Items on one dialogue repeat it; equal utterances make them one.
    dialogues = {
        json.dumps([turn["utterance"] for turn in item["input"]["conversation"]]): item
        for item in items
    }
    turns = [len(item["input"]["conversation"]) for item in dialogues.values()]
    totals = []
    for item in items:
        totals.append(sum(len(turn["utterance"]) for turn in item["input"]["conversation"]))
    categories = Counter(item["input"]["category"] for item in items)
    outputs = Counter(item.get("output") or "(none)" for item in items)
    tables["Size"] = [("items", len(items)), ("dialogues", len(dialogues))]
    rows = list(map(to_row, items))
    return Description(
        rows,
        tables,
        {"Category and output": [*categories.most_common(), *sorted(outputs.items())]},
        sizes={"turns of a dialogue": turns, "characters of all utterances": totals},
        charts=_charts(categories, outputs, turns, totals),
        lists={
            "total_utterance_lengths": [
                {"id": item["id"], "total_utterance_length": total}
                for item, total in zip(items, totals, strict=True)
            ]
        },
        shared=_shared(rows),
        texts=[
            turn["utterance"]
            for item in dialogues.values()
            for turn in item["input"]["conversation"]
        ],
    )


def _charts(
    categories: Counter, outputs: Counter, turns: list[int], totals: list[int]
) -> list[Chart]:
    """Return charts of what was counted; `totals` are characters of all utterances of an item."""
    sorted_outputs = dict(sorted(outputs.items()))
    total_length = "total_utterance_length_distribution"
    return [
        Chart("category_distribution", "categories", dict(categories.most_common()), "category"),
        Chart("conversation_length_distribution", "turns of a dialogue", turns, "turns"),
        Chart("output_distribution", "outputs", sorted_outputs, "output"),
        Chart(total_length, "characters of all utterances", totals, "characters"),
    ]


def _shared(rows: list[Row]) -> list[tuple[str, list[str]]]:
    """Return each dialogue, which is read once, with what is read after it for each question."""
    shared = []
    for group in by_article(row.article for row in rows):
        asked = []
        for index in group:
            fields = rows[index].fields
            options = [fields[f"option_{letter}"] for letter in LETTERS]
            asked.append(" ".join([fields["reference"], *options]))
        shared.append((rows[group[0]].context, asked))
    return shared


TASK = DialogueInference()
