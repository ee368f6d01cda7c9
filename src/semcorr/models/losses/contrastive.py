"""CLIP's contrastive loss (Radford et al. 2021) on the descriptors of a pair's keypoints."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from semcorr.core.ranges import Positive, check_arguments
from semcorr.models.losses.inputs import KeypointWeights, Lookup, LossInputs, mask_values, weighted_mean


def symmetric_contrastive(
    source: Float[Tensor, "b n c"],
    target: Float[Tensor, "b n c"],
    mask: KeypointWeights,
    scale: float | Float[Tensor, ""] = 1 / 0.07,
) -> Float[Tensor, ""]:
    """Average the cross-entropy of finding each keypoint among those of its pair, from source to target and back.

    "Telling Left from Right", eq. 2, as released: `scale` times the cosines of all keypoints of one pair, two
    softmaxes. The mean is over the points in `mask` of each pair, then over pairs; nothing is learned from a pair
    that shares one keypoint.

    Args:
        source: Descriptors of each source's keypoints.
        target: Descriptors of the same keypoints in the target.
        mask: Keypoints that count, or their weights, see `weighted_mean`.
        scale: Factor of the cosines, the inverse of a temperature.

    >>> same = torch.eye(2)[None]  # two keypoints, orthogonal: logits 1 and 0
    >>> symmetric_contrastive(same, same, torch.tensor([[True, True]]), scale=1.0)  # log(1 + 1/e)
    tensor(0.3133)
    """
    with torch.autocast(source.device.type, enabled=False):
        a, b = (normalize(mask_values(descriptors, mask), dim=-1) for descriptors in (source, target))
        logits = scale * a @ b.mT
    others = ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)  # a point is always a candidate for itself
    to_target = logits.masked_fill((mask <= 0)[:, None, :] & others, -torch.inf).log_softmax(-1)
    to_source = logits.masked_fill((mask <= 0)[:, :, None] & others, -torch.inf).log_softmax(-2)
    return weighted_mean(-(to_target + to_source).diagonal(dim1=-2, dim2=-1) / 2, mask)


class SymmetricContrastive(nn.Module):
    """`symmetric_contrastive` with a learned scale, exp(t).

    The learned parameter is added to the initial t, so that weight decay pulls towards that. GeoAware-SC's own t
    decays towards 0.

    Args:
        scale: Initial factor of the cosines.
        flips: Whether the loss also applies to mirrored variants of a pair. The released GeoAware-SC leaves it out
            for them, and divides by their weights all the same; so does False.
    """

    reads_descriptors = True
    lookup: Lookup = "centre"

    @check_arguments("loss")
    def __init__(self, scale: Positive = 1 / 0.07, flips: bool = True) -> None:
        super().__init__()
        self.start, self.flips = math.log(scale), flips
        self.t = nn.Parameter(torch.zeros(()))

    def forward(self, step: LossInputs) -> Float[Tensor, ""]:
        """Compute the loss of the descriptors of a step."""
        assert step.descriptors is not None, "the step was not asked for them"
        source, target, mask, original = step.descriptors
        scale = torch.exp(self.start + self.t)
        if self.flips:
            return symmetric_contrastive(source, target, mask, scale)
        original_mask = mask * original[:, None]
        share = original_mask.sum() / mask.sum().clamp(min=1e-12)
        return share * symmetric_contrastive(source, target, original_mask, scale)
