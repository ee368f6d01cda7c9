"""A run directory has one writer, a name of its own, and the results of one run."""

import errno
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from semcorr.core.errors import UserError
from semcorr.core.files import part_path
from semcorr.engine.run_dir import config_hash, read_scores, replace_results
from semcorr.engine.run_lock import LOCK, lock_folder, lock_new_folder

HOLDS = """
import multiprocessing, os, sys, time
from pathlib import Path
from semcorr.core.files import part_path
from semcorr.engine.run_lock import lock_folder

def stay():
    print(os.getpid(), flush=True)
    time.sleep(60)

with lock_folder(Path(sys.argv[1]), "train"):
    part_path(Path(sys.argv[1]) / "metrics.json").write_text("half")
    child = multiprocessing.get_context("fork").Process(target=stay)
    child.start()
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_writer_learns_who_writes_there_and_since_when(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with (
        lock_folder(run, "train"),
        pytest.raises(UserError, match=rf"another process runs train in .*/run \(pid {os.getpid()} on .+, since 2.+\)"),
        lock_folder(run, "evaluate"),
    ):
        pass

    with lock_folder(run, "evaluate"):
        assert json.loads((run / LOCK).read_text())["verb"] == "evaluate"
    assert names(run) == []


def test_a_lock_stays_empty_beside_what_was_written_and_locks_again(tmp_path: Path) -> None:
    for _ in range(2):
        with lock_folder(tmp_path, "train"):
            (tmp_path / "config.yaml").touch()

    assert (tmp_path / LOCK).read_bytes() == b""


def test_other_processes_of_a_run_are_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lock_folder(tmp_path, "train"):
        for variable in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"):
            monkeypatch.setenv(variable, "1")
            with lock_folder(tmp_path, "train"), lock_new_folder(tmp_path, "train") as same:
                assert same == tmp_path
            monkeypatch.delenv(variable)


def test_the_lock_of_a_killed_process_is_taken_over_although_its_loaders_live(tmp_path, caplog) -> None:
    """And what it left unfinished goes."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    loader = int(process.stdout.readline())
    try:
        with pytest.raises(UserError, match=f"pid {process.pid} on"), lock_folder(tmp_path, "evaluate"):
            pass
        process.kill()
        process.wait()
        assert len(names(tmp_path)) == 2
        with caplog.at_level(logging.WARNING), lock_folder(tmp_path, "evaluate"):
            assert names(tmp_path) == [LOCK]
        assert f"train (pid {process.pid} on " in caplog.text
        assert "was killed" in caplog.text
    finally:
        os.kill(loader, signal.SIGKILL)
        process.stdout.close()


