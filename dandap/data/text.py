"""Find and decode data files, clean their texts, and convert HTML to text."""

import codecs
import hashlib
import io
import re
import unicodedata
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path
from typing import TextIO

from dandap.errors import InputError, short_list

TABLES = (".csv", ".tsv", ".txt", ".xlsx", ".parquet", ".arrow")
JSONS = (".json", ".jsonl", ".ndjson")
READABLE = "a .csv, .tsv, .xlsx, .parquet, .arrow, .jsonl or .json file, or a folder of them"
# Skipped in folders: hidden and lock files, descriptions, sample submissions, metadata, and
# caches of datasets' map.
NO_DATA = re.compile(
    r"\.|~\$|(?:readme|licen[cs]e)(?:\.\w+)?$|sample_?submission\.\w+$"
    r"|(?:dataset_infos?|dataset_dict|state|config)\.json$|cache-\w+\.arrow$",
    re.IGNORECASE,
)
# Conjoining jamo (Unicode 3.12): leading, vowel, optional final; or a syllable and a final.
JAMO = re.compile("[\u1100-\u1112][\u1161-\u1175][\u11a8-\u11c2]?|[\uac00-\ud7a3][\u11a8-\u11c2]")
# Zero-width characters and direction marks, which str.strip keeps.
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u180e\u200e\u200f"
UNSEEN = re.compile(rf"[\s{INVISIBLE}\u00ad]+")
SURROGATE = re.compile("[\ud800-\udfff]")
HIDDEN = ("script", "style", "title", "template", "noscript")
BLOCKS = "p div br li tr table ul ol h1 h2 h3 h4 h5 h6 section article dt dd blockquote".split()
CLOSED_BLOCK = re.compile(r"</(?:html|body|p|div|table|tr|td|ul|ol|li|h[1-6])\s*>", re.IGNORECASE)


def find_files(path: Path, expected: str = READABLE) -> list[Path]:
    """Return the path, or the data files of a folder; raise InputError if there are none."""
    if path.is_dir():
        inside = sorted(each for each in path.iterdir() if not NO_DATA.match(each.name))
        found = [p for p in inside if p.suffix.lower() in TABLES + JSONS and p.is_file()]
        if not found:
            parts = short_list(each.name for each in inside if each.is_dir())
            hint = f" It has the folders {parts}; choose one of them." if parts else ""
            raise InputError(f"the folder {path} has no data file. Expected {expected}.{hint}")
        return found
    if not path.is_file():
        raise InputError(f"no file at {path}. Expected {expected}; check the path.")
    return [path]


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes; raise InputError if the file does not exist."""
    find_files(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_bytes(path: Path) -> tuple[bytes, str]:
    """Return a file's bytes and their SHA-256; raise InputError if the file does not exist."""
    find_files(path)
    data = path.read_bytes()
    return data, hashlib.sha256(data).hexdigest()


def _encodings(start: bytes) -> tuple[str, ...]:
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return ("utf-32",)
    # Encoding detectors mistake short cp949 texts for Big5.
    marked = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return ("utf-16",) if marked else ("utf-8", "cp949")


def decode(data: bytes, path: Path) -> tuple[str, str]:
    """Return a file's text and encoding: UTF-8, cp949, or UTF-16 or UTF-32 with a mark."""
    failures = {}
    for encoding in _encodings(data[:4]):
        try:
            return data.decode(encoding).lstrip("\ufeff"), encoding
        except UnicodeDecodeError as error:
            failures[encoding] = error.start
    # Report the encoding that got furthest; the other one fails at the first Hangul letter.
    encoding, start = max(failures.items(), key=lambda failure: failure[1])
    line = data.count(b"\n", 0, start) + 1
    got = f"got the byte 0x{data[start]:02x} at {start}, which is not valid {encoding}"
    raise InputError(f"{path}, line {line}: {got}. Correct it, or export the file again as UTF-8.")


def open_text(path: Path) -> TextIO:
    """Open a file in the encoding that `decode` finds, without loading it into memory."""
    with path.open("rb") as binary:
        encodings = _encodings(binary.read(4))
    for encoding in encodings:
        file = path.open(encoding=encoding, newline="")
        try:
            while file.read(1 << 20):
                pass
        except UnicodeDecodeError:
            file.close()
            continue
        file.seek(0)
        return file
    return io.StringIO(decode(path.read_bytes(), path)[0])  # raises: no encoding fits


def encoding_notes(path: Path, encoding: str) -> list[str]:
    """Return a note if a file is not UTF-8."""
    return [] if encoding == "utf-8" else [f"{path.name} was read as {encoding}, not UTF-8"]


def replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot represent, with "?"."""
    return SURROGATE.sub("?", text)


def clean(text: str) -> str:
    """Compose decomposed Hangul (a ninth of the tokens) and replace lone surrogates.

    Full NFC would also change characters that organizers compare (compatibility ideographs, the ohm
    sign).
    """
    text = replace_surrogates(text)
    if unicodedata.is_normalized("NFC", text):
        return text
    return JAMO.sub(lambda match: unicodedata.normalize("NFC", match[0]), text)


def trim(text: str) -> str:
    """Strip white space and invisible characters from both ends."""
    before = None
    while before != text:  # they may be interleaved
        before, text = text, text.strip().strip(INVISIBLE)
    return text


@lru_cache(maxsize=1024)  # an article's questions follow one another
def comparable(text: str) -> str:
    """Return a text for comparison: NFC, casefolded, without white space."""
    return unicodedata.normalize("NFC", UNSEEN.sub("", text)).casefold()


class _Page(HTMLParser):
    """Collects the visible text of a page, with line breaks between blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self.hidden = 0  # open hidden elements

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.hidden += tag in HIDDEN
        self.pieces.append("\n" if tag in BLOCKS else " " if tag in ("td", "th") else "")

    def handle_endtag(self, tag: str) -> None:
        # Pages close elements that they never opened.
        self.hidden = max(0, self.hidden - (tag in HIDDEN))
        self.pieces.append("\n" if tag in BLOCKS else "")

    def handle_data(self, data: str) -> None:
        self.pieces.append("" if self.hidden else re.sub(r"\s+", " ", data))


def is_html(text: str) -> bool:
    """Return whether a text is HTML: it starts with a tag and closes a block.

    "<Table 1>" in an article is not HTML. Texts with more than 100 unclosed tags are not parsed:
    Python's parser takes minutes for 50,000 of them.
    """
    beginning = text[:200].lstrip().lower()
    if not re.match(r"<[a-z!]", beginning) or text.count("<") - text.count(">") > 100:
        return False
    is_page = beginning.startswith(("<!doctype html", "<html"))
    return is_page or CLOSED_BLOCK.search(text) is not None


def html_text(page: str) -> str:
    """Return the visible text of HTML, one line per block."""
    parser = _Page()
    parser.feed(page)
    parser.close()
    lines = (re.sub(r"[ \t]+", " ", line).strip() for line in "".join(parser.pieces).split("\n"))
    return "\n".join(filter(None, lines))
