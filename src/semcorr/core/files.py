"""Write files that are whole or not there: beside, flushed to the disk, then renamed into place."""

import errno
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from semcorr.errors import UserError

UNTOUCHED = 24 * 3600.0  # seconds after which an unfinished file has no writer, whichever machine it was on
REASONS = {  # what is nobody's mistake in a program: the disk, the permissions, the limits of a process
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.ENAMETOOLONG,
    errno.ENOTDIR, errno.EISDIR, errno.EMFILE, errno.ENFILE, errno.ELOOP, errno.ESTALE,
}  # fmt: skip
_PART = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)-(?P<host>[^/]*)-[0-9a-f]{8}\.part", re.DOTALL)


@contextmanager
def replace_file(path: Path, option: str | None = None) -> Iterator[Path]:
    """Yield a path beside `path` to write to; flush what was written to the disk and give it its name.

    After an error, `path` is what it was before and nothing lies beside it.

    Args:
        path: The file; its folder must exist.
        option: What the user gave it by, as `run_dir`; named in the error.

    Raises:
        UserError: The disk is full, the folder cannot be written, ...
    """
    beside = part_path(path)
    try:
        yield beside
        _flush(beside)
        beside.replace(path)
        _flush(path.parent)
    except OSError as error:
        if error.errno not in REASONS:
            raise
        raise UserError(write_error(path, error, option)) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def write_text(path: Path, text: str, option: str | None = None) -> None:
    """Write a text file, as `replace_file` does."""
    with replace_file(path, option) as beside:
        beside.write_text(text, encoding="utf-8")


def write_error(path: Path, error: OSError, option: str | None = None) -> str:
    """Return the sentence for a file or folder that cannot be written."""
    start = f"`{option}`: " if option else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "Free some space, or choose another folder" if full else "Choose another folder"
    return f"{start}{path} cannot be written ({error.strerror}). {remedy}."


def require_writable(folder: Path, option: str, size: int = 0) -> None:
    """Refuse, before any work, a folder that nothing can be written to. The folder need not exist yet.

    Args:
        folder: Where results will go.
        option: What the user gave it by.
        size: Bytes that will be written at the least.

    Raises:
        UserError: It or the folder above it is a file, is read-only, or its disk is full.
    """
    try:
        home = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
        if not home.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        about = os.statvfs(home)
        if about.f_bavail * about.f_frsize < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        probe = part_path(home / "probe")
        try:
            probe.write_bytes(b"semcorr")
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(write_error(folder, error, option)) from error


def part_path(path: Path) -> Path:
    """Name an unfinished file beside `path`: hidden, of this process, unlike any other."""
    return path.with_name(f".{path.name}.{os.getpid()}-{_host()}-{secrets.token_hex(4)}.part")


def remove_parts(folder: Path) -> list[Path]:
    """Remove what killed processes left unfinished in a folder; return what was removed.

    Files of a process that lives are left alone; those of another machine, until they are a day old.
    """
    removed = []
    with suppress(OSError):
        for path in folder.glob(".*.part"):
            with suppress(OSError):
                if _is_abandoned(path):
                    path.unlink()
                    removed.append(path)
    return removed


def _is_abandoned(path: Path) -> bool:
    match = _PART.fullmatch(path.name)
    if match is None:
        return False
    if time.time() - path.stat().st_mtime > UNTOUCHED:
        return True
    return match["host"] == _host() and not is_alive(int(match["pid"]))


def is_alive(pid: int) -> bool:
    """Tell whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _host() -> str:
    return re.sub(r"[^\w.]", "_", socket.gethostname())[:64]


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError) if path.is_dir() else nullcontext():  # not every file system syncs folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
