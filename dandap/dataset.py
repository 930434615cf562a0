"""Question-answering files -> Rows: their columns or JSON forms understood, checked and cleaned, split by article."""

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from dandap.errors import InputError, nearest
from dandap.files import JSONS, Lines, column_key, find_files, parse_json, read_bytes, read_json, read_table
from dandap.near_copies import group_near_copies
from dandap.texts import bare, clean, html_text, id_key, looks_like_html, short_list, trim, writable

COLUMNS = ("id", "context", "question", "answer", "answers", "is_impossible")
REQUIRED = ("context", "question")
ALSO_IDS = ("guid", "question_id", "qid")  # KLUE-MRC, AI Hub
LONGEST_ID = 1000  # characters; ids are printed and name lines of files
EXCEL_CELL = 32_767  # characters, the most that a cell of Excel holds
# What a decoder put for bytes it could not read; what shifts the code in old mail; and UTF-8 Hangul (three bytes from 0xEA to
# 0xED) read as Latin-1.
GARBLED = re.compile("[\ufffd\x0e\x0f\x1b]|(?:[\u00ea-\u00ed][\u0080-\u00bf\u0152-\u2122][\u0080-\u00bf\u0152-\u2122]){2}")
ENTITY = re.compile("&(?:amp|lt|gt|quot|nbsp|#\\d{2,5});")
Required = tuple[str, ...]
Record = tuple[str, dict[str, Any]]  # (its place, for messages; our names -> what the file holds)


@dataclass(frozen=True)
class Row:
    """One question. `answers` are the gold ones, the first is trained on; empty in a test file."""

    id: str  # as the file has it: it goes into the submission byte for byte
    context: str
    question: str
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()  # the answers to choose from; none: any text
    fields: Mapping[str, str] = field(default_factory=dict, hash=False)  # what a task's templates may use besides
    group: str = ""  # what belongs together where there is no article

    @cached_property
    def article(self) -> str:
        """Names the article by its text: rows with the same text share it, whatever file or order they come in."""
        return _hash(self.group or self.context.strip())

    @cached_property
    def story(self) -> str:
        """Names what the article tells: the same for copies that differ in white space or invisible characters."""
        return _hash(self.group or bare(self.context))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Table:
    """A file's rows and what reading it found out."""

    path: Path
    rows: list[Row]
    sha256: str  # of the file's bytes
    notes: list[str]  # what was dropped or decided, in sentences for people


def read(paths: str | Path | list[Path], columns: dict[str, str] | None = None, need_answers: bool = False) -> Table:
    """Read data files, or folders of them, by what they hold.

    `columns` maps our names to the file's ("context" -> "본문"). With `need_answers` (training) every row needs all its
    texts; without (a test file) every row is kept, an empty text is told. Raises InputError for anything that cannot be
    used.
    """
    paths = [Path(path) for path in (paths if isinstance(paths, list) else [paths])]
    files = [file for path in paths for file in find_files(path)]
    tables = [_read_one(file, columns or {}, need_answers, len(files) > 1) for file in files]
    return tables[0] if len(tables) == 1 else join(tables)


def join(tables: list[Table]) -> Table:
    """Make one table of several files."""
    rows = [row for table in tables for row in table.rows]
    path = Path(",".join(str(table.path) for table in tables))
    refuse_duplicate_ids(rows, Path(short_list(table.path for table in tables)))
    together = hashlib.sha256("".join(table.sha256 for table in tables).encode()).hexdigest()
    return Table(path, rows, together, [note for table in tables for note in table.notes])


