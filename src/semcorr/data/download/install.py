"""Installation of a benchmark from its archives to its root, which appears whole or not at all.

archives -> .ROOT.downloads/ -unpack-> .ROOT.preparing/ -merge, convert, check-> tree -rename-> ROOT

Everything happens in folders beside the root. Killed at any point and run again it ends with the
same tree: what was unpacked is discarded, what was downloaded is used.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from filelock import FileLock, Timeout
from rich.filesize import decimal
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

import semcorr
from semcorr.core.errors import UserError
from semcorr.core.files import file_sha256, require_writable, write_text
from semcorr.core.text_files import JsonMapping, JsonObject, read_mapping
from semcorr.data.download import http as fetch
from semcorr.data.download.archive import DamagedError, extract
from semcorr.data.download.recipe import ArchiveInfo, DownloadRecipe

PREPARED, VERIFIED = "prepared.json", "verify.json"


@runtime_checkable
class TreeReport(Protocol):
    """The result of checking a complete tree; `semcorr.data.download.verify` makes it."""

    @property
    def failed(self) -> bool: ...  # noqa: D102

    def table(self) -> Table: ...  # noqa: D102

    def as_json(self) -> JsonObject: ...  # noqa: D102


Check = Callable[[Path], TreeReport]  # raises a UserError if the tree cannot be read


def is_complete(name: str, recipe: DownloadRecipe, root: Path, check: Check) -> bool:
    """Return whether `root` is the benchmark (True) or free (False); refuse anything else.

    A tree that was unpacked by hand is checked, and converted first if it cannot be read without.

    Args:
        name: The benchmark's name, for messages.
        recipe: The benchmark's recipe.
        root: Folder of the benchmark.
        check: Function that reads a tree and counts it.

    Raises:
        UserError: It holds something else, or part of the benchmark, or is a mount point.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        if root.is_mount():
            raise UserError(f"{root} is a mount point, which cannot be replaced. Give a folder in it with --root DIR")
        return False
    remedy = "Move it away, or choose another place with --root DIR"
    if not (root / recipe.marker_file).exists():
        raise UserError(f"{root} is not empty and is not a whole {name} tree: no {recipe.marker_file}. {remedy}")
    if (root / PREPARED).is_file():
        return True
    try:
        failed = _check_counts(recipe, root, check).failed
    except UserError as error:
        raise UserError(f"{root} is not a whole {name} tree: {error} {remedy}") from None
    if failed:
        raise UserError(f"{root} does not have {name}'s official counts; --verify shows them. {remedy}")
    return True


def _check_counts(recipe: DownloadRecipe, root: Path, check: Check) -> TreeReport:
    """Check a tree unpacked by hand, which may lack only what we add to the official files."""
    try:
        return check(root)
    except UserError:
        if recipe.convert is None:
            raise
    recipe.convert(root)
    return check(root)


def has_official_counts(root: Path) -> bool:
    """Return whether a complete tree has the official counts; one prepared by hand has just been checked."""
    noted = root / PREPARED
    return not noted.is_file() or bool(read_mapping(noted, "Prepare it again.").get("official_counts"))


def find_dataset_folder(name: str, recipe: DownloadRecipe, staging: Path) -> Path:
    """Find the shallowest folder with the marker file; move what was unpacked beside or above into it.

    Args:
        name: The benchmark's name, for messages.
        recipe: The benchmark's recipe.
        staging: Folder that the archives were unpacked to.

    Raises:
        UserError: No folder has the marker file, or two archives have the same file.
    """
    folders = sorted((Path(folder) for folder, _, _ in os.walk(staging)), key=lambda path: (len(path.parts), path))
    tree = next((folder for folder in folders if (folder / recipe.marker_file).exists()), None)
    if tree is None:
        files = ", ".join(archive.file for archive in recipe.archives)
        raise UserError(f"{files}: not {name}'s official archive, there is no {recipe.marker_file} in it.")
    above = tree
    while above != staging:
        for path in sorted(set(above.parent.iterdir()) - {above}):
            if (tree / path.name).exists():
                raise UserError(f"{name}: {path.name} is in its archives twice. Give the official ones.")
            path.rename(tree / path.name)
        above = above.parent
    return tree


