"""FeatureStore: features of images on disk, computed by no process twice."""

import errno
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rich.filesize import decimal
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.core.files import remove_parts
from semcorr.core.terminal import escape_controls
from semcorr.core.text_files import JsonMapping
from semcorr.store.entry_file import PackedEntry, pack_entry, read_entry, write_packed
from semcorr.store.index import CLAIMS, KEY, StoreBudget, folder_name
from semcorr.store.integrity import SUFFIX, DamagedEntryError, OutdatedEntryError, entry_key_of, stored_image_name
from semcorr.store.locks import EntryLocks

log = logging.getLogger(__name__)

POLL = 0.05  # seconds between two checks of what other processes are computing
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class FeatureStore:
    """Features of images under one key, in a folder of `root`.

    Args:
        root: Folder of all keys.
        key: Everything that the features depend on, but the image: backbone, sha256 of its weights,
            layers, size, resize, depth, dtype, ... What JSON can hold.
        max_gb: Limit on the size of all keys together, in GB of 10^9 bytes; None for no limit.

    Raises:
        UserError: The folder cannot be written, or the limit is not above 0.

    Entries are named by the caller, safely for a file: a hash of the image's content.
    """

    def __init__(self, root: Path, key: JsonMapping, max_gb: float | None = None) -> None:
        if max_gb is not None and not max_gb > 0:
            raise UserError(f"`store.max_gb` is {max_gb}. Give GB, more than 0, or null for no limit")
        self.root, self.max_gb = Path(root).expanduser(), max_gb
        self._key = json.dumps(dict(key), sort_keys=True, indent=1) + "\n"
        self.folder = self.root / folder_name(key)
        self._claims = EntryLocks(self.folder / CLAIMS)
        self._room = None if max_gb is None else StoreBudget(self.root, round(max_gb * 1e9))
        self._used: set[str] = set()  # by this process: not to be evicted
        self._checked: set[str] = set()
        self._unstorable: set[str] = set()
        self._met_outdated = False
        try:
            self._open()
            for folder in (self.root, self.folder):
                remove_parts(folder)
        except OSError as error:
            raise UserError(
                f"`store.root`: {self.root} cannot be written ({error.strerror}). Choose another folder, "
                "with store.root=DIR or the environment variable SEMCORR_STORE"
            ) from None

    def __contains__(self, entry: str) -> bool:
        return self._path(entry).exists()

    def get(self, entry: str) -> dict[str, Tensor] | None:
        """Return the entry's tensors, mapped; None if it does not exist.

        They are checked when this process reads them for the first time. A damaged entry is removed with a warning,
        and so is one that was stored for another key or image. Those of another version are removed with one warning.
        """
        path = self._path(entry)
        try:
            values = read_entry(path, check=entry not in self._checked)
        except FileNotFoundError:  # never stored, or evicted by another process
            self._forget(entry)
            return None
        except DamagedEntryError as damage:
            self._warn_of(path, damage)
            with suppress(OSError):  # another user's, or no file: it is computed for this run alone
                path.unlink(missing_ok=True)  # if another process has just replaced it: computed once more, no harm
            self._forget(entry)
            return None
        self._checked.add(entry)
        self._use(entry)
        return values

    def put(self, entry: str, values: Mapping[str, Tensor], name: str) -> bool:
        """Store an image's tensors (no batch axis) under its readable name; False if there is no room.

        Without room, a warning is logged once, and the caller keeps them in memory. Nothing half-written stays.
        """
        if entry not in self:
            packed = pack_entry(values, name, entry_key_of(self._path(entry)))
            if self._room and not self._room.evict_for(packed.size, self._is_kept):
                return self._refuse(
                    entry, packed.size, f"`store.max_gb` is {self.max_gb:g}, all of it in use by this run"
                )
            try:
                self._write(self._path(entry), packed)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                return self._refuse(entry, packed.size, str(error.strerror))
        self._use(entry)
        return True

    def claims(self, chunks: Iterable[Sequence[str]]) -> Iterator[list[str]]:
        """Yield what the caller is to compute, put and release, chunk by chunk; no other process gets the same.

        Of each chunk, what is not stored yet: all of it, or nothing yet if another process is busy with
        a part. Such chunks come last, when each entry has been stored or its process has died or could
        not store it: the latter two are the caller's then.

        It waits for other processes only while this one holds no claims: two that wait while each has
        work of the other's in its loader would wait forever. A caller that computes, puts and releases a
        chunk before it takes the next has everything at the end. One that takes chunks ahead (a DataLoader)
        finds the end early, and calls again, all released, until nothing is yielded.

        Args:
            chunks: Entries, in batches that are computed together.
        """
        while True:
            busy = []
            for chunk in chunks:
                claimed = self._take(chunk)
                if claimed is None:
                    busy.append(chunk)
                elif claimed:
                    yield claimed
            if not busy or self._claims:
                return
            time.sleep(POLL)
            chunks = busy

    def release(self, entries: Iterable[str]) -> None:
        """Release entries that are put or cannot be, so that other processes stop waiting."""
        self._claims.release(entries)

    def _take(self, chunk: Sequence[str]) -> list[str] | None:
        """Claim what is left to do of `chunk`; None if another process has claimed a part of it."""
        # Claimed entries are being computed, used ones are stored, unstorable ones are in this process's memory.
        settled = (self._claims, self._used, self._unstorable)
        wanted = [entry for entry in dict.fromkeys(chunk) if not any(entry in entries for entries in (*settled, self))]
        try:
            if not self._claims.take(wanted):
                self._claims.clear(entry for entry in wanted if entry in self)  # since we looked
                return None
        except OSError as error:
            if error.errno not in FULL:
                raise
            return wanted  # no room for a lock, nor for what it is about
        done = [entry for entry in wanted if entry in self]  # since we looked; see EntryLocks
        self._claims.release(done)
        return [entry for entry in wanted if entry not in done]

    def _open(self) -> None:
        """Make the folder and its key file where they are missing."""
        self._claims.folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        key_file = self.folder / KEY
        content = key_file.read_bytes() if key_file.exists() else None
        if content != self._key.encode():
            if content is not None:
                log.warning(
                    "%s does not hold the key of its folder: it is damaged, or another's. Written again", key_file
                )
            write_packed(key_file, PackedEntry(self._key.encode(), [], len(self._key)))

    def _write(self, path: Path, packed: PackedEntry) -> None:
        try:
            if not (self.folder / KEY).exists():
                raise FileNotFoundError
            write_packed(path, packed)
        except FileNotFoundError:  # pruned meanwhile
            self._open()
            write_packed(path, packed)

    def _warn_of(self, path: Path, damage: DamagedEntryError) -> None:
        if not isinstance(damage, OutdatedEntryError):
            name = escape_controls(stored_image_name(path))
            log.warning("%s, %s, is damaged (%s); it is computed again", path, name, escape_controls(str(damage)))
        elif not self._met_outdated:
            self._met_outdated = True
            log.warning(
                "%s holds features of another version of semcorr (%s); they are computed again",
                self.folder,
                escape_controls(str(damage)),
            )

    def _refuse(self, entry: str, size: int, reason: str) -> bool:
        if not self._unstorable:
            log.warning(
                "%s takes no more features (%s): %s would be needed for the next image. They stay in memory",
                self.root,
                reason,
                decimal(size),
            )
        self._unstorable.add(entry)
        return False

    def _use(self, entry: str) -> None:
        """Mark an entry as most recently used, once per process and entry."""
        if entry not in self._used:
            self._used.add(entry)
            with suppress(OSError):  # gone, or another user's
                os.utime(self._path(entry))

    def _forget(self, entry: str) -> None:
        self._used.discard(entry)
        self._checked.discard(entry)

    def _is_kept(self, path: Path) -> bool:
        return path.parent == self.folder and path.name.removesuffix(SUFFIX) in self._used

    def _path(self, entry: str) -> Path:
        return self.folder / f"{entry}{SUFFIX}"
