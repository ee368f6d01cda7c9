"""Image to features. What every backbone promises."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from semcorr.core.types import BackboneState, FeatureMap


@runtime_checkable
class Backbone(Protocol):
    """A dense feature extractor; an `nn.Module` with these attributes.

    It takes RGB in [0, 1] and normalises by its own statistics. Image sides must be multiples of its
    largest stride. Where `pairwise` is true it also has `pair(source, target)`, which gives the
    features of two images that are seen together.
    """

    name: str
    size: int  # side of the square it is evaluated at unless told otherwise, in pixels
    channels: int
    widths: Sequence[int]  # channels of the maps it lays side by side, in their order; their sum is `channels`
    stride: int  # image pixels per cell
    blocks: Sequence[nn.Module]  # trainable units, first to last, none beyond the last layer read
    norm: nn.Module | None  # applied after the last block, and trained with it
    sha256: str  # of the weights it was built with
    lora_targets: Sequence[str]  # endings of the names, inside a block, of the modules that LoRA goes to by default
    pairwise: bool  # whether an image's features depend on the other image of its pair

    def __call__(self, image: Float[Tensor, "b 3 height width"]) -> FeatureMap:
        """Features of a batch of images."""

    def prefix(self, image: Float[Tensor, "b 3 height width"], depth: int) -> BackboneState:
        """The embedding and the first `depth` blocks: what is frozen and need not be computed twice."""

    def suffix(self, state: BackboneState, depth: int) -> FeatureMap:
        """The rest: `suffix(prefix(x, d), d) == backbone(x)`."""
