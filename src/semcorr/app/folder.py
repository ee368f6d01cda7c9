"""The folder for uploads and drawn pictures: private, of bounded size, removed at the end."""

import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from semcorr.app.bounded import IDLE
from semcorr.core.errors import UserError
from semcorr.core.files import REASONS, is_alive, write_error

PREFIX = "semcorr-app-"
ROOM = 2**29  # bytes of all files


@contextmanager
def make_private_folder() -> Iterator[Path]:
    """Make a folder that only this user may open, and remove it at the end.

    Folders that killed pages left behind are removed first.

    Raises:
        UserError: The folder for temporary files cannot be written.
    """
    parent = Path(tempfile.gettempdir())
    remove_abandoned(parent)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-{_host_name()}-", dir=parent)).resolve()
    except OSError as error:
        if error.errno not in REASONS:
            raise
        raise UserError(write_error(parent, error, "TMPDIR")) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(place: Path) -> None:
    """Remove the folders of this user's pages on this machine that no longer run."""
    for folder in place.glob(f"{PREFIX}*"):
        pid = re.fullmatch(rf"{PREFIX}(\d+)-{_host_name()}-\w+", folder.name)
        with suppress(OSError):
            is_own = folder.lstat().st_uid == os.getuid() and not folder.is_symlink()
            if pid and is_own and not is_alive(int(pid[1])):
                shutil.rmtree(folder, ignore_errors=True)


def evict_files(folder: Path, size: int = 0, room: int = ROOM, idle: float = IDLE) -> None:
    """Remove idle files, and then the oldest ones until `size` more bytes fit.

    Args:
        folder: Folder of the files.
        size: Bytes that are about to be written.
        room: Largest number of bytes of all files, including those about to be written.
        idle: Seconds without change after which a file is removed.
    """
    files = []
    for path in folder.rglob("*"):
        with suppress(OSError):  # another thread removed it
            if path.is_file():
                files.append((path.stat().st_mtime, path.stat().st_size, path))
    total, now = sum(length for _, length, _ in files), time.time()
    for changed, length, path in sorted(files):
        if now - changed > idle or total + size > room:
            with suppress(OSError):
                path.unlink()
                total -= length
            if path.parent != folder:
                with suppress(OSError):
                    path.parent.rmdir()  # empty once its last file is removed


def _host_name() -> str:
    """Return the name of this machine, as part of a file name."""
    return re.sub(r"\W", "_", socket.gethostname())[:64]
