"""A Hugging Face Hub on the loopback address: the routes that huggingface_hub asks to read and to write a model.

Its fixture is imported as `hub as hub`: an argument of that name is no use that a linter sees.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "ab" * 20
TOKEN = "hf_may_write"


class FakeHub(ThreadingHTTPServer):
    """Files by repository and name; all of one commit, which is `main` and `v1`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.default = "public"  # visibility of a new repository that does not say its own
        self.asked: list[str] = []
        self.broken = 0  # status of all answers, if the hub is out of order

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, repo: str, folder: Path) -> None:
        """Hold the files of a folder."""
        self.repos[repo] = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does, with its headers for what is wrong."""

    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def answer(self, status: int, content: object = None, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refused(self, status: int, code: str, message: str) -> None:
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].replace("%2F", "/")
        self.server.asked.append(f"{self.command} {path}")
        parts = path.removeprefix("/api/models/").strip("/").split("/")
        repo, rest = "/".join(parts[:2]), parts[2:]
        files = self.server.repos.get(repo)
        if self.server.broken:
            return self.answer(self.server.broken, {"error": "Slow down"})
        if repo in self.server.private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refused(401, "RepoNotFound", "Invalid username or password.")
        if files is None:
            return self.refused(404, "RepoNotFound", "Repository not found")
        if len(rest) > 1 and rest[1] not in ("main", "v1", COMMIT):
            return self.refused(404, "RevisionNotFound", f"Invalid rev id: {rest[1]}")
        if path.startswith("/api/") and rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            return self.answer(200, tree, Content_Type="application/json")
        if path.startswith("/api/"):
            siblings = [{"rfilename": name} for name in files]
            private = repo in self.server.private
            return self.answer(200, {"id": repo, "sha": COMMIT, "siblings": siblings, "private": private},
                               Content_Type="application/json")  # fmt: skip
        if rest[:1] == ["resolve"] and rest[2] in files:
            content = files[rest[2]]
            return self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"')
        return self.refused(404, "EntryNotFound", "Entry not found")

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(f"POST {self.path}")
        if self.server.broken:
            return self.answer(self.server.broken, {"error": "Slow down"})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refused(401, "", "Invalid credentials in Authorization header")
        if self.path == "/api/repos/create":
            given = json.loads(body)
            repo = f"{given['organization']}/{given['name']}" if given.get("organization") else given["name"]
            if repo in self.server.repos:
                return self.answer(409, {"error": "It exists", "url": f"{self.server.address}/{repo}"})
            self.server.repos[repo] = {}
            visibility = given.get("visibility") or self.server.default
            self.server.private |= {repo} if visibility == "private" else set()
            return self.answer(200, {"url": f"{self.server.address}/{repo}", "id": repo})
        if self.path == "/api/validate-yaml":
            if "license: banana" in json.loads(body)["content"]:
                return self.answer(400, {"errors": [{"message": '"license" must be one of [apache-2.0, mit]'}]})
            return self.answer(200, {"errors": [], "warnings": []})
        repo = "/".join(self.path.removeprefix("/api/models/").split("/")[:2])
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            return self.answer(200, {"files": [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files
            ]})  # fmt: skip
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.server.repos[repo][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        return self.answer(200, {"commitUrl": f"{self.server.address}/{repo}/commit/{COMMIT}", "commitOid": COMMIT,
                                 "hookOutput": ""})  # fmt: skip


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A hub that this process asks, with a cache of its own and without the user's token."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with FakeHub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
