"""The folder on the disk for uploads and drawn pictures: private, of a bounded size, gone at the end."""

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
    """Make a folder that only this user may open; remove it at the end, and those of pages that were killed.

    Raises:
        UserError: The place for temporary files cannot be written.
    """
    place = Path(tempfile.gettempdir())
    remove_abandoned(place)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-{_host()}-", dir=place)).resolve()
    except OSError as error:
        if error.errno not in REASONS:
            raise
        raise UserError(write_error(place, error, "TMPDIR")) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(place: Path) -> None:
    """Remove this user's folders of pages of this machine that do not run any more."""
    for folder in place.glob(f"{PREFIX}*"):
        pid = re.fullmatch(rf"{PREFIX}(\d+)-{_host()}-\w+", folder.name)
        with suppress(OSError):
            ours = folder.lstat().st_uid == os.getuid() and not folder.is_symlink()
            if pid and ours and not is_alive(int(pid[1])):
                shutil.rmtree(folder, ignore_errors=True)


def evict_files(folder: Path, size: int = 0, room: int = ROOM, idle: float = IDLE) -> None:
    """Remove old files, and the oldest of all until so many bytes have room.

    Args:
        folder: Where they are.
        size: Bytes to come.
        room: Bytes that the files may have, with those to come.
        idle: Seconds after which a file is old.
    """
    files = []
    for path in folder.rglob("*"):
        with suppress(OSError):  # another one removed it
            if path.is_file():
                files.append((path.stat().st_mtime, path.stat().st_size, path))
    left, now = sum(length for _, length, _ in files), time.time()
    for changed, length, path in sorted(files):
        if now - changed > idle or left + size > room:
            with suppress(OSError):
                path.unlink()
            with suppress(OSError):
                path.parent.rmdir()  # the last of its folder
            left -= length


def _host() -> str:
    return re.sub(r"\W", "_", socket.gethostname())[:64]
