"""What a request may ask for: the routes that the page uses, with bodies of a bounded size that name no foreign file.

Pure ASGI, between `access` and gradio. What gradio has besides (API pages, proxies, reloading, monitoring, ...) is not
there.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from semcorr.app.access import App, Message, Receive, Refusal, Scope, Send, list_header_values, refuse

API = "/gradio_api"
PAGES = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json")
READ = (*PAGES, f"{API}/theme.css", f"{API}/queue/data", f"{API}/upload_progress")
BELOW = ("/assets/", "/static/", f"{API}/heartbeat/")
FILES = f"{API}/file="
UPLOAD = f"{API}/upload"
WRITE = (f"{API}/queue/join", f"{API}/cancel", f"{API}/reset")
LONGEST = 2**16  # bytes of an event
LARGEST = 50 * 2**20  # bytes of an upload
UPLOADS = 4  # at once


class AllowedRoutes:
    """The routes of the page.

    Args:
        app: Gradio's.
        folder: Where uploads and drawn pictures are; no other file is served or read.
        make_room: Called with the size of an upload in bytes, before it is read.
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
            await self._event(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _event(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = _checked(await _read(receive), self.folder)
        except (ValueError, RecursionError) as error:
            await refuse(scope, send, Refusal(400, f"The event cannot be read ({error})."))
            return
        kept = [(key, value) for key, value in scope["headers"] if key.lower() != b"content-length"]
        length = (b"content-length", str(len(body)).encode())
        await self.app({**scope, "headers": [*kept, length]}, _replayed(body, receive), send)


def find_route_refusal(scope: Scope, folder: Path) -> Refusal | None:
    """Say why a route is not there, or a body is not read; None if it is."""
    path, method = scope["path"], scope.get("method")
    if scope["type"] != "http" or ".." in path.split("/") or "\\" in path or "\0" in path:
        return Refusal(404, "There is no such page.")
    if path.startswith(FILES):
        served = method in ("GET", "HEAD") and is_inside(path.removeprefix(FILES), folder)
        return None if served else Refusal(403, "This file does not belong to the page.")
    if method in ("GET", "HEAD") and (path in READ or path.startswith(BELOW)):
        return None
    if method != "POST" or path not in (UPLOAD, *WRITE):
        return Refusal(404, "There is no such page.")
    length, most = content_length(scope), LARGEST if path == UPLOAD else LONGEST
    if length is None:
        return Refusal(411, "The request must say its length.")
    return Refusal(413, f"At most {most} bytes can be sent here.") if length > most else None


def content_length(scope: Scope) -> int | None:
    """Read how many bytes the body has; the server reads no more."""
    lengths = list_header_values(scope, b"content-length")
    if (
        len(lengths) != 1
        or list_header_values(scope, b"transfer-encoding")
        or not (lengths[0].isascii() and lengths[0].isdigit())
    ):
        return None
    return int(lengths[0]) if len(lengths[0]) <= 20 else None


def is_inside(path: Any, folder: Path) -> bool:
    """Tell whether a path is a file in a folder, links followed.

    >>> is_inside("/etc/passwd", Path("/tmp")), is_inside(3, Path("/tmp"))
    (False, False)
    """
    try:
        return isinstance(path, str) and (real := Path(path).resolve()).is_relative_to(folder) and real.is_file()
    except (OSError, ValueError):
        return False


def _checked(body: bytes, folder: Path) -> bytes:
    """Write the event anew: with one reading only, without URLs to fetch, and with uploaded files only."""
    event = json.loads(body)
    for part in _objects(event):
        if "path" in part and not is_inside(part["path"], folder):
            raise ValueError("it names a file that was not uploaded")
        part.pop("url", None)
    return json.dumps(event).encode()


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


async def _read(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] != "http.request" or not message.get("more_body") or len(body) > LONGEST:
            return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receiving() -> Message:
        return messages.pop() if messages else await receive()

    return receiving
