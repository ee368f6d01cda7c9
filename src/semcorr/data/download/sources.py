"""Sources of a benchmark's archives, from the user or from their addresses: fetched, identified, extracted."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.filesize import decimal
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from semcorr.core.errors import UserError
from semcorr.core.text_files import JsonObject
from semcorr.data.download import http as fetch
from semcorr.data.download.extract import DamagedError, extract
from semcorr.data.download.recipe import ArchiveInfo, DownloadRecipe


class ArchiveSource(NamedTuple):
    """The source of an archive: the user's own file, or else its address."""

    archive: ArchiveInfo
    given: Path | None


def archive_sources(name: str, recipe: DownloadRecipe, given: Sequence[Path]) -> list[ArchiveSource]:
    """Pair each archive with the user's file for it, matched by name unless there is only one archive."""
    expected = [archive.file for archive in recipe.archives]
    files: dict[str, Path] = {}
    for path in given:
        if not path.is_file():
            raise UserError(f"--archive {path}: no such file.")
        file = expected[0] if len(expected) == 1 else path.name
        if file not in expected:
            raise UserError(f"--archive {path}: {name} is made of {', '.join(expected)}. Give one by that name.")
        if file in files:
            raise UserError(f"--archive {path}: {files[file]} is given for {file} already. Drop one of the two.")
        files[file] = path
    return [ArchiveSource(archive, files.get(archive.file)) for archive in recipe.archives]


def format_announcement(name: str, recipe: DownloadRecipe, root: Path, chosen: Sequence[ArchiveSource]) -> Panel:
    """Format what is about to be used, from where and under which terms, for the user to read first."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column()
    rows.add_column(overflow="fold")
    rows.add_row("licence", Text(recipe.licence))
    for archive, given in chosen:
        size = given.stat().st_size if given else fetch.remote_size(archive.url)
        size_text = "unknown size" if size is None else decimal(size)
        rows.add_row("file", Text(f"{archive.file}, {size_text}\n{given or archive.url}"))
    rows.add_row("goes to", Text(str(root)))
    return Panel(rows, title=Text(name), title_align="left")


def fetch_archive(source: ArchiveSource, downloads: Path) -> Path:
    """Fetch the archive to this disk and return its path."""
    if source.given:
        return source.given
    downloads.mkdir(exist_ok=True)
    return fetch.download_archive(source.archive, downloads)


def archive_info(source: ArchiveSource, path: Path) -> JsonObject:
    """Return an archive's entry in prepared.json; its checksum is the official one, where that is known."""
    checksum, expected = fetch.file_sha256(path), source.archive.sha256
    if expected and checksum != expected:
        remedy = _discard(source, path)
        raise UserError(f"{path} is not the official file: its sha256 is {checksum}, expected {expected}. {remedy}")
    address = None if source.given else source.archive.url
    return {"file": source.archive.file, "address": address, "bytes": path.stat().st_size, "sha256": checksum}


def extract_archive(source: ArchiveSource, path: Path, staging: Path) -> None:
    """Extract the archive's files into `staging`."""
    try:
        extract(path, staging, source.archive.file)
    except DamagedError as error:
        raise UserError(f"{error}. {_discard(source, path)}") from None


def _discard(source: ArchiveSource, path: Path) -> str:
    """Discard a useless download, so that it is not used again; the user's own file is left alone."""
    if source.given:
        return f"Get it anew from {source.archive.url}"
    path.unlink()
    return "It is deleted: run the same line again to download it anew"
