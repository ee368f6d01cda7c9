"""What the page keeps in memory: bounded in number, in bytes and in time; what was used longest ago goes first."""

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
    """A mapping that forgets.

    Args:
        count: Entries that are kept at most.
        size: Bytes that they have at most, together; one alone is kept whatever it has.
        measure: An entry's bytes.
        idle: Seconds after which an entry that nobody used is dropped.
        clock: Seconds that only grow.
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
        """Return an entry, used now; None if it is not there, or no longer."""
        with self._lock:
            self.drop_idle()
            if key not in self._entries:
                return None
            _, size, value = self._entries.pop(key)
            self._entries[key] = self.clock(), size, value
            return value

    def put(self, key: Key, value: Value) -> None:
        """Keep an entry, and drop those that there is no more room for."""
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
        """Drop what nobody used for too long."""
        with self._lock:
            while self._entries and self.clock() - next(iter(self._entries.values()))[0] > self.idle:
                self._entries.popitem(last=False)

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._entries.clear()
