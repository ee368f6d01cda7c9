"""The module that scores a benchmark without pairs of keypoints: what its kinds share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float, UInt8
from lightning import LightningModule
from torch import Tensor, nn

from semcorr.core.finite import require_finite
from semcorr.core.interfaces import Backbone
from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.core.types import FeatureMap
from semcorr.data.views import to_unit_range
from semcorr.engine.module import CorrespondenceModule
from semcorr.matching.batched import transform_features
from semcorr.store.frozen import feature_origin


class EvaluationModule(LightningModule, ABC):
    """A score of the backbone, head and readout of a `CorrespondenceModule`; nothing is trained.

    Args:
        matcher: Module with the backbone, head and readout.
    """

    def __init__(self, matcher: CorrespondenceModule) -> None:
        super().__init__()
        self.matcher = matcher

    @property
    def backbone(self) -> Backbone:
        """Backbone of the matcher."""
        return self.matcher.backbone

    @abstractmethod
    def write_results(self, run_dir: Path) -> JsonObject:
        """Write metrics.json and the other files of the result, and return the metrics."""

    @abstractmethod
    def print_scores(self, metrics: JsonMapping, title: str) -> None:
        """Print the scores of a metrics.json."""

    def encode(self, images: UInt8[Tensor, "b 3 s s"], names: Sequence[str]) -> FeatureMap:
        """Compute the features of images, transformed by a head that takes one image at a time.

        Args:
            images: Pixels of the images, in the square that the backbone sees.
            names: Names of the images, for errors.

        Raises:
            UserError: Features are not finite.
        """
        return self._transform(self.compute_maps(images), names)

    def encode_pair(self, images: UInt8[Tensor, "2 3 s s"], names: Sequence[str]) -> tuple[FeatureMap, FeatureMap]:
        """Compute the features of two images as `encode` does, by both at once where the backbone needs them."""
        if self.backbone.needs_pair:
            pair = self.backbone.pair(*to_unit_range(images.to(self.device, non_blocking=True)).split(1))
            source, target = (self._transform(maps, [name]) for maps, name in zip(pair, names, strict=True))
        else:
            maps = self.encode(images, names)
            source, target = (FeatureMap(values, maps.stride) for values in maps.values.split(1))
        return source, target

    def compute_maps(self, images: UInt8[Tensor, "b 3 s s"]) -> FeatureMap:
        """Compute the features of images as the backbone gives them, unchecked."""
        maps: FeatureMap = self.backbone(to_unit_range(images.to(self.device, non_blocking=True)))
        return maps

    def require_finite_maps(self, values: Float[Tensor, "b c h w"], names: Sequence[str], *head: nn.Module) -> None:
        """Refuse features of images, after a `head` if there is one, that are not finite."""
        require_finite(feature_origin(self.backbone, *head), names, {"maps": values})

    def _transform(self, maps: FeatureMap, names: Sequence[str]) -> FeatureMap:
        """Transform features by the head, and check them before and after."""
        self.require_finite_maps(maps.values, names)
        head = self.matcher.head
        transformed = transform_features(head, maps)
        if transformed is not maps:
            self.require_finite_maps(transformed.values, names, head)
        return FeatureMap(transformed.values.float(), transformed.stride)
