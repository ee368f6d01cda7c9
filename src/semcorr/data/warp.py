"""Warps of a square image: where each pixel of the result comes from, and where a point goes.

Coordinates are `coords.to_unit`'s, [-1, 1] from corner to corner. A warp is stated backward, result to
original, because that is the direction pixels are sampled in; `original_to_warp` is its inverse, for keypoints.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from semcorr.core.coords import from_unit, to_unit
from semcorr.core.thin_plate import control_points, thin_plate_kernel, thin_plate_solver

CONTROLS = 4  # control points of the thin plate, per side
MAX_SLOPE = 0.5  # how much faster than the points themselves their displacement may change
MAX_GRID = 257  # of these displacements; the rest is interpolated, within 0.05 px at 840
ITERATIONS = 25  # of the inversion; each leaves at most MAX_SLOPE of the error, so 1e-5 px of 840 remain


class ImageWarp(NamedTuple):
    """A warp from result to original: bend, then the affine map."""

    affine: Float[Tensor, "3 3"]  # on (x, y, 1)
    spline: Float[Tensor, "k 2"] | None = None  # coefficients of the thin plate, see `thin_plate_coefficients`


def original_to_warp(warp: ImageWarp, points: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    """Map points of the original to where the result shows them.

    A bent point is p + d(p) with a displacement d whose slope is below 1 (`thin_plate_coefficients`): nothing folds,
    and p is the limit of p <- bent - d(p).
    """
    bent = _apply_affine(torch.linalg.inv(warp.affine), points)
    if warp.spline is None:
        return bent
    points_of_result = bent
    for _ in range(ITERATIONS):
        points_of_result = bent - thin_plate_displacement(warp.spline, points_of_result)
    return points_of_result


def affine_matrix(
    rotate: float = 0.0,
    zoom: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
    shear: float = 0.0,
    window: tuple[float, float, float] = (0.0, 0.0, 1.0),
) -> Float[Tensor, "3 3"]:
    """Compose zoom, shear, rotation about the centre, shift and a window; stated backward, as a warp is.

    Args:
        rotate: Degrees, clockwise as seen.
        zoom: Factor of the size; above 1 enlarges.
        shift: (x, y) in unit coordinates, where the whole side is 2.
        shear: Degrees by which vertical lines lean.
        window: Centre x, y and half its side in unit coordinates: what fills the result.
    """
    turn, lean = math.radians(rotate), math.tan(math.radians(shear))
    cos, sin = zoom * math.cos(turn), zoom * math.sin(turn)
    x, y, half = window
    placement = [[cos, cos * lean - sin, shift[0]], [sin, sin * lean + cos, shift[1]], [0, 0, 1]]
    cut = [[half, 0, x], [0, half, y], [0, 0, 1]]  # result to window
    return torch.linalg.inv(torch.tensor(placement, dtype=torch.float64)) @ torch.tensor(cut, dtype=torch.float64)


def thin_plate_coefficients(offsets: Float[Tensor, "c 2"]) -> Float[Tensor, "k 2"]:
    """Fit the smoothest displacement with values `offsets` at the control points (Bookstein 1989).

    It is scaled down where it would change by more than MAX_SLOPE per unit, so that it can be inverted.

    Args:
        offsets: Displacement of each of c = CONTROLS x CONTROLS control points, in unit coordinates.

    Returns:
        k = c + 3 coefficients for x and for y, in double precision.
    """
    coefficients = thin_plate_solver(CONTROLS) @ offsets.double()
    lines = torch.linspace(-1, 1, 25, dtype=torch.float64)
    lattice = thin_plate_displacement(coefficients, torch.cartesian_prod(lines, lines)).unflatten(0, (25, 25))
    along_x, along_y = lattice.diff(dim=0)[:, :-1], lattice.diff(dim=1)[:-1]
    slope = float(torch.stack((along_x, along_y)).square().sum((0, -1)).sqrt().max() / (lines[1] - lines[0]))
    return coefficients * min(1.0, MAX_SLOPE / max(slope, 1e-9))


def thin_plate_displacement(coefficients: Float[Tensor, "k 2"], points: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    """Return the thin plate's displacement at `points`.

    Beyond the square it stays what it is at the border, and so is bounded.
    """
    centres, weights = control_points(CONTROLS).to(points.dtype), coefficients.to(points.dtype)
    chunks = [
        thin_plate_kernel(chunk, centres) @ weights for chunk in points.clamp(-1, 1).split(4096)
    ]  # fits the cache
    return torch.cat(chunks)


def warp_image(image: Float[Tensor, "3 s s"], warp: ImageWarp) -> Float[Tensor, "3 s s"]:
    """Warp an image by one bilinear interpolation. What lies outside is black: a reflection would show parts twice."""
    side = image.shape[-1]
    points = _pixel_lattice(side, side)
    bent = points if warp.spline is None else points + _dense_displacement(warp.spline, side)
    grid = _apply_affine(warp.affine.float(), bent).unflatten(0, (side, side))
    return grid_sample(image[None], grid[None], padding_mode="zeros", align_corners=False)[0]


def _dense_displacement(coefficients: Float[Tensor, "k 2"], side: int) -> Float[Tensor, "n 2"]:
    """Return the displacement at every pixel, row by row; interpolated from at most MAX_GRID x MAX_GRID, for speed."""
    count = min(side, MAX_GRID)
    coarse = thin_plate_displacement(coefficients, _pixel_lattice(count, side)).T.reshape(1, 2, count, count)
    return interpolate(coarse, (side, side), mode="bilinear", align_corners=True).flatten(2)[0].T


def _pixel_lattice(count: int, side: int) -> Float[Tensor, "n 2"]:
    """Return count x count points from the first pixel to the last, row by row, in unit coordinates."""
    line = torch.linspace(0, side - 1, count)
    return to_unit(torch.cartesian_prod(line, line).flip(-1), side)


def warp_points(points: Float[Tensor, "n 2"], warp: ImageWarp, side: int) -> Float[Tensor, "n 2"]:
    """Map pixels of the original to pixels of the result; both are squares of `side` pixels."""
    return from_unit(original_to_warp(warp, to_unit(points.double(), side)), side).float()


def box_outline(box: Float[Tensor, "4"], steps: int = 16) -> Float[Tensor, "n 2"]:
    """Return points along the edges of a box, corners included: after a warp they follow its bent edges.

    Args:
        box: x1 y1 x2 y2.
        steps: Number of pieces that each edge is divided into.
    """
    t = torch.linspace(0, 1, steps + 1)[:, None]
    x1, y1, x2, y2 = box
    corners = torch.stack((x1, y1, x2, y1, x2, y2, x1, y2)).reshape(4, 2)
    return torch.cat([a + t * (b - a) for a, b in zip(corners, corners.roll(-1, 0), strict=True)])


def _apply_affine(matrix: Float[Tensor, "3 3"], points: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    return points @ matrix[:2, :2].T + matrix[:2, 2]
