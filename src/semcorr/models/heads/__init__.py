"""Two feature maps and query points to similarity. What every head promises."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from semcorr.core.types import FeatureMap


class Head(Protocol):
    """Features of both images and points of the source, in pixels, to similarity; an `nn.Module`."""

    def __call__(
        self, source: FeatureMap, target: FeatureMap, points: Float[Tensor, "b n 2"]
    ) -> Float[Tensor, "b n h w"]:
        """Similarity of every point to every target cell."""


@runtime_checkable
class SiameseHead(Protocol):
    """A head that looks at one image at a time until the very end: `compare(describe(adapt(a), points), adapt(b))`.

    Its queries into one target are matched in one product, whichever images they come from, and each
    image is adapted once, whatever number of pairs it is in.
    """

    def adapt(self, maps: FeatureMap) -> FeatureMap:
        """What the head makes of the features of images, each by itself. The grid may become finer."""

    def describe(self, source: FeatureMap, points: Float[Tensor, "b n 2"]) -> Float[Tensor, "b n c"]:
        """Descriptors of points, in source pixels; `source` is adapted."""

    def compare(self, descriptors: Float[Tensor, "b n c"], target: FeatureMap) -> Float[Tensor, "b n h w"]:
        """Similarity of descriptors to every target cell; `target` is adapted."""
