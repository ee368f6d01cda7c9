"""What cannot be installed is told in a sentence, and leaves everything as it was."""

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from repository import ROOT
from tiny_archives import Server, listing, packed
from tiny_install import ARCHIVES, FILES, TREE, Differs, catch_message, given, unreadable
from tiny_install import prepare as prepare
from tiny_install import root as root
from tiny_install import server as server

from semcorr.core.errors import UserError
from semcorr.data.download.recipe import ArchiveInfo

HERE = ROOT / "tests" / "helpers"


def test_a_foreign_folder_is_refused_and_untouched(prepare, root, tmp_path):
    root.mkdir(parents=True)
    (root / "thesis.tex").write_text("do not lose")
    before = listing(tmp_path)

    assert "is not empty and is not a whole bench tree: no Layout/test.txt" in catch_message(prepare)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("check", [unreadable, Differs])
def test_a_tree_by_hand_that_is_not_whole_is_refused_and_untouched(prepare, root, tmp_path, check):
    (root / "Layout").mkdir(parents=True)
    (root / "Layout/test.txt").write_text("half")
    before = listing(tmp_path)

    message = catch_message(prepare, check)
    assert "is not a list" in message or "official counts" in message
    assert listing(tmp_path) == before


def damaged(server: Server) -> dict[str, Any]:
    content = ARCHIVES["bench.tar.gz"]
    server.files["bench.tar.gz"] = content[:9000] + bytes([content[9000] ^ 1]) + content[9001:]
    return {}


def climbing(server: Server) -> dict[str, Any]:
    server.files["bench.tar.gz"] = packed(FILES | {"../../outside": b"x"}, "tar.gz")
    return {}


def another(server: Server) -> dict[str, Any]:
    server.files["bench.tar.gz"] = packed({"holiday.jpg": b"x"}, "zip")
    return {}


def twice(server: Server) -> dict[str, Any]:
    server.files["bench.tar.gz"] = packed(FILES | {"Bench-1.0/README": b"x"}, "zip")
    return {}


def missing(server: Server) -> dict[str, Any]:
    del server.files["pairs.csv"]
    return {}


def wrong_sum(server: Server) -> dict[str, Any]:
    return {"archives": (ArchiveInfo("bench.tar.gz", server.url("bench.tar.gz"), "00" * 32),)}


def failing(error: Exception) -> Callable[[Server], dict[str, Any]]:
    def change(server: Server) -> dict[str, Any]:
        def fail(root: Path) -> None:
            raise error

        return {"convert": fail}

    return change


MISTAKES = {
    damaged: ["bench.tar.gz is damaged", "It is deleted: run the same line again"],
    climbing: ["member '../../outside' leads out of the folder"],
    another: ["bench.tar.gz", "not bench's official archive, there is no Layout/test.txt in it"],
    twice: ["README is in its archives twice"],
    missing: ["pairs.csv answers 404"],
    wrong_sum: ["its sha256 is", "expected 0000", "It is deleted"],
    failing(UserError("no such class")): ["do not make a whole bench tree: no such class"],
    failing(OSError(errno.ENOSPC, "No space left on device")): ["No space left on device", "room and permissions"],
    failing(OSError(errno.EDQUOT, "Disk quota exceeded", "x.jpg")): ["x.jpg: Disk quota exceeded"],
}


@pytest.mark.parametrize(("mistake", "parts"), MISTAKES.items(), ids=lambda it: getattr(it, "__name__", ""))
def test_a_mistake_is_reported_with_a_message_and_no_tree_appears(prepare, server, root, tmp_path, mistake, parts):
    message = catch_message(prepare, **mistake(server))

    assert all(part in message for part in parts), message
    left = {name for name in listing(tmp_path) if "downloads" not in name} - {"data"}
    assert not left, "only downloads may stay, to be used again"


@pytest.mark.parametrize("limit", [100, 40_000, 350_000])
def test_a_disk_that_takes_no_more_is_reported_and_no_tree_appears(server, tmp_path, limit):
    """A real refusal (EFBIG), while the download is noted, while it comes, and while it is unpacked."""
    code = """
import resource, sys
from tiny_install import *
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    install_from(sys.argv[1], Path(sys.argv[2]))
except UserError as error:
    print("told", error)
"""
    program = [sys.executable, "-c", code, server.url(""), str(tmp_path / "data" / "Bench"), str(limit)]
    done = subprocess.run(program, capture_output=True, text=True, cwd=HERE)

    [message] = [line for line in done.stdout.splitlines() if line.startswith("told")]
    assert "told" in message
    assert "File too large. See to its room and permissions and run again" in message, done.stderr
    assert not {name for name in listing(tmp_path) if "downloads" not in name} - {"data"}


@pytest.mark.parametrize("mistake", [damaged, wrong_sum])
def test_a_bad_download_is_fetched_again_by_the_next_run(prepare, server, root, mistake):
    catch_message(prepare, **mistake(server))
    server.files.update(ARCHIVES)
    prepare()

    assert set(listing(root)) == TREE


@pytest.mark.parametrize("mistake", [damaged, wrong_sum])
def test_a_bad_file_of_the_users_is_not_deleted(prepare, server, root, tmp_path, mistake):
    archives = given(tmp_path / "mine", "bench.tar.gz")
    changes = mistake(server)
    archives[0].write_bytes(server.files["bench.tar.gz"])

    assert f"Get it again from {server.url('bench.tar.gz')}" in catch_message(prepare, given=archives, **changes)
    assert archives[0].read_bytes() == server.files["bench.tar.gz"]


def test_an_unreadable_tree_is_reported_by_the_name_it_would_have_had(prepare, root, tmp_path):
    assert catch_message(prepare, unreadable) == (
        "the archives do not make a whole bench tree: Bench/Layout/test.txt is not a list."
    )
    assert not root.exists()


@pytest.mark.parametrize("files", [["other.zip"], ["pairs.csv", "copy/pairs.csv"], ["absent"]])
def test_files_that_are_not_asked_for_are_refused_by_name(prepare, server, tmp_path, files):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"x") if file != "absent" else None

    message = catch_message(prepare, given=[tmp_path / file for file in files])

    known = ["bench.tar.gz, pairs.csv", "is given for pairs.csv already", "no such file"]
    assert any(part in message for part in known)
    assert server.requests == []


def test_two_at_once_are_one_too_many(prepare, root):
    root.parent.mkdir()
    with FileLock(root.with_name(".Bench.lock")):
        assert "is being prepared by another process" in catch_message(prepare)
    prepare()


def test_nothing_is_left_where_the_user_declines(prepare, root, tmp_path):
    def decline(sources: object) -> None:
        raise UserError("nothing is downloaded")

    assert catch_message(prepare, announce=decline) == "nothing is downloaded"
    assert listing(tmp_path) == {}
