"""Image to features. What every backbone promises."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from semcorr.types import FeatureMap


@runtime_checkable
class Backbone(Protocol):
    """A dense feature extractor; an `nn.Module` with these attributes.

    It takes RGB in [0, 1] and normalises by its own statistics. Image sides must be multiples of its
    largest stride.
    """

    name: str
    size: int  # side of the square it is evaluated at unless told otherwise, in pixels
    channels: int
    stride: int  # image pixels per cell
    blocks: Sequence[nn.Module]  # trainable units, first to last, none beyond the last layer read
    norm: nn.Module | None  # applied after the last block, and trained with it
    sha256: str  # of the weights it was built with

    def __call__(self, image: Float[Tensor, "b 3 height width"]) -> FeatureMap:
        """Features of a batch of images."""
