"""The cells of every image's object, by the rule that was asked for; each image's once."""

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.core.types import FeatureMap
from semcorr.data.image_variants import unique_images
from semcorr.data.record import ImageRecord
from semcorr.evaluation.pose.sam import BoxPromptedSAM, load_box_prompted_sam
from semcorr.evaluation.pose.segmentation import box_cells, mask_cells, segmentation_mask

MASKS = ("auto", "segmentation", "box", "sam", "none")


class ObjectMasks:
    """Masks on the grid of an image's features.

    Args:
        options: Of the alignment: `mask`, `sam_weights`.
        data: The benchmark; its `resize` is how images become squares.
        split: Whose images all must have a segmentation, for that to be used.
        device: Where Segment Anything runs.

    Attributes:
        kind: What `auto` turned out to be, or what was asked for.
    """

    def __init__(self, options: Any, data: Any, split: str, device: torch.device | None = None) -> None:
        self.options, self.data, self.kind = options, data, options.mask
        self.device = device or torch.device("cpu")
        lacking = [image.name for image in unique_images(data.pairs(split)) if image.segmentation is None]
        if self.kind == "auto":
            self.kind = "box" if lacking else "segmentation"
        if self.kind == "segmentation" and lacking:
            raise UserError(
                f"`pose.mask`: {len(lacking)} images of {data.name} {split} have no segmentation ({lacking[0]}, ...). "
                "Restore its folder Segmentation, or set pose.mask=box."
            )
        self._known: dict[tuple[Any, ...], Bool[Tensor, "h w"]] = {}
        self._sam: BoxPromptedSAM | None = None

    def __call__(self, record: ImageRecord, maps: FeatureMap) -> Bool[Tensor, "h w"] | None:
        """The object's cells; None is all of them."""
        if self.kind == "none":
            return None
        grid = maps.values.shape[-1]
        key = (record.name, record.box, grid)  # a benchmark may give an image another box in every pair
        if key not in self._known:
            self._known[key] = self._made(record, grid, round(maps.stride * grid)).to(maps.values.device)
        return self._known[key]

    def _made(self, record: ImageRecord, grid: int, side: int) -> Bool[Tensor, "h w"]:
        if self.kind == "box":
            return box_cells(record, side, self.data.resize, grid)
        pixels = segmentation_mask(record) if self.kind == "segmentation" else self._prompted(record)
        return mask_cells(pixels, side, self.data.resize, grid)

    def _prompted(self, record: ImageRecord) -> Bool[Tensor, "h w"]:
        if self._sam is None:
            self._sam = load_box_prompted_sam(self.options.sam_weights, self.device)
        return self._sam(record)
