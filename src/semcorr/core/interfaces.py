"""Interfaces of backbones, heads and benchmarks."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from semcorr.core.types import BackboneState, FeatureMap


class Head(Protocol):
    """Similarity of source points and target cells from features of both images; an `nn.Module`."""

    def __call__(
        self, source: FeatureMap, target: FeatureMap, points: Float[Tensor, "b n 2"]
    ) -> Float[Tensor, "b n h w"]:
        """Compute the similarity of every point to every target cell."""


@runtime_checkable
class SiameseHead(Protocol):
    """A head that takes one image at a time until the end: `compare(describe(adapt(a), points), adapt(b))`.

    Its queries into one target are matched in one product, whichever images they come from, and each
    image is adapted once, whatever number of pairs it is in.
    """

    def adapt(self, maps: FeatureMap) -> FeatureMap:
        """Adapt the features of images, each by itself. The grid may become finer."""

    def describe(self, source: FeatureMap, points: Float[Tensor, "b n 2"]) -> Float[Tensor, "b n c"]:
        """Compute descriptors of points, in source pixels; `source` is adapted."""

    def compare(self, descriptors: Float[Tensor, "b n c"], target: FeatureMap) -> Float[Tensor, "b n h w"]:
        """Compute the similarity of descriptors to every target cell; `target` is adapted."""


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
        """Compute the features of a batch of images."""

    def prefix(self, image: Float[Tensor, "b 3 height width"], depth: int) -> BackboneState:
        """Compute the embedding and the first `depth` blocks: if frozen, they need not be computed twice."""

    def suffix(self, state: BackboneState, depth: int) -> FeatureMap:
        """Compute the remaining blocks: `suffix(prefix(x, d), d) == backbone(x)`."""
