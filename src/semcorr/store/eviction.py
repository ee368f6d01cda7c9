"""Room for one more entry within a budget over a whole store, at the cost of the least recently used."""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from semcorr.store.index import StoreEntry, list_store_folders, remove_entries, sort_by_use


class StoreBudget:
    """Remembers what a walk over the store found, and walks again only when it may matter.

    Others write as well, unseen between two walks. A walk is due when this process has written a
    sixteenth of what was left, or a 256th of the budget: so often that a handful of processes stays
    near it, so seldom that a walk costs nothing against what was computed meanwhile.
    """

    def __init__(self, root: Path, limit: int) -> None:
        self.root, self.limit = root, limit  # bytes
        self._oldest: deque[StoreEntry] = deque()
        self._used = 0  # bytes in the store, as far as we know
        self._trust = 0.0  # bytes we may write before we look again

    def make(self, size: int, kept: Callable[[Path], bool]) -> bool:
        """Whether `size` more bytes fit, now that what had to go is gone. Nothing that is `kept` goes."""
        if size > self._trust:
            self._look()
        self._trust -= size
        while self._used + size > self.limit and self._oldest:
            self._evict(self._oldest.popleft(), kept)
        fits = self._used + size <= self.limit
        self._used += size if fits else 0
        return fits

    def _look(self) -> None:
        self._oldest = deque(sort_by_use(list_store_folders(self.root)))
        self._used = sum(entry.size for entry in self._oldest)
        self._trust = max((self.limit - self._used) / 16, self.limit / 256)

    def _evict(self, entry: StoreEntry, kept: Callable[[Path], bool]) -> None:
        if kept(entry.path):
            return
        with suppress(FileNotFoundError):
            if entry.path.stat().st_mtime != entry.used:
                return  # somebody has used it since we looked
            remove_entries([entry])
        self._used -= entry.size
