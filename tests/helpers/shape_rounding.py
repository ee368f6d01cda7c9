"""A processor whose rounding depends on the shape of a product, to find what must not depend on it.

On real ones it does: kernels are chosen by shape, and each sums in an order of its own. Here a product of single
precision is the sum of two, split at a place that follows from its shape alone. The same product rounds the same way
twice, and a wider one otherwise, as between batches of different sizes.

Loaded by `python -m pytest -p shape_rounding` (make rounding); it holds for the process of the tests.
"""

import warnings

import torch
from torch import Tensor


def split(inner: int, rows: int, columns: int) -> int:
    """The place at which the inner axis is split: different for most pairs of shapes, never at an end."""
    return 1 + (7 * rows + 3 * columns) % 11 * (inner - 2) // 11


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """A batched product, rounded by its shape."""
    zeros = a.new_zeros(())
    inner = a.shape[-1]
    if a.dtype != torch.float32 or inner < 3:
        return torch.baddbmm(zeros, a, b, beta=0)
    at = split(inner, a.shape[-2], b.shape[-1])
    first = torch.baddbmm(zeros, a[..., :at], b[..., :at, :], beta=0)
    return torch.baddbmm(first, a[..., at:], b[..., at:, :])


def mm(a: Tensor, b: Tensor) -> Tensor:
    """A product, rounded by its shape."""
    return bmm(a[None], b[None])[0]


def addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """A product and a sum, rounded by its shape."""
    return alpha * mm(a, b) + beta * bias if beta else alpha * mm(a, b)


LIBRARY = torch.library.Library("aten", "IMPL")
with warnings.catch_warnings(action="ignore"):  # some versions warn of what is meant to be
    for name, function in (("bmm", bmm), ("mm", mm), ("addmm", addmm)):
        LIBRARY.impl(name, function, "CPU", allow_override=True)
