"""Clocks and copies that wait for a device, in one place because it is slow; and the precision of its products."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def read_clock(device: torch.device) -> float:
    """Return the seconds of a clock, once a device other than the CPU has done all that it was given.

    A GPU works behind the program that drives it: without the wait, the time of a stage would be counted in the next.
    The wait costs time itself, so read the clock between stages, not between batches.
    """
    if device.type == "mps":
        torch.mps.synchronize()  # there is one such device, and PyTorch lets nobody name it
    elif device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
    return time.perf_counter()


@contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Let CUDA multiply single precision in TF32, which keeps 10 of its 23 bits, or not, until the block ends.

    >>> with float32_products(tf32=True):
    ...     torch.get_float32_matmul_precision()
    'high'
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@contextmanager
def full_float32(device_type: str) -> Iterator[None]:
    """Multiply single precision in single precision: neither in a smaller type by autocast, nor in TF32.

    Cosines are compared with each other: just below 1, two that differ by less than 0.0005 may be equal in 10 bits.

    Args:
        device_type: `type` of the device that multiplies, as `cuda`.
    """
    with torch.autocast(device_type, enabled=False):
        if device_type != "cuda":
            yield
            return
        with float32_products(tf32=False):
            yield


def copy_to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors of one type on the CPU, by one copy; those that are there already as they are.

    >>> copy_to_host([torch.ones(1, 2), torch.zeros(0)])
    [tensor([[1., 1.]]), tensor([])]
    """
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return [*tensors]
    flat = torch.cat([tensor.flatten() for tensor in tensors]).cpu()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
