"""Locks of run directories: each has one writer at a time, and a name of its own.

The writer holds a lock on the file `.lock`, in which it describes itself. The operating system releases the lock when
the process ends, for whatever reason; text that is still in the file then is of a process that was killed.
"""

import errno
import fcntl
import json
import logging
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from multiprocessing.util import register_after_fork
from pathlib import Path

from semcorr.core.errors import UserError
from semcorr.core.files import write_error
from semcorr.core.ranks import is_first_process

LOCK = ".lock"
NO_LOCKS = {
    errno.ENOSYS,
    errno.ENOLCK,
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
    errno.EINVAL,
}  # errors of file systems without flock
MAX_LOCK_BYTES = 4096  # bytes of a lock file that are read, at most
LEFTOVER = re.compile(
    r"\..+\.\d+-[^/]*-[0-9a-f]{8}\.part"
    r"|\.(metrics\.json|metrics\.csv|config\.yaml|job\.json|audit\.json|\w+\.parquet|\w+\.png)\.\d+",  # older versions
    re.DOTALL,
)
log = logging.getLogger(__name__)


class LockedError(UserError):
    """Another process writes to the directory."""


class Lock:
    """The lock of a directory that this process writes to.

    Args:
        path: File of the lock.
        descriptor: Open descriptor of the file.
        by_existence: Whether the file's existence is the lock, as on a file system without locks.
    """

    def __init__(self, path: Path, descriptor: int, by_existence: bool) -> None:
        self.path, self.descriptor, self.by_existence = path, descriptor, by_existence
        register_after_fork(self, Lock.leave_to_parent)

    def leave_to_parent(self) -> None:
        """Close the lock in a forked process, which may outlive this one."""
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def release(self, keep: bool = True) -> None:
        """Release the lock; beside other files its file stays, empty and with the time when the run began.

        Args:
            keep: Whether the file may stay.
        """
        with suppress(OSError):
            is_only_file = os.listdir(self.path.parent) == [self.path.name]
            if is_only_file or self.by_existence or not keep:
                self.path.unlink()
            else:
                start = os.fstat(self.descriptor).st_mtime
                os.ftruncate(self.descriptor, 0)
                os.utime(self.descriptor, (start, start))
        descriptor, self.descriptor = self.descriptor, -1
        os.close(descriptor)


@contextmanager
def lock_folder(folder: Path, command: str) -> Iterator[Path]:
    """Lock a run directory for this process, and remove unfinished files of killed processes from it.

    The first process of a run locks it for all of them.

    Args:
        folder: The directory, which is created if it is missing.
        command: Name of the command, such as `train`, for the messages of other processes.

    Raises:
        LockedError: Another process writes to the directory.
        UserError: The directory cannot be written.
    """
    if not is_first_process():
        yield folder
        return
    lock = take_lock(folder, command)
    try:
        remove_leftovers(folder)
        yield folder
    except BaseException:
        lock.release(keep=False)
        raise
    lock.release()


@contextmanager
def lock_new_folder(folder: Path, command: str) -> Iterator[Path]:
    """Lock a directory that is new: `folder`, or the first new one of `folder-2`, `folder-3`, ...

    Two commands that start in the same second have the same default name.

    Args:
        folder: The directory, which is created.
        command: Name of the command, such as `train`, for the messages of other processes.

    Raises:
        UserError: The directory cannot be written.
    """
    if not is_first_process():
        yield folder
        return
    for number in count(1):
        path = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            lock = take_lock(path, command)
        except LockedError:
            continue
        if os.listdir(path) == [LOCK]:
            break
        lock.release()
    try:
        yield path
    except BaseException:
        lock.release(keep=False)
        raise
    lock.release()


def take_lock(folder: Path, command: str) -> Lock:
    """Lock a directory, which is created if it is missing.

    Args:
        folder: The directory.
        command: Name of the command, such as `train`, for the messages of other processes.

    Raises:
        LockedError: Another process holds the lock; the message names it.
        UserError: The directory cannot be written.
    """
    path = folder / LOCK
    try:
        lock, note = _open_lock(path, command)
        if note:
            log.warning("%s: %s was killed; what it left unfinished goes", folder, _format_owner(note, command))
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        owner = {"verb": command, "pid": os.getpid(), "host": socket.gethostname(), "since": now}
        try:
            os.ftruncate(lock.descriptor, 0)
            os.pwrite(lock.descriptor, json.dumps(owner).encode(), 0)
        except OSError:
            lock.release()
            raise
    except OSError as error:
        raise UserError(write_error(folder, error, "run_dir")) from error
    return lock


def _open_lock(path: Path, command: str) -> tuple[Lock, bytes]:
    """Open and lock the file; return the lock and the text that a killed process left in the file."""
    for _ in range(100):  # other processes may remove the file as they end
        path.parent.mkdir(parents=True, exist_ok=True)
        options = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            try:
                descriptor, is_new = os.open(path, options | os.O_EXCL, 0o666), True
            except FileExistsError:
                descriptor, is_new = os.open(path, options, 0o666), False
        except FileNotFoundError:
            continue
        note, by_existence = os.pread(descriptor, MAX_LOCK_BYTES, 0), False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            by_existence = error.errno in NO_LOCKS
            if not (by_existence and is_new):
                os.close(descriptor)
                _refuse(error, path, note, command)
        if os.fstat(descriptor).st_nlink:
            return Lock(path, descriptor, by_existence), os.pread(descriptor, MAX_LOCK_BYTES, 0)
        os.close(descriptor)
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _refuse(error: OSError, path: Path, note: bytes, command: str) -> None:
    """Raise the error of a lock that was not given: another process holds it, or there are no locks."""
    if error.errno in NO_LOCKS:
        raise LockedError(
            f"`run_dir`: {_format_owner(note, command)} writes to {path.parent}, or was killed there: its file "
            f"system has no locks, so nobody can tell. If that process is gone, remove {path}; else choose another "
            "run_dir"
        )
    if error.errno not in (errno.EAGAIN, errno.EACCES):
        raise error
    name, owner = _parse_note(note, command)
    raise LockedError(
        f"`run_dir`: another process runs {name} in {path.parent}{f' ({owner})' if owner else ''}. "
        "Wait for it, stop it, or choose another run_dir"
    )


def _format_owner(note: bytes, command: str) -> str:
    """Describe the process of a lock file, for messages."""
    name, owner = _parse_note(note, command)
    return f"{name} ({owner})" if owner else f"a process that runs {name}"


def _parse_note(note: bytes, command: str) -> tuple[str, str]:
    """Return the command and a description of the process in a lock file; the latter may be empty.

    A lock of another program gives `command` and no description.
    """
    try:
        owner = json.loads(note)
        process = f"pid {owner['pid']:d} on {owner['host']!s:.64}, since {owner['since']!s:.32}"
        return str(owner["verb"])[:40], process
    except (ValueError, TypeError, KeyError):
        return command, ""


def remove_leftovers(folder: Path) -> None:
    """Remove unfinished files of killed processes from a run directory that this process has locked.

    Results that were about to be replaced are put back.
    """
    from semcorr.engine.run_dir import restore_results

    for path in (path for parent in (folder, folder / "checkpoints") for path in parent.glob(".*")):
        if LEFTOVER.fullmatch(path.name):
            with suppress(OSError):
                restore_results(folder, path)
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
