"""Instance matching distance: the distance of the cells of one object from their nearest cells of another.

"Telling Left from Right" (Zhang et al. 2024), equation 1. Where its released code differs from it, both are available.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from semcorr.core.device import full_float32
from semcorr.core.types import FeatureMap

VALUES = 2**24  # squared distances in memory at once: 64 MiB


class ObjectCells(NamedTuple):
    """Cells of one image that are compared."""

    values: Float[Tensor, "s c"]  # descriptors, of unit length unless they were interpolated
    inside: Bool[Tensor, " s"]  # which cells are of the object


def cells_of_object(maps: FeatureMap, mask: Bool[Tensor, "h w"] | None, grid: int | None = None) -> ObjectCells:
    """Return unit descriptors of one image's cells, row by row.

    Args:
        maps: Features of one image.
        mask: The object's cells; None, all of them.
        grid: Cells along a side to which map (bilinearly) and mask (to the nearest) are resized first: 64 in the
            released code, where descriptors between cells are shorter than 1, and stay so; None, their own.
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
    """Compute the distance of the source's object to the target's; not symmetric. Infinite where either has no cell.

    The paper sums over the object's cells, its code takes their mean; between turned and mirrored images, which have
    as many cells, both choose the same. The target may be any cell in the paper, one of its object in the code: give
    a target all of whose cells are inside for the first.

    Args:
        source: Cells of the source; those inside are matched.
        target: Cells of the target; only those inside can be matched.
        reduce: `mean` or `sum` of the distances.
        mutual: Count only source cells whose nearest target cell has them as its nearest (the code's variant without
            masks).
        values: Largest number of squared distances in memory at once.

    >>> corner, half = torch.eye(2), torch.tensor([[0.6, 0.8]])
    >>> both = torch.tensor([True, True])
    >>> instance_distance(ObjectCells(corner, both), ObjectCells(half, both[:1]), "sum")  # 0.8944 and 0.6325
    tensor(1.5269)
    """
    source_cells, target_cells = source.values[source.inside], target.values[target.inside]
    if not len(source_cells) or not len(target_cells):
        return source_cells.new_tensor(torch.inf)
    index = nearest_cells(source_cells, target_cells, values)
    if mutual:
        is_mutual = nearest_cells(target_cells, source_cells, values)[index] == torch.arange(
            len(source_cells), device=index.device
        )
        source_cells, index = source_cells[is_mutual], index[is_mutual]
        if not len(source_cells):  # rounding can undo the pair that is closest of all
            return source_cells.new_tensor(torch.inf)
    distances = (source_cells - target_cells[index]).norm(dim=-1)  # of the matched pairs: of equal cells exactly 0
    return {"mean": distances.mean, "sum": distances.sum}[reduce]()


def nearest_cells(
    source_cells: Float[Tensor, "s c"], target_cells: Float[Tensor, "t c"], values: int = VALUES
) -> Int[Tensor, " s"]:
    """Find the nearest target cell of each source cell, by one matrix product per chunk."""
    lengths = target_cells.square().sum(-1)
    with full_float32(source_cells.device.type):
        chunks = source_cells.split(max(1, values // len(target_cells)))
        return torch.cat([torch.argmin(lengths - 2 * chunk @ target_cells.T, dim=-1) for chunk in chunks])


def template_distances(image: ObjectCells, templates: Sequence[Sequence[ObjectCells]]) -> Float[Tensor, "sets poses"]:
    """Compute the distances of an image to the templates of every set.

    For the prediction of poses by scripts/predict_poses.py. As published, the image's object is matched with all of a
    template's image.

    Args:
        image: Cells of the image.
        templates: Sets of templates, all of which list the same poses in the same order.
    """
    unmasked = [
        [template._replace(inside=torch.ones_like(template.inside)) for template in template_set]
        for template_set in templates
    ]
    return torch.stack(
        [torch.stack([instance_distance(image, template) for template in template_set]) for template_set in unmasked]
    )


def vote_pose(distances: Float[Tensor, "*b sets poses"]) -> Int[Tensor, "*b"]:
    """Let each set vote for its closest pose; most votes win, and of equals the pose closest on average over the sets.

    The paper does not say how ties are broken.

    >>> vote_pose(torch.tensor([[0.1, 0.5], [0.4, 0.3], [0.4, 0.3]]))  # closer to the first, but two sets to one
    tensor(1)
    """
    poses = distances.shape[-1]
    votes = torch.nn.functional.one_hot(distances.argmin(-1), poses).sum(-2)
    most_voted = votes == votes.amax(-1, keepdim=True)
    return distances.mean(-2).masked_fill(~most_voted, torch.inf).argmin(-1)


def pose_accuracy(
    distances: Float[Tensor, "b sets poses"], truth: Int[Tensor, " b"], choice: Sequence[int]
) -> tuple[float, int]:
    """Return the share of correct predictions among images of the poses in `choice`, and the number of these images.

    For scripts/predict_poses.py. Poses are predicted among those in `choice` alone. Table 1's columns: left or right,
    front or back, all four.

    Args:
        distances: Distances of each image to the templates of every set.
        truth: Index of the true pose of each image.
        choice: Indices of the poses to choose from.
    """
    index = torch.tensor(list(choice))
    selected = torch.isin(truth, index)
    correct = index[vote_pose(distances[selected][..., index])] == truth[selected]
    return correct.double().mean().item(), int(selected.sum())