def _read_one(path: Path, columns: dict[str, str], need_answers: bool, several: bool) -> Table:
    data, digest = read_bytes(path)
    required = (*REQUIRED, "answer") if need_answers else REQUIRED
    if path.suffix.lower() in JSONS:
        content, notes = read_json(path, data)
        records = list(_json_records(content, path, columns, required))
    else:
        sheet = read_table(path, data)
        notes, names = sheet.notes, _column_names(sheet.header, columns, path, required)
        sheet.refuse_unclear(names.values())
        records = [(place, _named(path, place, cells, names, sheet.header)) for place, cells in sheet.rows]
    if not records:
        raise InputError(f"{path} holds no questions (only a header, or nothing). Expected at least one row.")
    _number_rows(records, f"{path.name}-" if several else "", path, notes)
    rows = _Cleaner(path, need_answers, notes).rows(records)
    refuse_duplicate_ids(rows, path)
    return Table(path, rows, digest, notes)


def _named(path: Path, place: str, cells: dict[str, Any], names: dict[str, str], header: list[str]) -> dict[str, Any]:
    """A row's cells by our names. Cells that are missing at its end must be none of ours."""
    missing = [theirs for theirs in names.values() if theirs not in cells]
    if missing:
        raise InputError(
            f"{path}, {place}: got {len(cells)} cells, the header has {len(header)}. "
            "A comma or quotation mark in a text needs the cell in quotation marks."
        )
    return {ours: cells[theirs] for ours, theirs in names.items()}


def _column_names(found: Iterable[str], columns: dict[str, str], path: Path, required: Required) -> dict[str, str]:
    """Our names -> the file's names, for those that the file has; case, spaces and decomposed Hangul do not count."""
    found = list(found)
    by_key: dict[str, list[str]] = {}
    for name in found:
        by_key.setdefault(column_key(name), []).append(name)

    def find(wanted: str) -> str | None:
        same = by_key.get(column_key(wanted), [])
        if len(same) > 1 and same.count(wanted) != 1:
            raise InputError(f"{path} has the column {same[0]!r} more than once. Rename or remove one.")
        return wanted if wanted in same else next(iter(same), None)

    names = {ours: find(columns.get(ours, ours)) for ours in COLUMNS}
    if names["id"] is None and "id" not in columns:
        names["id"] = next((name for name in map(find, ALSO_IDS) if name), None)
    if names["answers"]:
        required = tuple(name for name in required if name != "answer")
    for ours, theirs in names.items():
        wanted = columns.get(ours, ours)
        if theirs is None and (ours in required or ours in columns):
            raise InputError(
                f"{path} has no column {wanted!r}; it has {short_list(found)}.{nearest(wanted, found[:1000])} "
                f"Rename the column, or map it with columns: {{{ours}: NAME}} (--columns {ours}=NAME)."
            )
    return {ours: theirs for ours, theirs in names.items() if theirs is not None}


def _number_rows(records: list[Record], prefix: str, path: Path, notes: list[str]) -> None:
    """Give the rows of a file without ids their numbers."""
    if any("id" in record for _, record in records):
        return
    for number, (_, record) in enumerate(records, 1):
        record["id"] = f"{prefix}{number}"
    notes.append(f"{path.name} has no column 'id'; its rows are called {prefix}1 to {prefix}{len(records)}")


def _json_records(content: Any, path: Path, columns: dict[str, str], required: Required) -> Iterator[Record]:
    """Records of JSON in the forms that people have.

    Lines or a list of flat records; pandas' columns of cells; SQuAD 1 and 2 and their relatives, documents -> paragraphs ->
    qas, in `data` or as a list (KorQuAD 1, KLUE-MRC, AI Hub); KorQuAD 2, whose documents have qas of their own, and HTML.
    """
    for place, value in _entries(content, path, columns):
        if isinstance(value, dict) and ("paragraphs" in value or "qas" in value):
            yield from _squad_records(value, path, place)
        elif isinstance(value, dict) and not (isinstance(value.get("data"), list | dict) and "question" not in value):
            names = _column_names(value, columns, path, required)
            yield place, {ours: value[theirs] for ours, theirs in names.items()}
        else:
            raise InputError(
                f"{path}, {place}: got {short_list(value) if isinstance(value, dict) else str(value)[:60]}; expected "
                "an object with context, question and answer or answers, or SQuAD's data -> paragraphs -> qas."
            )


