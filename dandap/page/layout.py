"""Lay the page out with Gradio: a tab for each task, and the endpoint /answer beside them."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gradio

from dandap.language import t
from dandap.page.desk import BASE

STYLE = Path(__file__).with_name("page.css")
# One model computes at a time; whoever comes while so many wait is told that the queue is full.
MODEL, MOST_WAITING = {"concurrency_id": "model", "concurrency_limit": 1}, 64
# Fonts that the reader has, Korean ones first: nothing is fetched for them.
FONTS = ("Pretendard", "Apple SD Gothic Neo", "Noto Sans KR", "Malgun Gothic", "NanumGothic")
# On a phone the answers are below what was typed.
INTO_SIGHT = """() => {{
    const shown = document.getElementById("{}"), top = shown.getBoundingClientRect().top;
    if (top < 0 || top > innerHeight / 2) shown.scrollIntoView({{behavior: "smooth"}});
}}"""


@dataclass(frozen=True)
class Tab:
    """Describes the tab of one task.

    `boxes` are the task's, `samples` map a name to what stands in them.
    """

    name: str
    title: str
    boxes: tuple
    runs: list[str]
    samples: dict[str, dict[str, str]]


def build_page(tabs: list[Tab], show: Callable[..., str], answer: Callable) -> gradio.Blocks:
    """Return the page.

    `show(run, beside, typed)` gives HTML; `answer` is the endpoint, typed for Gradio's
    documentation of it.
    """
    several = gradio.Tabs if len(tabs) > 1 else nullcontext
    with gradio.Blocks(title="단답 Dandap", analytics_enabled=False) as page:
        subtitle = t("Reads an article once and answers its questions in a word each.")
        gradio.HTML(f"<header><h1>단답</h1><p>{subtitle}</p></header>")
        with several():
            for tab in tabs:
                with gradio.Tab(t(tab.title)) if len(tabs) > 1 else nullcontext():
                    _fill(tab, show)
        gradio.api(answer, api_name="answer", **MODEL)
    return page.queue(max_size=MOST_WAITING, api_open=False)


def _fill(tab: Tab, show: Callable[..., str]) -> None:
    """Put a tab's boxes on its left, and what is answered on its right; below on a phone."""
    with gradio.Row(equal_height=False):
        with gradio.Column(scale=5, min_width=320):
            with gradio.Row():
                run = gradio.Dropdown(
                    tab.runs, value=tab.runs[0], label=t("Who answers"), filterable=False
                )
                others = [(t("nothing"), ""), (t("the base, before training"), BASE), *tab.runs]
                beside = gradio.Dropdown(others, value="", label=t("Beside it"), filterable=False)
            sample = gradio.Dropdown(
                [(t("pick one"), ""), *tab.samples],
                value="",
                label=t("Sample"),
                filterable=False,
            )
            boxes = [_box(box) for box in tab.boxes]
            button = gradio.Button(t("Ask"), variant="primary")
        with gradio.Column(scale=6, min_width=320):
            shown = gradio.HTML(
                f'<p class="nothing">{t("Answers appear here.")}</p>', elem_id=f"shown-{tab.name}"
            )
    names = [box.name for box in tab.boxes]

    def ask(run: str, beside: str, *values: str) -> str:
        return show(run, beside, dict(zip(names, values, strict=True)))

    asked = button.click(ask, [run, beside, *boxes], shown, api_visibility="private", **MODEL)
    asked.then(None, js=INTO_SIGHT.format(shown.elem_id), api_visibility="private")
    # Filling boxes does not wait for a model that answers others.
    sample.input(
        partial(_sample, tab), sample, boxes, api_visibility="private", concurrency_limit=None
    )


def _sample(tab: Tab, chosen: str) -> list | object:
    """Return what a sample puts into the boxes; the first choice leaves them as they are."""
    if chosen not in tab.samples:
        return [gradio.skip() for _ in tab.boxes] if len(tab.boxes) > 1 else gradio.skip()
    values = [tab.samples[chosen][box.name] for box in tab.boxes]
    return values if len(values) > 1 else values[0]


def _box(box) -> gradio.components.Component:
    label = t(box.label)
    if box.choices:
        return gradio.Dropdown(
            list(box.choices), value=box.choices[0], label=label, filterable=False
        )
    # A box grows with what is typed, up to twice its height, and then scrolls.
    return gradio.Textbox(label=label, lines=box.lines, max_lines=2 * box.lines)


def theme() -> gradio.themes.Base:
    """Return the colours and fonts."""
    fonts = [gradio.themes.Font(name) for name in (*FONTS, "sans-serif")]
    return gradio.themes.Base(
        primary_hue="teal", neutral_hue="stone", font=fonts, font_mono=fonts, radius_size="lg"
    )
