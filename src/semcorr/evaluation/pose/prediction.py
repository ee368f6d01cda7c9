"""Prediction of the pose of an image, as that of the closest template, by a vote of template sets.

"Telling Left from Right" (Zhang et al. 2024), section 3.4.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from semcorr.evaluation.pose.distance import ObjectCells, instance_distance


def template_distances(image: ObjectCells, templates: Sequence[Sequence[ObjectCells]]) -> Float[Tensor, "sets poses"]:
    """Compute the distances of an image to the templates of every set; all sets list the same poses in the same order.

    As published, the image's object is matched with all of a template's image.
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

    Poses are predicted among those in `choice` alone. Table 1's columns: left or right, front or back, all four.
    """
    index = torch.tensor(list(choice))
    selected = torch.isin(truth, index)
    correct = index[vote_pose(distances[selected][..., index])] == truth[selected]
    return correct.double().mean().item(), int(selected.sum())
