"""Masks of the object's cells of every image, made once for each image."""

import torch
from jaxtyping import Bool
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.core.types import FeatureMap
from semcorr.data.datamodule import PairDataModule
from semcorr.data.image_variants import unique_images
from semcorr.data.record import ImageRecord
from semcorr.evaluation.pose.sam import BoxPromptedSAM, load_box_prompted_sam
from semcorr.evaluation.pose.segmentation import box_cells, mask_cells, segmentation_mask

MASKS = ("auto", "segmentation", "box", "sam", "none")


class ObjectMasks:
    """Masks on the grid of an image's features.

    Args:
        kind: One of `MASKS`.
        data: The benchmark; its `resize` is how images become squares.
        split: Split of which all images must have a segmentation for `auto` to use it.
        device: Device on which Segment Anything runs.
        sam_weights: Its checkpoint, for `sam`.

    Attributes:
        kind: Kind of mask in use, after `auto` is resolved.
    """

    def __init__(
        self,
        kind: str,
        data: PairDataModule,
        split: str,
        device: torch.device | None = None,
        sam_weights: str | None = None,
    ) -> None:
        self.kind, self.data, self.sam_weights = kind, data, sam_weights
        self.device = device or torch.device("cpu")
        missing = [image.name for image in unique_images(data.pairs(split)) if image.segmentation is None]
        if self.kind == "auto":
            self.kind = "box" if missing else "segmentation"
        if self.kind == "segmentation" and missing:
            raise UserError(
                f"`pose.mask`: {len(missing)} images of {data.name} {split} have no segmentation ({missing[0]}, ...). "
                "Restore its folder Segmentation, or set pose.mask=box."
            )
        self._known: dict[tuple[object, ...], Bool[Tensor, "h w"]] = {}
        self._sam: BoxPromptedSAM | None = None

    def __call__(self, record: ImageRecord, maps: FeatureMap) -> Bool[Tensor, "h w"] | None:
        """Return the object's cells; None means all cells."""
        if self.kind == "none":
            return None
        grid = maps.values.shape[-1]
        key = (record.name, record.box, grid)  # a benchmark may give an image another box in every pair
        if key not in self._known:
            self._known[key] = self._make_mask(record, grid, round(maps.stride * grid)).to(maps.values.device)
        return self._known[key]

    def _make_mask(self, record: ImageRecord, grid: int, side: int) -> Bool[Tensor, "h w"]:
        """Make the mask of an image."""
        if self.kind == "box":
            return box_cells(record, side, self.data.resize, grid)
        pixels = segmentation_mask(record) if self.kind == "segmentation" else self._segment_with_sam(record)
        return mask_cells(pixels, side, self.data.resize, grid)

    def _segment_with_sam(self, record: ImageRecord) -> Bool[Tensor, "h w"]:
        """Segment the object with Segment Anything, which is loaded at the first call."""
        if self._sam is None:
            assert self.sam_weights is not None, "AdaptivePose requires them"
            self._sam = load_box_prompted_sam(self.sam_weights, self.device)
        return self._sam(record)
