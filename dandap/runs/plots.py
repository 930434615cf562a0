"""Plots with Korean text on any machine: a PNG file, and an SVG in the colors of a page."""

import base64
import importlib.util
import io
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREY, INK = "#2f6fb0", "#d9722c", "#8a8f98", "#1d2430"
# The SVG has the page's colors instead, which differ between light and dark mode.
OF_PAGE = {BLUE: "var(--blue)", ORANGE: "var(--orange)", GREY: "var(--grey)", INK: "currentColor"}
# Inches and points: a phone of 390 pixels shows letters of 11 points in 10.
WIDTH, FONT_SIZE = 5.6, 11


def font_file() -> str:
    """Return the path of NanumGothic, which koreanize-matplotlib brings."""
    # The package is not imported: its code needs distutils.
    package = importlib.util.find_spec("koreanize_matplotlib")
    if not package or not package.submodule_search_locations:
        raise ModuleNotFoundError("koreanize_matplotlib, which requirements.txt installs")
    return str(Path(package.submodule_search_locations[0]) / "fonts" / "NanumGothic.ttf")


@cache
def _font_family() -> str:
    font_manager.fontManager.addfont(font_file())
    return font_manager.FontProperties(fname=font_file()).get_name()


def draw(path: Path, title: str, fill: Callable[[Axes], None], height: float = 3.2) -> str:
    """Write a plot as a PNG and return it as an SVG element for a page.

    `fill` draws on the axes; `height` is in inches.
    """
    colored = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = {
        **dict.fromkeys(colored, INK),
        "font.family": [_font_family(), "DejaVu Sans"],  # the second has signs the first lacks
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
        "svg.hashsalt": "dandap",  # the same ids every time
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
    # The page decides the width; the height follows from the viewBox.
    opening, rest = svg.getvalue().partition("<svg ")[2].split(">", 1)
    view = opening.split('viewBox="')[1].split('"')[0]
    for color, variable in OF_PAGE.items():
        rest = rest.replace(color, variable)
    return f'<svg class="plot" role="img" viewBox="{view}">{rest}'


def image(path: Path) -> str:
    """Return a PNG as an element of a page that needs no network."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img class="plot" alt="" src="data:image/png;base64,{data}">'


def _wrapped(text: str, width: int) -> str:
    # matplotlib would begin a formula at a $.
    return "\n".join(wrap(text, width)).replace("$", r"\$")


def bars(
    axes: Axes,
    labels: Sequence[str],
    values: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    counts: Sequence[int],
) -> None:
    """Draw horizontal bars with intervals, the first on top, each with its label and count."""
    places = range(len(labels))
    # Error bars are lengths, which matplotlib wants to be positive.
    below = [max(value - low, 0) for value, (low, _) in zip(values, intervals, strict=True)]
    above = [max(high - value, 0) for value, (_, high) in zip(values, intervals, strict=True)]
    errors = [below, above] if any(below + above) else None
    axes.barh(places, values, 0.4, color=BLUE, xerr=errors, error_kw={"ecolor": GREY, "capsize": 3})
    # Labels are above their bars: to the left, long ones would leave the bars no width.
    for place, label, value, count in zip(places, labels, values, counts, strict=True):
        axes.text(0, place - 0.27, _wrapped(label, 48), va="bottom")
        axes.text(1.03, place, f"{value:.3f}  n={count:,}", va="center")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(labels) - 0.6, -0.9)
    axes.set_xlim(0, 1.38)  # scores end at 1; the rest is room for the numbers
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.grid(axis="y", visible=False)
