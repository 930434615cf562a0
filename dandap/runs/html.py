"""Write a page for people: one file that needs no network, legible by day and night, on any screen.

Korean shows on machines without Korean fonts, too: the glyphs that a page uses lie in it.
"""

import base64
import io
import logging
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from dandap import language
from dandap.files import write_text
from dandap.runs.plots import font_file

PAGE, STYLE = (Path(__file__).with_name(name) for name in ("page.html.jinja", "page.css"))


def write_page(folder: Path, template: Path, title: str, **values) -> Path:
    """Write report.html and return its path; the template is what stands under the title.

    Texts in it that people read are translated by `t`.
    """
    # autoescape: an article's <script> must stay a text.
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {"t": language.t, "translated": language.translated}
    body = environment.from_string(template.read_text(encoding="utf-8")).render(**values)
    page = environment.from_string(PAGE.read_text(encoding="utf-8")).render(
        title=title,
        lang=language.chosen(),
        # A style sheet knows no HTML entities; both are ours, and hold no text of others.
        font=Markup(font_face(title + body)),
        style=Markup(STYLE.read_text(encoding="utf-8")),
        body=Markup(body),
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def font_face(text: str) -> str:
    """Return a CSS rule that brings the glyphs for a text's characters beyond ASCII, or "".

    A syllable takes about 90 bytes; the whole font would take 4 MB.
    """
    from fontTools import subset  # comes with matplotlib

    characters = {character for character in text if ord(character) > 127}
    if not characters:
        return ""
    # It tells of tables of this font that it does not know, which are not needed to show it.
    logging.getLogger("fontTools.subset").setLevel(logging.ERROR)
    # Without hints, which screens of today do not need: they are half of the bytes.
    options = subset.Options(hinting=False, layout_features=[], flavor="woff", notdef_outline=True)
    font = subset.load_font(font_file(), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(text="".join(sorted(characters)))
    subsetter.subset(font)
    font["head"].modified = font["head"].created  # else each page would differ from the last
    written = io.BytesIO()
    subset.save_font(font, written, options)
    data = base64.b64encode(written.getvalue()).decode()
    # First in the style's list, and for these characters alone: behind the system's fonts Chromium
    # drew the first words of a page as boxes, and left them so.
    return (
        '@font-face { font-family: "Dandap Hangul"; unicode-range: U+80-10FFFF; '
        f'src: url("data:font/woff;base64,{data}") format("woff"); }}'
    )
