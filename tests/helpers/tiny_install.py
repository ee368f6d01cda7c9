"""A benchmark of two archives, served on this machine and installed.

Its fixtures are imported as `root as root`: an argument of that name is no use that a linter sees.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table
from tiny_archives import Server, packed, serving

from semcorr.core.errors import UserError
from semcorr.data.download import http as fetch
from semcorr.data.download.install import install_dataset
from semcorr.data.download.recipe import ArchiveInfo, DownloadRecipe

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

    def table(self) -> Table:
        return Table("all fine")

    def as_json(self) -> dict[str, Any]:
        return {"files": sum(path.is_file() for path in self.root.rglob("*"))}


class Differs(Fine):
    failed = True


def unreadable(root: Path) -> Fine:
    raise UserError(f"{root}/Layout/test.txt is not a list.")


def convert(root: Path) -> None:
    """Nothing to do. Here to be replaced by something that fails."""


def recipe(url: Callable[[str], str], **changes: Any) -> DownloadRecipe:
    archives = tuple(ArchiveInfo(file, url(file)) for file in ARCHIVES)
    return DownloadRecipe("for research", archives, "Layout/test.txt", convert)._replace(**changes)


def install_from(base: str, root: Path) -> None:
    install_dataset("bench", recipe(lambda file: base + file), root, [], Fine, lambda sources: None)


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
        return install_dataset("bench", recipe(server.url, **changes), root, given, check, announce)

    return run


def catch_message(prepare: Callable[..., Any], *args: Any, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        prepare(*args, **options)
    return str(error.value)


def given(folder: Path, *files: str) -> list[Path]:
    """Archives that the user has already."""
    folder.mkdir(exist_ok=True)
    for file in files:
        (folder / file).write_bytes(ARCHIVES[file])
    return [folder / file for file in files]
