"""Instance matching distance: how far the cells of one object are from their nearest cells of another.

"Telling Left from Right" (Zhang et al. 2024), equation 1. Where its released code differs from it, both can be had.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from semcorr.core.types import FeatureMap

VALUES = 2**24  # squared distances held at once: 64 MiB


class ObjectCells(NamedTuple):
    """The cells of one image that are compared."""

    values: Float[Tensor, "s c"]
    inside: Bool[Tensor, " s"]  # of the object


def cells_of_object(maps: FeatureMap, mask: Bool[Tensor, "h w"] | None, grid: int | None = None) -> ObjectCells:
    """Unit descriptors of one image's cells, row by row.

    Args:
        maps: Of one image.
        mask: The object's cells; None, all of them.
        grid: Bring map and mask to so many cells a side first, bilinearly and to the nearest: 64 in the released
            code. Descriptors between cells are shorter than 1 there, and stay so.
    """
    values = normalize(maps.values.float(), dim=1)
    mask = torch.ones_like(values[0, 0], dtype=torch.bool) if mask is None else mask
    if grid is not None:
        values = interpolate(values, size=(grid, grid), mode="bilinear")
        mask = interpolate(mask[None, None].float(), size=(grid, grid), mode="nearest")[0, 0] > 0
    return ObjectCells(values[0].flatten(1).T, mask.flatten())


def instance_distance(
    source: ObjectCells, target: ObjectCells, reduce: str = "mean", mutual: bool = False, values: int = VALUES
) -> Float[Tensor, ""]:
    """Distance of the source's object to the target's; not symmetric. Infinite where there is nothing to compare.

    The paper sums over the object's cells, its code takes their mean; between turned and mirrored images, which have
    as many cells, both choose the same. The target may be any cell in the paper, one of its object in the code: give
    a target all of whose cells are inside for the first.

    Args:
        source: Its cells inside are matched,
        target: each with the nearest one inside.
        reduce: `mean` or `sum` of the distances.
        mutual: Count only cells that are each other's nearest (the code's variant without masks).
        values: How many squared distances are held at once.

    >>> corner, half = torch.eye(2), torch.tensor([[0.6, 0.8]])
    >>> both = torch.tensor([True, True])
    >>> instance_distance(ObjectCells(corner, both), ObjectCells(half, both[:1]), "sum")  # 0.8944 and 0.6325
    tensor(1.5269)
    """
    here, there = source.values[source.inside], target.values[target.inside]
    if not len(here) or not len(there):
        return here.new_tensor(torch.inf)
    index = nearest_cells(here, there, values)
    if mutual:
        kept = nearest_cells(there, here, values)[index] == torch.arange(len(here), device=index.device)
        here, index = here[kept], index[kept]
        if not len(here):  # rounding can undo the pair that is closest of all
            return here.new_tensor(torch.inf)
    distances = (here - there[index]).norm(dim=-1)  # of the pairs found: of equal cells exactly 0
    return {"mean": distances.mean, "sum": distances.sum}[reduce]()


def nearest_cells(here: Float[Tensor, "s c"], there: Float[Tensor, "t c"], values: int = VALUES) -> Int[Tensor, " s"]:
    """Which cell is nearest to each, by one matrix product per chunk of them."""
    lengths = there.square().sum(-1)
    with torch.autocast(here.device.type, enabled=False):
        chunks = here.split(max(1, values // len(there)))
        return torch.cat([torch.argmin(lengths - 2 * some @ there.T, dim=-1) for some in chunks])
