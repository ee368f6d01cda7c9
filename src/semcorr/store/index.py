"""Index of a store: its folders and entries, what killed processes left, and which entries go for room."""

import json
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import xxhash
from filelock import FileLock, Timeout

from semcorr.core.files import part_path, remove_parts
from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.store.integrity import SUFFIX

KEY, CLAIMS, LOCK = "key.json", "claims", ".lock"
UNFINISHED = ".tmp"  # of older versions, which named no process
ABANDONED = 60.0  # seconds since anything was written to such a file; one took well under a second
LARGEST_KEY = 1 << 20  # bytes


class StoreEntry(NamedTuple):
    """Stored features of one image."""

    path: Path
    size: int  # bytes
    used: float  # time of the last use, in seconds since the epoch


class StoreFolder(NamedTuple):
    """Stored features of one key."""

    path: Path
    key: JsonObject
    entries: list[StoreEntry]

    @property
    def size(self) -> int:
        """Size of all entries in bytes."""
        return sum(entry.size for entry in self.entries)

    @property
    def used(self) -> float | None:
        """Time at which an entry was last used."""
        return max((entry.used for entry in self.entries), default=None)


def folder_name(key: JsonMapping) -> str:
    """Return the name of the folder for a key: a hash of all of it."""
    canonical = json.dumps(dict(key), sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_64_hexdigest(canonical.encode())


def key_damage(folder: Path) -> str | None:
    """Return what is wrong with a folder's key.json; None if nothing is, or if there is none."""
    if not (folder / KEY).exists():
        return None
    key = _read_key(folder)
    if not key and folder.name != folder_name({}):
        return "it cannot be read"
    return None if folder_name(key) == folder.name else "it is the key of another folder"


def list_store_folders(root: Path) -> list[StoreFolder]:
    """List the folders of `root` that a store made; anything else in it is ignored."""
    folders = [path for path in sorted(root.iterdir()) if re.fullmatch("[0-9a-f]{16}", path.name)]
    return [
        StoreFolder(path, _read_key(path), _list_entries(path))
        for path in folders
        if (path / CLAIMS).is_dir() or (path / KEY).is_file()
    ]


def sort_by_use(folders: Iterable[StoreFolder]) -> list[StoreEntry]:
    """Sort the entries of folders, the least recently used first."""
    return sorted((entry for folder in folders for entry in folder.entries), key=lambda entry: entry.used)


def remove_entries(entries: Iterable[StoreEntry]) -> list[StoreEntry]:
    """Remove entries, and return those that were removed. A process that has one mapped keeps it (POSIX)."""
    removed = []
    for entry in entries:
        with suppress(FileNotFoundError):
            entry.path.unlink()
            removed.append(entry)
    return removed


def remove_orphans(folder: Path) -> int:
    """Remove what killed processes left in `folder`, and the folder if it is empty then; return the number of files."""
    now, removed = time.time(), len(remove_parts(folder))
    for path in folder.glob(f".*{UNFINISHED}"):
        with suppress(FileNotFoundError):
            if now - path.stat().st_mtime > ABANDONED:
                path.unlink()
                removed += 1
    for path in (folder / CLAIMS).glob(f"*{LOCK}"):
        with suppress(Timeout, FileNotFoundError), FileLock(path, blocking=False):  # no running process holds it
            path.unlink()
            removed += 1
    if not {path.name for path in folder.iterdir()} - {KEY, CLAIMS} and not any((folder / CLAIMS).iterdir()):
        # In one step: a run that is about to use it finds all of it or nothing, and makes it again.
        shutil.rmtree(folder.rename(part_path(folder)))
    return removed


def _list_entries(folder: Path) -> list[StoreEntry]:
    """List the entries of a folder."""
    entries = []
    with suppress(FileNotFoundError), os.scandir(folder) as files:  # three times as fast as Path.glob
        for file in files:
            if file.name.endswith(SUFFIX):
                with suppress(FileNotFoundError):  # evicted meanwhile
                    info = file.stat()
                    entries.append(StoreEntry(Path(file.path), info.st_size, info.st_mtime))
    return entries


def _read_key(folder: Path) -> JsonObject:
    """Read the key of a folder; empty if it cannot be read."""
    try:
        with (folder / KEY).open("rb") as file:
            return dict(json.loads(file.read(LARGEST_KEY)))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


class StoreBudget:
    """Budget of a store, from the last walk over it; walks again only when it may matter.

    Other processes write as well, unnoticed between two walks. A walk is due when this process has written a
    sixteenth of what was left, or a 256th of the budget if that is more: often enough that a few processes stay
    near the budget, seldom enough that walks cost little against the computation.

    Args:
        root: Folder of the store.
        limit: Largest size of all entries, in bytes.
    """

    def __init__(self, root: Path, limit: int) -> None:
        self.root, self.limit = root, limit  # bytes
        self._oldest: deque[StoreEntry] = deque()
        self._used = 0  # bytes in the store, as far as known
        self._trust = 0.0  # bytes that may be written before the next walk

    def evict_for(self, size: int, is_protected: Callable[[Path], bool]) -> bool:
        """Evict entries until more bytes fit, the least recently used first; tell whether they fit.

        Args:
            size: Number of bytes that are about to be written; they are counted as written if they fit.
            is_protected: Function that tells of an entry's path whether the entry must stay.
        """
        if size > self._trust:
            self._walk()
        self._trust -= size
        while self._used + size > self.limit and self._oldest:
            self._evict(self._oldest.popleft(), is_protected)
        fits = self._used + size <= self.limit
        self._used += size if fits else 0
        return fits

    def _walk(self) -> None:
        """Walk over the store."""
        self._oldest = deque(sort_by_use(list_store_folders(self.root)))
        self._used = sum(entry.size for entry in self._oldest)
        self._trust = max((self.limit - self._used) / 16, self.limit / 256)

    def _evict(self, entry: StoreEntry, is_protected: Callable[[Path], bool]) -> None:
        """Remove an entry, unless it is needed or has been used since the walk."""
        if is_protected(entry.path):
            return
        with suppress(FileNotFoundError):
            if entry.path.stat().st_mtime != entry.used:
                return  # used since the walk
            remove_entries([entry])
        self._used -= entry.size
