"""Eviction of the least recently used entries, to keep a whole store within a budget."""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from semcorr.store.index import StoreEntry, list_store_folders, remove_entries, sort_by_use


class StoreBudget:
    """Budget of a store, from the last walk over it; walks again only when it may matter.

    Other processes write as well, unnoticed between two walks. A walk is due when this process has written a
    sixteenth of what was left, or a 256th of the budget: often enough that a few processes stay
    near the budget, seldom enough that walks cost little against the computation.
    """

    def __init__(self, root: Path, limit: int) -> None:
        self.root, self.limit = root, limit  # bytes
        self._oldest: deque[StoreEntry] = deque()
        self._used = 0  # bytes in the store, as far as known
        self._trust = 0.0  # bytes that may be written before the next walk

    def make(self, size: int, kept: Callable[[Path], bool]) -> bool:
        """Evict entries until `size` more bytes fit, but none that is `kept`; tell whether they fit."""
        if size > self._trust:
            self._walk()
        self._trust -= size
        while self._used + size > self.limit and self._oldest:
            self._evict(self._oldest.popleft(), kept)
        fits = self._used + size <= self.limit
        self._used += size if fits else 0
        return fits

    def _walk(self) -> None:
        """Walk over the store."""
        self._oldest = deque(sort_by_use(list_store_folders(self.root)))
        self._used = sum(entry.size for entry in self._oldest)
        self._trust = max((self.limit - self._used) / 16, self.limit / 256)

    def _evict(self, entry: StoreEntry, kept: Callable[[Path], bool]) -> None:
        """Remove an entry, unless it is needed or has been used since the walk."""
        if kept(entry.path):
            return
        with suppress(FileNotFoundError):
            if entry.path.stat().st_mtime != entry.used:
                return  # used since the walk
            remove_entries([entry])
        self._used -= entry.size
