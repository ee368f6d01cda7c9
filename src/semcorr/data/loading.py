"""How many images at a time, and who decodes them, unless the user says so."""

import os


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def images_at_once(asked: int | None, on_gpu: bool) -> int:
    """8 on a GPU, 1 on a CPU, where a batch leaves the caches: convolutional networks take 1.5 times as long then."""
    return asked or (8 if on_gpu else 1)


def decoders(asked: int | None, on_gpu: bool, processes: int = 1) -> int:
    """Loader processes of each of `processes` on a machine.

    A GPU encodes faster than any one core decodes: as many as there are, up to 16. On a CPU they take the
    cores away from who encodes: a quarter, which of 2 cores is none.
    """
    if asked is not None:
        return asked
    return min(16, cores() // processes) if on_gpu else cores() // processes // 4