def _entries(content: Any, path: Path, columns: dict[str, str]) -> list[tuple[str, Any]]:
    """(place, value) of each record or document that JSON holds, whatever it is wrapped in."""
    if isinstance(content, Lines):
        only = content[0][1] if len(content) == 1 else None
        if isinstance(only, dict) and not any(isinstance(only.get(columns.get(name, name)), str) for name in REQUIRED):
            return _entries(only, path, columns)  # a whole .json on one line
        opened = [(f"line {number}", value, _wrapped(value)) for number, value in content]
        return [each for place, value, within in opened for each in ([(place, value)] if within is None else within)]
    if isinstance(content, list):
        return [(f"entry {number}", value) for number, value in enumerate(content, 1)]
    if (within := _wrapped(content)) is not None:
        return within
    if not isinstance(content, dict) or not content or content.keys() & {"paragraphs", "qas"}:
        return [("its beginning", content)]
    by_key = {column_key(name): name for name in content}
    in_columns = all(column_key(columns.get(name, name)) in by_key for name in REQUIRED)
    values = list(content.values())
    if all(isinstance(cells, dict) for cells in values):
        return _from_columns(content) if in_columns else [(f"entry {name}", value) for name, value in content.items()]
    lists = [name for name, value in content.items() if isinstance(value, list)]
    if in_columns and len(lists) == len(values) and len(set(map(len, values))) == 1:  # datasets' to_dict
        return [
            (f"index {number}", dict(zip(content, cells, strict=True))) for number, cells in enumerate(zip(*values, strict=True))
        ]
    if len(lists) == 1:
        values = content[lists[0]]  # {"train": [...]}; the hub's viewer wraps each in {"row": ...}
        values = [value.get("row", value) if isinstance(value, dict) else value for value in values]
        return [(f"{lists[0]}, entry {number}", value) for number, value in enumerate(values, 1)]
    if len(lists) > 1 and not in_columns:
        raise InputError(f"{path} holds several lists, {short_list(lists)}. Save the one that is meant as a file of its own.")
    return [("its beginning", content)]


def _wrapped(content: Any) -> list[tuple[str, Any]] | None:
    """The entries of {"data": [...]}, SQuAD's or pandas' with "columns"; None where it is not so."""
    if not isinstance(content, dict) or not isinstance(content.get("data"), list) or "question" in content:
        return None
    data = content["data"]
    if isinstance(content.get("columns"), list) and all(isinstance(row, list) for row in data):
        data = [dict(zip(content["columns"], row, strict=False)) for row in data]  # pandas' orient="split"
    return [(f"data, entry {number}", value) for number, value in enumerate(data, 1)]


def _from_columns(content: dict) -> list[tuple[str, Any]]:
    """pandas' own JSON, {column: {index: cell}}, as records."""
    index = dict.fromkeys(key for cells in content.values() for key in cells)
    return [(f"index {key}", {name: cells.get(key) for name, cells in content.items()}) for key in index]


def _squad_records(document: dict, path: Path, place: str) -> Iterator[Record]:
    """The questions of one document of SQuAD or a relative."""
    try:
        for paragraph in document.get("paragraphs", [document]):
            context = paragraph["context"]
            for qa in paragraph["qas"]:
                answers = answer_texts(qa.get("answers", qa.get("answer")), f"{path}, {place}")
                record = {
                    "id": next((qa[name] for name in ("id", *ALSO_IDS) if qa.get(name) is not None), None),
                    "context": context,
                    "question": qa["question"],
                    "answers": answers,
                    "is_impossible": qa.get("is_impossible"),
                }
                yield f"{place}, question {record['id']}", record
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}, {place}: it is not SQuAD-format JSON ({error!r}). Expected data -> paragraphs -> (context, qas -> "
            "(id, question, answers)), or one object with context, question and answers for each question."
        ) from error


