"""Texts are cleaned here of what people's files hold beside them.

These are decomposed Hangul, invisible characters, half emoji and the tags of HTML.
"""

import re
import unicodedata
from html.parser import HTMLParser

# A leading and a vowel letter, maybe a final one; or a syllable whose final letter stands apart
# (Unicode 3.12).
JAMO = re.compile("[\u1100-\u1112][\u1161-\u1175][\u11a8-\u11c2]?|[\uac00-\ud7a3][\u11a8-\u11c2]")
# Zero-width characters and marks of direction, which str.strip does not take for white space.
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u180e\u200e\u200f"
UNSEEN = re.compile(rf"[\s{INVISIBLE}\u00ad]+")
SURROGATE = re.compile("[\ud800-\udfff]")


def compose(text: str) -> str:
    """Compose decomposed Hangul, which takes nine times the tokens; nothing else is normalised.

    Full NFC would rewrite characters that an organiser compares as they are (compatibility
    ideographs, the ohm sign).
    """
    return JAMO.sub(_composed, text)


def _composed(match: re.Match) -> str:
    return unicodedata.normalize("NFC", match[0])


def writable(text: str) -> str:
    """Put "?" for halves of surrogate pairs, which no tokenizer and no UTF-8 file can hold."""
    return SURROGATE.sub("?", text)


def clean(text: str) -> str:
    """Return a text with its Hangul composed and without half surrogate pairs; all else stays."""
    return compose(writable(text))


def trim(text: str) -> str:
    """Take white space and invisible characters off both ends."""
    # Either may stand outside the other, so both are taken off until nothing changes.
    before = None
    while before != text:
        before, text = text, text.strip().strip(INVISIBLE)
    return text


def bare(text: str) -> str:
    """Reduce a text to what readers tell texts apart by.

    White space, invisible characters and soft hyphens are left out; the rest is composed, in one
    case.
    """
    return unicodedata.normalize("NFC", UNSEEN.sub("", text)).casefold()


def id_key(name: str) -> str:
    """Return what an id is matched by between files.

    It is composed and trimmed: macOS decomposes Hangul, spreadsheets add white space.
    """
    return unicodedata.normalize("NFC", trim(name))


class _Page(HTMLParser):
    """Collects what a reader of a page sees."""

    HIDDEN = ("script", "style", "title", "template", "noscript")
    BREAKS = tuple(
        "p div br li tr table ul ol h1 h2 h3 h4 h5 h6 section article dt dd blockquote "
        "title".split()
    )

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.hidden = 0  # how many hidden elements are open

    def handle_starttag(self, tag, attrs):
        self.hidden += tag in self.HIDDEN
        if tag in self.BREAKS:
            self.pieces.append("\n")
        elif tag in ("td", "th"):
            self.pieces.append(" ")

    def handle_endtag(self, tag):
        # Pages close what they never opened; below 0, a later script would be taken for text.
        self.hidden = max(0, self.hidden - (tag in self.HIDDEN))
        if tag in self.BREAKS:
            self.pieces.append("\n")

    def handle_data(self, data):
        if not self.hidden:
            self.pieces.append(re.sub(r"\s+", " ", data))


def looks_like_html(text: str) -> bool:
    """Say whether a text is a page or a piece of one.

    An article with <Table 1> or that speaks of <p> is none: a page begins with a tag and closes a
    block. Nor is a text with more than 100 tags that never end: on 50,000 of them Python's parser
    takes minutes.
    """
    if text.count("<") - text.count(">") > 100:
        return False
    beginning = text.lstrip()[:200].lower()
    if beginning.startswith(("<!doctype html", "<html")):
        return True
    return re.match(r"<[a-z!]", beginning) is not None and _CLOSED_BLOCK.search(text) is not None


_CLOSED_BLOCK = re.compile(r"</(?:html|body|p|div|table|tr|td|ul|ol|li|h[1-6])\s*>", re.IGNORECASE)


def html_text(page: str) -> str:
    """Return the text of HTML as a reader sees it: a line for each block, no tags, no scripts."""
    parser = _Page()
    parser.feed(page)
    parser.close()
    lines = (re.sub(r"[ \t]+", " ", line).strip() for line in "".join(parser.pieces).split("\n"))
    return "\n".join(line for line in lines if line)
