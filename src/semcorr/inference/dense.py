"""What cells say to what pixels of the original say: maps laid over a picture, read at the centres of a raster."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from semcorr.core.errors import UserError

MOST = 2**24  # pixels of a raster
STRIP = 2**20  # pixels that are worked out at once


def pixel_grid(size: tuple[int, int], original: tuple[int, int]) -> tuple[Float[Tensor, " w"], Float[Tensor, " h"]]:
    """Columns and rows of a raster laid over a whole picture, in the picture's pixels.

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
    """Bilinear at all places of columns `x` and rows `y`, in cells; half a cell beyond the border, extrapolated.

    >>> sample_bilinear(torch.tensor([[[0.0], [10.0]]]), torch.tensor([-0.5, 0.25, 9.0]), torch.tensor([0.0]))[..., 0]
    tensor([[-5.0000,  2.5000, 15.0000]])
    """
    return _between(_between(values.swapaxes(0, 1), x).swapaxes(0, 1), y)


def _between(values: Float[Tensor, "i j c"], at: Float[Tensor, " n"]) -> Float[Tensor, "n j c"]:
    length = len(values)
    at = at.clamp(-0.5, length - 0.5)
    low, high = _sides(at, length)
    return torch.lerp(values[low], values[high], (at - low)[:, None, None].to(values))


def interpolate_matches(
    found: Float[Tensor, "i j 2"], x: Float[Tensor, " w"], y: Float[Tensor, " h"], stride: float, apart: float
) -> Float[Tensor, "h w 2"]:
    """Where all places of columns `x` and rows `y` lie, from where cells lie.

    Between four cells that lie together, bilinear; where they do not, an object ends, and the nearest cell moves as
    a whole: what is between two objects is on neither.

    Args:
        found: Of every cell, in pixels.
        x: In cells,
        y: and so are these.
        stride: Pixels per cell, here and there.
        apart: Pixels within which four cells lie together.

    >>> found = torch.tensor([[[0.0, 0.0], [10.0, 0.0], [90.0, 0.0]]])  # the third lies on another object
    >>> interpolate_matches(found, torch.tensor([0.5, 1.25, 1.75]), torch.tensor([0.0]), stride=8, apart=16)[..., 0]
    tensor([[ 5., 12., 88.]])
    """
    rows = y.split(max(1, STRIP // max(1, len(x))))
    return torch.cat([_strip(found, x, some, stride, apart) for some in rows])


def _strip(
    found: Float[Tensor, "i j 2"], x: Float[Tensor, " w"], y: Float[Tensor, " h"], stride: float, apart: float
) -> Float[Tensor, "h w 2"]:
    near_x, near_y = (at.round().clamp(0, n - 1).long() for at, n in ((x, found.shape[1]), (y, found.shape[0])))
    own = found[near_y][:, near_x]
    beyond = torch.stack(torch.meshgrid(x - near_x, y - near_y, indexing="xy"), dim=-1) * stride
    columns, rows = (_sides(at, n) for at, n in ((x, found.shape[1]), (y, found.shape[0])))
    corners = [found[row][:, column] for row in rows for column in columns]
    together = torch.stack([(corner - own).norm(dim=-1) <= apart for corner in corners]).all(0)
    return torch.where(together[..., None], sample_bilinear(found, x, y), own + beyond)


def _sides(at: Float[Tensor, " n"], length: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    low = at.floor().clamp(0, max(length - 2, 0)).long()
    return low, (low + 1).clamp(max=length - 1)
