"""Masks of objects: from an image's segmentation, or of its box where there is none."""

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image, ImageOps
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.data.open_image import open_image
from semcorr.data.record import ImageRecord
from semcorr.data.views import fit_to_square


def read_segmentation(record: ImageRecord, remedy: str) -> Bool[Tensor, "h w"]:
    """Return the pixels of the object's class within its box: others of the class may be in the image, too.

    Args:
        record: The image, which has a segmentation.
        remedy: What the user can do instead of restoring a bad file, for messages.

    Raises:
        UserError: The file is absent, damaged, or of another size than its image.
    """
    assert record.segmentation is not None, "the caller asks first"
    path, value = record.segmentation
    advice = f"Restore it, or {remedy}."
    with open_image(path, advice, advice) as image:
        classes = np.array(ImageOps.mirror(image) if record.mirrored else image)
    if classes.shape != record.size[::-1]:
        raise UserError(f"{path} has shape {classes.shape}, its image {record.size[::-1]}. Restore the file.")
    return box_pixels(record) & torch.from_numpy(classes == value)


def box_pixels(record: ImageRecord) -> Bool[Tensor, "h w"]:
    """Return which pixels lie in the box, those that it cuts through included; none, if it lies beside the image."""
    width, height = record.size
    inside = torch.zeros(height, width, dtype=torch.bool)
    x1, y1, x2, y2 = record.box
    rows, columns = (slice(max(0, round(a)), max(0, round(b) + 1)) for a, b in ((y1, y2), (x1, x2)))
    inside[rows, columns] = True
    return inside


def view_mask(record: ImageRecord, side: int, resize: str) -> Bool[Tensor, "{side} {side}"]:
    """Return the mask of an image's object in the pixels of its view.

    It is that of the box if there is no segmentation, or if none of the object's pixels lies in the box.

    Args:
        record: The image.
        side: Side of the view, in pixels.
        resize: How the image becomes a square, as in `BenchmarkModule`.

    Raises:
        UserError: The segmentation cannot be read.
    """
    mask = box_pixels(record)
    if record.segmentation is not None:
        segmentation = read_segmentation(record, "remove it: the box takes its place")
        mask = segmentation if segmentation.any() else mask
    return place_mask(mask, side, resize)


def place_mask(mask: Bool[Tensor, "h w"], side: int, resize: str) -> Bool[Tensor, "{side} {side}"]:
    """Resize a mask of the original's pixels into the square of a view, each pixel by the nearest one."""
    fit = fit_to_square((mask.shape[1], mask.shape[0]), side, resize)
    square = torch.zeros(side, side, dtype=torch.bool)
    x, y = fit.offset
    resized = Image.fromarray(mask.numpy()).resize(fit.size, Image.Resampling.NEAREST)
    square[y : y + fit.size[1], x : x + fit.size[0]] = torch.from_numpy(np.array(resized))
    return square
