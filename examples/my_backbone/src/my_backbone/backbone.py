"""A small convolutional network with random weights: replace it with your own."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from semcorr.core.ranges import check_arguments
from semcorr.models.backbones.features import normalise_layer_indices
from semcorr.models.backbones.sequential import CellGrid, SequentialBackbone
from semcorr.models.weights.loading import weights_sha256

STATISTICS = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)  # mean and standard deviation of RGB in [0, 1]
DEPTH, STRIDE = 4, 8


class MyBackbone(SequentialBackbone):
    """A stem of stride 8 and four residual blocks.

    Args:
        size: Side of the square images are resized to, in pixels.
        grid: Cells along that side instead.
        width: Channels of every block.
        layers: Blocks whose outputs are read; negative numbers count from the end.
    """

    @check_arguments("backbone")
    def __init__(
        self, size: int | None, grid: int | None = None, width: int = 64, layers: Sequence[int] = (-1,)
    ) -> None:
        super().__init__("my_backbone", size, grid, CellGrid(stride=STRIDE, multiple=STRIDE), STATISTICS)
        self.layers = normalise_layer_indices(layers, DEPTH)
        self.widths = [width] * len(self.layers)
        self.channels = sum(self.widths)
        self.stem = nn.Conv2d(3, width, kernel_size=STRIDE, stride=STRIDE)
        self.stages = nn.ModuleList(Residual(width) for _ in range(self.layers[-1] + 1))
        self.sha256 = weights_sha256(self)  # with which its features are kept

    @property
    def blocks(self) -> list[nn.Module]:
        """The trainable units, first to last, none beyond the last layer read."""
        return list(self.stages)

    @property
    def points(self) -> list[int]:
        """The number of blocks run before each layer is read."""
        return [layer + 1 for layer in self.layers]

    def read(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c y x"]]:
        """Compute one map per layer from normalised images, calling every block once."""
        x, maps = self.stem(image), []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.layers:
                maps.append(x)
        return maps


class Residual(nn.Module):
    """A convolution, added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, kernel_size=3, padding=1), nn.GroupNorm(8, width)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        """Add the convolution's output."""
        return x + self.norm(self.conv(x)).relu()
