"""Thin plates: the smoothest displacement of the square [-1, 1] with given values at control points (Bookstein 1989).

A displacement is `thin_plate_kernel(points, controls) @ coefficients`, with coefficients
`thin_plate_solver(side) @ values`.
"""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor


@cache
def control_points(side: int) -> Float[Tensor, "c 2"]:
    """Return `side` x `side` points of [-1, 1], c in all, from border to border, in double precision."""
    line = torch.linspace(-1, 1, side, dtype=torch.float64)
    return torch.cartesian_prod(line, line)


def thin_plate_kernel(points: Float[Tensor, "*b n 2"], controls: Float[Tensor, "c 2"]) -> Float[Tensor, "*b n k"]:
    """Return r^2 log r^2 of the distance r to every control point, and the plane: x, y, 1. Points get no gradient.

    These are k = c + 3 values for each point.
    """
    squared = (points[..., :1] - controls[:, 0]).square_() + (points[..., 1:] - controls[:, 1]).square_()
    bending = squared * squared.clamp(min=1e-30).log_()
    return torch.cat((bending, points, torch.ones_like(points[..., :1])), dim=-1)


@cache
def thin_plate_solver(side: int) -> Float[Tensor, "k c"]:
    """Return the matrix from values at `side` x `side` control points to k = c + 3 coefficients, in float64."""
    kernel = thin_plate_kernel(control_points(side), control_points(side))
    count = len(kernel)
    system = torch.zeros(count + 3, count + 3, dtype=torch.float64)
    system[:count], system[count:, :count] = kernel, kernel[:, count:].T
    return torch.linalg.inv(system)[:, :count].contiguous()
