"""Which pose an image shows: the one of the template that it is closest to, by a vote of template sets (3.4)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from semcorr.evaluation.pose.distance import ObjectCells, instance_distance


def template_distances(image: ObjectCells, templates: Sequence[Sequence[ObjectCells]]) -> Float[Tensor, "sets poses"]:
    """An image to the templates of every set, which all list the same poses in the same order.

    As published, the image's object is matched with all of a template's image.
    """
    whole = [[one._replace(inside=torch.ones_like(one.inside)) for one in some] for some in templates]
    return torch.stack([torch.stack([instance_distance(image, one) for one in some]) for some in whole])


def vote_pose(distances: Float[Tensor, "*b sets poses"]) -> Int[Tensor, "*b"]:
    """Each set votes for its closest pose; the most votes win, of equals the one closest on average over the sets.

    The paper does not say how equals are told apart.

    >>> vote_pose(torch.tensor([[0.1, 0.5], [0.4, 0.3], [0.4, 0.3]]))  # closer to the first, but two sets to one
    tensor(1)
    """
    poses = distances.shape[-1]
    votes = torch.nn.functional.one_hot(distances.argmin(-1), poses).sum(-2)
    ahead = votes == votes.amax(-1, keepdim=True)
    return distances.mean(-2).masked_fill(~ahead, torch.inf).argmin(-1)


def pose_accuracy(
    distances: Float[Tensor, "b sets poses"], truth: Int[Tensor, " b"], choice: Sequence[int]
) -> tuple[float, int]:
    """Share of right predictions among images of the poses in `choice`, predicted among these alone, and their number.

    Table 1's columns: left or right, front or back, all four.
    """
    index = torch.tensor(list(choice))
    among = torch.isin(truth, index)
    right = index[vote_pose(distances[among][..., index])] == truth[among]
    return right.double().mean().item(), int(among.sum())
