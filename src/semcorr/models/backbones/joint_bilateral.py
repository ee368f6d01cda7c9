"""Joint bilateral upsampling of features: cells that look like a pixel decide what is there. It has no weights."""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad, unfold

from semcorr.core.ranges import Range, Sigma, check_arguments
from semcorr.models.backbones.upsampled import Factor, FeatureUpsampler

Radius = Annotated[int, Range(least=1, most=8)]  # cells: 17 x 17 are more than any Gaussian of cells needs


class JointBilateral(FeatureUpsampler):
    """Joint bilateral upsampling (Kopf et al. 2007, "Joint bilateral upsampling", Eq. 3).

    A fine cell gets the mean of the features of the cells around it, weighted by a Gaussian of their distance and a
    Gaussian of the difference of colours. The guide is the mean colour of every fine cell, and a cell's colour that of
    its fine cells together, where Kopf et al. read single pixels.

    Args:
        factor: Fine cells along the side of a cell.
        radius: Cells to each side that are averaged; 2 is their 5 x 5.
        sigma_space: Standard deviation of the Gaussian of distance, in cells.
        sigma_colour: Standard deviation of the Gaussian of the difference of colours, the Euclidean distance of RGB in
            [0, 1].
    """

    @check_arguments("backbone.upsample")
    def __init__(
        self, factor: Factor = 2, radius: Radius = 2, sigma_space: Sigma = 0.5, sigma_colour: Sigma = 0.1
    ) -> None:
        super().__init__()
        self.factor, self.radius = factor, radius
        self.sigma_space, self.sigma_colour = sigma_space, sigma_colour

    def forward(
        self, values: Float[Tensor, "b c h w"], guide: Float[Tensor, "b 3 _ _"]
    ) -> Float[Tensor, "b c rows columns"]:
        """Return the features on a grid `factor` times as fine."""
        return joint_bilateral_upsampling(values, guide, self.factor, self.radius, self.sigma_space, self.sigma_colour)


def joint_bilateral_upsampling(
    values: Float[Tensor, "b c h w"],
    guide: Float[Tensor, "b k rows columns"],
    factor: int,
    radius: int,
    sigma_space: float,
    sigma_colour: float,
) -> Float[Tensor, "b c rows columns"]:
    """Compute the weighted means of the cells around every fine cell.

    The largest value in memory besides the result are the weights of the (2 radius + 1)^2 neighbours, one number for
    each of them and fine cell, whatever the number of channels.

    Args:
        values: Features on the coarse grid.
        guide: Colours on the fine grid, of `factor` times as many rows and columns.
        factor: Fine cells along the side of a cell.
        radius: Cells to each side that are averaged; those outside the map have no weight.
        sigma_space: Standard deviation of the Gaussian of distance, in cells.
        sigma_colour: Standard deviation of the Gaussian of the difference of colours.
    """
    h, w = values.shape[-2:]
    with torch.autocast(values.device.type, enabled=False):
        shares = _neighbour_shares(guide.float(), factor, radius, sigma_space, sigma_colour).unflatten(3, (w, factor))
        shares = shares.unflatten(2, (h, factor)).to(values.dtype)  # b, neighbour, h, factor, w, factor
        padded = pad(values, (radius,) * 4)
        fine = values.new_zeros(*values.shape[:3], factor, w, factor)
        side = 2 * radius + 1
        for i in range(side * side):
            row, column = divmod(i, side)
            cells = padded[:, :, row : row + h, column : column + w]
            fine.addcmul_(shares[:, None, i], cells[:, :, :, None, :, None])
    return fine.flatten(4, 5).flatten(2, 3)


def _neighbour_shares(
    guide: Float[Tensor, "b k rows columns"], factor: int, radius: int, sigma_space: float, sigma_colour: float
) -> Float[Tensor, "b _ rows columns"]:
    """Compute the weights of the neighbours of every fine cell, which add up to one."""
    colours = avg_pool2d(guide, factor)
    (b, k), (h, w) = guide.shape[:2], colours.shape[-2:]
    around = unfold(colours, 2 * radius + 1, padding=radius).view(b, k, -1, h, 1, w, 1)
    cells = guide.view(b, k, 1, h, factor, w, factor)
    difference = (cells - around).square().sum(dim=1)
    within = (
        torch.arange(factor, dtype=torch.float32, device=guide.device) + 0.5
    ) / factor - 0.5  # of fine cells, from the cell's middle
    steps = torch.arange(-radius, radius + 1, device=guide.device)
    along = (within - steps[:, None]).square()  # step, fine cell
    distance = along[:, None, :, None] + along[None, :, None, :]  # row step, column step, fine row, fine column
    distance = distance.flatten(0, 1)[:, None, :, None, :]
    weights = -difference / (2 * sigma_colour**2) - distance / (2 * sigma_space**2)
    is_inside = unfold(torch.ones_like(colours[:1, :1]), 2 * radius + 1, padding=radius).view(1, -1, h, 1, w, 1) > 0
    return weights.masked_fill(~is_inside, -torch.inf).softmax(dim=1).flatten(4, 5).flatten(2, 3)
