"""Draw plots that show Korean on any machine: the font comes with a package, not the system."""

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from textwrap import wrap

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#2f6fb0", "#d9722c", "#8a8f98"
DOTS_PER_INCH = 110


def font_file() -> str:
    """Return the path of NanumGothic, which koreanize-matplotlib brings."""
    # The package is found and not imported, because its code needs distutils.
    folder = Path(importlib.util.find_spec("koreanize_matplotlib").submodule_search_locations[0])
    return str(folder / "fonts" / "NanumGothic.ttf")


@cache
def _font_family() -> str:
    font_manager.fontManager.addfont(font_file())
    return font_manager.FontProperties(fname=font_file()).get_name()


def draw(path: Path, fill: Callable[[Axes], None], width: float = 7.0, height: float = 3.6) -> Path:
    """Make a PNG of one plot and return its path; `fill` draws on its axes.

    Width and height are in inches.
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
        "font.size": 10,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
        fill(figure.subplots())
        figure.savefig(path)
    return path


def bars(
    axes: Axes,
    labels: list[str],
    values: list[float],
    intervals: list[tuple[float, float]],
    counts: list[int],
) -> None:
    """Draw horizontal bars with intervals, each with its value and the number of its questions.

    The first label's bar is on top.
    """
    places = range(len(labels))
    # Error bars are lengths from the value, and matplotlib refuses negative ones.
    below = [max(value - low, 0) for value, (low, _) in zip(values, intervals, strict=True)]
    above = [max(high - value, 0) for value, (_, high) in zip(values, intervals, strict=True)]
    axes.barh(
        places, values, color=BLUE, xerr=[below, above], error_kw={"ecolor": GREY, "capsize": 3}
    )
    for place, value, (_, high), count in zip(places, values, intervals, counts, strict=True):
        axes.text(
            max(value, high) + 0.015, place, f"{value:.3f}  (n={count})", va="center", fontsize=9
        )
    # matplotlib would begin a formula at a $.
    axes.set_yticks(places, ["\n".join(wrap(label, 45)).replace("$", r"\$") for label in labels])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.22)  # scores end at 1; the rest is room for the numbers beside the bars
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.grid(axis="y", visible=False)
