"""A learned weight for each channel, compared by cosine."""

import torch
from torch import nn

from semcorr.core.types import FeatureMap
from semcorr.models.heads.cosine import Cosine


class MyHead(Cosine):
    """A head that scales channels; it starts with ones, so that untrained it is the cosine.

    Args:
        channels: Channels of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def transform(self, maps: FeatureMap) -> FeatureMap:
        """Scale the channels of every cell."""
        return FeatureMap(maps.values.to(self.scale.dtype) * self.scale, maps.stride)
