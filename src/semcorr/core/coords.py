"""The coordinate convention, defined only here.

A point is (x, y). Pixel centres are at integers, so an image of width w spans [-0.5, w - 0.5].
A cell of a feature map covers `stride` pixels and is read and written at its centre.
"""

import torch
from jaxtyping import Float
from torch import Tensor, stack


def to_grid(points: Float[Tensor, "*b 2"], stride: float) -> Float[Tensor, "*b 2"]:
    """Convert image pixels to cell coordinates, cell centres at integers.

    >>> import torch
    >>> to_grid(torch.tensor([6.5, 20.5]), stride=14)  # the centres of the first two cells
    tensor([0., 1.])
    """
    return (points + 0.5) / stride - 0.5


def to_image(cells: Float[Tensor, "*b 2"], stride: float) -> Float[Tensor, "*b 2"]:
    """Convert cell coordinates to image pixels; the inverse of `to_grid`."""
    return (cells + 0.5) * stride - 0.5


def cell_centres(
    size: tuple[int, int], stride: float, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "h w 2"]:
    """Return the centres of all cells of a map, in pixels.

    Args:
        size: Height and width of the map, in cells.
        stride: Image pixels per cell.
        device: Device of the result; None: PyTorch's default.
        dtype: Floating point type of the result.

    >>> cell_centres((1, 2), 8.0)
    tensor([[[ 3.5000,  3.5000],
             [11.5000,  3.5000]]])
    """
    y, x = (torch.arange(n, device=device, dtype=dtype) for n in size)
    return to_image(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1), stride)


def to_view(
    points: Float[Tensor, "*b n 2"], scale: Float[Tensor, "*b 2"], offset: Float[Tensor, "*b 2"]
) -> Float[Tensor, "*b n 2"]:
    """Convert original pixels to the pixels of a resized, padded view.

    The original's corner (-0.5, -0.5) lands `offset` pixels from the view's own corner.

    Args:
        points: Points (x, y) in original pixels.
        scale: View pixels per original pixel, along x and y.
        offset: Padding to the left of the original and above it, in view pixels.

    >>> import torch
    >>> corner = torch.tensor([[-0.5, -0.5]])
    >>> to_view(corner, scale=torch.tensor([2.0, 2.0]), offset=torch.tensor([0.0, 8.0]))
    tensor([[-0.5000,  7.5000]])
    """
    return (points + 0.5) * scale[..., None, :] + offset[..., None, :] - 0.5


def from_view(
    points: Float[Tensor, "*b n 2"], scale: Float[Tensor, "*b 2"], offset: Float[Tensor, "*b 2"]
) -> Float[Tensor, "*b n 2"]:
    """Convert a view's pixels to original pixels; the inverse of `to_view`."""
    return (points + 0.5 - offset[..., None, :]) / scale[..., None, :] - 0.5


def from_corner(points: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b 2"]:
    """Convert points of a frame where pixel k is [k, k + 1] and the corner is at 0 (TAP-Vid) to our convention."""
    return points - 0.5


def to_corner(points: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b 2"]:
    """Convert points to a frame whose corner is at 0; the inverse of `from_corner`."""
    return points + 0.5


def to_unit(points: Float[Tensor, "*b 2"], side: int) -> Float[Tensor, "*b 2"]:
    """Convert pixels of a square image to [-1, 1], corner to corner: `grid_sample` with align_corners=False.

    >>> import torch
    >>> to_unit(torch.tensor([-0.5, 1.5]), side=4)  # its corner, its centre
    tensor([-1.,  0.])
    """
    return (points + 0.5) * 2 / side - 1


def from_unit(points: Float[Tensor, "*b 2"], side: int) -> Float[Tensor, "*b 2"]:
    """Convert [-1, 1] to pixels of a square image; the inverse of `to_unit`."""
    return (points + 1) * side / 2 - 0.5


def cells_to_unit(cells: Float[Tensor, "*b 2"], width: int, height: int) -> Float[Tensor, "*b 2"]:
    """Convert cells of a map to [-1, 1] along both axes, corner to corner, as `to_unit` does of a square image.

    >>> import torch
    >>> cells_to_unit(torch.tensor([-0.5, 0.5]), width=4, height=2)  # on the left edge, in the middle
    tensor([-1.,  0.])
    """
    x, y = cells.unbind(-1)
    return stack(((x + 0.5) * 2 / width - 1, (y + 0.5) * 2 / height - 1), dim=-1)


def unit_to_cells(points: Float[Tensor, "*b 2"], width: int, height: int) -> Float[Tensor, "*b 2"]:
    """Convert [-1, 1] to cells of a map; the inverse of `cells_to_unit`."""
    x, y = points.unbind(-1)
    return stack(((x + 1) * width / 2 - 0.5, (y + 1) * height / 2 - 0.5), dim=-1)
