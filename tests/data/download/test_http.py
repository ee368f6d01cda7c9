"""A download is resumed, starts over where it must, and ends with the server's bytes or with a sentence."""

import hashlib
import json
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_archives import Server, serving

from semcorr.core.errors import UserError
from semcorr.core.files import file_sha256
from semcorr.data.download import http as fetch
from semcorr.data.download.recipe import ArchiveInfo

CONTENT = random.Random(0).randbytes(300_000)
HALF = 150_000


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch, "PAUSE", 0)
    with serving() as it:
        it.files["a.zip"] = CONTENT
        yield it


@pytest.fixture
def archive(server: Server) -> ArchiveInfo:
    return ArchiveInfo("a.zip", server.url("a.zip"))


def half(folder: Path, archive: ArchiveInfo, **ticket: object) -> Path:
    """What a run that was killed half-way has left."""
    part = folder / "a.zip.part"
    part.write_bytes(CONTENT[:HALF])
    known = {"url": archive.url, "validator": '"first"', "length": len(CONTENT)} | ticket
    (folder / "a.zip.part.json").write_text(json.dumps(known))
    return part


def test_a_download_ends_with_the_servers_bytes_and_nothing_else(server, archive, tmp_path):
    path = fetch.download_archive(archive, tmp_path)

    assert path.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [tmp_path / "a.zip"]
    assert fetch.remote_size(archive.url) == len(CONTENT)
    assert file_sha256(path) == hashlib.sha256(CONTENT).hexdigest()


def test_a_killed_download_goes_on_where_it_was(server, archive, tmp_path):
    half(tmp_path, archive)

    assert fetch.download_archive(archive, tmp_path).read_bytes() == CONTENT

    [(_, headers)] = server.requests
    assert (headers["Range"], headers["If-Range"]) == (f"bytes={HALF}-", '"first"')
    assert server.sent == len(CONTENT) - HALF


def test_a_broken_connection_is_taken_up_again_in_the_same_run(server, archive, tmp_path):
    server.cuts = [100_000, 100_000]

    assert fetch.download_archive(archive, tmp_path).read_bytes() == CONTENT
    assert [headers.get("Range") for _, headers in server.requests] == [None, "bytes=100000-", "bytes=200000-"]
    assert server.sent == len(CONTENT)


def test_a_date_will_do_where_the_tag_is_weak(server, archive, tmp_path):
    server.headers = {"ETag": 'W/"first"', "Last-Modified": "Sat, 21 Nov 2026 10:00:00 GMT"}
    server.cuts = [HALF]

    assert fetch.download_archive(archive, tmp_path).read_bytes() == CONTENT
    assert server.requests[1][1]["If-Range"] == "Sat, 21 Nov 2026 10:00:00 GMT"
    assert server.sent == len(CONTENT)


def no_ranges(server: Server) -> None:
    server.ranges = False


def changed(server: Server) -> None:
    server.headers = {"ETag": '"second"'}


def changed_and_careless(server: Server) -> None:
    """Sends the rest of another file as if nothing had happened."""
    server.headers, server.if_range = {"ETag": '"second"'}, False


def shorter(server: Server) -> None:
    server.files["a.zip"] = CONTENT[: HALF - 10]


def longer(server: Server) -> None:
    server.files["a.zip"] = CONTENT + b"more"


@pytest.mark.parametrize("change", [no_ranges, changed, changed_and_careless, shorter, longer])
def test_what_cannot_be_resumed_starts_over(server, archive, tmp_path, change):
    part = half(tmp_path, archive)
    part.write_bytes(bytes(HALF))  # what is there is of another file
    change(server)

    assert fetch.download_archive(archive, tmp_path).read_bytes() == server.files["a.zip"]


@pytest.mark.parametrize(
    "ticket", [{"validator": None}, {"url": "http://elsewhere/a.zip"}, {"length": 7}], ids=lambda t: next(iter(t))
)
def test_bytes_that_are_not_known_to_be_the_servers_are_not_kept(server, archive, tmp_path, ticket):
    half(tmp_path, archive, **ticket).write_bytes(bytes(HALF))

    assert fetch.download_archive(archive, tmp_path).read_bytes() == CONTENT


def test_a_half_written_note_is_no_note(server, archive, tmp_path):
    half(tmp_path, archive).write_bytes(bytes(HALF))
    (tmp_path / "a.zip.part.json").write_text('{"url": ')

    assert fetch.download_archive(archive, tmp_path).read_bytes() == CONTENT


def test_a_download_killed_before_its_renaming_asks_for_nothing_again(server, archive, tmp_path):
    half(tmp_path, archive).write_bytes(CONTENT)

    assert fetch.download_archive(archive, tmp_path).read_bytes() == CONTENT
    assert server.requests == []


def refused(archive: ArchiveInfo, folder: Path) -> str:
    with pytest.raises(UserError) as error:
        fetch.download_archive(archive, folder)
    assert archive.url in str(error.value)
    return str(error.value)


def test_a_connection_that_always_breaks_ends_in_a_user_error_and_keeps_what_came(server, archive, tmp_path):
    server.cuts = [HALF, 0]

    assert "broke after 150.0 kB. Run the same line again" in refused(archive, tmp_path)
    assert (tmp_path / "a.zip.part").read_bytes() == CONTENT[:HALF]


def test_no_network_names_the_address_and_the_way_out(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        archive = ArchiveInfo("a.zip", f"http://127.0.0.1:{free.getsockname()[1]}/a.zip")

    assert "cannot be reached (no connection)" in (message := refused(archive, tmp_path))
    assert "--archive a.zip" in message
    assert fetch.remote_size(archive.url) is None
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_reported_with_its_code(server, archive, tmp_path):
    server.files.clear()

    assert "answers 404 Not Found" in (message := refused(archive, tmp_path))
    assert "--archive a.zip" in message
    assert fetch.remote_size(archive.url) is None


def test_a_web_page_is_not_taken_for_the_file(server, archive, tmp_path):
    server.files["a.zip"] = b"\n<!DOCTYPE html><html>Google Drive cannot scan this file for viruses.</html>"

    assert "sent a web page, not the file" in (message := refused(archive, tmp_path))
    assert "--archive a.zip" in message
    assert not (tmp_path / "a.zip").exists()
    assert not (tmp_path / "a.zip.part").exists()


def test_too_many_bytes_are_not_taken_for_the_file(server, archive, tmp_path):
    half(tmp_path, archive)
    server.files["a.zip"], server.total = CONTENT + b"more", "*"  # the rest of a file by the same tag

    assert "sent 300004 bytes instead of 300000" in refused(archive, tmp_path)
    assert not (tmp_path / "a.zip.part").exists()
