"""Head of one bottleneck after the backbone, then cosines: the unified benchmark's "ResNet bottleneck block"."""

from math import gcd

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu

from semcorr.core.errors import UserError
from semcorr.core.ranges import Count, check_arguments
from semcorr.core.types import FeatureMap
from semcorr.models.heads.cosine import Cosine


class ResidualBottleneck(nn.Module):
    """A residual block: 1 x 1 down to `width` channels, 3 x 3, 1 x 1 up again, added to the input.

    As in detectron2, from where ODISE and then GeoAware-SC took it: every convolution has a group norm
    and no bias, the last norm does not start at zero, weights are drawn by He's rule over the outputs (MSRA), and
    the input is projected where the number of channels changes.

    Args:
        channels: Input channels.
        out: Output channels.
        width: Channels in the middle.
        groups: Groups of every norm.
    """

    def __init__(self, channels: int, out: int, width: int, groups: int = 32) -> None:
        super().__init__()
        if groups < 1 or out % groups or width % groups:
            common = gcd(out, width)
            allowed = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
            raise UserError(
                f"`head.groups` must divide the {out} channels that go out and the {width} of the middle: "
                f"one of {allowed} here, got {groups}. Or set `head.width` to a multiple of it."
            )
        self.conv1 = _build_convolution(channels, width, 1, groups)
        self.conv2 = _build_convolution(width, width, 3, groups)
        self.conv3 = _build_convolution(width, out, 1, groups)
        self.shortcut = _build_convolution(channels, out, 1, groups) if channels != out else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Apply the block; the output is never negative, as a ReLU is last."""
        return relu(self.conv3(relu(self.conv2(relu(self.conv1(x))))) + self.shortcut(x))


def _build_convolution(channels: int, out: int, kernel: int, groups: int) -> nn.Sequential:
    """Build a convolution without bias, in Kaiming's initialisation, and a group norm after it."""
    convolution = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.GroupNorm(groups, out))


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

    def transform(self, maps: FeatureMap) -> FeatureMap:
        """Apply the bottleneck to the features."""
        precision = next(self.parameters()).dtype  # features may be in half precision
        return FeatureMap(self.block(maps.values.to(precision)), maps.stride)
