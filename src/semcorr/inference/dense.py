"""From values of cells to values of pixels: maps laid over a picture, sampled at the centres of a raster."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from semcorr.core.errors import UserError

MOST = 2**24  # pixels of a raster, at most
STRIP = 2**20  # pixels that are computed at once


def pixel_grid(size: tuple[int, int], original: tuple[int, int]) -> tuple[Float[Tensor, " w"], Float[Tensor, " h"]]:
    """Return columns and rows of a raster laid over a whole picture, in the picture's pixels.

    >>> pixel_grid((2, 1), original=(4, 3))  # two pixels wide in place of four, one high in place of three
    (tensor([0.5000, 2.5000]), tensor([1.]))
    """
    if min(size) < 1 or size[0] * size[1] > MOST:
        raise UserError(
            f"`size` must be a width and a height of at least 1 with at most {MOST / 1e6:.0f} million pixels, got "
            f"{size[0]} x {size[1]}. Give a smaller one, as size=(1024, 768): it is laid over the whole picture"
        )
    x, y = ((torch.arange(n) + 0.5) * (pixels / n) - 0.5 for n, pixels in zip(size, original, strict=True))
    return x, y


def sample_bilinear(
    values: Float[Tensor, "i j c"], x: Float[Tensor, " w"], y: Float[Tensor, " h"]
) -> Float[Tensor, "h w c"]:
    """Interpolate bilinearly at columns `x` and rows `y`, in cells; extrapolate up to half a cell beyond the border.

    >>> sample_bilinear(torch.tensor([[[0.0], [10.0]]]), torch.tensor([-0.5, 0.25, 9.0]), torch.tensor([0.0]))[..., 0]
    tensor([[-5.0000,  2.5000, 15.0000]])
    """
    return _interpolate_rows(_interpolate_rows(values.swapaxes(0, 1), x).swapaxes(0, 1), y)


def _interpolate_rows(values: Float[Tensor, "i j c"], coordinate: Float[Tensor, " n"]) -> Float[Tensor, "n j c"]:
    length = len(values)
    coordinate = coordinate.clamp(-0.5, length - 0.5)
    low, high = _neighbours(coordinate, length)
    return torch.lerp(values[low], values[high], (coordinate - low)[:, None, None].to(values))


def interpolate_matches(
    found: Float[Tensor, "i j 2"], x: Float[Tensor, " w"], y: Float[Tensor, " h"], stride: float, apart: float
) -> Float[Tensor, "h w 2"]:
    """Interpolate the matches of cells at columns `x` and rows `y`.

    Bilinear between four cells whose matches lie together; where they do not, an object ends, and points move with
    the nearest cell: a position between two objects is on neither.

    Args:
        found: Match of every cell, in pixels.
        x: Columns, in cells.
        y: Rows, in cells.
        stride: Pixels per cell, in source and target.
        apart: Distance in pixels up to which the matches of four cells lie together.

    >>> found = torch.tensor([[[0.0, 0.0], [10.0, 0.0], [90.0, 0.0]]])  # the third lies on another object
    >>> interpolate_matches(found, torch.tensor([0.5, 1.25, 1.75]), torch.tensor([0.0]), stride=8, apart=16)[..., 0]
    tensor([[ 5., 12., 88.]])
    """
    rows = y.split(max(1, STRIP // max(1, len(x))))
    return torch.cat([_interpolate_strip(found, x, chunk, stride, apart) for chunk in rows])


def _interpolate_strip(
    matches: Float[Tensor, "i j 2"], x: Float[Tensor, " w"], y: Float[Tensor, " h"], stride: float, limit: float
) -> Float[Tensor, "h w 2"]:
    near_x, near_y = (
        coordinate.round().clamp(0, n - 1).long() for coordinate, n in ((x, matches.shape[1]), (y, matches.shape[0]))
    )
    nearest = matches[near_y][:, near_x]
    offset = torch.stack(torch.meshgrid(x - near_x, y - near_y, indexing="xy"), dim=-1) * stride
    columns, rows = (_neighbours(coordinate, n) for coordinate, n in ((x, matches.shape[1]), (y, matches.shape[0])))
    corners = [matches[row][:, column] for row in rows for column in columns]
    together = torch.stack([(corner - nearest).norm(dim=-1) <= limit for corner in corners]).all(0)
    return torch.where(together[..., None], sample_bilinear(matches, x, y), nearest + offset)


def _neighbours(coordinate: Float[Tensor, " n"], length: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    low = coordinate.floor().clamp(0, max(length - 2, 0)).long()
    return low, (low + 1).clamp(max=length - 1)
