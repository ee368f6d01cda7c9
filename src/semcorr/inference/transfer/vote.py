"""Which of several annotated sources to believe: from their similarities with a target to one similarity.

Choosing a source and voting differ in nothing but the weights of their sum. For heads that compare by cosine the
sum is the similarity with the weighted mean of the sources' descriptors.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

PLACE = 0.2  # what lying where the sources have it is worth, in similarity
SPREAD = 0.15  # of the view's side: how far from there it may well lie
TEMPERATURE = 0.1  # of a cosine: a source that fits worse by so much has 1/e of the weight


def source_fitness(similarity: Float[Tensor, "s k h w"], shown: Bool[Tensor, "s k"]) -> Float[Tensor, " s"]:
    """How well each source fits a target: the mean, over the keypoints it shows, of the best cell's similarity.

    -inf for a source that shows none.

    >>> source_fitness(torch.tensor([[[[0.25, 0.5]], [[1.0, 0.0]]]]), torch.tensor([[True, True]]))
    tensor([0.7500])
    """
    best = similarity.flatten(2).amax(-1)
    mean = (best * shown).sum(-1) / shown.sum(-1)
    return mean.masked_fill(~shown.any(-1), -torch.inf)


def source_weights(
    fit: Float[Tensor, " s"], shown: Bool[Tensor, "s k"], temperature: float = TEMPERATURE
) -> Float[Tensor, "s k"]:
    """Weights of the sources: a softmax of how well they fit over those that show a keypoint; 0 where none does.

    >>> source_weights(torch.tensor([0.5, 0.5]), torch.tensor([[True, True, False], [True, False, False]]))
    tensor([[0.5000, 1.0000, 0.0000],
            [0.5000, 0.0000, 0.0000]])
    """
    logits = (fit / temperature)[:, None].masked_fill(~shown, -torch.inf)
    return logits.softmax(0).nan_to_num(0.0)


def best_source_weights(fit: Float[Tensor, " s"], shown: Bool[Tensor, "s k"]) -> Float[Tensor, "s k"]:
    """All the weight to the source that fits best, of those that show a keypoint; the first of equals.

    >>> best_source_weights(torch.tensor([0.5, 0.7]), torch.tensor([[True, True, False], [True, False, False]]))
    tensor([[0., 1., 0.],
            [1., 0., 0.]])
    """
    chosen = fit[:, None].masked_fill(~shown, -torch.inf).argmax(0)
    weights = torch.zeros(shown.shape, dtype=fit.dtype, device=fit.device)
    return weights.scatter_(0, chosen[None], 1.0) * shown


def vote_similarity(similarity: Float[Tensor, "s k h w"], weights: Float[Tensor, "s k"]) -> Float[Tensor, "k h w"]:
    """The sources' similarities, summed by their weights before anything is localised: places add up, points do not."""
    return torch.einsum("skhw,sk->khw", similarity, weights)


def location_prior(
    cells: Float[Tensor, "s k 2"], weights: Float[Tensor, "s k"], size: tuple[int, int], spread: float = SPREAD
) -> Float[Tensor, "k h w"]:
    """How much a cell is where the sources have a keypoint, in [0, 1]: Gaussians around its places, by their weights.

    Objects in boxes are framed alike: a keypoint's place in one is a guess at its place in another.

    Args:
        cells: Of the sources' keypoints, in the sources.
        weights: Of the sources.
        size: Width and height of the map.
        spread: Of a Gaussian, as a share of these.
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
    """How far the sources stand behind what was found, in [0, 1].

    The mean of two shares of their weight: of those whose own answer lies near it, and of those whose keypoint lies
    near to where it is found in them.

    Args:
        own: Each source's answer,
        found: and the vote's.
        back: Where that is found in each source,
        asked: and the source's keypoint.
        weights: Of the sources; each keypoint's sum to 1, or are 0.
        near: How far is near, in the same pixels.
    """
    agree = (own - found).norm(dim=-1) <= near
    returns = (back - asked).norm(dim=-1) <= near
    return ((agree.float() + returns.float()) / 2 * weights).sum(0)
