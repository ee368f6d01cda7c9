"""What a command writes into a folder is there in the end or not at all, by names of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from semcorr.core.errors import UserError
from semcorr.core.files import atomic_output_dir, require_inputs_kept, unique_names


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder one is in, and in it something of the user's."""
    home = tmp_path / "above/home"
    home.mkdir(parents=True)
    (home / "mine.txt").touch()
    monkeypatch.chdir(home)
    return home


def everything(home: Path) -> list[str]:
    return sorted(path.relative_to(home.parent).as_posix() for path in home.parent.rglob("*"))


@pytest.mark.parametrize("out", [".", "..", "new", "new/deep/folder", "./", "../beside"])
def test_any_folder_has_the_files_in_the_end(home, out):
    with atomic_output_dir(Path(out)) as folder:
        (folder / "one.png").touch()
        assert not (Path(out) / "one.png").exists()

    assert (Path(out) / "one.png").is_file()
    assert sum(name.endswith(".png") for name in everything(home)) == 1
    assert not any("semcorr" in name for name in everything(home))


@pytest.mark.parametrize("out", [".", "..", "new", "new/deep/folder"])
def test_after_a_failure_there_is_what_there_was(home, out):
    def fail() -> None:
        with atomic_output_dir(Path(out)) as folder:
            (folder / "one.png").touch()
            raise UserError("in the middle")

    with pytest.raises(UserError, match="in the middle"):
        fail()
    assert everything(home) == ["home", "home/mine.txt"]


@pytest.mark.parametrize("out", ["mine.txt", "mine.txt/below"])
def test_a_file_is_no_folder(home, out):
    with pytest.raises(UserError, match=r"--draw: .*mine.txt is a file"), atomic_output_dir(Path(out), "--draw"):
        pytest.fail("nothing is computed")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_reported_before_anything_is_computed(home):
    home.chmod(0o500)
    with pytest.raises(UserError, match=r"--draw: new cannot be written"), atomic_output_dir(Path("new"), "--draw"):
        pytest.fail("nothing is computed")


def test_what_is_in_the_way_is_reported_by_the_option(home):
    (home / "one.png").mkdir()
    with (
        pytest.raises(UserError, match=r"^--draw: \. cannot be written"),
        atomic_output_dir(Path(), "--draw") as folder,
    ):
        (folder / "one.png").touch()


def test_what_is_read_is_not_written_over_by_any_way_there(home):
    (home / "link").symlink_to(home)
    require_inputs_kept(home / "link", ["other.txt"], [home / "mine.txt"])
    with pytest.raises(UserError, match=r"--draw: .* is one of the pictures that are read"):
        require_inputs_kept(home / "link", ["other.txt", "mine.txt"], [Path("mine.txt")], "--draw")


def test_names_are_distinct_with_all_endings_and_in_either_case():
    wished = [["a"], ["A", "A.png"], ["b"], ["b_warped"], ["a-2"], ["a"]]
    found = unique_names(wished, ["", "_warped"])

    assert found[:3] == ["a", "A.png", "b"]
    files = [f"{name}{ending}".casefold() for name in found for ending in ("", "_warped")]
    assert len(set(files)) == len(files)


def test_what_a_killed_command_left_is_swept_by_the_next_in_the_same_place(home):
    """Its folder is of a process that is no more; that of one that lives is left alone."""
    program = (
        "import os, signal\nfrom pathlib import Path\nfrom semcorr.core.files import atomic_output_dir\n"
        "with atomic_output_dir(Path('out')) as folder:\n"
        "    (folder / 'half.png').touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    [left] = [path for path in home.iterdir() if path.name != "mine.txt"]
    assert [path.name for path in left.iterdir()] == ["half.png"]

    with atomic_output_dir(Path("out")) as other, atomic_output_dir(Path("out")) as folder:
        (other / "a.png").touch()
        (folder / "b.png").touch()
    assert everything(home) == ["home", "home/mine.txt", "home/out", "home/out/a.png", "home/out/b.png"]


def test_either_all_files_move_or_none(home):
    (home / "b.png").mkdir()

    def draw() -> None:
        with atomic_output_dir(Path()) as folder:
            for name in "abc":
                (folder / f"{name}.png").touch()

    with pytest.raises(UserError, match="Is a directory"):
        draw()
    assert everything(home) == ["home", "home/b.png", "home/mine.txt"]
