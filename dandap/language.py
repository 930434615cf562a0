"""Say what people read in their language: English is the source, korean.yaml the catalogue."""

import locale
import os
import re
from functools import cache
from pathlib import Path

import yaml

CATALOGUE = Path(__file__).with_name("korean.yaml")
LANGUAGES = ("en", "ko")
# Fields that name files, folders and what people have named themselves.
PLACES = {"file", "folder", "id", "known", "model", "owner", "path", "run"}
# Characters of what is translated. The time of patterns with many fields grows with their cube: a
# text of 1,922 full of ", line " took 0.4 s, one of 4,160 took 24.
LONGEST = 2000
_now = "en"


def use(name: str | None) -> None:
    """Choose the language for this process; None takes that of the locale."""
    global _now
    _now = name or of_locale()


def chosen() -> str:
    """Return the language that was chosen, "en" or "ko"."""
    return _now


def of_locale() -> str:
    """Return the locale's language: "ko" for Korean, else "en"."""
    # POSIX takes the first of these that is set.
    names = (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    # Windows sets none of them, and calls it Korean_Korea.
    name = next(filter(None, names), None) or locale.getlocale()[0] or ""
    return "ko" if name.lower().startswith("ko") else "en"


def t(text: str, **fields) -> str:
    """Return a text of ours in the chosen language, with its {fields} filled in.

    What the catalogue lacks stays English.
    """
    found = korean("texts").get(text, text) if _now == "ko" else text
    return found.format(**fields) if fields else found


def translated(message: str) -> str:
    """Return a finished message in the chosen language; English where the catalogue lacks it.

    Its names and numbers are found by the places of the {fields} in the catalogue, and are
    translated, too, where they are texts of ours; but a folder may be called as a heading is.
    """
    if _now == "en" or len(message) > LONGEST:
        return message
    if message in korean("texts"):
        return korean("texts")[message]
    lines = message.split("\n")
    if len(lines) > 1:  # several messages, as of a recipe's wrong values
        each = [translated(line) for line in lines]
        if all(ours != line for ours, line in zip(each, lines, strict=True)):
            return "\n".join(each)
    for pattern, said in _patterns():
        if found := pattern.fullmatch(message):
            fields = found.groupdict()
            fields |= {name: translated(fields[name]) for name in fields.keys() - PLACES}
            return said.format(**fields)
    return message


@cache
def korean(group: str) -> dict[str, str]:
    """Return a group of the catalogue, "texts" or "messages": English text -> Korean text."""
    groups = yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))
    return {pair["en"]: pair["ko"] for pair in groups[group]}


@cache
def _patterns() -> list[tuple[re.Pattern, str]]:
    """Return the catalogue's messages as patterns, with their translations."""
    return [(pattern_of(english), said) for english, said in korean("messages").items()]


def pattern_of(english: str) -> re.Pattern:
    """Return a pattern of all messages that a text with {fields} can become."""
    # Odd pieces are names of fields.
    pieces = re.split(r"\{(\w+)\}", english)
    parts = [f"(?P<{p}>.*?)" if n % 2 else re.escape(p) for n, p in enumerate(pieces)]
    return re.compile("".join(parts), re.DOTALL)