def answer_texts(value: Any, where: str) -> list[str]:
    """Return the answers in any form that people's files have; an empty list where there is none.

    A text, a number, {"text": one or several} (SQuAD, Hugging Face, AI Hub), or a list of these.
    """
    if value is None or value != value:  # NaN
        return []
    if isinstance(value, dict) and "text" in value:
        return answer_texts(value["text"], where)
    if isinstance(value, list | tuple):
        return [text for each in value for text in answer_texts(each, where)]
    if isinstance(value, str) or (isinstance(value, int | float | Decimal) and not isinstance(value, bool)):
        return [str(value)]
    raise InputError(f"{where}: an answer is {str(value)[:100]!r}; expected a text, {{'text': ...}}, or a list of these.")


_LISTED = re.compile(r"""\[\s*['"].*['"]\s*\]$|\{\s*['"]text['"]\s*:.*\}$""", re.DOTALL)
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")


def _structured(text: str, where: str) -> Any:
    """A cell of `answers`: JSON, or the Python text that pandas writes for lists, dicts and arrays; else one plain text."""
    if not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return parse_json(text, where)
    except InputError as error:
        try:
            return _python_value(ast.parse(text.strip(), mode="eval").body, text.strip())
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            if not _LISTED.match(text.strip()):
                return text  # [단독] 보도: a text that begins so
            raise error from None


