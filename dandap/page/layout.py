"""Lay the page out with Gradio: a tab for each task, and the endpoint /answer."""

from contextlib import nullcontext
from typing import Any

import gradio

from dandap import ROOT
from dandap.data.rows import by_article
from dandap.errors import InputError
from dandap.language import t
from dandap.page.service import BASE, AnswerService
from tasks.task import Box, Task

MAX_SAMPLES = 8
# One model computes at a time; a visitor who comes while 64 wait reads that the queue is full.
MODEL: Any = {"concurrency_id": "model", "concurrency_limit": 1}
MAX_WAITING = 64
# On a phone the answers are below what was typed.
SCROLL = "() => document.getElementById('{}').scrollIntoView({{block: 'nearest'}})"


def build_page(service: AnswerService) -> gradio.Blocks:
    """Return the page, with a tab for each task that a run was trained for."""

    def answer(article: str, questions: list[str], run: str = "") -> list[dict]:
        """Answer questions on an article with a run (without a name the default one).

        Each answer has the mean probability of its tokens (of a choice its share), and its place
        in the article as it was read, [start, end) in characters, or null.
        """
        try:
            return service.answer_request(article, questions, run)
        except InputError as error:
            raise gradio.Error(str(error), print_exception=False) from error

    tasks = {task.name: task for task in service.tasks.values()}
    with gradio.Blocks(title="단답 Dandap", analytics_enabled=False) as page:
        subtitle = t("Reads an article once and answers its questions in a word each.")
        gradio.HTML(f"<header><h1>단답</h1><p>{subtitle}</p></header>")
        with gradio.Tabs() if len(tasks) > 1 else nullcontext():
            for task in tasks.values():
                with gradio.Tab(t(task.page.title)) if len(tasks) > 1 else nullcontext():
                    _add_task(service, task)
        gradio.api(answer, api_name="answer", **MODEL)
    return page.queue(max_size=MAX_WAITING, api_open=False)


def _add_task(service: AnswerService, task: Task) -> None:
    """Put a task's boxes on the left and the answers on the right; below on a phone."""
    runs = [name for name, its_task in service.tasks.items() if its_task is task]
    names, found = [box.name for box in task.page.boxes], samples(task)
    with gradio.Row(equal_height=False):
        with gradio.Column(scale=5, min_width=320):
            with gradio.Row():
                run = _dropdown("Model", runs)
                others = [(t("nothing"), ""), (t("the untuned base model"), BASE), *runs]
                compared = _dropdown("Compare with", others, "")
            sample = _dropdown("Sample", [(t("pick one"), ""), *found], "")
            boxes = [_box(box) for box in task.page.boxes]
            button = gradio.Button(t("Ask"), variant="primary")
        with gradio.Column(scale=6, min_width=320):
            empty = f'<p class="nothing">{t("Answers appear here.")}</p>'
            shown = gradio.HTML(empty, elem_id=f"shown-{task.name}")

    def ask(run: str, compared: str, *texts: str | None) -> str:
        typed = {name: text or "" for name, text in zip(names, texts, strict=True)}
        return service.show(run, compared, typed)

    def fill(chosen: str) -> Any:
        texts = [found[chosen][name] if chosen in found else gradio.skip() for name in names]
        return texts if len(texts) > 1 else texts[0]

    hidden: Any = {"api_visibility": "private"}
    asked = button.click(ask, [run, compared, *boxes], shown, **hidden, **MODEL)
    asked.then(None, js=SCROLL.format(shown.elem_id), **hidden)
    # Filling in a sample does not wait for the model.
    sample.input(fill, sample, boxes, concurrency_limit=None, **hidden)


def samples(task: Task) -> dict[str, dict[str, str]]:
    """Return what may be tried, by its first words: articles of the bundled file, or one row."""
    file = task.page.sample_file
    rows = task.read([ROOT / file], {}, False).rows if file else [task.sample]
    found: dict[str, dict[str, str]] = {}
    for indices in by_article(row.article for row in rows)[:MAX_SAMPLES]:
        typed = task.page.to_text([rows[index] for index in indices])
        words = " ".join(typed[task.page.boxes[0].name].split())
        found[f"{len(found) + 1}. {words[:28]}..."] = typed
    return found


def _dropdown(label: str, choices: list, value: str | None = None) -> gradio.Dropdown:
    value = choices[0] if value is None else value
    return gradio.Dropdown(choices, value=value, label=t(label), filterable=False)


def _box(box: Box) -> gradio.components.Component:
    if box.choices:
        return _dropdown(box.label, list(box.choices))
    # A box grows with what is typed, up to twice its height, and then scrolls.
    return gradio.Textbox(label=t(box.label), lines=box.lines, max_lines=2 * box.lines)
