"""Backbones whose maps are made finer by what the pixels show: an upsampler is guided by the image."""

import hashlib
from abc import ABC, abstractmethod
from typing import Annotated

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from semcorr.core.interfaces import Backbone
from semcorr.core.ranges import Range
from semcorr.core.types import BackboneState, FeatureMap, ImageMaps
from semcorr.models.backbones.wrapped import WrappedBackbone
from semcorr.models.weights.loading import weights_sha256

Factor = Annotated[int, Range(least=1, most=16)]  # fine cells along the side of a cell
GUIDE = "guide"  # key of the guide among the maps of an image


class FeatureUpsampler(nn.Module, ABC):
    """An upsampler of features of any backbone that sees the image.

    Attributes:
        factor: Fine cells along the side of a cell.
    """

    factor: int

    def make_guide(self, image: Float[Tensor, "b 3 height width"], grid: tuple[int, int]) -> Float[Tensor, "b 3 _ _"]:
        """Reduce images to what `forward` reads of them: by default the mean colours of the fine cells.

        Args:
            image: RGB in [0, 1].
            grid: Rows and columns of cells before upsampling.
        """
        return interpolate(image, (grid[0] * self.factor, grid[1] * self.factor), mode="area")

    @abstractmethod
    def forward(
        self, values: Float[Tensor, "b c h w"], guide: Float[Tensor, "b 3 _ _"]
    ) -> Float[Tensor, "b c rows columns"]:
        """Return the features on a grid `factor` times as fine, by the guide that `make_guide` returns."""


class UpsampledBackbone(WrappedBackbone):
    """A backbone whose maps are upsampled under the guidance of the image.

    A store of features holds the maps of the wrapped backbone and the guide, which are small; the fine map is made of
    them when a split is scored.

    Args:
        backbone: Backbone whose maps are upsampled.
        upsampler: Upsampler; its weights, if it has any, are frozen.
    """

    upsampler: FeatureUpsampler
    stride: float  # type: ignore[assignment]  # a quarter of 14 pixels is not a whole number

    def __init__(self, backbone: Backbone, upsampler: FeatureUpsampler) -> None:
        super().__init__(backbone, "upsample")
        self.stride = backbone.stride / upsampler.factor
        self.multiple = getattr(backbone, "multiple", backbone.stride)
        self.upsampler = upsampler.requires_grad_(False).eval()

    @property
    def sha256(self) -> str:  # type: ignore[override]  # that of the wrapped backbone, and of the upsampler
        """The hash of the weights of both."""
        if next(self.upsampler.parameters(), None) is None:
            return self.inner.sha256
        return hashlib.sha256(f"{self.inner.sha256} {weights_sha256(self.upsampler)}".encode()).hexdigest()

    def read_maps(self, image: Float[Tensor, "b 3 height width"]) -> ImageMaps:
        """Compute the maps of the wrapped backbone, and the guide."""
        return ImageMaps(self.inner.read_maps(image).values | {GUIDE: self._make_guide(image)})

    def join_maps(self, maps: ImageMaps) -> FeatureMap:
        """Make the features of each image of its maps, and upsample them."""
        guide = maps.values[GUIDE]
        features = self.inner.join_maps(ImageMaps({key: x for key, x in maps.values.items() if key != GUIDE}))
        return FeatureMap(self.upsampler(features.values, guide), features.stride / self.upsampler.factor)

    def prefix(self, image: Float[Tensor, "b 3 height width"], depth: int) -> BackboneState:
        """Compute the first `depth` blocks of the wrapped backbone, and the guide."""
        state = self.inner.prefix(image, depth)
        return BackboneState(state.values | {GUIDE: self._make_guide(image)}, state.size)

    def finish_maps(self, state: BackboneState, depth: int) -> ImageMaps:
        """Compute the maps from the state after `depth` blocks; the guide is in it."""
        values = {key: value for key, value in state.values.items() if key != GUIDE}
        maps = self.inner.finish_maps(BackboneState(values, state.size), depth)
        return ImageMaps(maps.values | {GUIDE: state.values[GUIDE]})

    def _make_guide(self, image: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b 3 _ _"]:
        """Reduce images to what the upsampler reads of them."""
        rows, columns = (round(side / self.inner.stride) for side in image.shape[-2:])
        return self.upsampler.make_guide(image, (rows, columns))
