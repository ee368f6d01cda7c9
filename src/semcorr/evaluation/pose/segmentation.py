"""Cells of a feature map that belong to an object: from its box, or from the benchmark's segmentation."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from semcorr.core.coords import to_view
from semcorr.core.errors import UserError
from semcorr.data.open_image import open_image
from semcorr.data.record import ImageRecord
from semcorr.data.transforms import fit_to_square


def box_cells(record: ImageRecord, side: int, resize: str, grid: int) -> Bool[Tensor, "{grid} {grid}"]:
    """Return the cells of the box.

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
    """Return the cells of a mask of the original's pixels."""
    fit = fit_to_square((mask.shape[1], mask.shape[0]), side, resize)
    square = torch.zeros(side, side)
    x, y = fit.offset
    resized = Image.fromarray(mask.numpy()).resize(fit.size, Image.Resampling.NEAREST)
    square[y : y + fit.size[1], x : x + fit.size[0]] = torch.from_numpy(np.array(resized)).float()
    return cover_half(adaptive_avg_pool2d(square[None], grid)[0])


def cover_half(share: Float[Tensor, "h w"]) -> Bool[Tensor, "h w"]:
    """Return the cells of which at least half is inside; for a smaller object, those with the largest share of it."""
    return (share >= 0.5) | ((share == share.max()) & (share > 0))


def segmentation_mask(record: ImageRecord) -> Bool[Tensor, "h w"]:
    """Return the pixels of the object's class within its box: others of the class may be in the image, too."""
    assert record.segmentation is not None, "Masks.check comes first"
    path, value = record.segmentation
    remedy = "Restore it, or set pose.mask=box."
    with open_image(path, remedy, remedy) as image:
        classes = np.array(ImageOps.mirror(image) if record.mirrored else image)
    if classes.shape != record.size[::-1]:
        raise UserError(f"{path} has shape {classes.shape}, its image {record.size[::-1]}. Restore the file.")
    inside = torch.zeros(classes.shape, dtype=torch.bool)
    x1, y1, x2, y2 = record.box
    inside[max(0, round(y1)) : round(y2) + 1, max(0, round(x1)) : round(x2) + 1] = True
    inside &= torch.from_numpy(classes == value)
    if not inside.any():
        raise UserError(f"{path} has no pixel of class {value} in the box of {record.name}. Set pose.mask=box.")
    return inside
