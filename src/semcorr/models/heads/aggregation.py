"""A bottleneck for each of several maps, mixed, then cosines: GeoAware-SC's post-processor, and DIY-SC's."""

from collections.abc import Sequence

import torch
from torch import nn

from semcorr.core.errors import UserError
from semcorr.core.ranges import Count, Dropout, check_arguments
from semcorr.core.types import FeatureMap
from semcorr.models.heads.cosine import Cosine
from semcorr.models.heads.residual import ResidualBottleneck
from semcorr.models.heads.weight_file import load_head_weights


class Aggregation(Cosine):
    """Split the channels, send each part through a bottleneck of its own, add them up with learned shares.

    "Four bottleneck layers with 5M parameters" (Zhang et al. 2024) are four side by side, not in series:
    of Stable Diffusion's three maps and of DINOv2's. Of DINOv2's alone it is DIY-SC's adapter.

    Args:
        maps: Channels of each part, in the order in which the backbone lays them side by side.
        out: Channels that all parts are brought to.
        width: Of the bottlenecks' middle.
        groups: Of every norm.
        dropout: Share of all numbers that come in, element by element, that a training step does not see.
        weights: A file to start from, GeoAware-SC's and DIY-SC's own included.
    """

    @check_arguments("head")
    def __init__(
        self,
        maps: Sequence[Count],
        out: Count = 768,
        width: Count = 192,
        groups: int = 32,
        dropout: Dropout = 0.2,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        self.maps = list(maps)
        if not self.maps:
            raise UserError("`head.maps` must name the channels of at least one map, or be null for the backbone's")
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(ResidualBottleneck(each, out, width, groups) for each in self.maps)
        self.mixing = nn.Parameter(torch.ones(len(self.maps)))
        if weights is not None:
            load_head_weights(self, weights)

    def adapt(self, maps: FeatureMap) -> FeatureMap:
        """Every part through its block, in shares of one."""
        parts = self.dropout(maps.values.to(self.mixing.dtype)).split(self.maps, dim=1)
        every = zip(self.mixing.softmax(0), self.blocks, parts, strict=True)
        mixed = sum((share * block(part) for share, block, part in every), start=self.mixing.new_zeros(()))
        return FeatureMap(mixed, maps.stride)
