"""Quantisation ceiling: the best predictions of a read-out that can only return cell centres."""

import torch
from jaxtyping import Float
from torch import Tensor

from semcorr.core.coords import from_view, to_grid, to_image, to_view


def nearest_centres(
    points: Float[Tensor, "b n 2"],
    scale: Float[Tensor, "b 2"],
    offset: Float[Tensor, "b 2"],
    cells: tuple[int, int],
    stride: float,
) -> Float[Tensor, "b n 2"]:
    """Return the cell centre nearest to each point, in original pixels.

    `from_view(to_image(clamp(round(to_grid(to_view(p))), 0, cells - 1)))`: a resize is a scale per axis, and a distance
    in original pixels is least where both axes are. Rules that end between centres (soft-argmax and its windows) can
    be better than this.

    Args:
        points: Points in original pixels.
        scale: View pixels per original pixel.
        offset: Padding of the view.
        cells: Columns and rows of the grid.
        stride: View pixels per cell.

    Example:
        >>> ones, none = torch.ones(1, 2), torch.zeros(1, 2)  # 4 x 4 cells of 8 pixels, centres at 3.5, 11.5 ... 27.5
        >>> nearest_centres(torch.tensor([[[9.0, 30.0], [-4.0, 7.0]]]), ones, none, (4, 4), 8)
        tensor([[[11.5000, 27.5000],
                 [ 3.5000,  3.5000]]])
    """
    grid = to_grid(to_view(points, scale, offset), stride)
    last = torch.tensor(cells, dtype=grid.dtype, device=grid.device) - 1
    return from_view(to_image(torch.minimum(grid.round().clamp(min=0), last), stride), scale, offset)
