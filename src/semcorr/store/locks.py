"""Locks on entries, so that each is computed by one process; a lock ends with its process, however that ends."""

import os
import weakref
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from semcorr.core.text_files import JsonObject
from semcorr.store.index import LOCK


class EntryLocks:
    """Locks on entries that this process holds. No method ever waits for a lock.

    A lock's file goes when its entry is there (or cannot be stored by anybody), or with this process. Somebody
    who opened the file before may then lock what has no name any more, while a third locks a new file of that
    name: two hold "the" lock. It does no harm because whoever gets a lock looks for the entry afterwards, and
    finds it. Where it could not be stored each process computes its own in any case. And nobody sleeps on
    the lost file: a lock is taken at once or not at all. (A filelock of 2026 refuses lost files by itself.)

    Args:
        folder: Folder of the locks' files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: dict[str, FileLock] = {}
        self._remove_at_exit()

    def __contains__(self, entry: str) -> bool:
        return entry in self._held

    def __len__(self) -> int:
        return len(self._held)

    def __getstate__(self) -> JsonObject:
        return {"folder": self.folder}  # locks stay with the process that took them

    def __setstate__(self, state: JsonObject) -> None:
        self.folder, self._held = state["folder"], {}
        self._remove_at_exit()

    def take(self, entries: Iterable[str]) -> bool:
        """Lock all entries or none; tell whether they are locked."""
        taken: dict[str, FileLock] = {}
        try:
            # In one order for all processes: of two that want the same ones, the first does not fail.
            for entry in sorted(entries):
                taken[entry] = FileLock(self._path(entry), blocking=False, thread_local=False)
                taken[entry].acquire()
            self._held |= taken
        except Timeout:
            taken.popitem()  # locked by another process
            _drop(self.folder, taken)
            return False
        except BaseException:
            _drop(self.folder, taken)
            raise
        return True

    def release(self, entries: Iterable[str]) -> None:
        """Release those of the entries that this process has locked."""
        for entry in entries:
            if lock := self._held.pop(entry, None):
                self.clear([entry])
                lock.release()

    def clear(self, entries: Iterable[str]) -> None:
        """Remove the files of locks that are no longer needed, since their entries exist."""
        for entry in entries:
            self._path(entry).unlink(missing_ok=True)

    def _remove_at_exit(self) -> None:
        """Remove the files of locks when a process ends that is interrupted while it computes."""
        weakref.finalize(self, _drop_own, os.getpid(), self.folder, self._held)

    def _path(self, entry: str) -> Path:
        """Return the path of an entry's lock."""
        return _path(self.folder, entry)


def _drop_own(process: int, folder: Path, locks: dict[str, FileLock]) -> None:
    """Drop the locks, if this is the process that took them."""
    if os.getpid() == process:  # not in a loader's process, which was forked from it
        _drop(folder, locks)


def _drop(folder: Path, locks: dict[str, FileLock]) -> None:
    """Release locks and remove their files."""
    while locks:
        entry, lock = locks.popitem()
        with suppress(OSError):  # pruned away, or no place to write any more
            _path(folder, entry).unlink(missing_ok=True)
        lock.release()


def _path(folder: Path, entry: str) -> Path:
    return folder / f"{entry}{LOCK}"
