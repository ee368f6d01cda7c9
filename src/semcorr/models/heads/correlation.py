"""The correlation of two maps, every cell with every cell; its soft mutual matching; its rows at query points."""

from jaxtyping import Float
from torch import Tensor

from semcorr.matching.similarity import cosine_similarity, neighbouring_cells

SMALL = 1e-5  # NC-Net's


def correlation(source: Float[Tensor, "b c h w"], target: Float[Tensor, "b c k l"]) -> Float[Tensor, "b h w k l"]:
    """Cosine of every cell of the source with every cell of the target."""
    return cosine_similarity(source.flatten(2).transpose(1, 2), target).unflatten(1, source.shape[-2:])


def mutual_matching(correlation: Float[Tensor, "b h w k l"]) -> Float[Tensor, "b h w k l"]:
    """A match counts as much as it is the best of both its cells (NC-Net, "soft mutual nearest neighbour").

    Nothing in `correlation` may be negative: a cell may otherwise have a best match next to zero.

    >>> import torch
    >>> one = torch.tensor([[0.8, 0.2], [0.4, 0.4]]).reshape(1, 1, 2, 1, 2)
    >>> mutual_matching(one).flatten()  # 0.8; 0.2 * (0.2 / 0.8) * (0.2 / 0.4); 0.4 * (0.4 / 0.4) * (0.4 / 0.8); 0.4
    tensor([0.8000, 0.0250, 0.2000, 0.4000])
    """
    of_target = correlation.amax((1, 2), keepdim=True) + SMALL
    of_source = correlation.amax((3, 4), keepdim=True) + SMALL
    return correlation * (correlation / of_target) * (correlation / of_source)


def transpose_correlation(correlation: Float[Tensor, "b h w k l"]) -> Float[Tensor, "b k l h w"]:
    """Seen from the target."""
    return correlation.permute(0, 3, 4, 1, 2)


def sample_correlation(
    correlation: Float[Tensor, "b h w k l"], points: Float[Tensor, "b n 2"], stride: float
) -> Float[Tensor, "b n k l"]:
    """What points of the source, in its pixels, have to do with every target cell.

    Bilinear over the source's cells, which are read at their centres: as `similarity.sample` reads features.
    """
    _, h, w, k, l = correlation.shape  # noqa: E741
    cells, weights = neighbouring_cells(points, stride, h, w)
    every = cells.flatten(1)[..., None].expand(-1, -1, k * l)
    read = correlation.flatten(3).flatten(1, 2).gather(1, every)
    return (read.unflatten(1, (-1, 4)) * weights[..., None]).sum(2).unflatten(-1, (k, l))