def convert_and_check(name: str, recipe: DownloadRecipe, tree: Path, root: Path, check: Check) -> TreeReport:
    """Convert and check a tree. Its present folder is temporary: messages name the final one.

    Args:
        name: The benchmark's name, for messages.
        recipe: The benchmark's recipe.
        tree: Folder that holds the tree now.
        root: Folder that it will be moved to.
        check: Function that reads a tree and counts it.

    Raises:
        UserError: The tree is not whole.
    """
    try:
        if recipe.convert:
            recipe.convert(tree)
        return check(tree)
    except UserError as error:
        message = str(error).replace(str(tree), root.name)
        raise UserError(f"the archives do not make a whole {name} tree: {message}") from None


def write_note(path: Path, content: JsonMapping) -> None:
    """Write a JSON file for people and programs."""
    write_text(path, json.dumps(content, indent=1) + "\n")


class ArchiveSource(NamedTuple):
    """The source of an archive: the user's own file, or else its address."""

    archive: ArchiveInfo
    local_file: Path | None


def archive_sources(name: str, recipe: DownloadRecipe, local_files: Sequence[Path]) -> list[ArchiveSource]:
    """Pair each archive with the user's file for it, matched by name unless there is only one archive.

    Args:
        name: The benchmark's name, for messages.
        recipe: The benchmark's recipe.
        local_files: Files that the user gives.

    Raises:
        UserError: A file is absent, is none of the archives, or is one that is given twice.
    """
    expected = [archive.file for archive in recipe.archives]
    files: dict[str, Path] = {}
    for path in local_files:
        if not path.is_file():
            problem = "it is a folder" if path.is_dir() else "no such file"
            raise UserError(f"--archive {path}: {problem}. Give the path of a downloaded archive.")
        file = expected[0] if len(expected) == 1 else path.name
        if file not in expected:
            raise UserError(f"--archive {path}: {name} is made of {', '.join(expected)}. Give one by that name.")
        if file in files:
            raise UserError(f"--archive {path}: {files[file]} is given for {file} already. Drop one of the two.")
        files[file] = path
    return [ArchiveSource(archive, files.get(archive.file)) for archive in recipe.archives]


def format_announcement(name: str, recipe: DownloadRecipe, root: Path, sources: Sequence[ArchiveSource]) -> Panel:
    """Format what is about to be used, from where and under which terms, for the user to read first.

    The servers report the sizes of files that are to be downloaded.

    Args:
        name: The benchmark's name, the title.
        recipe: The benchmark's recipe.
        root: Folder that the benchmark goes to.
        sources: Sources of all archives.
    """
    rows = Table.grid(padding=(0, 2))
    rows.add_column()
    rows.add_column(overflow="fold")
    rows.add_row("licence", Text(recipe.licence))
    for archive, given in sources:
        size = given.stat().st_size if given else fetch.remote_size(archive.url)
        size_text = "unknown size" if size is None else decimal(size)
        rows.add_row("file", Text(f"{archive.file}, {size_text}\n{given or archive.url}"))
    rows.add_row("goes to", Text(str(root)))
    return Panel(rows, title=Text(name), title_align="left")


def fetch_archive(source: ArchiveSource, downloads: Path) -> Path:
    """Return the path of an archive on this disk: of the user's file, or of what is downloaded to `downloads`.

    Raises:
        UserError: The download failed.
    """
    if source.local_file:
        return source.local_file
    downloads.mkdir(exist_ok=True)
    return fetch.download_archive(source.archive, downloads)


def archive_info(source: ArchiveSource, path: Path) -> JsonObject:
    """Return an archive's entry in prepared.json.

    Args:
        source: Source of the archive.
        path: The archive on this disk; removed if it was downloaded and is not the official file.

    Raises:
        UserError: Its checksum is not the official one, where that is known.
    """
    checksum, expected = file_sha256(path), source.archive.sha256
    if expected and checksum != expected:
        remedy = _discard(source, path)
        raise UserError(f"{path} is not the official file: its sha256 is {checksum}, expected {expected}. {remedy}")
    address = None if source.local_file else source.archive.url
    return {"file": source.archive.file, "address": address, "bytes": path.stat().st_size, "sha256": checksum}


