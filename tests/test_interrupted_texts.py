"""What an interrupted command says of files is true: none, those that are there already, or what went."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from semcorr import store as verb
from semcorr.cli import explaining
from semcorr.core.files import write_text
from semcorr.staged import staged
from semcorr.store.command import _removed
from semcorr.store.listing import Entry


def interrupted(work: Callable[[], None]) -> int:
    """The exit code of a command whose work Ctrl-C ends."""
    with pytest.raises(SystemExit) as stop, explaining("evaluate"):
        work()
        raise KeyboardInterrupt
    return int(stop.value.code or 0)


def two_files(out: Path) -> None:
    with staged(out) as folder:
        for name in "ab":
            (folder / name).write_text(name)


def test_before_anything_is_in_its_place_nothing_is_written(tmp_path, capfd):
    def work() -> None:
        with staged(tmp_path / "out") as folder:
            (folder / "a").write_text("a")
            raise KeyboardInterrupt

    assert interrupted(work) == 130
    assert capfd.readouterr().err == "Interrupted. Nothing was written. Run the same line again\n"
    assert not [*tmp_path.iterdir()]


def test_in_the_midst_of_several_files_those_that_are_there_are_told(tmp_path, capfd, monkeypatch):
    own = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if self.name == "b":
            raise KeyboardInterrupt
        return own(self, target)

    monkeypatch.setattr(Path, "replace", replace)

    assert interrupted(lambda: two_files(tmp_path / "out")) == 130
    told = f"{tmp_path}/out/a is written. Run the same line again for what is not\n"
    assert capfd.readouterr().err == f"Interrupted. {told}"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


def test_after_the_last_file_all_are_told_and_not_those_of_another_command(tmp_path, capfd):
    write_text(tmp_path / "before", "of another")

    assert interrupted(lambda: two_files(tmp_path / "out")) == 130
    told = f"{tmp_path}/out/b and 1 other files are written. Run the same line again for what is not\n"
    assert capfd.readouterr().err == f"Interrupted. {told}"


def test_a_file_that_went_again_is_not_told(tmp_path, capfd):
    def work() -> None:
        write_text(tmp_path / "temporary", "x")
        (tmp_path / "temporary").unlink()

    assert interrupted(work) == 130
    assert "Nothing was written" in capfd.readouterr().err


@pytest.mark.parametrize("gone", [0, 1, 3])
def test_an_interrupted_prune_counts_what_went(tmp_path, gone):
    entries = [Entry(tmp_path / name, 1, 0.0) for name in "abc"]
    for entry in entries[gone:]:
        entry.path.touch()

    told = f"{gone} of 3 images' features that were to go are removed" if gone else "Nothing was removed"
    assert _removed(entries) == f"{told}. Run the same line again"


@pytest.mark.parametrize("line", ["verify", "prune --all"])
def test_the_store_says_so_of_both(tmp_path, monkeypatch, capfd, line):
    def opened(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("semcorr.store.command._opened", opened)
    monkeypatch.setattr(sys, "argv", ["semcorr.store", *line.split(), "--root", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        verb.main()

    assert stop.value.code == 130
    assert capfd.readouterr().err == "Interrupted. Nothing was removed. Run the same line again\n"
