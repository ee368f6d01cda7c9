"""Bilinear interpolation: the four cells around a point, and their weights."""

import torch
from jaxtyping import Float
from torch import Tensor


def bilinear_neighbours(
    cells: Float[Tensor, "*b 2"], size: tuple[int, int]
) -> tuple[Float[Tensor, "*b 4 2"], Float[Tensor, "*b 4"]]:
    """Return the four cells around each position, and their bilinear weights; beyond border cells these extrapolate.

    Args:
        cells: Positions in cells.
        size: Width and height of the map.

    >>> bilinear_neighbours(torch.tensor([[0.25, 1.0], [-0.5, 0.25]]), size=(3, 3))[1]
    tensor([[ 0.7500,  0.0000,  0.2500,  0.0000],
            [ 1.1250,  0.3750, -0.3750, -0.1250]])
    """
    low = torch.stack(
        [x.floor().clamp(0, max(count - 2, 0)) for x, count in zip(cells.unbind(-1), size, strict=True)], -1
    )
    share = cells - low
    bits = torch.arange(2, device=cells.device)
    corners = torch.cartesian_prod(bits, bits).to(cells.dtype)  # (0 0), (0 1), (1 0), (1 1)
    weights = torch.where(corners.bool(), share[..., None, :], 1 - share[..., None, :]).prod(-1)
    around = (low[..., None, :] + corners).unbind(-1)
    return torch.stack([x.clamp(max=count - 1) for x, count in zip(around, size, strict=True)], -1), weights
