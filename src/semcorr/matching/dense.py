"""From values of cells to values of pixels: maps sampled at columns and rows, and the match of every pixel."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from semcorr.core.coords import cell_centres
from semcorr.core.types import FeatureMap

STRIP = 2**20  # pixels that are computed at once
MAX_GAP = 2.0  # cells of the target within which matches of neighbouring source cells lie together


def sample_bilinear(
    values: Float[Tensor, "i j c"], x: Float[Tensor, " w"], y: Float[Tensor, " h"]
) -> Float[Tensor, "h w c"]:
    """Interpolate bilinearly at columns `x` and rows `y`, in cells; extrapolate up to half a cell beyond the border.

    Columns and rows that are further away get the values at that distance.

    >>> sample_bilinear(torch.tensor([[[0.0], [10.0]]]), torch.tensor([-0.5, 0.25, 9.0]), torch.tensor([0.0]))[..., 0]
    tensor([[-5.0000,  2.5000, 15.0000]])
    """
    return _interpolate_rows(_interpolate_rows(values.swapaxes(0, 1), x).swapaxes(0, 1), y)


def _interpolate_rows(values: Float[Tensor, "i j c"], coordinate: Float[Tensor, " n"]) -> Float[Tensor, "n j c"]:
    """Interpolate linearly along the first axis."""
    length = len(values)
    coordinate = coordinate.clamp(-0.5, length - 0.5)
    low, high = _neighbours(coordinate, length)
    return torch.lerp(values[low], values[high], (coordinate - low)[:, None, None].to(values))


def interpolate_matches(
    matches: Float[Tensor, "i j 2"], x: Float[Tensor, " w"], y: Float[Tensor, " h"], stride: float, max_distance: float
) -> Float[Tensor, "h w 2"]:
    """Interpolate the matches of cells at columns `x` and rows `y`.

    The interpolation is bilinear between four cells whose matches lie together. Where they do not, an object ends, and
    points move with the nearest cell: a position between two objects is on neither.

    Args:
        matches: Match of every cell, in pixels.
        x: Columns, in cells.
        y: Rows, in cells.
        stride: Pixels per cell, in source and target.
        max_distance: Largest distance, in pixels, between the match of the nearest cell and those of the four cells
            that lie together.

    >>> matches = torch.tensor([[[0.0, 0.0], [10.0, 0.0], [90.0, 0.0]]])  # the third lies on another object
    >>> x, y = torch.tensor([0.5, 1.25, 1.75]), torch.tensor([0.0])
    >>> interpolate_matches(matches, x, y, stride=8, max_distance=16)[..., 0]
    tensor([[ 5., 12., 88.]])
    """
    rows = y.split(max(1, STRIP // max(1, len(x))))
    return torch.cat([_interpolate_strip(matches, x, chunk, stride, max_distance) for chunk in rows])


def _interpolate_strip(
    matches: Float[Tensor, "i j 2"], x: Float[Tensor, " w"], y: Float[Tensor, " h"], stride: float, max_distance: float
) -> Float[Tensor, "h w 2"]:
    """Interpolate the matches of cells at a strip of rows, see `interpolate_matches`."""
    near_x, near_y = (
        coordinate.round().clamp(0, n - 1).long() for coordinate, n in ((x, matches.shape[1]), (y, matches.shape[0]))
    )
    nearest = matches[near_y][:, near_x]
    offset = torch.stack(torch.meshgrid(x - near_x, y - near_y, indexing="xy"), dim=-1) * stride
    columns, rows = (_neighbours(coordinate, n) for coordinate, n in ((x, matches.shape[1]), (y, matches.shape[0])))
    corners = [matches[row][:, column] for row in rows for column in columns]
    together = torch.stack([(corner - nearest).norm(dim=-1) <= max_distance for corner in corners]).all(0)
    return torch.where(together[..., None], sample_bilinear(matches, x, y), nearest + offset)


def _neighbours(coordinate: Float[Tensor, " n"], length: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Return the indices of the two cells around each coordinate; at the border, of the last two."""
    low = coordinate.floor().clamp(0, max(length - 2, 0)).long()
    return low, (low + 1).clamp(max=length - 1)


def centres_of(maps: FeatureMap) -> Float[Tensor, "n 2"]:
    """Return the centres of all cells of a single map, row by row, in pixels."""
    h, w = maps.values.shape[-2:]
    return cell_centres((h, w), maps.stride, maps.values.device).flatten(0, 1)
