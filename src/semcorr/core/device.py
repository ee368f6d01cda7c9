"""Waiting for a device: its clock, and its numbers in one copy. Each wait costs a GPU what is queued behind it."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor


def read_clock(device: torch.device) -> float:
    """Return the seconds of a clock, after what a device other than the CPU has been given is done.

    A GPU works behind the program that drives it: without the wait, the time of a stage would be counted in the next.
    It is for the borders of stages, not for their batches.
    """
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
    return time.perf_counter()


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
