"""Let in what the page needs and nothing else: no files, no uploads, no large bodies.

Gradio's server has some 60 routes; among them are those that serve files, fetch other servers'
pages and save uploads. A page of texts needs none of them.
"""

MOST_BYTES = 1_000_000  # of a request; 30,000 Hangul syllables as JSON's \uXXXX are 180,000
PATHS = ("/", "/config", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json")
PATHS += ("/login", "/login/", "/logout")
API = "/gradio_api"
API_PATHS = ("/info", "/startup-events", "/queue/join", "/queue/data", "/cancel", "/reset")
API_PATHS += ("/theme.css", "/user", "/login_check", "/app_id")
# Gradio's own scripts, styles and pictures; calls by name; and the sign that a page is still open.
BELOW = ("/assets/", "/static/", f"{API}/call/", f"{API}/heartbeat/")
# What a browser may load: this server's own, and pictures within the page. Gradio's scripts are in
# the page itself and make functions of texts (its HTML component's template).
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Gate:
    """Stands before a server (ASGI): it refuses paths, long bodies and other names of the host.

    With `hosts` a request must call the server by one of these names. A page of somebody else's
    that has its own name lead to 127.0.0.1 (DNS rebinding) could ask and read answers otherwise.
    """

    def __init__(self, app, hosts: tuple[str, ...] | None):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        if not self._is_known(scope["path"]):
            return await _refuse(send, 404, "there is nothing here")
        headers = dict(scope["headers"])
        if self.hosts and _host(headers) not in self.hosts:
            return await _refuse(send, 400, f"call this server {' or '.join(self.hosts)}")
        body = await _read(receive)
        if body is None:
            return await _refuse(send, 413, f"expected at most {MOST_BYTES:,} bytes")
        return await self.app(scope, _again(body, receive), _with_headers(send))

    @staticmethod
    def _is_known(path: str) -> bool:
        return (
            path in PATHS
            or (path.startswith(API) and path.removeprefix(API).rstrip("/") in API_PATHS)
            or (path.startswith(BELOW) and ".." not in path)
        )


def _host(headers: dict[bytes, bytes]) -> str:
    return headers.get(b"host", b"").decode("latin-1").rsplit(":", 1)[0]


async def _read(receive) -> bytes | None:
    """Return a request's body, or None for one that is too long, of which the rest is not read."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MOST_BYTES:
            return None
    return body


def _again(body: bytes, receive):
    """Return what hands a server the body that was read, and after it what comes: the end."""
    given = False

    async def hand():
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return hand


def _with_headers(send):
    async def sending(message):
        if message["type"] == "http.response.start":
            ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message["headers"], *ours]}
        await send(message)

    return sending


async def _refuse(send, status: int, why: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": why.encode()})
