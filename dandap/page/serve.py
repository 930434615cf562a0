"""Serve the page on this machine; with a password also through Gradio's tunnel.

Gradio's server has some 60 routes. Some serve files, save uploads or fetch pages of other servers;
a page of texts needs few of them.
"""

import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

from dandap.errors import InputError, first_line
from dandap.page.layout import build_page
from dandap.page.service import AnswerService, find_runs

HOST, USER = "127.0.0.1", "dandap"
MAX_BYTES = 1_000_000  # of a request; 30,000 Hangul syllables as JSON's \uXXXX are 180,000
ALLOWED = re.compile(
    r"/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|login/?|logout)?"
    r"|/gradio_api/(info|startup-events|queue/join|queue/data|cancel|reset|theme\.css|user"
    r"|login_check|app_id)/?"
    # Gradio's own scripts and pictures, calls by name, and the sign that a page is still open.
    r"|/(assets|static|gradio_api/call|gradio_api/heartbeat)/(?!.*\.\.).*"
)
# A browser loads only from this server. Gradio's scripts are inline, and compile templates.
HEADERS = {
    "content-security-policy": "default-src 'self'; object-src 'none'; base-uri 'self'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
# Fonts that the reader has, Korean ones first: none is downloaded.
FONTS = ["Pretendard", "Apple SD Gothic Neo", "Noto Sans KR", "Malgun Gothic", "NanumGothic"]
FONTS.append("sans-serif")


def serve(
    run: str | None = None,
    output_dir: str = "outputs",
    options: Mapping[str, Any] | None = None,
    port: int = 7860,
    share: bool = False,
) -> None:
    """Serve a page of the finished runs until Ctrl-C; `options` are over their recipes."""
    service = AnswerService(find_runs(run, output_dir), options or {})
    # Loaded before the page opens: an error of the first model ends the script in one sentence.
    service.open(next(iter(service.runs)))
    page = build_page(service)
    # Too long to guess, so that logins need no limit by which a stranger could lock the owner out.
    password = secrets.token_urlsafe(16) if share else None
    print(f"page: {open_page(page, port, password)} (Ctrl-C ends it)", flush=True)
    if password:
        print(f"user: {USER}  password: {password}", flush=True)
    while page.is_running:  # its server is a thread, which ends with this one
        time.sleep(1)


def open_page(page: gradio.Blocks, port: int, password: str | None = None) -> str:
    """Serve the page in a thread and return its address; a password opens a public one."""
    # A page of somebody else that resolves its own name to 127.0.0.1 (DNS rebinding) could read
    # answers otherwise. Visitors of a shared page use the name of Gradio's tunnel.
    hosts = ["*"] if password else [HOST, "localhost"]
    middleware = [
        Middleware(RequestFilter),
        Middleware(TrustedHostMiddleware, allowed_hosts=hosts),
        Middleware(RequestBodyLimitMiddleware, max_body_size=MAX_BYTES),
    ]
    theme = gradio.themes.Base(
        primary_hue="teal", neutral_hue="stone", font=FONTS, font_mono=FONTS, radius_size="lg"
    )
    # Variables of the environment (GRADIO_...) could turn these on.
    off: Any = dict.fromkeys(("run_history", "ssr_mode", "mcp_server", "enable_monitoring"), False)
    try:
        _, local, shared = page.launch(
            server_name=HOST,
            server_port=port,
            share=bool(password),
            auth=(USER, password) if password else None,
            app_kwargs={"middleware": middleware},
            theme=theme,
            css_paths=Path(__file__).with_name("page.css"),
            footer_links=["api"],
            prevent_thread_lock=True,
            quiet=True,
            **off,
        )
    except OSError as error:
        raise InputError(
            f"the page could not be opened on port {port} ({first_line(error)}). "
            "Name another with --port."
        ) from error
    # A shared page would load its scripts from a server of Gradio's.
    page.share = False
    if password and not shared:
        print("WARNING: Gradio's servers gave no public address; only this machine sees the page")
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

        if scope["type"] == "http" and not ALLOWED.fullmatch(scope["path"]):
            await PlainTextResponse("not found", 404)(scope, receive, send_with_headers)
        else:
            await self.app(scope, receive, send_with_headers)
