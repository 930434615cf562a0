"""The texts of reports, of tools.explore and of the page, in English or Korean.

English is the source and the key; korean.yaml is the catalogue. Console messages are English.
"""

import os
from functools import cache
from pathlib import Path

import yaml

LANGUAGES = ("en", "ko")
_language = "en"


def use(name: str | None) -> None:
    """Choose the language of this process; None means the locale's."""
    global _language
    if name is None:
        # POSIX uses the first of these that is set.
        names = (os.environ.get(variable) for variable in ("LC_ALL", "LC_MESSAGES", "LANG"))
        name = "ko" if next(filter(None, names), "").lower().startswith("ko") else "en"
    _language = name


def chosen() -> str:
    """Return the chosen language, "en" or "ko"."""
    return _language


def t(text: str, /, **fields: object) -> str:
    """Return a text in the chosen language, or as it is, with its {fields} filled in."""
    found = korean().get(text, text) if _language == "ko" else text
    return found.format(**fields) if fields else found


@cache
def korean() -> dict[str, str]:
    """Return the catalogue: English text -> Korean text."""
    catalogue = Path(__file__).with_name("korean.yaml")
    return yaml.safe_load(catalogue.read_text(encoding="utf-8"))
