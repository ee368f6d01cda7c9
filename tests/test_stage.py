"""A benchmark appears at its root whole or not at all, whatever happens on the way."""

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from tiny_archives import Server, listing, packed, serving

from semcorr.data import fetch, stage, tree
from semcorr.data.recipe import Archive, Recipe
from semcorr.data.stage import install
from semcorr.errors import UserError

HERE = Path(__file__).parent
FILES = {
    "Bench-1.0/Layout/test.txt": b"one\ntwo\n",
    "Bench-1.0/images/one.jpg": random.Random(1).randbytes(300_000),
    "Bench-1.0/large": bytes(400_000),
    "README": b"about",
}
ARCHIVES = {"bench.tar.gz": packed(FILES, "tar.gz"), "pairs.csv": b"a,b\n"}
TREE = {
    "Layout",
    "Layout/test.txt",
    "images",
    "images/one.jpg",
    "large",
    "README",
    "pairs.csv",
    "prepared.json",
    "verify.json",
}


class Fine:
    """A report, and the check that makes it."""

    failed = False

    def __init__(self, root: Path) -> None:
        self.root = root

    def table(self) -> str:
        return "all fine"

    def as_json(self) -> dict[str, Any]:
        return {"files": sum(path.is_file() for path in self.root.rglob("*"))}


class Differs(Fine):
    failed = True


def unreadable(root: Path) -> Fine:
    raise UserError(f"{root}/Layout/test.txt is not a list.")


def convert(root: Path) -> None:
    """Nothing to do. Here to be replaced by something that fails."""


def recipe(url: Callable[[str], str], **changes: Any) -> Recipe:
    archives = tuple(Archive(file, url(file)) for file in ARCHIVES)
    return Recipe("for research", archives, "Layout/test.txt", convert)._replace(**changes)


def install_from(base: str, root: Path) -> None:
    install("bench", recipe(lambda file: base + file), root, [], Fine, lambda sources: None)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch, "PAUSE", 0)
    with serving() as it:
        it.files.update(ARCHIVES)
        yield it


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "Bench"


@pytest.fixture
def prepare(server: Server, root: Path) -> Callable[..., Any]:
    """prepare(check, given=[...], landmark=...) installs the benchmark at `root`."""

    def run(
        check: Any = Fine, given: Any = (), root: Path = root, announce: Any = lambda _: None, **changes: Any
    ) -> Any:
        return install("bench", recipe(server.url, **changes), root, given, check, announce)

    return run


