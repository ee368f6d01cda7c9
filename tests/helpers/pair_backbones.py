"""Backbones that see both images of a pair."""

import torch

from semcorr.core.types import FeatureMap
from semcorr.models.backbones.timm_model import TimmModel


class Together(TimmModel):
    """Sees images two at a time; how much of the other image it mixes in is its `share`."""

    pairwise = True
    share = 0.0

    def forward(self, image: torch.Tensor) -> FeatureMap:
        raise AssertionError("an image was encoded alone")

    def pair(self, source: torch.Tensor, target: torch.Tensor) -> tuple[FeatureMap, FeatureMap]:
        a, b = (super(Together, self).forward(image) for image in (source, target))
        mean = (a.values + b.values) / 2
        return tuple(FeatureMap(torch.lerp(m.values, mean, self.share), m.stride) for m in (a, b))


class HalfMixed(Together):
    share = 0.5