def extract_archive(source: ArchiveSource, path: Path, staging: Path) -> None:
    """Extract an archive's files into a folder.

    Args:
        source: Source of the archive.
        path: The archive on this disk; removed if it was downloaded and is damaged.
        staging: The folder; must exist.

    Raises:
        UserError: The archive is damaged or unsafe, or the disk lacks space.
    """
    try:
        extract(path, staging, source.archive.file)
    except DamagedError as error:
        raise UserError(f"{error}. {_discard(source, path)}") from None


def _discard(source: ArchiveSource, path: Path) -> str:
    """Discard a useless download, so that it is not used again; the user's own file is left alone."""
    if source.local_file:
        return f"Get it again from {source.archive.url}"
    path.unlink()
    return "It is deleted: run the same line again to download it again"


Announce = Callable[[Sequence[ArchiveSource]], None]


def install_dataset(
    name: str, recipe: DownloadRecipe, root: Path, local_files: Sequence[Path], check: Check, announce: Announce
) -> TreeReport | None:
    """Install a complete benchmark at `root`.

    Args:
        name: The benchmark's name.
        recipe: The benchmark's recipe.
        root: Folder of the benchmark, absent or empty; a complete tree is left as it is.
        local_files: The user's files, which need not be downloaded.
        check: Function that reads a complete tree and counts it.
        announce: Function that is called with the sources before anything is downloaded; may refuse.

    Returns:
        The result of the check, None if the tree existed already.

    Raises:
        UserError: The installation failed; `root` is as it was before.
    """
    if not os.path.lexists(root):
        require_writable(root, "--root")
    root = root.resolve()  # of a link, its end: a rename stays on one disk
    try:
        sources = archive_sources(name, recipe, local_files)
        if is_complete(name, recipe, root, check) and not any(path.exists() for path in _temporary_paths(root)):
            return None
        require_writable(root, "--root")
        with _lock_root(root):
            if is_complete(
                name, recipe, root, check
            ):  # another process was faster, or ours was killed while tidying up
                _tidy(root, local_files)
                return None
            announce(sources)
            report = _build(name, recipe, root, sources, check)
            _tidy(root, local_files)
            return report
    except OSError as error:
        location = error.filename2 or error.filename or root.parent
        raise UserError(
            f"{location}: {error.strerror or error}. See to its room and permissions and run again"
        ) from None


def _temporary_paths(root: Path) -> tuple[Path, Path, Path]:
    """Return the folders for extraction and for downloads, and the lock."""
    preparing, downloads, lock = (root.with_name(f".{root.name}.{use}") for use in ("preparing", "downloads", "lock"))
    return preparing, downloads, lock


def _tidy(root: Path, local_files: Sequence[Path]) -> None:
    staging, downloads, _ = _temporary_paths(root)
    shutil.rmtree(staging, ignore_errors=True)
    if not any(path.resolve().is_relative_to(downloads) for path in local_files):
        shutil.rmtree(downloads, ignore_errors=True)


@contextmanager
def _lock_root(root: Path) -> Iterator[None]:
    """Lock `root` against other processes; folders made for the lock are removed if nothing was installed."""
    created = [folder for folder in root.parents if not folder.exists()]
    root.parent.mkdir(parents=True, exist_ok=True)
    lock = _temporary_paths(root)[2]
    try:
        with FileLock(lock, timeout=0):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)  # while it is locked: a process that has opened it tries again
    except Timeout:
        raise UserError(f"{root} is being prepared by another process. Wait for it to end") from None
    finally:
        with suppress(OSError):
            for folder in created:
                folder.rmdir()


def _build(name: str, recipe: DownloadRecipe, root: Path, sources: Sequence[ArchiveSource], check: Check) -> TreeReport:
    staging, downloads, _ = _temporary_paths(root)
    shutil.rmtree(staging, ignore_errors=True)
    try:
        paths = [fetch_archive(source, downloads) for source in sources]
        archives = [archive_info(source, path) for source, path in zip(sources, paths, strict=True)]
        staging.mkdir()
        for source, path in zip(sources, paths, strict=True):
            extract_archive(source, path, staging)
        tree = find_dataset_folder(name, recipe, staging)
        report = convert_and_check(name, recipe, tree, root, check)
        write_note(tree / VERIFIED, report.as_json())
        note = {"benchmark": name, "semcorr": semcorr.__version__, "official_counts": not report.failed}
        write_note(tree / PREPARED, note | {"archives": archives})
        os.rename(tree, root)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        with suppress(OSError):
            downloads.rmdir()  # if nothing came
    return report
