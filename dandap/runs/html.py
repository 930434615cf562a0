"""Write self-contained HTML pages, and draw plots.

Pages support light and dark mode and embed the Korean glyphs that they use.
"""

import base64
import io
import logging
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib
from jinja2 import Environment
from markupsafe import Markup
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dandap import language
from dandap.files import write_text

BLUE, ORANGE, GRAY, INK = "#2f6fb0", "#d9722c", "#8a8f98", "#1d2430"
# CSS variables for SVG: colors differ between light and dark mode.
OF_PAGE = {BLUE: "var(--blue)", ORANGE: "var(--orange)", GRAY: "var(--gray)", INK: "currentColor"}
WIDTH, FONT_SIZE = 5.6, 11  # inches, points
PAGE = """<!DOCTYPE html>
<html lang="{{ lang }}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
{{ font }}
{{ style }}
</style>
</head>
<body>
<h1>{{ title }}</h1>
{{ body }}
</body>
</html>
"""


def write_page(folder: Path, template: Path | str, title: str, **values: Any) -> Path:
    """Render `template` (a file or its text) to report.html and return its path."""
    # autoescape: articles are untrusted.
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals["t"] = language.t
    text = template if isinstance(template, str) else template.read_text(encoding="utf-8")
    body = environment.from_string(text).render(**values)
    page = environment.from_string(PAGE).render(
        title=title,
        lang=language.current(),
        # Not escaped: CSS has no HTML entities, and these contain no untrusted text.
        font=Markup(font_face(title + body)),
        style=Markup(Path(__file__).with_name("page.css").read_text(encoding="utf-8")),
        body=Markup(body),
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


@cache
def font_file() -> str:
    """Register NanumGothic from koreanize-matplotlib with matplotlib, and return its path."""
    # Do not import the package, which needs distutils.
    files = distribution("koreanize-matplotlib")
    path = str(files.locate_file("koreanize_matplotlib/fonts/NanumGothic.ttf"))
    font_manager.fontManager.addfont(path)
    return path


def font_face(text: str) -> str:
    """Return a CSS rule with the glyphs of a text's non-ASCII characters, 90 bytes each."""
    from fontTools import subset  # comes with matplotlib

    logging.getLogger("fontTools.subset").setLevel(logging.ERROR)  # unknown tables
    # Without hints, which are half of the size.
    options = subset.Options(hinting=False, layout_features=[], flavor="woff", notdef_outline=True)
    font = subset.load_font(font_file(), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(text="".join(sorted(set(filter(lambda sign: ord(sign) > 127, text)))))
    subsetter.subset(font)
    font["head"].modified = font["head"].created  # deterministic output
    file = io.BytesIO()
    subset.save_font(font, file, options)
    data = base64.b64encode(file.getvalue()).decode()
    # First in the font list, for these characters only: after system fonts, Chromium drew boxes.
    return (
        '@font-face { font-family: "Dandap Hangul"; unicode-range: U+80-10FFFF; '
        f'src: url("data:font/woff;base64,{data}") format("woff"); }}'
    )


def draw(path: Path, title: str, fill: Callable[[Axes], None], height: float = 3.2) -> str:
    """Write a plot as a PNG and return it as SVG; `fill` draws it, `height` is in inches."""
    font_file()
    colored = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = {
        **dict.fromkeys(colored, INK),
        "font.family": ["NanumGothic", "DejaVu Sans"],  # the second for missing signs
        "font.size": FONT_SIZE,
        "axes.unicode_minus": False,  # NanumGothic has no U+2212
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "axes.axisbelow": True,
        "axes.facecolor": "none",
        "axes.titlelocation": "left",
        "axes.titlesize": FONT_SIZE + 1,
        "svg.hashsalt": "dandap",  # deterministic ids
    }
    svg = io.StringIO()
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH, height), dpi=150, layout="constrained")
        axes = figure.subplots()
        fill(axes)
        axes.set_title(_wrapped(title, 60), pad=10)
        figure.savefig(path)
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(svg, format="svg", facecolor="none", metadata=metadata)
    # The page sets the width, the viewBox the height.
    opening, rest = svg.getvalue().partition("<svg ")[2].split(">", 1)
    view = opening.split('viewBox="')[1].split('"')[0]
    for color, variable in OF_PAGE.items():
        rest = rest.replace(color, variable)
    return f'<svg class="plot" role="img" viewBox="{view}">{rest}'


def _wrapped(text: str, width: int) -> str:
    # $ starts a formula in matplotlib.
    return "\n".join(wrap(text, width)).replace("$", r"\$")


def bars(
    axes: Axes,
    labels: Sequence[str],
    values: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    counts: Sequence[int],
) -> None:
    """Draw horizontal bars with intervals, labels and counts, the first on top."""
    places = range(len(labels))
    axes.barh(places, values, 0.4, color=BLUE)
    axes.hlines(places, *zip(*intervals, strict=True), color=GRAY, linewidth=3)
    # Labels are above the bars, because they may be long.
    for place, label, value, count in zip(places, labels, values, counts, strict=True):
        axes.text(0, place - 0.27, _wrapped(label, 48), va="bottom")
        axes.text(1.03, place, f"{value:.3f}  n={count:,}", va="center")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(labels) - 0.6, -0.9)
    axes.set_xlim(0, 1.38)  # scores are at most 1; space for numbers
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.grid(axis="y", visible=False)
