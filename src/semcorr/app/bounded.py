"""A cache in memory, bounded in entries, bytes and idle time; the least recently used entry is dropped first."""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import RLock
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

MIB = 2**20
IDLE = 1800.0  # seconds


class BoundedCache(Generic[Key, Value]):
    """A least-recently-used cache with bounds on its entries, its bytes and their idle time.

    Args:
        count: Largest number of entries.
        size: Largest number of bytes of all entries; a single entry is kept whatever its size.
        measure: Function that returns the bytes of an entry.
        idle: Seconds without use after which an entry is dropped.
        clock: Monotonic clock, in seconds.
    """

    def __init__(
        self,
        count: int,
        size: int,
        measure: Callable[[Value], int],
        idle: float = IDLE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.count, self.size, self.measure, self.idle, self.clock = count, size, measure, idle, clock
        self._entries: OrderedDict[Key, tuple[float, int, Value]] = OrderedDict()
        self._lock = RLock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Value | None:
        """Return an entry and mark it as used now; None if the cache does not hold it, or no longer."""
        with self._lock:
            self.drop_idle()
            if key not in self._entries:
                return None
            _, size, value = self._entries.pop(key)
            self._entries[key] = self.clock(), size, value
            return value

    def put(self, key: Key, value: Value) -> None:
        """Add an entry, and drop the least recently used ones that exceed the bounds."""
        with self._lock:
            self.drop_idle()
            self._entries.pop(key, None)
            self._entries[key] = self.clock(), self.measure(value), value
            while len(self._entries) > 1 and (len(self) > self.count or self.bytes() > self.size):
                self._entries.popitem(last=False)

    def bytes(self) -> int:
        """Count the bytes of all entries."""
        return sum(size for _, size, _ in self._entries.values())

    def drop_idle(self) -> None:
        """Drop the entries that were idle for too long."""
        with self._lock:
            while self._entries and self.clock() - next(iter(self._entries.values()))[0] > self.idle:
                self._entries.popitem(last=False)

    def clear(self) -> None:
        """Drop all entries."""
        with self._lock:
            self._entries.clear()
