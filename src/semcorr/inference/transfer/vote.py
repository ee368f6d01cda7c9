"""Combination of the similarities of several annotated sources with a target into one similarity.

Choosing a source and voting differ only in the weights of their sum. For heads that compare by cosine the
sum is the similarity with the weighted mean of the sources' descriptors.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

PLACE = 0.2  # weight of the location prior, in units of similarity
SPREAD = 0.15  # standard deviation of the location prior, as a share of the view's side
TEMPERATURE = 0.1  # in units of cosine: a source that fits worse by this much has 1/e of the weight


def source_fitness(similarity: Float[Tensor, "s k h w"], shown: Bool[Tensor, "s k"]) -> Float[Tensor, " s"]:
    """Compute how well each source fits a target: the mean best similarity over the keypoints it shows.

    It is -inf for a source that shows none.

    >>> source_fitness(torch.tensor([[[[0.25, 0.5]], [[1.0, 0.0]]]]), torch.tensor([[True, True]]))
    tensor([0.7500])
    """
    best = similarity.flatten(2).amax(-1)
    mean = (best * shown).sum(-1) / shown.sum(-1)
    return mean.masked_fill(~shown.any(-1), -torch.inf)


def source_weights(
    fit: Float[Tensor, " s"], shown: Bool[Tensor, "s k"], temperature: float = TEMPERATURE
) -> Float[Tensor, "s k"]:
    """Compute the sources' weights: a softmax of their fit over those that show a keypoint; 0 if none does.

    >>> source_weights(torch.tensor([0.5, 0.5]), torch.tensor([[True, True, False], [True, False, False]]))
    tensor([[0.5000, 1.0000, 0.0000],
            [0.5000, 0.0000, 0.0000]])
    """
    logits = (fit / temperature)[:, None].masked_fill(~shown, -torch.inf)
    return logits.softmax(0).nan_to_num(0.0)


def best_source_weights(fit: Float[Tensor, " s"], shown: Bool[Tensor, "s k"]) -> Float[Tensor, "s k"]:
    """Give all the weight to the best-fitting source of those that show a keypoint; the first of equals.

    >>> best_source_weights(torch.tensor([0.5, 0.7]), torch.tensor([[True, True, False], [True, False, False]]))
    tensor([[0., 1., 0.],
            [1., 0., 0.]])
    """
    best = fit[:, None].masked_fill(~shown, -torch.inf).argmax(0)
    weights = torch.zeros(shown.shape, dtype=fit.dtype, device=fit.device)
    return weights.scatter_(0, best[None], 1.0) * shown


def vote_similarity(similarity: Float[Tensor, "s k h w"], weights: Float[Tensor, "s k"]) -> Float[Tensor, "k h w"]:
    """Return the weighted sum of the sources' similarities: maps can be summed before localisation, points cannot."""
    return torch.einsum("skhw,sk->khw", similarity, weights)


def location_prior(
    cells: Float[Tensor, "s k 2"], weights: Float[Tensor, "s k"], size: tuple[int, int], spread: float = SPREAD
) -> Float[Tensor, "k h w"]:
    """Compute a prior of the location of keypoints, in [0, 1]: weighted Gaussians around those of the sources.

    Objects in boxes are framed alike: a keypoint's position in one predicts its position in another.

    Args:
        cells: Positions of the sources' keypoints, in cells of the sources.
        weights: Weights of the sources, per keypoint.
        size: Width and height of the map, in cells.
        spread: Standard deviation of a Gaussian, as a share of width and height.
    """
    x, y = (torch.arange(side, device=cells.device) for side in size)
    across, down = (
        (-(((along - cells[..., i, None]) / (spread * side)) ** 2) / 2).exp()
        for i, (along, side) in enumerate(zip((x, y), size, strict=True))
    )
    return torch.einsum("sk,skh,skw->khw", weights, down, across)


def agreement(
    own: Float[Tensor, "s k 2"],
    found: Float[Tensor, "k 2"],
    back: Float[Tensor, "s k 2"],
    asked: Float[Tensor, "s k 2"],
    weights: Float[Tensor, "s k"],
    near: float,
) -> Float[Tensor, " k"]:
    """Compute the agreement of the sources with the points of the vote, in [0, 1].

    The mean of two shares of the sources' weight: of those whose own point lies near the vote's, and of those to whose
    keypoint the vote's point matches back.

    Args:
        own: Points of each source alone, in the target.
        found: Points of the vote, in the target.
        back: Points of the vote matched back to each source.
        asked: Keypoints of each source.
        weights: Weights of the sources; for each keypoint they sum to 1, or are all 0.
        near: Distance up to which points are near, in the same pixels.
    """
    agree = (own - found).norm(dim=-1) <= near
    returns = (back - asked).norm(dim=-1) <= near
    return ((agree.float() + returns.float()) / 2 * weights).sum(0)
