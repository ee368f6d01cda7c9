"""Conversions of published evaluators from points to pixels and cells and back, beside those of `coords`.

Everything is computed in double precision: where a point falls exactly between two cells, the definition decides.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

EPSILON = 1e-4  # how far inside the view SD4Match, Visual-AI and MARCO keep points


class ResizeGeometry(NamedTuple):
    """Geometry of the originals of a batch in their square views."""

    size: Float[Tensor, "b 2"]  # width and height of the originals
    inside: Float[Tensor, "b 2"]  # of the resized original inside the view
    offset: Float[Tensor, "b 2"]  # padding to the left and above
    scale: Float[Tensor, "b 2"]  # view pixels per original pixel, by the plain ratio of sides
    side: int


def resize_geometry(
    size: Float[Tensor, "b 2"], inside: Float[Tensor, "b 2"], offset: Float[Tensor, "b 2"], side: int
) -> ResizeGeometry:
    """Build the geometry; one ratio for both axes where the aspect is kept, however `inside` was rounded."""
    stretched = (inside == side).all(-1, keepdim=True)
    scale = torch.where(stretched, side / size, side / size.amax(-1, keepdim=True))
    return ResizeGeometry(size, inside, offset, scale, side)


def original_to_view(
    points: Float[Tensor, "b n 2"], at: ResizeGeometry, how: str, clamp: bool = False
) -> Float[Tensor, "b n 2"]:
    """Convert original pixels to view pixels.

    exact: (x + 1/2) s + o - 1/2, s = inside / size. ratio: x S / W + o. whole: the same, cut to whole pixels.
    aligned: x (inside - 1) / (size - 1) + o.
    """
    factor, offset = _factor(at, how)[:, None], at.offset[:, None]
    view = (points + 0.5) * factor + offset - 0.5 if how == "exact" else points * factor + offset
    view = view.trunc() if how == "whole" else view
    return view.clamp(EPSILON, at.side - 1 - EPSILON) if clamp else view


def view_to_original(points: Float[Tensor, "b n 2"], at: ResizeGeometry, how: str) -> Float[Tensor, "b n 2"]:
    """Convert view pixels to original pixels: the inverse of `original_to_view`, but for what it clamps or cuts."""
    factor, offset = _factor(at, how)[:, None], at.offset[:, None]
    return (points + 0.5 - offset) / factor - 0.5 if how == "exact" else (points - offset) / factor


def _factor(at: ResizeGeometry, how: str) -> Float[Tensor, "b 2"]:
    """Return the view pixels per original pixel of each axis."""
    if how == "exact":
        return at.inside / at.size
    return (at.inside - 1) / (at.size - 1) if how == "aligned" else at.scale


def view_to_source_cell(points: Float[Tensor, "b n 2"], side: int, grid: int, how: str) -> Float[Tensor, "b n 2"]:
    """Convert view pixels to the (fractional) cell at which a source map of `grid` x `grid` cells is read.

    centre: (x + 1/2) g / S - 1/2. containing: floor(x g / S). aligned: x (g - 1) / (S - 1).
    fraction: x g / S. aligned_fraction: x (g - 1) / S.

    >>> points = torch.tensor([[[6.5, 14.0]]]).double()
    >>> view_to_source_cell(points, 840, 60, "centre"), view_to_source_cell(points, 840, 60, "containing")
    (tensor([[[0.0000, 0.5357]]], dtype=torch.float64), tensor([[[0., 1.]]], dtype=torch.float64))
    """
    if how == "centre":
        cells = (points + 0.5) * grid / side - 0.5
    elif how == "containing":
        cells = (points * grid / side).floor()
    elif how == "aligned":
        cells = points * (grid - 1) / (side - 1)
    else:
        cells = points * (grid if how == "fraction" else grid - 1) / side
    return cells.clamp(0, grid - 1)


def target_cell_to_view(cells: Float[Tensor, "b n 2"], side: int, grid: int, how: str) -> Float[Tensor, "b n 2"]:
    """Convert cells of the target to view pixels.

    centre: (k + 1/2) S / g - 1/2; for 60 cells of 840 pixels, 14 k + 6.5. half_stride: k S / g + S / 2g; 14 k + 7.
    aligned: k (S - 1) / (g - 1). fraction: k S / g.

    >>> last = torch.tensor([[[0.0, 59.0]]]).double()
    >>> ways = ("centre", "half_stride", "aligned", "fraction")
    >>> [target_cell_to_view(last, 840, 60, how).flatten().tolist() for how in ways]
    [[6.5, 832.5], [7.0, 833.0], [0.0, 839.0], [0.0, 826.0]]
    """
    stride = side / grid
    if how == "centre":
        return (cells + 0.5) * stride - 0.5
    if how == "half_stride":
        return cells * stride + stride / 2
    return cells * ((side - 1) / max(grid - 1, 1)) if how == "aligned" else cells * stride


def box_extent(box: Float[Tensor, "b 4"], at: ResizeGeometry, how: str) -> Float[Tensor, " b"]:
    """Return the longer side of a box whose sides were scaled axis by axis, in view pixels."""
    return ((box[:, 2:] - box[:, :2]) * _factor(at, how)).amax(-1)
