"""The NIKL "dialogue context inference" JSON: items with a conversation, referred utterances, a category and three inferences."""

import codecs
import json
import unicodedata
from pathlib import Path

from dandap.dataset import Row, Table, join, refuse_duplicate_ids
from dandap.errors import InputError
from dandap.files import decode, encoding_notes, find_files, parse_json, read_bytes
from dandap.texts import SURROGATE, clean, shown, trim, writable

LETTERS = ("A", "B", "C")
INFERENCES = ("inference_1", "inference_2", "inference_3")
CATEGORIES = ("원인", "후행사건", "전제", "동기", "반응")
Item = dict  # as the file has it; what is not known here is kept


def load_items(path: Path) -> list[Item]:
    """The file's items, checked; InputError says which item lacks what."""
    find_files(path, "the NIKL dialogue JSON")
    items = parse_json(decode(path.read_bytes(), path)[0], str(path))
    if not isinstance(items, list) or not items:
        raise InputError(f"{path}: got {type(items).__name__}; expected a JSON list of at least one item.")
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
            return f"got the category {content['category']!r}; expected one of {', '.join(CATEGORIES)}"
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
    blank = [row.id for row in rows if not all(row.fields[f"option_{letter}"] for letter in LETTERS)]
    if need_answers and blank:
        raise InputError(f"{path}: an inference is empty or no text in {len(blank)} items, first {blank[0]}. Fill it in.")
    if need_answers and without:
        raise InputError(f"{path}: {len(without)} items have no output, first {without[0]}. Training needs one in every item.")
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
                    ("화자1이 우산을 챙겨 오지 않았다.", "화자1이 비를 좋아한다.", "화자2가 우산을 팔았다."),
                    strict=True,
                )
            ),
        },
        "output": "inference_1",
    }
)


def filled(items: list[Item], letters: list[str]) -> list[Item]:
    """The items with `output` filled from the letters, all else as it was."""
    return [{**item, "output": INFERENCES[LETTERS.index(letter)]} for item, letter in zip(items, letters, strict=True)]


def to_json(items: list[Item], like: bytes, path: Path) -> bytes:
    """JSON in the layout of the bytes of a file at `path`, from which the items were read."""
    text = decode(like, path)[0]
    unix, indent, options = text.replace("\r\n", "\n"), 2, {"ensure_ascii": False}
    read = json.loads(unix)
    for indent_of, separators in [*((None, pair) for pair in ((", ", ": "), (",", ":"))), *((i, None) for i in (1, 2, 4, "\t"))]:
        for ascii_only in (False, True):
            style = {"indent": indent_of, "separators": separators, "ensure_ascii": ascii_only}
            if _dump(read, **style) == unix.strip():
                indent, options = indent_of, {"separators": separators, "ensure_ascii": ascii_only}
    written = _dump(items, indent=indent, **options) + "\n" * unix.endswith("\n")
    written = written.replace("\n", "\r\n") if "\r\n" in text else written  # within texts a line feed is escaped
    return like.startswith(codecs.BOM_UTF8) * codecs.BOM_UTF8 + written.encode()


def _dump(value, **style) -> str:
    """As json.dumps has it; halves of surrogate pairs stay escaped, since no UTF-8 file can hold them."""
    return SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, **style))
