"""Draw plots that show Korean on any machine: the font comes with a package, not the system.

A plot is a PNG for people to take along, and an SVG for a page, whose colours follow the page's.
"""

import base64
import importlib.util
import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from textwrap import wrap

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREY, INK = "#2f6fb0", "#d9722c", "#8a8f98", "#1d2430"
# What an SVG has instead, so that one drawing is legible on a light and on a dark page.
OF_PAGE = {BLUE: "var(--blue)", ORANGE: "var(--orange)", GREY: "var(--grey)", INK: "currentColor"}
DOTS_PER_INCH = 150
# Inches of every plot. With letters of 11 points a telephone of 390 pixels shows them in 10.
WIDTH, LETTERS = 5.6, 11


def font_file() -> str:
    """Return the path of NanumGothic, which koreanize-matplotlib brings."""
    # The package is found and not imported, because its code needs distutils.
    folder = Path(importlib.util.find_spec("koreanize_matplotlib").submodule_search_locations[0])
    return str(folder / "fonts" / "NanumGothic.ttf")


@cache
def _font_family() -> str:
    font_manager.fontManager.addfont(font_file())
    return font_manager.FontProperties(fname=font_file()).get_name()


def draw(path: Path, title: str, fill: Callable[[Axes], None], height: float = 3.2) -> str:
    """Write a plot as a PNG and return it as an SVG element for a page.

    `fill` draws on the axes; `height` is in inches.
    """
    style = {
        # The second font is for signs that the first lacks.
        "font.family": [_font_family(), "DejaVu Sans"],
        "axes.unicode_minus": False,  # NanumGothic has no U+2212
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "axes.axisbelow": True,
        "axes.facecolor": "none",
        "axes.titlelocation": "left",
        "axes.titlesize": LETTERS + 1,
        "font.size": LETTERS,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
        **dict.fromkeys(("xtick.color", "ytick.color"), INK),
        # Names in the SVG are made of what they name, so that a report is the same every time.
        "svg.hashsalt": "dandap",
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, layout="constrained")
        axes = figure.subplots()
        fill(axes)
        axes.set_title(_plain("\n".join(wrap(title, 60))), pad=10)
        figure.savefig(path)
        drawn = io.StringIO()
        nobody = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(drawn, format="svg", facecolor="none", metadata=nobody)
    return _for_page(drawn.getvalue())


def _for_page(svg: str) -> str:
    """Return an SVG file as an element of a page, which gives it its width and colours."""
    element = svg[svg.index("<svg ") :]
    # The page decides how wide it is; the height follows from the viewBox.
    opening, rest = element.split(">", 1)
    view = opening.split('viewBox="')[1].split('"')[0]
    for ours, theirs in OF_PAGE.items():
        rest = rest.replace(ours, theirs)
    return f'<svg class="plot" role="img" viewBox="{view}">{rest}'


def image(path: Path) -> str:
    """Return a PNG as an element of a page that needs no network."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img class="plot" alt="" src="data:image/png;base64,{data}">'


def _plain(text: str) -> str:
    # matplotlib would begin a formula at a $.
    return text.replace("$", r"\$")


def bars(
    axes: Axes,
    labels: list[str],
    values: list[float],
    intervals: list[tuple[float, float]],
    counts: list[int],
) -> None:
    """Draw horizontal bars with intervals, each under its label, with its value and count.

    The first label's bar is on top.
    """
    places = range(len(labels))
    # Error bars are lengths from the value, and matplotlib refuses negative ones.
    below = [max(value - low, 0) for value, (low, _) in zip(values, intervals, strict=True)]
    above = [max(high - value, 0) for value, (_, high) in zip(values, intervals, strict=True)]
    # Without an interval there is nothing to draw but a mark.
    errors = [below, above] if any(below) or any(above) else None
    axes.barh(places, values, 0.4, color=BLUE, xerr=errors, error_kw={"ecolor": GREY, "capsize": 3})
    # Labels stand over their bars: beside them long ones would leave the bars no width, and each
    # plot's bars would begin elsewhere.
    for place, label, value, count in zip(places, labels, values, counts, strict=True):
        axes.text(0, place - 0.27, _plain("\n".join(wrap(label, 48))), va="bottom")
        axes.text(1.03, place, f"{value:.3f}  n={count:,}", va="center")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(labels) - 0.6, -0.9)
    axes.set_xlim(0, 1.38)  # scores end at 1; the rest is room for the numbers beside the bars
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.grid(axis="y", visible=False)
