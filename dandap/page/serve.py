"""Build the Gradio page and serve it, locally or at a public address with a password."""

import re
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gradio
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

from dandap import ROOT
from dandap.data.rows import by_article
from dandap.errors import InputError, first_line
from dandap.language import t
from dandap.page.service import BASE, AnswerService
from tasks.task import Task

MODEL: Any = {"concurrency_id": "model", "concurrency_limit": 1}  # one request at a time
HOST, USER = "127.0.0.1", "dandap"
MAX_BYTES = 1_000_000  # per request; 30,000 Hangul syllables as \uXXXX are 180,000 bytes
# Other routes of Gradio serve files, save uploads or fetch URLs.
ALLOWED = re.compile(
    r"/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|login/?|logout)?"
    r"|/gradio_api/(info|startup-events|queue/join|queue/data|cancel|reset|theme\.css|user"
    r"|login_check|app_id)/?"
    # Gradio's scripts and images, calls by name, and heartbeats.
    r"|/(assets|static|gradio_api/call|gradio_api/heartbeat)/(?!.*\.\.).*"
)
# Browsers load only from this server. Gradio's scripts are inline and use eval.
HEADERS = {
    "content-security-policy": "default-src 'self'; object-src 'none'; base-uri 'self'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
# System fonts, without downloads.
FONTS = ["Pretendard", "Apple SD Gothic Neo", "Noto Sans KR", "Malgun Gothic", "sans-serif"]


def serve(
    run: str | None, output_dir: str, options: Mapping[str, Any], port: int, share: bool
) -> None:
    """Serve the page of finished runs until Ctrl-C; `options` override their recipes."""
    service = AnswerService(run, output_dir, options)
    # Fail before the page opens.
    service.open(next(iter(service.runs)))
    page = build_page(service)
    # Too long to guess: no rate limit is needed, which could lock out the owner.
    password = secrets.token_urlsafe(16) if share else None
    print(f"page: {open_page(page, port, password)} (stop with Ctrl-C)", flush=True)
    if password:
        print(f"user: {USER}  password: {password}", flush=True)
    while page.is_running:  # the server is a daemon thread
        time.sleep(1)


def build_page(service: AnswerService) -> gradio.Blocks:
    """Return the page, with one tab for each task of the runs."""

    def answer(article: str, questions: list[str], run: str = "") -> list[dict]:
        """Answer questions on an article with a run, by default the first one.

        Each answer has its probability (geometric mean over tokens) and its span in the article,
        [start, end) in characters, or null.
        """
        try:
            return service.answer_request(article, questions, run)
        except InputError as error:
            raise gradio.Error(str(error), print_exception=False) from error

    tasks = dict.fromkeys(service.tasks.values())
    with gradio.Blocks(title="단답 Dandap", analytics_enabled=False) as page:
        subtitle = t("Reads an article once and answers each question briefly.")
        gradio.Markdown(f"# 단답\n{subtitle}")
        for task in tasks:
            with gradio.Tab(t(task.page.title)) if len(tasks) > 1 else nullcontext():
                add_task(service, task)
        gradio.api(answer, api_name="answer", **MODEL)
    # More than 64 waiting requests are rejected.
    return page.queue(max_size=64, api_open=False)


def add_task(service: AnswerService, task: Task) -> None:
    """Add a task's inputs and answers, side by side on wide screens."""
    form, names = task.page, [box.name for box in task.page.boxes]
    runs = [name for name, its_task in service.tasks.items() if its_task is task]
    others = [(t("nothing"), ""), (t("the untuned base model"), BASE), *runs]
    file = form.sample_file
    rows = task.read([ROOT / file], {}, False).rows if file else [task.sample]
    groups = by_article(row.article for row in rows)[:8]
    samples = [form.to_text([rows[index] for index in indices]) for indices in groups]
    starts = [f"{number}. {typed[names[0]][:28]}" for number, typed in enumerate(samples, 1)]

    def choice(label: str, choices: Sequence, value: str | None, **more: Any) -> gradio.Dropdown:
        return gradio.Dropdown(choices, value=value, label=t(label), filterable=False, **more)

    with gradio.Row(equal_height=False):
        with gradio.Column(scale=5, min_width=320):
            run = choice("Model", runs, runs[0])
            compared = choice("Compare with", others, "")
            sample = choice("Sample", starts, None, type="index")
            boxes = [
                choice(label, choices, choices[0])
                if choices
                else gradio.Textbox(label=t(label), lines=lines, max_lines=2 * lines)
                for _, label, lines, choices in form.boxes
            ]
            button = gradio.Button(t("Ask"), variant="primary")
        with gradio.Column(scale=6, min_width=320):
            shown = gradio.HTML(t("Answers appear here."))

    def ask(run: str, compared: str, *texts: str) -> str:
        return service.show(run, compared, dict(zip(names, texts, strict=True)))

    def fill(number: int) -> dict:
        return {box: samples[number][name] for box, name in zip(boxes, names, strict=True)}

    button.click(ask, [run, compared, *boxes], shown, api_visibility="private", **MODEL)
    sample.input(fill, sample, boxes, api_visibility="private")


def open_page(page: gradio.Blocks, port: int, password: str | None = None) -> str:
    """Serve the page in a thread and return its address, a public one if there is a password."""
    # Allowed hosts prevent DNS rebinding. Shared pages have the host name of Gradio's tunnel.
    middleware = [
        Middleware(RequestFilter),
        Middleware(TrustedHostMiddleware, allowed_hosts=["*"] if password else [HOST, "localhost"]),
        Middleware(RequestBodyLimitMiddleware, max_body_size=MAX_BYTES),
    ]
    try:
        _, local, shared = page.launch(
            server_name=HOST,
            server_port=port,
            share=bool(password),
            auth=(USER, password) if password else None,
            app_kwargs={"middleware": middleware},
            theme=gradio.themes.Base(primary_hue="teal", font=FONTS, font_mono=FONTS),
            css_paths=Path(__file__).with_name("page.css"),
            footer_links=["api"],
            prevent_thread_lock=True,
            quiet=True,
            # Disable saved questions and a second server, which the environment may enable.
            run_history=False,
            ssr_mode=False,
        )
    except (OSError, OverflowError) as error:
        reason = f"the page could not be opened on port {port} ({first_line(error)})"
        raise InputError(f"{reason}. Choose another with --port.") from error
    # A shared page would load its scripts from a server of Gradio's.
    page.share = False
    return shared or local


class RequestFilter:
    """Middleware: only the page's paths get through, and every response gets our headers."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        is_refused = scope["type"] == "http" and not ALLOWED.fullmatch(scope["path"])
        app = PlainTextResponse("not found", 404) if is_refused else self.app
        await app(scope, receive, send_with_headers)