def told(prepare: Callable[..., Any], *args: Any, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        prepare(*args, **options)
    return str(error.value)


def given(folder: Path, *files: str) -> list[Path]:
    """Archives that the user has already."""
    folder.mkdir(exist_ok=True)
    for file in files:
        (folder / file).write_bytes(ARCHIVES[file])
    return [folder / file for file in files]


# -- what it ends with --


def test_a_tree_from_the_network_is_whole_and_nothing_lies_beside_it(prepare, server, root):
    report = prepare()

    assert set(listing(root)) == TREE
    assert list(root.parent.iterdir()) == [root]
    assert (root / "images/one.jpg").read_bytes() == FILES["Bench-1.0/images/one.jpg"]
    assert json.loads((root / "verify.json").read_text()) == report.as_json() | {"files": 5}
    noted = json.loads((root / "prepared.json").read_text())
    sums = {archive["file"]: archive["sha256"] for archive in noted["archives"]}
    assert sums == {file: hashlib.sha256(content).hexdigest() for file, content in ARCHIVES.items()}
    assert noted["archives"][1] | {"sha256": ""} == {
        "file": "pairs.csv", "address": server.url("pairs.csv"), "bytes": 4, "sha256": "",
    }  # fmt: skip
    assert noted["official_counts"] is True


def test_files_of_the_users_are_used_and_stay(prepare, server, root, tmp_path):
    mine = given(tmp_path / "mine", *ARCHIVES)
    prepare(given=mine)

    assert set(listing(root)) == TREE
    assert [path.read_bytes() for path in mine] == list(ARCHIVES.values())
    assert server.requests == []


def test_what_is_about_to_happen_is_told_before_anything_is_downloaded(prepare, server, root, tmp_path):
    seen = []
    prepare(given=given(tmp_path / "mine", "pairs.csv"), announce=lambda it: seen.append((it, list(server.requests))))

    [(sources, requests)] = seen
    assert [source.given and source.given.name for source in sources] == [None, "pairs.csv"]
    assert requests == []


def test_the_only_archive_may_have_any_name(prepare, server, root, tmp_path):
    [mine] = given(tmp_path / "mine", "bench.tar.gz")
    mine = mine.rename(tmp_path / "mine" / "downloaded (1)")
    prepare(given=[mine], archives=(Archive("bench.tar.gz", server.url("bench.tar.gz")),))

    assert set(listing(root)) == TREE - {"pairs.csv"}


def test_a_second_run_touches_nothing(prepare, server, root):
    prepare()
    before = {path: path.stat().st_mtime_ns for path in [root.parent, root, *root.rglob("*")]}
    server.requests.clear()

    assert prepare() is None
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert server.requests == []


def test_a_tree_prepared_by_hand_is_left_alone(prepare, server, root):
    (root / "Layout").mkdir(parents=True)
    (root / "Layout/test.txt").write_text("mine")
    before = listing(root)

    assert prepare() is None
    assert listing(root) == before


def test_an_empty_folder_is_filled(prepare, root):
    root.mkdir(parents=True)
    prepare()

    assert set(listing(root)) == TREE


def test_a_link_to_another_disk_is_followed(prepare, root, tmp_path):
    root.parent.mkdir()
    root.symlink_to(tmp_path / "elsewhere")
    prepare()

    assert root.is_symlink()
    assert set(listing(tmp_path / "elsewhere")) == TREE


def test_other_counts_than_the_official_ones_are_kept_and_noted(prepare, root):
    assert prepare(Differs).failed
    assert set(listing(root)) == TREE
    assert not tree.has_official_counts(root)


# -- what is refused, and leaves everything as it was --


def test_a_foreign_folder_is_refused_and_untouched(prepare, root, tmp_path):
    root.mkdir(parents=True)
    (root / "thesis.tex").write_text("do not lose")
    before = listing(tmp_path)

    assert "is not empty and is not a whole bench tree: no Layout/test.txt" in told(prepare)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("check", [unreadable, Differs])
def test_a_tree_by_hand_that_is_not_whole_is_refused_and_untouched(prepare, root, tmp_path, check):
    (root / "Layout").mkdir(parents=True)
    (root / "Layout/test.txt").write_text("half")
    before = listing(tmp_path)

    message = told(prepare, check)
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
    return {"archives": (Archive("bench.tar.gz", server.url("bench.tar.gz"), "00" * 32),)}


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
def test_what_goes_wrong_is_told_in_a_sentence_and_no_tree_appears(prepare, server, root, tmp_path, mistake, parts):
    message = told(prepare, **mistake(server))

    assert all(part in message for part in parts), message
    left = {name for name in listing(tmp_path) if "downloads" not in name} - {"data"}
    assert not left, "only downloads may stay, to be used again"


@pytest.mark.parametrize("limit", [100, 40_000, 350_000])
def test_a_disk_that_takes_no_more_is_told_and_no_tree_appears(server, tmp_path, limit):
    """A real refusal (EFBIG), while the download is noted, while it comes, and while it is unpacked."""
    code = """
import resource
from test_stage import *
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    install_from(sys.argv[1], Path(sys.argv[2]))
except UserError as error:
    print("told", error)
"""
    program = [sys.executable, "-c", code, server.url(""), str(tmp_path / "data" / "Bench"), str(limit)]
    done = subprocess.run(program, capture_output=True, text=True, cwd=HERE)

    [told] = [line for line in done.stdout.splitlines() if line.strip()]
    assert "told" in told
    assert "File too large. See to its room and permissions and run again" in told, done.stderr
    assert not {name for name in listing(tmp_path) if "downloads" not in name} - {"data"}


@pytest.mark.parametrize("mistake", [damaged, wrong_sum])
def test_a_bad_download_is_fetched_anew_by_the_next_run(prepare, server, root, mistake):
    told(prepare, **mistake(server))
    server.files.update(ARCHIVES)
    prepare()

    assert set(listing(root)) == TREE


@pytest.mark.parametrize("mistake", [damaged, wrong_sum])
def test_a_bad_file_of_the_users_is_not_deleted(prepare, server, root, tmp_path, mistake):
    mine = given(tmp_path / "mine", "bench.tar.gz")
    changes = mistake(server)
    mine[0].write_bytes(server.files["bench.tar.gz"])

    assert f"Get it anew from {server.url('bench.tar.gz')}" in told(prepare, given=mine, **changes)
    assert mine[0].read_bytes() == server.files["bench.tar.gz"]


def test_an_unreadable_tree_is_told_by_the_name_it_would_have_had(prepare, root, tmp_path):
    assert told(prepare, unreadable) == (
        "the archives do not make a whole bench tree: Bench/Layout/test.txt is not a list."
    )
    assert not root.exists()


@pytest.mark.parametrize("files", [["other.zip"], ["pairs.csv", "copy/pairs.csv"], ["absent"]])
def test_files_that_are_not_asked_for_are_refused_by_name(prepare, server, tmp_path, files):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"x") if file != "absent" else None

    message = told(prepare, given=[tmp_path / file for file in files])

    known = ["bench.tar.gz, pairs.csv", "is given for pairs.csv already", "no such file"]
    assert any(part in message for part in known)
    assert server.requests == []


