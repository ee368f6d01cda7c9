"""The module that scores a benchmark without pairs of keypoints: what its kinds share."""

from abc import ABC, abstractmethod
from pathlib import Path

from jaxtyping import UInt8
from lightning import LightningModule
from torch import Tensor

from semcorr.core.finite import require_finite
from semcorr.core.interfaces import Backbone, SiameseHead
from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.core.types import FeatureMap
from semcorr.data.views import to_unit
from semcorr.engine.module import CorrespondenceModule
from semcorr.store.frozen import feature_origin


class EvaluationModule(LightningModule, ABC):
    """A score of the backbone, head and read-out of a `CorrespondenceModule`; nothing is trained.

    Args:
        matcher: Module with the backbone, head and read-out.
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

    def encode(self, images: UInt8[Tensor, "b 3 s s"], names: list[str]) -> FeatureMap:
        """Compute the features of images, adapted by a head that takes one image at a time."""
        maps = self.backbone(to_unit(images.to(self.device, non_blocking=True)))
        require_finite(feature_origin(self.backbone), names, {"maps": maps.values})
        head = self.matcher.head
        adapted = head.adapt(maps) if isinstance(head, SiameseHead) else maps
        if adapted is not maps:
            require_finite(feature_origin(self.backbone, head), names, {"maps": adapted.values})
        return FeatureMap(adapted.values.float(), adapted.stride)