def _python_value(node: ast.AST, source: str) -> Any:
    """The value of a literal; numpy's `array([...], dtype=...)` is the list in it."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "array":
        return _python_value(node.args[0], source)
    if isinstance(node, ast.Constant) and len(_QUOTED.findall(ast.get_source_segment(source, node) or "")) > 1:
        raise ValueError("a list without commas")  # numpy writes ['전주' '서울'], which Python joins to one text
    if isinstance(node, ast.Dict):
        return {_python_value(k, source): _python_value(v, source) for k, v in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.List | ast.Tuple):
        return [_python_value(each, source) for each in node.elts]
    return ast.literal_eval(node)


def is_true(value: Any) -> bool:
    """Whether a flag is set, as JSON or as text has it: "false" is no True."""
    return value is True or str(value).strip().lower() in ("true", "t", "1", "1.0", "yes", "y")


_page_text = lru_cache(maxsize=8)(html_text)  # a page's questions follow one another


class _Cleaner:
    """Checks and cleans the records of one file, and counts what people should know."""

    def __init__(self, path: Path, need_answers: bool, notes: list[str]):
        self.path, self.need_answers, self.notes = path, need_answers, notes
        self.composed: list[str] = []  # ids
        self.blank: list[str] = []
        self.numbers: list[str] = []
        self.garbled: list[str] = []
        self.cut: list[str] = []
        self.entities: list[str] = []
        self.pages: list[str] = []
        self.unanswerable = 0

    def rows(self, records: list[Record]) -> list[Row]:
        """Return the rows; notes say what was changed or left out."""
        rows = [row for place, record in records if (row := self._row(f"{self.path}, {place}", record))]
        if self.composed:
            self._note(len(self.composed), "texts held decomposed Hangul, which was composed", self.composed)
        if self.blank:
            self._note(
                len(self.blank), "questions lack their article or their text, and are answered as well as can be", self.blank
            )
        if self.numbers:
            self._note(len(self.numbers), "answers are numbers in the file and were read as they stand there", self.numbers)
        if self.garbled:
            what = "rows hold signs of a wrong encoding (\ufffd, or Latin letters for Hangul): look at them before you train"
            self._note(len(self.garbled), what, self.garbled)
        if self.entities:
            what = "rows hold HTML entities (&amp; for &), which are read, and learned, as they stand"
            self._note(len(self.entities), what, self.entities)
        if self.pages:
            self._note(len(self.pages), "articles are HTML, and are read as a reader sees them", self.pages)
        if self.cut:
            self._note(len(self.cut), "articles have exactly 32,767 characters, where Excel cuts a cell", self.cut)
        if self.unanswerable and self.need_answers:
            self.notes.append(f"{self.unanswerable} questions without an answer were left out (is_impossible, or none given)")
        if not rows:
            raise InputError(f"{self.path}: none of its {len(records)} questions has an answer. Training needs some.")
        return rows

    def _note(self, count: int, what: str, ids: list[str]) -> None:
        self.notes.append(f"{count:,} {what} ({', '.join(ids[:3])}{' ...' if count > 3 else ''})")

    def _row(self, where: str, record: dict[str, Any]) -> Row | None:
        name = self._id(where, record.get("id"))
        context, question = (self._text(where, name, part, record.get(part)) for part in REQUIRED)
        answers, is_list = self._answers(where, name, record)
        if looks_like_html(context):
            self.pages.append(name)
            context, answers = _page_text(context), tuple(map(html_text, answers))
        impossible = is_true(record.get("is_impossible")) or (is_list and not answers)
        if self.need_answers and impossible:
            self.unanswerable += 1
            return None
        if self.need_answers and not answers:
            raise InputError(f"{where} (id {name}): no answer. Training needs one in every row; fill it in or delete the row.")
        if any(GARBLED.search(text) for text in (context, question, *answers)):
            self.garbled.append(name)
        if any(ENTITY.search(text) for text in (context, question, *answers)):
            self.entities.append(name)
        if len(context) == EXCEL_CELL:
            self.cut.append(name)
        fields = {"impossible": "true"} if impossible else {}
        return Row(name, context, question, () if impossible else answers, fields=fields)

    def _id(self, where: str, value: Any) -> str:
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # pandas makes 3.0 of 3 where another id is missing
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and re.fullmatch(r"\d+\.0", value) and not self.path.suffix.lower().endswith("sv"):
            value = value[:-2]
        if not isinstance(value, str) or not trim(value):
            raise InputError(f"{where}: id is empty or no text (got {value!r}). Fill it in or delete the row.")
        if len(value) > LONGEST_ID:
            raise InputError(f"{where}: the id has {len(value):,} characters; expected at most {LONGEST_ID:,}.")
        return writable(value)

    def _text(self, where: str, name: str, part: str, value: Any) -> str:
        """The article or the question; a test file's may be empty."""
        value = "" if value is None and not self.need_answers else value
        if isinstance(value, str) and (trim(value) or not self.need_answers):
            text = clean(value)
            if text != writable(value):
                self.composed.append(name)
            if not trim(text):
                self.blank.append(name)
                return ""
            # An article keeps its white space, of which its layout is made.
            return trim(text) if part == "question" else text.strip("\ufeff\u200b\u200c\u200d\u2060")
        raise InputError(f"{where}: {part} is empty or no text (got {str(value)[:100]!r}). Fill it in or delete the row.")

    def _answers(self, where: str, name: str, record: dict[str, Any]) -> tuple[tuple[str, ...], bool]:
        """(gold answers, whether they came as a list): `answers` if given, else `answer`."""
        value = record.get("answers")
        if isinstance(value, str):
            value = _structured(value, f"{where}: answers")
        is_list = "answers" in record and not isinstance(value, str)
        if not answer_texts(value, where):
            value = record.get("answer", value)
            if isinstance(value, str) and _LISTED.match(value.strip()):
                value = _structured(value, f"{where}: answer")  # a list that was saved as its text
        given = answer_texts(value, where)
        texts = [trim(clean(text)) for text in given]
        self.composed += [name for text in given if clean(text) != writable(text)]
        if isinstance(value, int | float | Decimal):
            self.numbers.append(name)
        return tuple(text for text in texts if text), is_list


def refuse_duplicate_ids(rows: list[Row], path: Path) -> None:
    """Refuse ids that stand twice: answers are told apart by them."""
    repeated = [row_id for row_id, count in Counter(row.id for row in rows).items() if count > 1]
    if repeated:
        raise InputError(
            f"{path} has {len(repeated)} ids more than once: {short_list(repeated, 5)}. Every question needs its own."
        )


