"""Similarity of descriptors and feature maps: pure functions on feature maps and points.

Maps may come in half precision. What is computed from them is in single: bfloat16 cannot tell a
cosine of 0.997 from 1, nor a coordinate of 419.6 pixels from 420.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from semcorr.core.coords import to_grid


def sample_descriptors(
    features: Float[Tensor, "b c h w"], points: Float[Tensor, "b n 2"], stride: float
) -> Float[Tensor, "b n c"]:
    """Sample descriptors bilinearly at `points`, given in image pixels.

    Cells are read at their centres. A point in the outer half of a border cell gets that cell. Only
    the four cells around each point are read: the cost of a point does not depend on the size of the map.
    """
    cells, weights = neighbouring_cells(points, stride, *features.shape[-2:])
    index = cells.flatten(1)[..., None].expand(-1, -1, features.shape[1])
    values = features.flatten(2).transpose(1, 2).gather(1, index)  # all four at once: one write in backward
    return (values.unflatten(1, (-1, 4)).float() * weights[..., None]).sum(2)


def neighbouring_cells(
    points: Float[Tensor, "b n 2"], stride: float, h: int, w: int
) -> tuple[Int[Tensor, "b n 4"], Float[Tensor, "b n 4"]]:
    """Return the four cells around each point, numbered row by row in a map of h x w, and their bilinear weights."""
    x, y = to_grid(points.float(), stride).unbind(-1)
    columns, across = _axis_neighbours(x, w)
    rows, down = _axis_neighbours(y, h)
    cells = (rows[..., None] * w + columns[..., None, :]).flatten(2)
    return cells, (down[..., None] * across[..., None, :]).flatten(2)


def _axis_neighbours(
    coordinate: Float[Tensor, "b n"], length: int
) -> tuple[Int[Tensor, "b n 2"], Float[Tensor, "b n 2"]]:
    """Return the cells on both sides of a coordinate along an axis, and their weights."""
    coordinate = coordinate.clamp(0, length - 1)
    low = coordinate.floor()
    cells = torch.stack((low, (low + 1).clamp(max=length - 1)), dim=-1).long()
    return cells, torch.stack((low + 1 - coordinate, coordinate - low), dim=-1)


def cosine_similarity(
    descriptors: Float[Tensor, "b n c"], features: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b n h w"]:
    """Compute the cosine of every descriptor with every cell, in [-1, 1].

    The cells are divided by their lengths after the product, not before it: n numbers per cell then
    change, not c, and no second map is written.

    >>> features = torch.eye(2).reshape(1, 2, 1, 2)  # two cells with orthogonal descriptors
    >>> cosine_similarity(torch.tensor([[[3.0, 0.0]]]), features)
    tensor([[[[1., 0.]]]])
    """
    h, w = features.shape[-2:]
    with torch.autocast(features.device.type, enabled=False):
        cells = features.flatten(2).float()
        lengths = torch.linalg.vector_norm(cells, dim=1, keepdim=True).clamp_min(1e-12)
        similarity = normalize(descriptors.float(), dim=-1) @ cells / lengths
    return similarity.unflatten(-1, (h, w))
