"""Serve a page on this machine, behind the gate; with a password also through Gradio's tunnel."""

import asyncio
import hmac
from collections.abc import Callable

import gradio
from starlette.middleware import Middleware

from dandap.errors import InputError, first_line
from dandap.language import t
from dandap.page.gate import Gate
from dandap.page.layout import STYLE, theme

HOST = "127.0.0.1"


def open_page(page: gradio.Blocks, port: int, password: str | None) -> str:
    """Serve the page and return its address."""
    # Visitors from elsewhere call the server by the name of Gradio's tunnel.
    hosts = None if password else (HOST, "localhost")
    try:
        _, local, shared = page.launch(
            server_name=HOST,
            server_port=port,
            share=password is not None,
            auth=password and guard(password),
            auth_message=t("The user name is dandap."),
            app_kwargs={"middleware": [Middleware(Gate, hosts=hosts)]},
            theme=theme(),
            css_paths=STYLE,
            footer_links=["api"],
            # What the environment (GRADIO_...) could turn on otherwise.
            **{"run_history": False, "ssr_mode": False, "mcp_server": False, "pwa": False},
            **{"enable_monitoring": False, "num_workers": 0},
            prevent_thread_lock=True,
            quiet=True,
        )
    except OSError as error:
        raise InputError(
            f"the page could not be opened on port {port} ({first_line(error)}). "
            "Name another with --port."
        ) from error
    # A shared page of Gradio's would load its scripts from a server of Gradio's.
    page.share = False
    if password and not shared:
        print("WARNING: Gradio's servers gave no public address; the page is on this machine alone")
    return shared or local


def guard(password: str) -> Callable:
    """Return what checks a login; it takes a second to refuse one, and one at a time."""
    turn = asyncio.Lock()

    async def is_right(name: str, said: str) -> bool:
        async with turn:
            right = hmac.compare_digest(f"dandap {password}".encode(), f"{name} {said}".encode())
            if not right:
                await asyncio.sleep(1)
        return right

    return is_right