def read_answers(path: Path) -> dict[str, tuple[str, ...]]:
    """Read gold answers from a table of their own with id and answer (or answers): {id: answers}."""
    sheet = read_table(path, read_bytes(path)[0])
    names = _column_names(sheet.header, {}, path, required=("id", "answer"))
    golds: dict[str, tuple[str, ...]] = {}
    for place, cells in sheet.rows:
        record = _named(path, place, cells, names, sheet.header)
        name = record["id"]
        if name in golds:
            raise InputError(f"{path}, {place}: the id {name} stands there twice. Every question needs one line.")
        golds[name] = _Cleaner(path, True, [])._answers(f"{path}, {place}", name, record)[0]
        if not golds[name]:
            raise InputError(f"{path}, {place}: no answer for {name}. Fill it in or remove the file.")
    return golds


def match_ids(wanted: Iterable[str], found: Iterable[str]) -> Callable[[str], str | None]:
    """Return a look-up of the found name for a wanted one: the same, or the same but for white space and composition."""
    found = list(found)
    exact, by_key = set(found), {id_key(name): name for name in found}
    if len(by_key) < len(found) or len({id_key(name) for name in wanted}) < len(set(wanted)):
        by_key = {}  # two ids that differ only so must not be taken for one another
    return lambda name: name if name in exact else by_key.get(id_key(name))


def by_article(articles: Iterable[str]) -> list[list[int]]:
    """Put the places of equal articles together, in the order in which they first come."""
    groups: dict[str, list[int]] = {}
    for index, article in enumerate(articles):
        groups.setdefault(article, []).append(index)
    return list(groups.values())


def split_by_article(rows: list[Row], fraction: float) -> tuple[list[Row], list[Row]]:
    """Split into (train, validation) with no article in both, nor copies or near copies of one.

    An article is chosen by a hash of its text, so it falls on the same side for every seed, recipe and row order;
    with few articles the one with the smallest hash is taken, so that a fraction above 0 always validates on something.
    """
    if fraction == 0:
        return list(rows), []
    generated = [row for row in rows if row.fields.get("generated")]
    rows = [row for row in rows if not row.fields.get("generated")]
    if not rows:
        raise InputError(
            "every row is marked as generated, and those are never validated on: add real rows, or set validation_fraction 0."
        )
    family = families(rows)
    share = {name: int(name, 16) / 16**16 for name in set(family.values())}
    chosen = {name for name, value in share.items() if value < fraction} or {min(share, key=share.__getitem__)}
    held = [row for row in rows if family[row.article] in chosen]
    # Rows that a tool has made are trained on, unless one that they were made of is measured on.
    held_out = {row.group for row in held}
    generated = [row for row in generated if not held_out & set(row.fields.get("sources", "").split())]
    train = [row for row in rows if family[row.article] not in chosen] + generated
    if not train:
        raise InputError(
            f"got {len(share)} article(s) and validation_fraction {fraction}: nothing is left to train on. "
            "Add articles or set validation_fraction: 0."
        )
    return train, held


def families(rows: list[Row]) -> dict[str, str]:
    """Map each row's article to its family: itself, or the name shared by it and its copies and near copies."""
    articles: dict[str, set[str]] = {}  # story -> the articles that tell it
    for row in rows:
        articles.setdefault(row.story, set()).add(row.article)
    texts = {row.story: row.context for row in rows if row.context and not row.group}
    family = {story: story for story in articles}
    for group in group_near_copies(texts):
        family |= dict.fromkeys(group, min(group))
    members: dict[str, set[str]] = {}
    for story, name in family.items():
        members.setdefault(name, set()).update(articles[story])
    names = {}
    for same in members.values():
        # Not the smallest hash itself: the more copies, the smaller it would be, and the likelier validation.
        name = min(same) if len(same) == 1 else _hash(min(same))
        names |= dict.fromkeys(same, name)
    return names
