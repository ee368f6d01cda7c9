"""Files that are whole or not there."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from semcorr.core import files
from semcorr.core.errors import UserError
from semcorr.core.files import (
    part_path,
    remove_parts,
    replace_file,
    require_writable,
    require_writable_file,
    temporary_folder,
    write_text,
)


def test_a_file_is_replaced_by_the_whole_of_another(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "before")
    write_text(tmp_path / "a", "after")

    assert (tmp_path / "a").read_text() == "after"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_error_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "before")

    def fail_halfway() -> None:
        with replace_file(tmp_path / "a") as beside:
            beside.write_text("half")
            beside.write_text(f"{1 / 0}")

    with pytest.raises(ZeroDivisionError):
        fail_halfway()

    assert (tmp_path / "a").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_cannot_be_written_is_a_user_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(UserError, match=r"`run_dir`: .*file/a cannot be written \(Not a directory\)"):
        write_text(tmp_path / "file" / "a", "text", "run_dir")
    with pytest.raises(UserError, match=r"`run_dir`: .*file/below/run cannot be written \(Not a directory\)"):
        require_writable(tmp_path / "file" / "below" / "run", "run_dir")


def test_a_folder_that_has_no_room_is_refused_before_the_work(tmp_path: Path) -> None:
    require_writable(tmp_path / "new" / "run", "run_dir", size=1)

    with pytest.raises(UserError, match=r"No space left on device.*Free some space"):
        require_writable(tmp_path, "run_dir", size=1 << 60)

    assert not [*tmp_path.iterdir()]


def test_unfinished_files_go_with_their_process_or_after_a_day(tmp_path: Path) -> None:
    name = "from semcorr.core.files import part_path; from pathlib import Path; print(part_path(Path('a.json')))"
    dead = tmp_path / subprocess.run([sys.executable, "-c", name], capture_output=True, text=True).stdout.strip()
    ours = tmp_path / part_path(Path("a.json"))
    other = tmp_path / f".a.json.{2**22 + 1}-another_machine-00000000.part"
    for path in (dead, ours, other, tmp_path / ".somebody.part", tmp_path / "a.json"):
        path.write_text("half")

    assert remove_parts(tmp_path) == [dead]

    old = time.time() - files.ABANDONED_SECONDS - 1
    for path in (ours, other):  # ours are features of a training of days, perhaps
        os.utime(path, (old, old))
    assert remove_parts(tmp_path) == [other]
    assert remove_parts(tmp_path / "missing") == []


def test_unfinished_folders_go_with_their_process_as_files_do(tmp_path: Path) -> None:
    name = "from semcorr.core.files import part_path; from pathlib import Path; print(part_path(Path('tree')))"
    dead = tmp_path / subprocess.run([sys.executable, "-c", name], capture_output=True, text=True).stdout.strip()
    (dead / "deep").mkdir(parents=True)
    (dead / "deep" / "file").write_text("half")
    with temporary_folder(tmp_path) as ours:
        assert not dead.exists()
        assert remove_parts(tmp_path) == []
        assert ours.is_dir()
    assert not [*tmp_path.iterdir()]

    dead.write_text("half")
    require_writable_file(tmp_path / "out.json", "--out")
    assert not [*tmp_path.iterdir()]


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, reason in (("pipe", "Not a file"), ("folder", "Is a directory")):
        with pytest.raises(UserError, match=rf"^--out: .*{name} cannot be written \({reason}\)"):
            write_text(tmp_path / name, "text", "--out")
        with pytest.raises(UserError, match=reason):
            require_writable_file(tmp_path / name, "--out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]


def test_a_name_as_long_as_names_may_be_can_be_written(tmp_path: Path) -> None:
    write_text(tmp_path / ("ä" * 127), "text")
    assert [path.name for path in tmp_path.iterdir()] == ["ä" * 127]
    with pytest.raises(UserError, match="File name too long"):
        require_writable(tmp_path / ("ä" * 128) / "run", "run_dir")