def test_two_at_once_are_one_too_many(prepare, root):
    root.parent.mkdir()
    with FileLock(root.with_name(".Bench.lock")):
        assert "is being prepared by another process" in told(prepare)
    prepare()


def test_nothing_is_left_where_the_user_declines(prepare, root, tmp_path):
    def decline(sources: object) -> None:
        raise UserError("nothing is downloaded")

    assert told(prepare, announce=decline) == "nothing is downloaded"
    assert listing(tmp_path) == {}


# -- interruptions --

STEPS = ["obtain", "identified", "unpacked", "merged", "finished", "note", "os.rename", "_tidy"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interruption_at_any_step_leaves_no_tree_or_the_whole_one(prepare, root, monkeypatch, step, when):
    where, name = (os, "rename") if step == "os.rename" else (stage, step)
    real = getattr(where, name)

    def interrupted(*args: Any) -> Any:
        if when == "after":
            real(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(where, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare()
    assert not root.exists() or set(listing(root)) == TREE
    assert not root.with_name(".Bench.preparing").exists()

    prepare()
    assert set(listing(root)) == TREE
    assert list(root.parent.iterdir()) == [root]


def test_killed_before_every_single_change_to_the_disk_and_run_again_it_ends_the_same(server, tmp_path):
    program = [sys.executable, str(HERE / "kill_everywhere.py"), server.url(""), str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True)

    *differences, kills = [line for line in done.stdout.splitlines() if line.strip()]
    assert not differences, done.stderr
    assert int(kills.split()[0]) > 30, done.stderr


def on_disk(root: Path) -> int:
    """How many bytes of downloads lie beside `root`."""
    return sum(path.stat().st_size for path in root.with_name(f".{root.name}.downloads").glob("*.part"))


def test_killed_while_it_downloads_it_goes_on_from_there(server, tmp_path):
    """From outside, at moments that nobody chose, once each child has something on the disk."""
    root = tmp_path / "Bench"
    code = "import sys; from test_stage import *; install_from(sys.argv[1], Path(sys.argv[2]))"
    program = [sys.executable, "-c", code, server.url(""), str(root)]
    server.pause = 0.001
    have = 0
    for _ in range(3):
        child = subprocess.Popen(program, stdout=subprocess.DEVNULL, cwd=HERE)
        while (now := on_disk(root)) <= have and child.poll() is None:
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert now > have
        have = on_disk(root)
        assert not root.exists()
    server.pause = 0
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL, cwd=HERE)

    assert set(listing(root)) == TREE
    assert (root / "images/one.jpg").read_bytes() == FILES["Bench-1.0/images/one.jpg"]
    starts = [int(headers["Range"][6:-1]) for _, headers in server.requests if "Range" in headers]
    assert len(starts) == 3
    assert starts == sorted(starts)
    assert starts[-1] > 150_000
