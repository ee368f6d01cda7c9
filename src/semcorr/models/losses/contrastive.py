"""Keypoints of a pair told apart by their descriptors: CLIP's loss on the keypoints of two images."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from semcorr.core.ranges import Positive, check_arguments
from semcorr.models.losses.inputs import Counted, LossInputs, mask_values, weighted_mean


def symmetric_contrastive(
    source: Float[Tensor, "b n c"],
    target: Float[Tensor, "b n c"],
    mask: Counted,
    scale: float | Float[Tensor, ""] = 1 / 0.07,
) -> Float[Tensor, ""]:
    """Cross-entropy of finding each keypoint among the pair's own, from source to target and back, averaged.

    "Telling Left from Right", eq. 2, as released: `scale` times the cosines of all keypoints of one pair, two
    softmaxes. The mean is over the points in `mask`; nothing is learned from a pair that shares one keypoint.

    >>> same = torch.eye(2)[None]  # two keypoints, orthogonal: logits 1 and 0
    >>> symmetric_contrastive(same, same, torch.tensor([[True, True]]), scale=1.0)  # log(1 + 1/e)
    tensor(0.3133)
    """
    with torch.autocast(source.device.type, enabled=False):
        a, b = (normalize(mask_values(each, mask), dim=-1) for each in (source, target))
        logits = scale * a @ b.mT
    others = ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)  # a point is always among its own rivals
    there = logits.masked_fill((mask <= 0)[:, None, :] & others, -torch.inf).log_softmax(-1)
    back = logits.masked_fill((mask <= 0)[:, :, None] & others, -torch.inf).log_softmax(-2)
    return weighted_mean(-(there + back).diagonal(dim1=-2, dim2=-1) / 2, mask)


class SymmetricContrastive(nn.Module):
    """`symmetric_contrastive` with a learned scale, exp(t).

    What is learned is added to the initial t, so that weight decay pulls there. GeoAware-SC's own t decays towards 0.

    Args:
        scale: Initially.
        flips: Mirrored variants of a pair have the loss, too. The released GeoAware-SC leaves it out of them, and
            divides by their weights all the same; so does False.
    """

    reads_descriptors = True
    whole_cells = False

    @check_arguments("loss")
    def __init__(self, scale: Positive = 1 / 0.07, flips: bool = True) -> None:
        super().__init__()
        self.start, self.flips = math.log(scale), flips
        self.t = nn.Parameter(torch.zeros(()))

    def forward(self, step: LossInputs) -> Float[Tensor, ""]:
        """Of the keypoints of both images."""
        assert step.descriptors is not None, "the step was not asked for them"
        source, target, mask, original = step.descriptors
        scale = torch.exp(self.start + self.t)
        if self.flips:
            return symmetric_contrastive(source, target, mask, scale)
        alone = mask * original[:, None]
        share = alone.sum() / mask.sum().clamp(min=1e-12)
        return share * symmetric_contrastive(source, target, alone, scale)
