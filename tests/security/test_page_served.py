"""The whole page, gradio and all, attacked over the network."""

import json
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from PIL import Image
from served_page import served_page, write_run

pytestmark = pytest.mark.slow
OF = "longer side of the picture"
RUN = "run: inside"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("served")
    write_run(place / "runs" / "inside", "backbone=tiny")
    write_run(place / "outside", "backbone=tiny")
    (place / "runs" / "linked").symlink_to(place / "outside")
    return place


@pytest.fixture(scope="module")
def url(place: Path) -> Iterator[str]:
    pytest.importorskip("gradio", reason="the page needs gradio: pip install semcorr[app]")
    with served_page(place / "log", "--runs", str(place / "runs")) as url:
        yield url


class Visitor:
    """Speaks gradio's API, with the token."""

    def __init__(self, url: str) -> None:
        import httpx

        self.base = url.partition("/?")[0]
        self.web = httpx.Client(base_url=self.base, timeout=120)
        assert self.web.get(url).status_code == 200
        self.config = self.web.get("/config").json()
        self.session = secrets.token_hex(5)
        self.told: list[str] = []  # messages

    def post(self, trigger: str, *values: Any, of: Any = OF, opacity: Any = 40, which: int = 0, **more: Any) -> Any:
        """Send an event to the function behind a trigger."""
        functions = [each for each in self.config["dependencies"] if any(at[1] == trigger for at in each["targets"])]
        event = {"data": [None, opacity, of, *values], "fn_index": functions[which]["id"], **more}
        return self.web.post("/gradio_api/queue/join", json={**event, "session_hash": self.session})

    def send(self, trigger: str, *values: Any, **options: Any) -> dict[str, Any]:
        """The answer to it: what was shown; of an error nothing."""
        sent = self.post(trigger, *values, **options)
        assert sent.status_code == 200, sent.text
        with self.web.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if message.get("msg") == "log":
                    self.told.append(message["log"])
                if message.get("msg") == "process_completed":
                    return message
        raise AssertionError("no answer")

    def model(self) -> str:
        """What the page shows as the model, after an event that changes nothing."""
        visible = self.send("release")["output"]["data"][1]
        return visible["value"] if isinstance(visible, dict) else visible

    def upload(self, file: Path) -> str:
        """Where it lies on the server."""
        sent = self.web.post("/gradio_api/upload", files={"files": (file.name, file.read_bytes())})
        return sent.json()[0]


@pytest.fixture
def visitor(url: str) -> Iterator[Visitor]:
    visitor = Visitor(url)
    visitor.send("load")
    yield visitor
    visitor.web.close()


def test_a_run_is_chosen_by_its_name_in_the_folder(visitor):
    names = visitor.send("load")["output"]["data"][1]["choices"]
    assert [RUN, RUN] in names
    assert not [name for name, _ in names if "linked" in name or "outside" in name]
    assert visitor.send("input", RUN)["success"]
    assert visitor.model() == RUN


@pytest.mark.parametrize(
    "name",
    ["backbone=tiny head._target_=os.system +head.command='touch {place}/ran'", "backbone=dinov2", "checkpoint=/x",
     "checkpoint={place}/outside", "{place}/outside", "{place}/runs/inside", "run: ../outside", "run: linked",
     "tiny", "efficientnet_lite0 localise=argmax", 0, 10**6, -1, True, ["efficientnet_lite0"], {"value": "tiny"}],
    ids=repr,
)  # fmt: skip
def test_no_text_of_a_visitor_chooses_a_model(visitor, place, name):
    name = name.replace("{place}", str(place)) if isinstance(name, str) else name
    visitor.send("input", name)
    assert visitor.model() == "efficientnet_lite0"
    assert not (place / "ran").exists()


@pytest.mark.parametrize("setting", [{"of": "box"}, {"of": None}, {"opacity": "x"}, {"opacity": 10**9}, {"of": ["x"]}])
def test_a_setting_that_the_page_does_not_have_changes_nothing(visitor, setting):
    assert not visitor.send("release", **setting)["success"]
    assert visitor.model() == "efficientnet_lite0"


def test_an_uploaded_picture_is_shown_and_no_other_file_is(visitor, tmp_path, place):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "<img src=x onerror=alert(1)>.png")
    path = visitor.upload(tmp_path / "<img src=x onerror=alert(1)>.png")
    assert visitor.send("upload", {"path": path, "meta": {"_type": "gradio.FileData"}})["success"]
    assert visitor.web.get(f"/gradio_api/file={path}").status_code == 200
    for other in ("/etc/passwd", f"{place}/log", f"{path}/../../../../etc/passwd", "http://127.0.0.1:1/x.png"):
        assert visitor.web.get(f"/gradio_api/file={other}").status_code in (403, 404)
        for file in ({"path": other}, {"path": other, "meta": {"_type": "gradio.FileData"}}):
            assert visitor.post("upload", file).status_code == 400


def test_a_picture_that_is_none_is_reported_by_its_name_alone(visitor, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    file = {"path": visitor.upload(tmp_path / "text.png"), "meta": {"_type": "gradio.FileData"}}
    assert visitor.send("upload", file)["success"]  # what was there before, and a message
    (message,) = visitor.told
    assert message.startswith("text.png is damaged or not an image")
    assert "semcorr-app" not in message


@pytest.mark.parametrize("index", [None, [], [1e300, 1], ["x", "y"], [-1, -1], {"a": 1}], ids=repr)
def test_a_click_that_is_none_leaves_no_point(visitor, index):
    visitor.send("select", event_data={"index": index, "value": None, "selected": True})
    assert "data-match" not in json.dumps(visitor.send("release")["output"])


def test_requests_without_the_token_are_refused(url):
    import httpx

    base = url.partition("/?")[0]
    port = urlsplit(url).port
    other = {f"semcorr_{port}": secrets.token_urlsafe(32)}
    for cookies in ({}, other, {f"semcorr_{port}": ""}):
        with httpx.Client(base_url=base, cookies=cookies) as web:
            for route in ("/", "/config", "/gradio_api/queue/data?session_hash=x", "/assets/x.js", "/gradio_api/info"):
                assert web.get(route).status_code == 403
            assert web.post("/gradio_api/upload", files={"files": ("a.png", b"x")}).status_code == 403
            assert web.post("/gradio_api/queue/join", json={"data": []}).status_code == 403
            assert web.get("/", headers={"host": f"evil.example:{port}"}).status_code == 403


@pytest.mark.parametrize(
    "head",
    ["Host: evil.example\r\nHost: 127.0.0.1:{port}\r\n", "Host: 127.0.0.1:{port}\r\nHost: evil.example\r\n", "",
     "Host: evil.example\r\n", "Host: 127.0.0.1:{port}\r\nX-Forwarded-Host: evil.example\r\n",
     "Host: 127.0.0.1:{port}\r\nOrigin: null\r\n",
     "Host: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nOrigin: http://evil.example\r\n"],
)  # fmt: skip
def test_headers_as_no_browser_writes_them_are_refused(url, head):
    port, token = urlsplit(url).port, parse_qs(urlsplit(url).query)["token"][0]
    head = head.format(port=port)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
        line.sendall(f"GET /?token={token} HTTP/1.1\r\n{head}Connection: close\r\n\r\n".encode())
        answer = line.recv(4096).decode()
    assert answer.split()[1] in ("400", "403")
    assert "set-cookie" not in answer
