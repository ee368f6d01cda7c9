"""One bottleneck after the backbone, then cosines: the unified benchmark's "ResNet bottleneck block"."""

from math import gcd

from torch import nn

from semcorr.core.ranges import Count, check_arguments
from semcorr.core.types import FeatureMap
from semcorr.models.heads.cosine import Cosine
from semcorr.models.heads.residual import ResidualBottleneck


class BottleneckHead(Cosine):
    """768 -> 192 -> 768 for DINOv2-B; as many channels go out as come in.

    The benchmark names width and reduction and no norm; group norm is GeoAware-SC's.

    Args:
        channels: Of the features.
        width: Of the middle; a quarter of the channels if left out.
        groups: Of every norm; if left out the most that divide 32, the channels and the width: 32 of 768 and 192.
    """

    @check_arguments("head")
    def __init__(self, channels: Count, width: Count | None = None, groups: int | None = None) -> None:
        super().__init__()
        width = channels // 4 if width is None else width
        groups = gcd(32, channels, width) if groups is None else groups
        self.block: nn.Module = ResidualBottleneck(channels, channels, width, groups)

    def adapt(self, maps: FeatureMap) -> FeatureMap:
        """Through the block."""
        precision = next(self.parameters()).dtype  # features may be kept in half of it
        return FeatureMap(self.block(maps.values.to(precision)), maps.stride)
