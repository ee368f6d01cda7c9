"""Installation of a benchmark from its archives to its root, which appears whole or not at all.

archives -> .ROOT.downloads/ -unpack-> .ROOT.preparing/ -merge, convert, check-> tree -rename-> ROOT

Everything happens in folders beside the root. Killed at any point and run again it ends with the
same tree: what was unpacked is discarded, what was downloaded is used.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

import semcorr
from semcorr.core.errors import UserError
from semcorr.core.files import require_writable
from semcorr.data.download.installed import (
    PREPARED,
    VERIFIED,
    Check,
    TreeReport,
    convert_and_check,
    find_dataset_folder,
    is_complete,
    write_note,
)
from semcorr.data.download.recipe import DownloadRecipe
from semcorr.data.download.sources import ArchiveSource, archive_info, archive_sources, extract_archive, fetch_archive

Announce = Callable[[Sequence[ArchiveSource]], None]


def install_dataset(
    name: str, recipe: DownloadRecipe, root: Path, given: Sequence[Path], check: Check, announce: Announce
) -> TreeReport | None:
    """Install a complete benchmark at `root`.

    Args:
        name: The benchmark's name.
        recipe: The benchmark's recipe.
        root: Absent or empty; a complete tree is left as it is.
        given: The user's files, which need not be downloaded.
        check: Reads a complete tree and counts it.
        announce: Called with the sources before anything is downloaded; may refuse.

    Returns:
        The result of the check, None if the tree existed already.

    Raises:
        UserError: The installation failed; `root` is as it was before.
    """
    if not os.path.lexists(root):
        require_writable(root, "--root")
    root = root.resolve()  # of a link, its end: a rename stays on one disk
    try:
        sources = archive_sources(name, recipe, given)
        if is_complete(name, recipe, root, check) and not any(path.exists() for path in _temporary_paths(root)):
            return None
        require_writable(root, "--root")
        with _lock_root(root):
            if is_complete(
                name, recipe, root, check
            ):  # another process was faster, or ours was killed while tidying up
                _tidy(root, given)
                return None
            announce(sources)
            report = _build(name, recipe, root, sources, check)
            _tidy(root, given)
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


def _tidy(root: Path, given: Sequence[Path]) -> None:
    staging, downloads, _ = _temporary_paths(root)
    shutil.rmtree(staging, ignore_errors=True)
    if not any(path.resolve().is_relative_to(downloads) for path in given):
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
