"""A cache of resized images in memory that all loader processes share: each is decoded once."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from semcorr.core.errors import UserError

SHARED = Path("/dev/shm")  # where Linux keeps shared memory; a container may be given little of it


class PixelCache:
    """As many squares as fit `gigabytes` (1e9 bytes); the others are rendered at every use.

    No lock: two processes that render the same square at once write the same bytes, and a square counts
    as present only after its last byte.
    """

    def __init__(self, images: int, side: int, gigabytes: float) -> None:
        slots = min(images, int(gigabytes * 1e9 / (3 * side * side)))
        _require_memory(slots * 3 * side * side)
        self.squares = torch.empty(slots, 3, side, side, dtype=torch.uint8).share_memory_()
        self.there = torch.zeros(slots, dtype=torch.bool).share_memory_()

    def get(self, slot: int, draw: Callable[[], UInt8[Tensor, "3 s s"]]) -> UInt8[Tensor, "3 s s"]:
        """Return the square of image `slot`; not to be written to."""
        if slot >= len(self.there):
            return draw()
        if not self.there[slot]:
            self.squares[slot] = draw()
            self.there[slot] = True
        return self.squares[slot]


def _require_memory(needed: int) -> None:
    """Require enough free memory: a lack of it would end the process by a bus error, much later."""
    free = shutil.disk_usage(SHARED).free if SHARED.is_dir() else needed
    if needed > free:
        raise UserError(
            f"`data.cache_gb`: {needed / 1e9:.2f} GB of images do not fit the shared memory of this machine, of which "
            f"{free / 1e9:.2f} GB are free ({SHARED}). Give less, or enlarge it (docker run --shm-size)."
        )
