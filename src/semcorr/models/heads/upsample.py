"""A finer grid, learned, then cosines: MARCO's upsampling head."""

from jaxtyping import Float
from torch import Tensor, nn

from semcorr.core.ranges import Count, check_arguments
from semcorr.core.types import FeatureMap
from semcorr.models.heads.cosine import Cosine


class Upsample(Cosine):
    """Every stage makes four cells of one, around its centre; two make a cell of 14 pixels one of 3.5.

    A stage is a transposed 2 x 2 convolution of stride 2, GELU, a depthwise 3 x 3 convolution without bias and
    a LayerNorm over the channels, whose number stays. MARCO trains it on raw dot products of DINOv2-L's
    features after their final norm; cosines are ours.

    Args:
        channels: Of the features.
        stages: How many times the grid is doubled.
    """

    @check_arguments("head")
    def __init__(self, channels: Count, stages: Count = 2) -> None:
        super().__init__()
        self.stages = nn.Sequential(*(_doubling(channels) for _ in range(stages)))

    def adapt(self, maps: FeatureMap) -> FeatureMap:
        """On a grid that is finer by a factor of two per stage."""
        precision = next(self.parameters()).dtype
        return FeatureMap(self.stages(maps.values.to(precision)), maps.stride / 2 ** len(self.stages))


class _ChannelNorm(nn.LayerNorm):
    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _doubling(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2),
        nn.GELU(),
        nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels, bias=False),
        _ChannelNorm(channels, eps=1e-6),
    )
