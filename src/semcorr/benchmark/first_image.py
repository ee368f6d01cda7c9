"""A backbone that tells when it sees its first image, and costs nothing else: the end of a start-up."""

import time
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from semcorr.benchmark.startup import MARK
from semcorr.core.interfaces import Backbone
from semcorr.core.terminal import print_line
from semcorr.core.types import BackboneState, FeatureMap


class TimedPatches(Backbone):
    """The pixels of each 8 x 8 patch as its descriptor; the first call prints the machine's clock.

    Args:
        size: Side of the square images are resized to, in pixels.
        grid: No effect; as all options below, so that it can stand in the place of another backbone.
        pretrained: No effect.
        weights: No effect.
        layers: No effect.
    """

    name, stride, channels, widths, norm, sha256 = "timed_patches", 8, 192, (192,), None, ""
    lora_targets, pairwise = (), False

    def __init__(
        self,
        size: int,
        grid: int | None = None,
        pretrained: bool = False,
        weights: str | None = None,
        layers: Sequence[int] = (-1,),
    ) -> None:
        super().__init__()
        self.size, self.is_started = size, False
        self.gain = nn.Linear(1, 1, bias=False)  # a block, for training to move
        nn.init.ones_(self.gain.weight)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The one block."""
        return [self.gain]

    def forward(self, image: Float[Tensor, "b 3 height width"]) -> FeatureMap:
        """Compute the features of a batch of images."""
        return self.suffix(self.prefix(image, 0), 0)

    def prefix(self, image: Float[Tensor, "b 3 height width"], depth: int) -> BackboneState:
        """Cut the images into patches."""
        if not self.is_started:
            self.is_started = True
            print_line(f"{MARK} {time.monotonic():.3f}")
        return BackboneState({"0": pixel_unshuffle(image - 0.5, self.stride)}, (image.shape[-2], image.shape[-1]))

    def suffix(self, state: BackboneState, depth: int) -> FeatureMap:
        """Scale the patches."""
        return FeatureMap(state.values["0"] * self.gain.weight, self.stride)
