"""Index of a store: its folders, their entries, and what killed processes left. Needs no torch."""

import json
import os
import re
import shutil
import time
from collections.abc import Iterable
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


def sort_by_use(found: Iterable[StoreFolder]) -> list[StoreEntry]:
    """Sort the entries of folders, the least recently used first."""
    return sorted((entry for folder in found for entry in folder.entries), key=lambda entry: entry.used)


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
