"""Head of learned upsampling, then cosines or products: MARCO's upsampling head."""

from typing import Annotated

from jaxtyping import Float
from torch import Tensor, nn

from semcorr.core.ranges import Count, Range, check_arguments
from semcorr.core.types import FeatureMap
from semcorr.matching.similarity import product_similarity
from semcorr.models.heads.cosine import Cosine

Stages = Annotated[int, Range(least=1, most=4)]  # each splits a cell into four: four stages make 16 along a side of it


class Upsample(Cosine):
    """Learned upsampling, then similarity; two stages turn cells of 14 pixels into cells of 3.5.

    A stage splits every cell into four around its centre: a transposed 2 x 2 convolution of stride 2, GELU, a
    depthwise 3 x 3 convolution without bias and a LayerNorm over the channels, whose number stays. MARCO compares by
    raw dot products of what comes out.

    Args:
        channels: Channels of the features.
        stages: Number of times the grid is doubled.
        products: Whether features are compared by dot products over the number of channels, which are cosines until
            the LayerNorm's weights have learned: MARCO's temperature of 10 on products of 1,024 channels is 10 / 1024
            on these. False: by cosines.
    """

    @check_arguments("head")
    def __init__(self, channels: Count, stages: Stages = 2, products: bool = False) -> None:
        super().__init__()
        self.products = products
        self.stages = nn.Sequential(*(_build_stage(channels) for _ in range(stages)))

    def transform(self, maps: FeatureMap) -> FeatureMap:
        """Return the features on a grid that is finer by a factor of two per stage."""
        precision = next(self.parameters()).dtype
        return FeatureMap(self.stages(maps.values.to(precision)), maps.stride / 2 ** len(self.stages))

    def compare(self, descriptors: Float[Tensor, "b n c"], target: FeatureMap) -> Float[Tensor, "b n h w"]:
        """Compute the similarity of every descriptor with every target cell."""
        if not self.products:
            return super().compare(descriptors, target)
        return product_similarity(descriptors, target.values) / target.values.shape[1]


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of feature maps."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Normalise every cell."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _build_stage(channels: int) -> nn.Sequential:
    """Build a stage that doubles the grid, with a depthwise convolution and a norm after it."""
    return nn.Sequential(
        nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2),
        nn.GELU(),
        nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels, bias=False),
        ChannelNorm(channels, eps=1e-6),
    )
