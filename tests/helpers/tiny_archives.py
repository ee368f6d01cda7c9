"""Archives made in memory, and a server on this machine that misbehaves as asked."""

import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def packed(files: Mapping[str, bytes], kind: str) -> bytes:
    """`files` by name, as a .zip, .tar or .tar.gz."""
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode="w:gz" if kind == "tar.gz" else "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o600
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def listing(root: Path) -> dict[str, bytes | None]:
    """Everything below a folder: bytes of files, None for folders."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in sorted(root.rglob("*"))
    }


class Server(ThreadingHTTPServer):
    """Serves `files`; remembers the requests and how many bytes of bodies went out."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, str] = {"ETag": '"first"'}
        self.ranges = True  # whether Range is understood,
        self.if_range = True  # and If-Range
        self.total = ""  # what a part says of the whole; the truth if empty
        self.cuts: list[int] = []  # after how many bytes the next answers break off
        self.status = 200
        self.pause = 0.0  # seconds per KiB
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.sent = 0

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def handle_error(self, request, client_address) -> None:
        """A client that was killed is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        server, content = self.server, self.server.files.get(self.path[1:])
        server.requests.append((self.command, dict(self.headers)))
        if content is None or server.status != 200:
            self.send_error(404 if content is None else server.status)
            return
        start = self.start(content)
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        for key, value in server.headers.items():
            self.send_header(key, value)
        if start:
            total = server.total or len(content)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{total}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if body:
            self.send(content[start:])

    def start(self, content: bytes) -> int:
        requested_range, condition = self.headers.get("Range"), self.headers.get("If-Range")
        if not requested_range or not self.server.ranges:
            return 0
        same = condition in self.server.headers.values() or not self.server.if_range
        return int(requested_range.removeprefix("bytes=").removesuffix("-")) if same else 0

    def send(self, content: bytes) -> None:
        content = content[: self.server.cuts.pop(0)] if self.server.cuts else content
        for start in range(0, len(content), 1024):
            self.server.sent += len(content[start : start + 1024])  # before the client may have seen it
            self.wfile.write(content[start : start + 1024])
            if self.server.pause:
                threading.Event().wait(self.server.pause)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
