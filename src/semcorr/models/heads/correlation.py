"""The correlation of two feature maps, cell by cell; its soft mutual matching; its rows at query points."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from semcorr.matching.similarity import cosine_similarity, neighbouring_cells

SMALL = 1e-5  # added to denominators, as in NC-Net


def correlation(source: Float[Tensor, "b c h w"], target: Float[Tensor, "b c k l"]) -> Float[Tensor, "b h w k l"]:
    """Compute the cosine of every cell of the source with every cell of the target."""
    return cosine_similarity(source.flatten(2).transpose(1, 2), target).unflatten(1, source.shape[-2:])


def mutual_matching(correlation: Float[Tensor, "b h w k l"]) -> Float[Tensor, "b h w k l"]:
    """Weight every match by its ratio to the best match of both its cells (NC-Net, "soft mutual nearest neighbour").

    Nothing in `correlation` may be negative: a cell may otherwise have a best match next to zero.

    >>> import torch
    >>> one = torch.tensor([[0.8, 0.2], [0.4, 0.4]]).reshape(1, 1, 2, 1, 2)
    >>> mutual_matching(one).flatten()  # 0.8; 0.2 * (0.2 / 0.8) * (0.2 / 0.4); 0.4 * (0.4 / 0.4) * (0.4 / 0.8); 0.4
    tensor([0.8000, 0.0250, 0.2000, 0.4000])
    """
    best_of_target = correlation.amax((1, 2), keepdim=True) + SMALL
    best_of_source = correlation.amax((3, 4), keepdim=True) + SMALL
    return correlation * (correlation / best_of_target) * (correlation / best_of_source)


def transpose_correlation(correlation: Float[Tensor, "b h w k l"]) -> Float[Tensor, "b k l h w"]:
    """Exchange source and target in a correlation."""
    return correlation.permute(0, 3, 4, 1, 2)


def resize_correlation(
    correlation: Float[Tensor, "b h w k l"], source: Sequence[int], target: Sequence[int]
) -> Float[Tensor, "b i j m n"]:
    """Resize a correlation bilinearly to other grids; cells keep their places.

    Args:
        correlation: Similarity of every source cell with every target cell.
        source: Rows and columns of the source's new grid.
        target: Rows and columns of the target's new grid.
    """
    for size in (target, source):  # what is resized comes last, and then the other
        if correlation.shape[3:] != tuple(size):
            large = interpolate(correlation.flatten(1, 2), tuple(size), mode="bilinear", align_corners=False)
            correlation = large.unflatten(1, correlation.shape[1:3])
        correlation = transpose_correlation(correlation)
    return correlation


def sample_correlation(
    correlation: Float[Tensor, "b h w k l"], points: Float[Tensor, "b n 2"], stride: float
) -> Float[Tensor, "b n k l"]:
    """Sample the similarity of points, given in source pixels, with every target cell.

    Bilinear over the source's cells, which are read at their centres, as `sample_descriptors` reads features.
    """
    _, h, w, k, l = correlation.shape  # noqa: E741
    cells, weights = neighbouring_cells(points, stride, h, w)
    index = cells.flatten(1)[..., None].expand(-1, -1, k * l)
    rows = correlation.flatten(3).flatten(1, 2).gather(1, index)
    return (rows.unflatten(1, (-1, 4)) * weights[..., None]).sum(2).unflatten(-1, (k, l))
