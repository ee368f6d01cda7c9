"""Head of one bottleneck after the backbone, then cosines: the unified benchmark's "ResNet bottleneck block"."""

from math import gcd

from torch import nn

from semcorr.core.ranges import Count, check_arguments
from semcorr.core.types import FeatureMap
from semcorr.models.heads.cosine import Cosine
from semcorr.models.heads.residual import ResidualBottleneck


class BottleneckHead(Cosine):
    """A residual bottleneck, 768 -> 192 -> 768 channels for DINOv2-B, then cosine similarity.

    The benchmark names width and reduction and no norm; group norm is GeoAware-SC's.

    Args:
        channels: Channels of the features, before and after the bottleneck.
        width: Channels in the middle; a quarter of the channels if left out.
        groups: Groups of every norm; if left out the most that divide 32, the channels and the width: 32 for 768 and
            192.
    """

    @check_arguments("head")
    def __init__(self, channels: Count, width: Count | None = None, groups: int | None = None) -> None:
        super().__init__()
        width = channels // 4 if width is None else width
        groups = gcd(32, channels, width) if groups is None else groups
        self.block: nn.Module = ResidualBottleneck(channels, channels, width, groups)

    def adapt(self, maps: FeatureMap) -> FeatureMap:
        """Apply the bottleneck to the features."""
        precision = next(self.parameters()).dtype  # features may be in half precision
        return FeatureMap(self.block(maps.values.to(precision)), maps.stride)
