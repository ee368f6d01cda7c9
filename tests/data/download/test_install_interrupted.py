"""Interrupted or killed at any moment, an installation leaves no tree or the whole one, and goes on from there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT
from tiny_archives import listing
from tiny_install import FILES, TREE
from tiny_install import prepare as prepare
from tiny_install import root as root
from tiny_install import server as server

from semcorr.data.download import install as stage

pytestmark = pytest.mark.integration

HERE = ROOT / "tests" / "helpers"
STEPS = [
    "fetch_archive", "archive_info", "extract_archive", "find_dataset_folder", "convert_and_check", "write_note",
    "os.rename", "_tidy",
]  # fmt: skip


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


@pytest.mark.slow
def test_killed_before_every_single_change_to_the_disk_and_run_again_it_ends_the_same(server, tmp_path):
    program = [sys.executable, str(HERE / "kill_everywhere.py"), server.url(""), str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True)

    *lines, kills = [line for line in done.stdout.splitlines() if line.strip()]
    assert not [line for line in lines if line.startswith("killed at")], done.stderr
    assert int(kills.split()[0]) > 30, done.stderr


def on_disk(root: Path) -> int:
    """How many bytes of downloads lie beside `root`."""
    return sum(path.stat().st_size for path in root.with_name(f".{root.name}.downloads").glob("*.part"))


def test_killed_while_it_downloads_it_goes_on_from_there(server, tmp_path):
    """From outside, at moments that nobody chose, once each child has something on the disk."""
    root = tmp_path / "Bench"
    code = "import sys; from tiny_install import *; install_from(sys.argv[1], Path(sys.argv[2]))"
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
