"""Say what people read in their language: English is the source, korean_texts.py the catalogue."""

import os
import re
from functools import cache

from dandap.korean_texts import ERRORS, TEXTS

LANGUAGES = ("en", "ko")
_now = "en"


def use(name: str | None) -> None:
    """Choose the language for this process; None takes that of the locale."""
    global _now
    _now = name or of_locale()


def chosen() -> str:
    """Return the language that was chosen, "en" or "ko"."""
    return _now


def of_locale() -> str:
    """Return the language of the environment's locale: "ko" for Korean, else "en"."""
    # POSIX takes the first of these that is set.
    names = (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    return "ko" if next(filter(None, names), "").lower().startswith("ko") else "en"


def t(text: str, **fields) -> str:
    """Return a text of ours in the chosen language, with its {fields} filled in.

    What the catalogue lacks stays English.
    """
    found = TEXTS.get(text, text) if _now == "ko" else text
    return found.format(**fields) if fields else found


def translated(message: str) -> str:
    """Return a finished message in the chosen language; English where the catalogue lacks it.

    Its numbers and names are found again by the places of the {fields} in the catalogue.
    """
    if _now == "en":
        return message
    if message in TEXTS:
        return TEXTS[message]
    for pattern, korean in _patterns():
        if found := pattern.fullmatch(message):
            return korean.format(**found.groupdict())
    return message


@cache
def _patterns() -> list[tuple[re.Pattern, str]]:
    """Return the catalogue's texts with fields as patterns, with their translations."""
    found = []
    for english, korean in (ERRORS | TEXTS).items():
        if "{" in english:
            pieces = re.split(r"\{(\w+)\}", english)
            # Odd pieces are names of fields.
            parts = [f"(?P<{p}>.*?)" if n % 2 else re.escape(p) for n, p in enumerate(pieces)]
            found.append((re.compile("".join(parts), re.DOTALL), korean))
    return found
