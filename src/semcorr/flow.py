"""What cells say to what pixels of the original say: maps laid over a picture, read at the centres of a raster."""

import torch
from jaxtyping import Float
from torch import Tensor

from semcorr.errors import UserError

MOST = 2**24  # pixels of a raster


def raster(size: tuple[int, int], original: tuple[int, int]) -> tuple[Float[Tensor, " w"], Float[Tensor, " h"]]:
    """Columns and rows of a raster laid over a whole picture, in the picture's pixels.

    >>> raster((2, 1), original=(4, 3))  # two pixels wide in place of four, one high in place of three
    (tensor([0.5000, 2.5000]), tensor([1.]))
    """
    if min(size) < 1 or size[0] * size[1] > MOST:
        raise UserError(
            f"`size` must be a width and a height of at least 1 with at most {MOST / 1e6:.0f} million pixels, got "
            f"{size[0]} x {size[1]}. Give a smaller one, as size=(1024, 768): it is laid over the whole picture"
        )
    x, y = ((torch.arange(n) + 0.5) * (pixels / n) - 0.5 for n, pixels in zip(size, original, strict=True))
    return x, y


def read_at(values: Float[Tensor, "i j c"], x: Float[Tensor, " w"], y: Float[Tensor, " h"]) -> Float[Tensor, "h w c"]:
    """Bilinear at all places of columns `x` and rows `y`, in cells; half a cell beyond the border, extrapolated.

    >>> read_at(torch.tensor([[[0.0], [10.0]]]), torch.tensor([-0.5, 0.25, 9.0]), torch.tensor([0.0]))[..., 0]
    tensor([[-5.0000,  2.5000, 15.0000]])
    """
    return _between(_between(values.swapaxes(0, 1), x).swapaxes(0, 1), y)


def _between(values: Float[Tensor, "i j c"], at: Float[Tensor, " n"]) -> Float[Tensor, "n j c"]:
    length = len(values)
    at = at.clamp(-0.5, length - 0.5)
    low = at.floor().clamp(0, max(length - 2, 0)).long()
    high = (low + 1).clamp(max=length - 1)
    return torch.lerp(values[low], values[high], (at - low)[:, None, None].to(values))
