"""Pages in one file that needs no network, for light and dark mode and any screen.

The Korean glyphs of a page are embedded, for machines without Korean fonts.
"""

import base64
import io
import logging
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from dandap import language
from dandap.files import write_text
from dandap.runs.plots import font_file

PAGE, STYLE = (Path(__file__).with_name(name) for name in ("page.html.jinja", "page.css"))


def write_page(folder: Path, template: Path | str, title: str, **values: Any) -> Path:
    """Write report.html, with `template` (a file or its text) under the title; return its path.

    Templates translate their texts with `t`.
    """
    # autoescape: an article's <script> must stay text.
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals["t"] = language.t
    text = template if isinstance(template, str) else template.read_text(encoding="utf-8")
    body = environment.from_string(text).render(**values)
    page = environment.from_string(PAGE.read_text(encoding="utf-8")).render(
        title=title,
        lang=language.chosen(),
        # CSS knows no HTML entities; font and style contain no text of others.
        font=Markup(font_face(title + body)),
        style=Markup(STYLE.read_text(encoding="utf-8")),
        body=Markup(body),
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def font_face(text: str) -> str:
    """Return a CSS rule with the glyphs of a text's characters beyond ASCII, or "".

    A syllable takes about 90 bytes; the whole font would take 4 MB.
    """
    from fontTools import subset  # comes with matplotlib

    characters = sorted({character for character in text if ord(character) > 127})
    if not characters:
        return ""
    logging.getLogger("fontTools.subset").setLevel(logging.ERROR)  # about tables it does not know
    # Hints are half of the bytes, and screens of today do not need them.
    options = subset.Options(hinting=False, layout_features=[], flavor="woff", notdef_outline=True)
    font = subset.load_font(font_file(), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(text="".join(characters))
    subsetter.subset(font)
    font["head"].modified = font["head"].created  # the same bytes every time
    file = io.BytesIO()
    subset.save_font(font, file, options)
    data = base64.b64encode(file.getvalue()).decode()
    # First in the style's list, for these characters only: behind the system's fonts, Chromium drew
    # the first words of a page as boxes.
    return (
        '@font-face { font-family: "Dandap Hangul"; unicode-range: U+80-10FFFF; '
        f'src: url("data:font/woff;base64,{data}") format("woff"); }}'
    )
