"""Requests to the page's checks, without a network and without gradio."""

import asyncio
from typing import Any, NamedTuple
from urllib.parse import unquote

from semcorr.app.access import App

TOKEN = "a-token-of-this-start"
OWN = {"host": "127.0.0.1:7860", "cookie": f"semcorr_7860={TOKEN}"}


class Reply(NamedTuple):
    """What came back, and whether anything behind the checks was reached."""

    status: int
    headers: dict[str, str]
    body: str
    reached: list[dict[str, Any]]


class Behind:
    """What lies behind the checks: answers everything, and remembers the request with its body."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive() if scope.get("method") == "POST" else {}
        self.requests.append({**scope, "body": message.get("body", b"")})
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-frame-options", b"ALLOWALL")]})
        await send({"type": "http.response.body", "body": b"the page"})


def request(
    app: App,
    behind: Behind,
    path: str = "/",
    headers: dict[str, str] | list[tuple[str, str]] | None = None,
    method: str = "GET",
    body: bytes = b"",
    kind: str = "http",
    server: tuple[str, int] = ("127.0.0.1", 7860),
) -> Reply:
    """Send one; the path is written as in a URL."""
    plain, _, query = path.partition("?")
    given = list((OWN if headers is None else headers).items() if not isinstance(headers, list) else headers)
    if method == "POST" and not any(name == "content-length" for name, _ in given):
        given.append(("content-length", str(len(body))))
    scope = {
        "type": kind, "method": method, "path": unquote(plain), "query_string": query.encode(), "server": server,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in given],
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    behind.requests.clear()
    asyncio.run(app(scope, receive, send))
    if sent[0]["type"] == "websocket.close":
        return Reply(403, {}, "", list(behind.requests))
    replied = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    text = b"".join(message.get("body", b"") for message in sent[1:]).decode()
    return Reply(sent[0]["status"], replied, text, list(behind.requests))
