"""Masks of the object's cells of every image: from its box, a segmentation, or Segment Anything."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from semcorr.core.coords import to_view
from semcorr.core.errors import UserError
from semcorr.core.types import FeatureMap
from semcorr.data.datamodule import PairDataModule
from semcorr.data.image_variants import unique_images
from semcorr.data.object_masks import place_mask, read_segmentation
from semcorr.data.record import ImageRecord
from semcorr.data.views import fit_to_square, load_record
from semcorr.models.weights.checkpoints import read_weights
from semcorr.models.weights.loading import load_weights
from semcorr.models.weights.networks import recognise_weights

if TYPE_CHECKING:
    from segment_anything import SamPredictor


def box_cells(record: ImageRecord, side: int, resize: str, grid: int) -> Bool[Tensor, "{grid} {grid}"]:
    """Return the cells of which an image's box covers at least half, see `cover_half`.

    Args:
        record: Record of the image, with its box in original pixels.
        side: Side of the square that the image is resized to, in pixels.
        resize: Placing of the image in its square, as `data.resize` takes it.
        grid: Cells along a side of the square.

    >>> from pathlib import Path
    >>> record = ImageRecord("", Path(), (8, 8), torch.zeros(0, 2), torch.zeros(0).bool(), (0.0, 0.0, 4.0, 7.0))
    >>> box_cells(record, side=8, resize="squash", grid=2).int()  # a quarter of the second column
    tensor([[1, 0],
            [1, 0]], dtype=torch.int32)
    """
    fit = fit_to_square(record.size, side, resize)
    scale, offset = torch.tensor(fit.scale), torch.tensor(fit.offset, dtype=torch.float32)
    outer = torch.tensor(record.box) + torch.tensor([-0.5, -0.5, 0.5, 0.5])  # from pixels' centres to their edges
    edges = (to_view(outer.reshape(2, 2), scale, offset) + 0.5) * grid / side  # in cells, the square's corner at 0
    start = torch.arange(grid)[:, None]
    length = (torch.minimum(edges[1], start + 1) - torch.maximum(edges[0], start)).clamp(min=0)  # (cells, x and y)
    return cover_half(length[:, 1, None] * length[:, 0])


def mask_cells(mask: Bool[Tensor, "h w"], side: int, resize: str, grid: int) -> Bool[Tensor, "{grid} {grid}"]:
    """Return the cells of which a mask covers at least half, see `cover_half`.

    Args:
        mask: Pixels of the object in the original image.
        side: Side of the square that the image is resized to, in pixels.
        resize: Placing of the image in its square, as `data.resize` takes it.
        grid: Cells along a side of the square.
    """
    square = place_mask(mask, side, resize).float()
    return cover_half(adaptive_avg_pool2d(square[None], grid)[0])


def cover_half(share: Float[Tensor, "h w"]) -> Bool[Tensor, "h w"]:
    """Return the cells of which at least half is inside; for a smaller object, those with the largest share of it."""
    return (share >= 0.5) | ((share == share.max()) & (share > 0))


def segmentation_mask(record: ImageRecord) -> Bool[Tensor, "h w"]:
    """Return the original's pixels of the object's class within its box.

    Raises:
        UserError: There is no such pixel, or the segmentation cannot be read.
    """
    inside = read_segmentation(record, "set pose.mask=box")
    if not inside.any():
        assert record.segmentation is not None, "it was read"
        path, value = record.segmentation
        raise UserError(f"{path} has no pixel of class {value} in the box of {record.name}. Set pose.mask=box.")
    return inside


MODELS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}  # by the width of the encoder


class BoxPromptedSAM:
    """Segment Anything as a function of image records, by the model of the package `segment-anything`.

    Args:
        predictor: The package's `SamPredictor`.
    """

    def __init__(self, predictor: "SamPredictor") -> None:
        self.predictor = predictor

    def __call__(self, record: ImageRecord) -> Bool[Tensor, "h w"]:
        """Segment the object in the record's box, at the model's own image size, whatever the backbone's.

        Returns:
            The object's pixels in the original image.

        Raises:
            UserError: The model finds nothing in the box.
        """
        self.predictor.set_image(np.array(load_record(record)))
        masks, _, _ = self.predictor.predict(box=np.array(record.box), multimask_output=False)
        if not masks[0].any():
            raise UserError(f"`pose.mask`: Segment Anything found nothing in the box of {record.name}. Use box instead")
        return torch.from_numpy(masks[0])


def load_box_prompted_sam(weights: str, device: torch.device) -> BoxPromptedSAM:
    """Load the model from the authors' checkpoint, whose width says which model it is.

    Raises:
        UserError: The file is not a complete Segment Anything model.
    """
    from segment_anything import SamPredictor, sam_model_registry

    state = read_weights(weights, "pose.sam_weights")
    positions = state.get("image_encoder.pos_embed")
    name = None if positions is None else MODELS.get(positions.shape[-1])
    if name is None:
        raise UserError(
            f"`pose.sam_weights`: {Path(weights)} is not a complete Segment Anything model (vit_b, vit_l, vit_h). "
            f"{recognise_weights(state)} Give the authors' checkpoint, such as sam_vit_h_4b8939.pth.".replace("  ", " ")
        )
    model = sam_model_registry[name]()
    load_weights(model, state, weights, option="pose.sam_weights")
    return BoxPromptedSAM(SamPredictor(model.eval().to(device)))


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

    Raises:
        UserError: The kind is `segmentation`, and an image of the split has none.
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
        """Return the object's cells on the grid of an image's features; None means all cells."""
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
