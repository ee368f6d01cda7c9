"""What lies in a store: its folders, their entries, and what killed processes left. Needs no torch."""

import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import xxhash
from filelock import FileLock, Timeout

from semcorr.core.files import part_path, remove_parts
from semcorr.store.integrity import SUFFIX

KEY, CLAIMS, LOCK = "key.json", "claims", ".lock"
UNFINISHED = ".tmp"  # of versions that named no process
ABANDONED = 60.0  # seconds since anything was written to such a file; one took well under a second
LARGEST_KEY = 1 << 20  # bytes


class StoreEntry(NamedTuple):
    """One image's features."""

    path: Path
    size: int  # bytes
    used: float  # when last, in seconds of the clock


class StoreFolder(NamedTuple):
    """All features of one key."""

    path: Path
    key: dict[str, Any]
    entries: list[StoreEntry]

    @property
    def size(self) -> int:
        """Bytes of all entries."""
        return sum(entry.size for entry in self.entries)

    @property
    def used(self) -> float | None:
        """When an entry was, last."""
        return max((entry.used for entry in self.entries), default=None)


def folder_name(key: Mapping[str, Any]) -> str:
    """Return the name of the folder for a key: a hash of all of it."""
    canonical = json.dumps(dict(key), sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_64_hexdigest(canonical.encode())


def key_damage(folder: Path) -> str | None:
    """Return what is wrong with a folder's key.json; None if nothing is, or if there is none."""
    if not (folder / KEY).exists():
        return None
    key = _key(folder)
    if not key and folder.name != folder_name({}):
        return "it cannot be read"
    return None if folder_name(key) == folder.name else "it is the key of another folder"


def list_store_folders(root: Path) -> list[StoreFolder]:
    """Those of `root` that a store made. Whatever else lies there is none of our business."""
    ours = [path for path in sorted(root.iterdir()) if re.fullmatch("[0-9a-f]{16}", path.name)]
    return [
        StoreFolder(path, _key(path), _entries(path))
        for path in ours
        if (path / CLAIMS).is_dir() or (path / KEY).is_file()
    ]


def sort_by_use(found: Iterable[StoreFolder]) -> list[StoreEntry]:
    """Their entries, the one not used for longest first."""
    return sorted((entry for folder in found for entry in folder.entries), key=lambda entry: entry.used)


def remove_entries(entries: Iterable[StoreEntry]) -> list[StoreEntry]:
    """Those that are gone by our doing. Who has one mapped keeps it (POSIX)."""
    gone = []
    for entry in entries:
        with suppress(FileNotFoundError):
            entry.path.unlink()
            gone.append(entry)
    return gone


def remove_orphans(folder: Path) -> int:
    """Remove what killed processes left in `folder`, and itself if it is empty then. How many files went."""
    now, gone = time.time(), len(remove_parts(folder))
    for path in folder.glob(f".*{UNFINISHED}"):
        with suppress(FileNotFoundError):
            if now - path.stat().st_mtime > ABANDONED:
                path.unlink()
                gone += 1
    for path in (folder / CLAIMS).glob(f"*{LOCK}"):
        with suppress(Timeout, FileNotFoundError), FileLock(path, blocking=False):  # nobody alive holds it
            path.unlink()
            gone += 1
    if not {path.name for path in folder.iterdir()} - {KEY, CLAIMS} and not any((folder / CLAIMS).iterdir()):
        # In one step: a run that is about to use it finds all of it or nothing, and makes it anew.
        shutil.rmtree(folder.rename(part_path(folder)))
    return gone


def _entries(folder: Path) -> list[StoreEntry]:
    found = []
    with suppress(FileNotFoundError), os.scandir(folder) as files:  # three times as fast as Path.glob
        for file in files:
            if file.name.endswith(SUFFIX):
                with suppress(FileNotFoundError):  # evicted meanwhile
                    about = file.stat()
                    found.append(StoreEntry(Path(file.path), about.st_size, about.st_mtime))
    return found


def _key(folder: Path) -> dict[str, Any]:
    try:
        with (folder / KEY).open("rb") as file:
            return dict(json.loads(file.read(LARGEST_KEY)))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