def test_where_a_file_system_has_no_locks_a_lock_that_is_left_must_be_removed_by_hand(tmp_path, monkeypatch) -> None:
    def flock(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock_folder(tmp_path, "train"):
        (tmp_path / "config.yaml").touch()
        with (
            pytest.raises(UserError, match=r"train \(pid .+\) writes to .+ no locks.*remove .*/\.lock"),
            lock_folder(tmp_path, "evaluate"),
        ):
            pass
    with lock_folder(tmp_path, "evaluate"):
        pass
    assert names(tmp_path) == ["config.yaml"]


def test_generated_names_differ(tmp_path: Path) -> None:
    """At the same time, and after one another within a second."""
    time = tmp_path / "evaluate" / "2025-01-01_00-00-00"
    with lock_new_folder(time, "evaluate") as first, lock_new_folder(time, "evaluate") as second:
        (first / "metrics.json").touch()
        (second / "metrics.json").touch()
    with lock_new_folder(time, "evaluate") as third:
        pass

    assert [path.name for path in (first, second, third)] == [time.name, f"{time.name}-2", f"{time.name}-3"]


def test_unfinished_files_go_also_those_of_before_and_of_other_machines(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    own_parts = [
        part_path(tmp_path / "checkpoints" / "last.ckpt"),
        tmp_path / ".metrics.csv.123",
        tmp_path / ".job.json.9",
    ]
    foreign_part = tmp_path / ".predictions.parquet.1-elsewhere-0a1b2c3d.part"
    folder = tmp_path / ".results.1-elsewhere-0a1b2c3d.part"
    folder.mkdir()
    for path in (*own_parts, foreign_part, folder / "metrics.json", tmp_path / ".notes.1", tmp_path / ".env.part"):
        path.touch()

    with lock_folder(tmp_path, "train"):
        pass

    assert names(tmp_path) == [".env.part", LOCK, ".notes.1", "checkpoints"]
    assert names(tmp_path / "checkpoints") == []


def test_results_take_the_place_of_all_those_of_another_run(tmp_path: Path) -> None:
    for name in ("metrics.json", "tracks.png", "poses.parquet", "audit.json", "notes.txt"):
        (tmp_path / name).write_text("earlier")

    with replace_results(tmp_path) as folder:
        for name in ("metrics.json", "predictions.parquet"):
            (folder / name).write_text("now")
        assert (tmp_path / "metrics.json").read_text() == "earlier"

    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "metrics.json": "now", "predictions.parquet": "now", "notes.txt": "earlier",
    }  # fmt: skip


def test_results_that_cannot_be_written_leave_those_of_before(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("earlier")

    def write() -> None:
        with replace_results(tmp_path) as folder:
            (folder / "config.yaml").touch()
            raise UserError(f"{folder / 'metrics.json'} cannot be written")

    with pytest.raises(UserError) as error:
        write()

    assert str(error.value) == f"{tmp_path / 'metrics.json'} cannot be written"
    assert names(tmp_path) == ["metrics.json"]


def test_there_is_no_metrics_json_while_results_are_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics.json").write_text("earlier")
    seen, replace = [], Path.replace

    def spied(self: Path, target: Path) -> Path:
        seen.append((self.name, (tmp_path / "metrics.json").exists()))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", spied)
    with replace_results(tmp_path) as folder:
        for name in ("config.yaml", "metrics.json", "predictions.parquet"):
            (folder / name).touch()

    assert seen == [("config.yaml", False), ("predictions.parquet", False), ("metrics.json", False)]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", "[" * 100_000, '{"a":' * 100_000, "{}", '{"pck": 3}', '{"pck": {"all": {"image": NaN}}}',
     '{"pck": {"all": {"image": {"0.1": 1.5}}}}', '{"pck": {}, "tracking": {}}', "\udcff"],
)  # fmt: skip
def test_damaged_scores_are_a_user_error_with_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metrics.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))

    with pytest.raises(UserError, match=r"metrics\.json (is|must|has|holds) .+"):
        read_scores(path)
    with pytest.raises(UserError, match=r"none\.json does not exist"):
        read_scores(tmp_path / "none.json")


def test_a_command_that_fails_leaves_no_lock(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()

    with pytest.raises(UserError, match="a mistake"), lock_folder(tmp_path, "audit"):
        raise UserError("a mistake")

    assert names(tmp_path) == ["config.yaml"]


@pytest.mark.parametrize("key", ["checkpoint", "start_from"])
@pytest.mark.parametrize("file", ["checkpoints/best.ckpt", "model.safetensors"])  # of a run, and of one that is shared
def test_other_weights_at_the_same_path_are_another_run(tmp_path, key, file):
    weights = tmp_path / file
    weights.parent.mkdir(exist_ok=True)
    hashes = set()
    for content in ("one", "other weights"):
        weights.write_text(content)
        hashes.add(config_hash(OmegaConf.create({key: str(tmp_path)})))

    assert len(hashes) == 2


@pytest.mark.parametrize("key", ["backbone.weights", "head.weights", "data.root"])
def test_another_file_at_the_path_that_a_configuration_names_is_another_run(tmp_path, key):
    file, hashes = tmp_path / "some.pth", set()
    cfg = OmegaConf.create({})
    OmegaConf.update(cfg, key, str(file))
    for content in (None, "one", "other weights"):
        if content:
            file.write_text(content)
        hashes |= {config_hash(cfg), config_hash(cfg)}

    assert len(hashes) == 3
