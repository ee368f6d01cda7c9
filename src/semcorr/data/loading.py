"""Default batch sizes of encoding and numbers of loader processes, and checks of the user's."""

import os
import shutil
from pathlib import Path

from semcorr.core.errors import UserError

SHARED = Path("/dev/shm")  # through which loader processes hand on what they have made
AHEAD = 2  # batches that a loader process makes before they are requested
MOST = 128  # loader processes that are of use on any machine, at least


def count_cores() -> int:
    """Return the number of CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def encoding_batch_size(asked: int | None, on_gpu: bool) -> int:
    """Return the images to encode at once: 8 on a GPU, 1 on a CPU, where a batch leaves the caches.

    Convolutional networks take 1.5 times as long then.
    """
    return asked or (8 if on_gpu else 1)


def num_loader_workers(asked: int | None, on_gpu: bool, processes: int = 1) -> int:
    """Return the number of loader processes for each of `processes` on a machine.

    A GPU encodes faster than any one core decodes: as many as there are, up to 16. On a CPU they take the
    cores away from who encodes: a quarter, which of 2 cores is none.
    """
    if asked is not None:
        return asked
    return min(16, count_cores() // processes) if on_gpu else count_cores() // processes // 4


def require_workers(workers: object) -> None:
    """Refuse a number of loader processes that no machine can start.

    Args:
        workers: The number of loader processes; None: chosen by the machine.

    Raises:
        UserError: The number is not whole, negative, or beyond all reason.
    """
    most = max(MOST, 4 * count_cores())
    if workers is None or (type(workers) is int and 0 <= workers <= most):
        return
    raise UserError(
        f"`data.workers` must be null or a whole number from 0, which loads in the process itself, to {most}, "
        f"got {workers}"
    )


def require_shared_memory(workers: int, images: int, side: int) -> None:
    """Refuse loader processes that would end by a bus error: their batches exceed the shared memory.

    Args:
        workers: Loader processes.
        images: Images of a batch.
        side: Side of their squares, in pixels.

    Raises:
        UserError: The batches made ahead need more memory than is free.
    """
    if not workers or not SHARED.is_dir():
        return
    needed, free = workers * AHEAD * images * 3 * side * side * 4, shutil.disk_usage(SHARED).free
    if needed > free:
        raise UserError(
            f"`data.workers`: {workers} loader processes hand on {needed / 1e9:.2f} GB through shared memory, of which "
            f"{free / 1e9:.2f} GB are free ({SHARED}). Give fewer (data.workers=0: none), or enlarge it (docker run "
            "--shm-size)"
        )
