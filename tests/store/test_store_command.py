"""python -m semcorr.store as typed: what is told, what goes, and the exit code."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from semcorr.__main__ import main
from semcorr.cli.errors import user_message
from semcorr.store import FeatureStore, default_root
from semcorr.store import __main__ as verb
from semcorr.store.entry_file import pack_entry
from semcorr.store.integrity import EntryKey

KEY = {"backbone": "dinov2_b", "depth": 10, "size": 840, "dtype": "float16", "resize": "squash"}
VALUES = {"x": torch.arange(2000.0)}
SIZE = pack_entry(VALUES, "a.jpg", EntryKey("0" * 16, "a")).size
DAY = 86400


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """typed("ls") is `python -m semcorr.store ls` with SEMCORR_STORE in an empty folder; the exit code."""

    def run(line: str) -> int:
        monkeypatch.setenv("COLUMNS", "160")
        monkeypatch.setenv("SEMCORR_STORE", str(tmp_path / "store"))
        return verb.main(line.split())

    return run


@pytest.fixture
def stores(tmp_path: Path) -> list[FeatureStore]:
    """a, b, c at depth 10 used 3, 2, 1 days ago; d at depth 11 used just now."""
    stores = [FeatureStore(tmp_path / "store", KEY), FeatureStore(tmp_path / "store", KEY | {"depth": 11})]
    for i, entry in enumerate("abc"):
        stores[0].put(entry, VALUES, f"{entry}.jpg")
        os.utime(stores[0].folder / f"{entry}.safetensors", (time.time() - (3 - i) * DAY,) * 2)
    stores[1].put("d", VALUES, "d.jpg")
    return stores


def files(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*") if path.is_file() and path.name != "key.json")


def entries(root: Path) -> str:
    return "".join(name.removesuffix(".safetensors") for name in files(root))


def damage(store: FeatureStore, entry: str) -> Path:
    path = store.folder / f"{entry}.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-3] + b"\x01" + content[-2:])
    return path


# -- ls --


def test_ls_has_a_line_per_key_and_a_total(typed, stores, capfd):
    used = (stores[0].folder / "c.safetensors").stat().st_mtime
    assert typed("ls") == 0

    lines = [line.replace("│", " ").replace("┃", " ").split() for line in capfd.readouterr().out.splitlines()]
    [deep] = [line for line in lines if line[:1] == [stores[1].folder.name]]
    [shallow] = [line for line in lines if line[:1] == [stores[0].folder.name]]
    assert deep[1:7] == ["dinov2_b", "11", "840", "float16", "1", f"{SIZE / 1e9:.3f}"]
    assert shallow[1:7] == ["dinov2_b", "10", "840", "float16", "3", f"{3 * SIZE / 1e9:.3f}"]
    assert shallow[7:] == time.strftime("%Y-%m-%d %H:%M", time.localtime(used)).split()
    assert lines.index(deep) < lines.index(shallow), "the last used first"
    [total] = [line for line in lines if line[:1] == ["total"]]
    assert total == ["total", "4", f"{4 * SIZE / 1e9:.3f}"]


def test_ls_shows_a_key_that_cannot_be_read(typed, stores, capfd):
    (stores[0].folder / "key.json").write_text("{")
    assert typed("ls") == 0

    assert stores[0].folder.name in capfd.readouterr().out


def test_another_root_may_be_given(typed, tmp_path, capfd):
    FeatureStore(tmp_path / "elsewhere", KEY).put("a", VALUES, "a.jpg")
    assert typed(f"ls --root {tmp_path / 'elsewhere'}") == 0

    assert "dinov2_b" in capfd.readouterr().out


# -- verify --


def test_verify_finds_all_entries_whole(typed, stores, capfd):
    assert typed("verify") == 0
    assert "0 of 4 images' features are damaged" in capfd.readouterr().out


@pytest.mark.parametrize(("option", "stays"), [("", "abcd"), (" --remove", "bc")])
def test_verify_names_what_is_damaged_and_removes_it_if_told_to(typed, stores, tmp_path, capfd, option, stays):
    paths = [damage(stores[0], "a"), stores[1].folder / "d.safetensors"]
    paths[1].write_bytes(b"")
    assert typed("verify" + option) == 1

    out = capfd.readouterr().out
    assert f"a.jpg: {paths[0]} is damaged (its checksum does not fit its content)" in out
    assert f"unknown image: {paths[1]} is damaged (it has 0 bytes)" in out
    assert "2 of 4 images' features are damaged" in out
    assert entries(tmp_path) == stays
    assert typed("verify") == (0 if option else 1)


# -- prune --


@pytest.mark.parametrize(
    ("options", "stays"),
    [
        ("--all", ""),
        ("--older-than 1.5", "cd"),
        (f"--max-gb {2 * SIZE / 1e9}", "cd"),
        (f"--max-gb {2 * SIZE / 1e9} --older-than 0.5", "d"),
        ("--max-gb 0", ""),
        ("--max-gb 1 --older-than 100", "abcd"),
        ("--key {key}", "d"),
        ("--key {key} --older-than 2.5", "bcd"),
        (f"--key {{key}} --max-gb {SIZE / 1e9}", "cd"),
        ("", "abcd"),
    ],
)
def test_prune_removes_what_its_options_select(typed, stores, tmp_path, capfd, options, stays):
    assert typed("prune " + options.format(key=stores[0].folder.name[:6])) == 0

    assert entries(tmp_path) == stays
    assert f"{4 - len(stays)} images' features, {(4 - len(stays)) * SIZE / 1000:.1f} kB, are removed" in (
        capfd.readouterr().out.replace("0 bytes", "0.0 kB")
    )


def test_prune_leaves_no_empty_folder_and_nothing_foreign_is_touched(typed, stores, tmp_path):
    root = tmp_path / "store"
    (root / "thesis.safetensors").write_text("do not lose")
    (root / "0123456789abcdef").mkdir()
    (root / "notes" / "claims").mkdir(parents=True)
    for folder in ("0123456789abcdef", "notes"):
        (root / folder / "mine.safetensors").write_text("do not lose")
    assert typed("prune --all") == 0

    assert sorted(path.name for path in root.iterdir()) == ["0123456789abcdef", "notes", "thesis.safetensors"]
    assert files(root) == ["mine.safetensors", "mine.safetensors", "thesis.safetensors"]


def test_prune_removes_what_killed_processes_left_and_nothing_of_the_livings(typed, stores, tmp_path, capfd):
    folder = stores[0].folder
    (folder / "claims" / "x.lock").touch()
    for name, seconds in [(".x.1234.tmp", 100), (".y.1234.tmp", 0)]:
        (folder / name).touch()
        os.utime(folder / name, (time.time() - seconds,) * 2)
    assert next(stores[0].claims([["z"]])) == ["z"]
    assert typed("prune") == 0

    assert files(folder) == [".y.1234.tmp", "a.safetensors", "b.safetensors", "c.safetensors", "z.lock"]
    assert "and 2 files that killed processes had left" in capfd.readouterr().out
    assert typed("prune --all") == 0
    assert files(folder) == [".y.1234.tmp", "z.lock"], "somebody is computing z, and writing y"
    (folder / ".y.1234.tmp").unlink()
    assert typed("prune --all") == 0
    assert files(folder) == ["z.lock"]


def test_a_run_goes_on_when_everything_is_pruned_under_it(typed, stores, tmp_path):
    stores[1].get("d")
    assert typed("prune --all") == 0
    assert not any((tmp_path / "store").iterdir())

    assert stores[1].get("d") is None
    for chunk in stores[1].claims([["d"]]):
        assert stores[1].put("d", VALUES, "d.jpg")
        stores[1].release(chunk)
    assert typed("verify") == 0
    assert entries(tmp_path) == "d"


# -- mistakes --


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ls --root nowhere", "there is no store at nowhere. Give --root DIR, or set SEMCORR_STORE=DIR"),
        ("verify --root nowhere", "there is no store at nowhere"),
        ("prune --all --root nowhere", "there is no store at nowhere"),
        ("prune --all --max-gb 1", "`--max-gb` has no effect beside --all"),
        ("prune --max-gb -1", "`--max-gb` must be at least 0, got -1.0"),
        ("prune --older-than nan", "`--older-than` must be at least 0, got nan"),
        ("prune --key xyz", "--key xyz: no key begins so in"),
        ("prune --key=", "`--key` has no value"),
        ("prune --max-gb much", "`--max-gb` must be a number"),
        ("prune --everything", "unknown flag `--everything`"),
        ("list", "there is no command `list`. Did you mean ls?"),
    ],
)
def test_a_mistake_ends_in_a_user_error_and_nothing_goes(typed, stores, tmp_path, capfd, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    assert typed(line) == 2

    assert message in capfd.readouterr().err
    assert entries(tmp_path) == "abcd"


def test_an_unknown_key_is_refused_with_the_known_ones(typed, stores, capfd):
    typed("prune --key xyz")
    err = capfd.readouterr().err
    assert all(store.folder.name in err for store in stores)


def test_a_file_that_may_not_be_removed_is_reported_with_a_message(typed, stores, capfd, monkeypatch):
    def unlink(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "unlink", unlink)
    assert typed("prune --all") == 2
    assert "a.safetensors: Permission denied. See to its permissions" in capfd.readouterr().err


# -- the program --


def test_the_store_is_where_the_environment_says_or_in_the_users_cache(monkeypatch):
    monkeypatch.setenv("SEMCORR_STORE", "~/features")
    assert default_root() == Path.home() / "features"
    for empty in (lambda: monkeypatch.setenv("SEMCORR_STORE", ""), lambda: monkeypatch.delenv("SEMCORR_STORE")):
        empty()
        assert default_root() == Path.home() / ".cache/semcorr/features"


def test_a_run_refuses_an_empty_store(config, monkeypatch):
    """It would be the current folder."""
    monkeypatch.setenv("SEMCORR_STORE", "")
    with pytest.raises(Exception) as error:
        instantiate(config("evaluate", "store=disk").store)
    assert user_message(error.value, "evaluate") == "`store.root` must be text, not empty, or null, got ''"


def test_store_is_a_verb_of_semcorr(stores, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["semcorr", "store", "ls", "--root", str(tmp_path / "store")])
    assert main() == 0
    assert "dinov2" in capfd.readouterr().out


def test_the_command_starts_without_torch(stores, tmp_path):
    """Which alone would take seconds."""
    root = ["--root", str(tmp_path / "store")]
    for line in (["ls", *root], ["verify", *root], ["prune", *root, "--all"]):
        program = [sys.executable, "-X", "importtime", "-m", "semcorr.store", *line]
        done = subprocess.run(program, capture_output=True, text=True)
        assert done.returncode == 0
        assert "filelock" in done.stderr
        assert "torch" not in done.stderr
