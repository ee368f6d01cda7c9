"""What a visitor's request may name: routes that the page uses, and files that were uploaded or drawn for it."""

import json
from pathlib import Path

import pytest
from page_requests import Behind, Reply, request

from semcorr.app.routes import MAX_EVENT_BYTES, MAX_UPLOAD_BYTES, AllowedRoutes

JOIN = "/gradio_api/queue/join"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a picture, beside a secret; a link leads to it."""
    folder = tmp_path / "page"
    (folder / "abc").mkdir(parents=True)
    (folder / "abc" / "cat.png").write_text("a picture")
    (tmp_path / "secret.txt").write_text("a secret")
    (tmp_path / "page-2").mkdir()
    (tmp_path / "page-2" / "secret.txt").write_text("a secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "linked").symlink_to(tmp_path)
    return folder


def reply(folder: Path, *args, **options) -> Reply:
    behind = Behind()
    return request(AllowedRoutes(behind, folder), behind, *args, **options)


def post(folder: Path, content: object, **options) -> Reply:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return reply(folder, JOIN, method="POST", body=body, **options)


# -- files --


def test_a_picture_of_the_page_is_served(folder):
    assert reply(folder, f"/gradio_api/file={folder}/abc/cat.png").status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "//etc/passwd", "etc/passwd", "{0}", "{0}/", "{0}/abc", "{0}/../secret.txt", "{0}-2/secret.txt",
        "{0}/abc/../../secret.txt", "{0}/%2e%2e/secret.txt", "{0}/..%2fsecret.txt", "{0}/%252e%252e/secret.txt",
        "{0}/link.txt", "{0}/linked/secret.txt", "{0}/abc/cat.png%00.txt", "{0}/nothing.png", "", "~/.ssh/id_rsa",
        "/proc/self/environ", "file:///etc/passwd", "http://127.0.0.1:80/", "https://evil.example/x.png", "{0}\\..\\x",
    ],
)  # fmt: skip
def test_no_other_file_is_served(folder, path):
    for prefix in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/gradio_api/proxy="):
        refused = reply(folder, prefix + path.format(folder))
        assert refused.status in (403, 404)
        assert refused.reached == []


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/info", "/docs", "/openapi.json", "/gradio_api/openapi.json", "/monitoring", "/monitoring/summary",
        "/gradio_api/stream/x", "/gradio_api/custom_component/x/client/component/../../x", "/gradio_api/deep_link",
        "/gradio_api/component_server", "/gradio_api/vibe-code", "/gradio_api/dev/reload", "/gradio_api/mcp/sse",
        "/gradio_api/run/predict", "/gradio_api/call/predict", "/gradio_api/api/predict", "/login", "/gradio_api/user",
        "/assets/../../x", "/assets/%2e%2e/x", "/static/..%5cx", "/gradio_api/runs", "/gradio_api/process_recording",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
def test_routes_that_the_page_does_not_use_are_not_there(folder, path, method):
    refused = reply(folder, path, method=method)
    assert (refused.status, refused.reached) == (404, [])


# -- events --


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "{0}/link.txt", "{0}/../secret.txt", "http://169.254.169.254/latest", "https://evil.example/x.png",
     "file:///etc/passwd", "ftp://evil.example/x", "//evil.example/x", "{0}", "", None, 3, ["{0}/abc/cat.png"],
     {"path": "{0}/abc/cat.png"}],
)  # fmt: skip
@pytest.mark.parametrize("meta", [True, False], ids=["as gradio writes it", "bare"])
def test_an_event_names_no_file_but_an_uploaded_one(folder, path, meta):
    path = path.format(folder) if isinstance(path, str) else path
    file = {"path": path, **({"meta": {"_type": "gradio.FileData"}} if meta else {})}
    for data in ([file], [[file]], [{"value": {"deep": [file]}}]):
        refused = post(folder, {"data": data, "fn_index": 3, "session_hash": "x"})
        assert (refused.status, refused.reached) == (400, [])


def test_an_uploaded_file_goes_through_without_a_url_to_fetch(folder):
    file = {"path": f"{folder}/abc/cat.png", "url": "http://169.254.169.254/", "orig_name": "cat.png"}
    (seen,) = post(folder, {"data": [None, file], "fn_index": 3}).reached
    expected = {"data": [None, {"path": f"{folder}/abc/cat.png", "orig_name": "cat.png"}], "fn_index": 3}
    assert json.loads(seen["body"]) == expected
    assert dict(seen["headers"])[b"content-length"] == str(len(seen["body"])).encode()


def test_what_was_checked_is_what_is_read_although_a_key_is_there_twice(folder):
    twice = f'{{"data": [{{"path": "/etc/passwd", "path": "{folder}/abc/cat.png"}}]}}'.encode()
    (seen,) = post(folder, twice).reached
    assert b"passwd" not in seen["body"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b"[" * 30000, b'{"data": ' * 7000, b'{"a": 1' + b"0" * 5000 + b"}"],
    ids=["empty", "cut", "no text", "deep", "deep objects", "a huge number"],
)  # fmt: skip
def test_an_event_that_cannot_be_read_is_refused(folder, body):
    refused = post(folder, body)
    assert (refused.status, refused.reached) == (400, [])


# -- sizes --


@pytest.mark.parametrize(
    ("path", "length", "status"),
    [
        (JOIN, str(MAX_EVENT_BYTES + 1), 413), (JOIN, str(10**30), 411), (JOIN, "-1", 411), (JOIN, "1e3", 411),
        (JOIN, "", 411),
        (JOIN, "٣", 411), ("/gradio_api/upload", str(MAX_UPLOAD_BYTES + 1), 413), ("/gradio_api/upload", "x", 411),
        ("/gradio_api/upload", str(MAX_UPLOAD_BYTES), 200),
    ],
)  # fmt: skip
def test_a_body_needs_a_stated_length_within_a_bound(folder, path, length, status):
    headers = [("content-length", length.encode().decode("latin-1"))]
    assert reply(folder, path, headers, "POST").status == status


def test_a_body_without_an_end_is_refused(folder):
    headers = [("content-length", "10"), ("transfer-encoding", "chunked")]
    assert reply(folder, "/gradio_api/upload", headers, "POST").status == 411
    assert reply(folder, "/gradio_api/upload", [("content-length", "1"), ("content-length", "2")], "POST").status == 411
