"""A run directory has one writer at a time, and a name of its own.

Who writes to it holds a lock on its file `.lock`, which says who that is. The operating system gives the lock back when
the process ends, however it ends; what is still written in the file then is of a process that was killed.
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
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}  # of file systems without flock
LONGEST = 4096  # bytes of a lock file that are read
LEFT = re.compile(
    r"\..+\.\d+-[^/]*-[0-9a-f]{8}\.part"
    r"|\.(metrics\.json|metrics\.csv|config\.yaml|job\.json|audit\.json|\w+\.parquet|\w+\.png)\.\d+",  # of before
    re.DOTALL,
)
log = logging.getLogger(__name__)


class LockedError(UserError):
    """Another process writes to the directory."""


class Lock:
    """The lock of a directory that this process writes to."""

    def __init__(self, path: Path, descriptor: int, by_existence: bool) -> None:
        self.path, self.descriptor, self.by_existence = path, descriptor, by_existence
        register_after_fork(self, Lock.leave_to_parent)

    def leave_to_parent(self) -> None:
        """Close it in a forked process, which may live on when this one is killed."""
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def release(self, keep: bool = True) -> None:
        """Let others write. Beside what was written the file stays, empty and with the time of the beginning."""
        with suppress(OSError):
            alone = os.listdir(self.path.parent) == [self.path.name]
            if alone or self.by_existence or not keep:
                self.path.unlink()
            else:
                began = os.fstat(self.descriptor).st_mtime
                os.ftruncate(self.descriptor, 0)
                os.utime(self.descriptor, (began, began))
        descriptor, self.descriptor = self.descriptor, -1
        os.close(descriptor)


@contextmanager
def lock_folder(folder: Path, what: str) -> Iterator[Path]:
    """Have a run directory for this process alone; remove what killed processes left unfinished in it.

    Of the processes of one run, the first does this for all.

    Args:
        folder: The directory; is made if it is missing.
        what: What runs in it, as `train`; named to others.

    Raises:
        LockedError: Another process writes to it.
        UserError: It cannot be written.
    """
    if not is_first_process():
        yield folder
        return
    lock = take_lock(folder, what)
    try:
        remove_leftovers(folder)
        yield folder
    except BaseException:
        lock.release(keep=False)
        raise
    lock.release()


@contextmanager
def lock_new_folder(folder: Path, what: str) -> Iterator[Path]:
    """Have a directory that nobody has written to: `folder`, or the first of `folder-2`, `folder-3`, ... that is new.

    Two commands that start in the same second have the same default name.
    """
    if not is_first_process():
        yield folder
        return
    for number in count(1):
        path = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            lock = take_lock(path, what)
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


def take_lock(folder: Path, what: str) -> Lock:
    """Lock a directory, or refuse with a sentence that says who has it."""
    path = folder / LOCK
    try:
        lock, note = _open(path, what)
        if note:
            log.warning("%s: %s was killed; what it left unfinished goes", folder, _told(note, what))
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        about = {"verb": what, "pid": os.getpid(), "host": socket.gethostname(), "since": now}
        try:
            os.ftruncate(lock.descriptor, 0)
            os.pwrite(lock.descriptor, json.dumps(about).encode(), 0)
        except OSError:
            lock.release()
            raise
    except OSError as error:
        raise UserError(write_error(folder, error, "run_dir")) from error
    return lock


def _open(path: Path, what: str) -> tuple[Lock, bytes]:
    """Open and lock the file; with it, what a killed process has left in it."""
    for _ in range(100):  # while others remove it, as they end
        path.parent.mkdir(parents=True, exist_ok=True)
        options = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            try:
                descriptor, is_new = os.open(path, options | os.O_EXCL, 0o666), True
            except FileExistsError:
                descriptor, is_new = os.open(path, options, 0o666), False
        except FileNotFoundError:
            continue
        note, by_existence = os.pread(descriptor, LONGEST, 0), False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            by_existence = error.errno in NO_LOCKS
            if not (by_existence and is_new):
                os.close(descriptor)
                _refuse(error, path, note, what)
        if os.fstat(descriptor).st_nlink:
            return Lock(path, descriptor, by_existence), os.pread(descriptor, LONGEST, 0)
        os.close(descriptor)
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _refuse(error: OSError, path: Path, note: bytes, what: str) -> None:
    if error.errno in NO_LOCKS:
        raise LockedError(
            f"`run_dir`: {_told(note, what)} writes to {path.parent}, or was killed there: its file system has no "
            f"locks, so nobody can tell. If that process is gone, remove {path}; else choose another run_dir"
        )
    if error.errno not in (errno.EAGAIN, errno.EACCES):
        raise error
    name, who = _about(note, what)
    raise LockedError(
        f"`run_dir`: another process runs {name} in {path.parent}{f' ({who})' if who else ''}. "
        "Wait for it, stop it, or choose another run_dir"
    )


def _told(note: bytes, what: str) -> str:
    name, who = _about(note, what)
    return f"{name} ({who})" if who else f"a process that runs {name}"


def _about(note: bytes, what: str) -> tuple[str, str]:
    """What runs, and who runs it, by a lock file; a lock of another program says nothing."""
    try:
        about = json.loads(note)
        return str(about["verb"])[:40], f"pid {about['pid']:d} on {about['host']!s:.64}, since {about['since']!s:.32}"
    except (ValueError, TypeError, KeyError):
        return what, ""


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left unfinished in a run directory that is locked: nobody else writes to it.

    Results that were about to be replaced are put back.
    """
    from semcorr.engine.run_dir import restore_results

    for path in (path for place in (folder, folder / "checkpoints") for path in place.glob(".*")):
        if LEFT.fullmatch(path.name):
            with suppress(OSError):
                restore_results(folder, path)
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
