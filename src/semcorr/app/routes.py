"""The routes that requests may use: those of the page, with bodies of bounded size that name no foreign file.

Pure ASGI, between `access` and gradio. Gradio's other routes (API pages, proxies, reloading, monitoring, ...) are not
served.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeGuard

from semcorr.app.access import App, Message, Receive, Refusal, Scope, Send, list_header_values, refuse
from semcorr.core.text_files import JsonObject

API = "/gradio_api"
PAGES = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json")
READ = (*PAGES, f"{API}/theme.css", f"{API}/queue/data", f"{API}/upload_progress")
BELOW = ("/assets/", "/static/", f"{API}/heartbeat/")
FILES = f"{API}/file="
UPLOAD = f"{API}/upload"
WRITE = (f"{API}/queue/join", f"{API}/cancel", f"{API}/reset")
MAX_EVENT_BYTES = 2**16  # most bytes of an event
MAX_UPLOAD_BYTES = 50 * 2**20  # most bytes of an upload
UPLOADS = 4  # at the same time


class AllowedRoutes:
    """Gradio's application, restricted to the routes of the page.

    Args:
        app: Gradio's application.
        folder: Folder of uploads and drawn pictures; no other file is served or read.
        make_room: Function called with the size of an upload in bytes, before it is read.
    """

    def __init__(self, app: App, folder: Path, make_room: Callable[[int], None] = lambda _: None) -> None:
        self.app, self.folder, self.make_room = app, folder.resolve(), make_room
        self._uploads = asyncio.Semaphore(UPLOADS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif (refusal := find_route_refusal(scope, self.folder)) is not None:
            await refuse(scope, send, refusal)
        elif scope["path"] == UPLOAD:
            async with self._uploads:
                self.make_room(content_length(scope) or 0)
                await self.app(scope, receive, send)
        elif scope["method"] == "POST":
            await self._forward_event(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _forward_event(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an event on after checking and rewriting it."""
        try:
            body = _rewrite_event(await _read_body(receive), self.folder)
        except (ValueError, RecursionError) as error:
            await refuse(scope, send, Refusal(400, f"The event cannot be read ({error})."))
            return
        headers = [(key, value) for key, value in scope["headers"] if key.lower() != b"content-length"]
        length = (b"content-length", str(len(body)).encode())
        await self.app({**scope, "headers": [*headers, length]}, _replay_body(body, receive), send)


def find_route_refusal(scope: Scope, folder: Path) -> Refusal | None:
    """Return why a route is not served, or a body not read; None if it is.

    Args:
        scope: ASGI scope of the request.
        folder: Folder of uploads and drawn pictures, the only files that are served.
    """
    path, method = scope["path"], scope.get("method")
    if scope["type"] != "http" or ".." in path.split("/") or "\\" in path or "\0" in path:
        return Refusal(404, "There is no such page.")
    if path.startswith(FILES):
        is_served = method in ("GET", "HEAD") and is_inside(path.removeprefix(FILES), folder)
        return None if is_served else Refusal(403, "This file does not belong to the page.")
    if method in ("GET", "HEAD") and (path in READ or path.startswith(BELOW)):
        return None
    if method != "POST" or path not in (UPLOAD, *WRITE):
        return Refusal(404, "There is no such page.")
    length, limit = content_length(scope), MAX_UPLOAD_BYTES if path == UPLOAD else MAX_EVENT_BYTES
    if length is None:
        return Refusal(411, "The request must say its length.")
    return Refusal(413, f"At most {limit} bytes can be sent here.") if length > limit else None


def content_length(scope: Scope) -> int | None:
    """Read the size of the body in bytes, beyond which the server reads nothing; None if it is not stated plainly."""
    lengths = list_header_values(scope, b"content-length")
    if (
        len(lengths) != 1
        or list_header_values(scope, b"transfer-encoding")
        or not (lengths[0].isascii() and lengths[0].isdigit())
    ):
        return None
    return int(lengths[0]) if len(lengths[0]) <= 20 else None


def is_inside(path: object, folder: Path) -> TypeGuard[str]:
    """Tell whether a path is a file in a folder, after following symbolic links.

    >>> is_inside("/etc/passwd", Path("/tmp")), is_inside(3, Path("/tmp"))
    (False, False)
    """
    try:
        return isinstance(path, str) and (real := Path(path).resolve()).is_relative_to(folder) and real.is_file()
    except (OSError, ValueError):
        return False


def _rewrite_event(body: bytes, folder: Path) -> bytes:
    """Serialise an event again, so that it parses in one way only; drop URLs, and reject files not uploaded."""
    event = json.loads(body)
    for part in _iterate_objects(event):
        if "path" in part and not is_inside(part["path"], folder):
            raise ValueError("it names a file that was not uploaded")
        part.pop("url", None)
    return json.dumps(event).encode()


def _iterate_objects(value: object) -> Iterator[JsonObject]:
    """Yield every object in a parsed JSON value, at any depth."""
    stack = [value]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            yield part
            stack += part.values()
        elif isinstance(part, list):
            stack += part


async def _read_body(receive: Receive) -> bytes:
    """Read the body of an event; reading stops soon after `MAX_EVENT_BYTES`."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] != "http.request" or not message.get("more_body") or len(body) > MAX_EVENT_BYTES:
            return body


def _replay_body(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that yields this body first."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
