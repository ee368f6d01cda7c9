"""Random warps of a batch of square images, drawn and applied on their device.

A warp is stated backward: at every pixel of the result the place in the original, in unit coordinates. The warps of
`semcorr.data.warp` are those of the loaders, drawn by NumPy.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from semcorr.core.coords import from_unit, to_unit

CONTROLS = 4  # along a side


def draw_warps(
    count: int, side: int, rotate: float, scale: float, shift: float, bend: float, device: torch.device
) -> Float[Tensor, "b s s 2"]:
    """Draw warps: a turn, a change of size, a shift, and smooth displacements between control points.

    Args:
        count: Number of warps.
        side: Side of the images in pixels.
        rotate: Largest angle, in degrees, either way.
        scale: Largest change of size: a factor of up to 1 + scale, larger or smaller.
        shift: Largest shift along x and along y, as a fraction of the side.
        bend: Largest displacement of a control point along x and along y, as a fraction of the side.
        device: Device of the images; nothing is copied to it.

    Returns:
        For every pixel of each result, its place in the original, in unit coordinates.
    """
    turn, zoom, x, y = (2 * torch.rand(4, count, device=device) - 1).unbind()
    angle, factor = torch.deg2rad(rotate * turn), (1 + scale) ** zoom
    cos, sin = factor * angle.cos(), factor * angle.sin()
    matrix = torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2))
    line = torch.arange(side, device=device, dtype=torch.float32)
    lattice = to_unit(torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1), side)
    controls = 2 * bend * (2 * torch.rand(count, 2, CONTROLS, CONTROLS, device=device) - 1)  # the side is 2 units
    bent = lattice + interpolate(controls, (side, side), mode="bilinear", align_corners=True).movedim(1, -1)
    with torch.autocast(device.type, enabled=False):
        turned = (bent.flatten(1, 2) @ matrix.mT).unflatten(1, (side, side))
    return turned + 2 * shift * torch.stack((x, y), dim=-1)[:, None, None]


def warp_images(image: Float[Tensor, "b 3 s s"], grid: Float[Tensor, "b s s 2"]) -> Float[Tensor, "b 3 s s"]:
    """Sample images at the places of a warp, bilinearly; what lies outside is black."""
    return grid_sample(image, grid, padding_mode="zeros", align_corners=False)


def map_points(grid: Float[Tensor, "b s s 2"], points: Float[Tensor, "b n 2"]) -> Float[Tensor, "b n 2"]:
    """Map points of the results to where they come from in the originals, both in pixels.

    A point beyond the centres of the outermost pixels is taken for the nearest between them.
    """
    side = grid.shape[1]
    units = to_unit(points, side)[:, :, None]
    origins = grid_sample(grid.movedim(-1, 1), units, padding_mode="border", align_corners=False)
    return from_unit(origins[..., 0].mT, side)
