"""Translate the texts of reports and the page to Korean.

English texts are the keys of korean.yaml. Console messages are English.
"""

import os
from functools import cache
from pathlib import Path

import yaml

LANGUAGES = ("en", "ko")
_language = "en"


def set_language(name: str | None) -> None:
    """Set the language of this process, by default the locale's."""
    global _language
    if name is None:
        # POSIX uses the first of these that is set.
        names = (os.environ.get(variable) for variable in ("LC_ALL", "LC_MESSAGES", "LANG"))
        name = "ko" if next(filter(None, names), "").lower().startswith("ko") else "en"
    _language = name


def current() -> str:
    """Return the language of this process, "en" or "ko"."""
    return _language


def t(text: str, /, **fields: object) -> str:
    """Return a text in the process's language, with its {fields} filled in."""
    found = korean().get(text, text) if _language == "ko" else text
    return found.format(**fields) if fields else found


@cache
def korean() -> dict[str, str]:
    """Return the catalog: English text -> Korean text."""
    catalog = Path(__file__).with_name("korean.yaml")
    return yaml.safe_load(catalog.read_text(encoding="utf-8"))
