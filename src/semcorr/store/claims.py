"""Which process computes what: one lock a claim, gone with its process however that ends."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from semcorr.store.listing import LOCK


class Claims:
    """Locks on entries that this process holds. Nothing here ever waits for a lock.

    A lock's file goes when its entry is there (or cannot be stored by anybody). Somebody who opened the
    file before may then lock what has no name any more, while a third locks a new file of that name:
    two hold "the" lock. It does no harm because whoever gets a lock looks for the entry afterwards, and
    finds it. Where it could not be stored each process computes its own in any case. And nobody sleeps on
    the lost file: a lock is had at once or not at all. (A filelock of 2026 refuses lost files by itself.)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: dict[str, FileLock] = {}

    def __contains__(self, entry: str) -> bool:
        return entry in self._held

    def __len__(self) -> int:
        return len(self._held)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_held": {}}  # locks stay with the process that took them

    def take(self, entries: Iterable[str]) -> bool:
        """All of them or none."""
        taken: dict[str, FileLock] = {}
        # In one order for all processes: of two that want the same ones, the first does not fail.
        for entry in sorted(entries):
            lock = FileLock(self._path(entry), blocking=False, thread_local=False)
            try:
                lock.acquire()
            except BaseException as error:
                for other in taken.values():
                    other.release()  # their files stay: their entries may not be there yet
                if isinstance(error, Timeout):
                    return False
                raise
            taken[entry] = lock
        self._held |= taken
        return True

    def give_back(self, entries: Iterable[str]) -> None:
        """Those of them that are held."""
        for entry in entries:
            if lock := self._held.pop(entry, None):
                self.clear([entry])
                lock.release()

    def clear(self, entries: Iterable[str]) -> None:
        """Remove files of locks that are of no more use: their entries are there."""
        for entry in entries:
            self._path(entry).unlink(missing_ok=True)

    def _path(self, entry: str) -> Path:
        return self.folder / f"{entry}{LOCK}"
