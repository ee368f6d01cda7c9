"""Crops of pictures around boxes, and the conversion between their pixels and the picture's."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.data.pictures import Picture

MARGIN = 0.1  # around a box, as a share of its longer side
Box = tuple[float, float, float, float]  # x y width height, as COCO has it: the picture's corner is at 0


class Crop(NamedTuple):
    """A part of a picture, and its position."""

    picture: Picture  # the part
    corner: tuple[int, int]  # upper left corner of the part, in pixels of the image it was cut from
    scale: tuple[float, float]  # that image's pixels per original pixel; 1 except for a huge JPEG
    mirrored: bool = False

    def to_crop(self, points: Float[Tensor, "k 2"]) -> Float[Tensor, "k 2"]:
        """Convert points from original pixels to pixels of the part."""
        inside = (points + 0.5) * torch.tensor(self.scale, dtype=torch.float32) - 0.5 - torch.tensor(self.corner)
        return self._mirror_points(inside)

    def from_crop(self, points: Float[Tensor, "k 2"]) -> Float[Tensor, "k 2"]:
        """Convert points from pixels of the part to original pixels."""
        scale = torch.tensor(self.scale, dtype=torch.float32)
        return (self._mirror_points(points) + torch.tensor(self.corner) + 0.5) / scale - 0.5

    def _mirror_points(self, points: Float[Tensor, "k 2"]) -> Float[Tensor, "k 2"]:
        """Mirror points within the part if it is mirrored."""
        x, y = points.unbind(-1)
        return torch.stack((self.picture.size[0] - 1 - x, y), dim=-1) if self.mirrored else points


def crop_picture(picture: Picture, box: Box | None, margin: float = MARGIN) -> Crop:
    """Crop a picture to a box and a margin around it.

    Args:
        picture: The picture.
        box: x, y, width and height in original pixels from the picture's corner; None takes the whole picture.
        margin: Margin on every side, as a share of the box's longer side.

    Raises:
        UserError: The box lies outside the picture.

    >>> crop_picture(Picture(Image.new("RGB", (60, 40)), (60, 40), "a"), (10, 10, 20, 10), margin=0.1).picture.size
    (24, 14)
    """
    image, (width, height) = picture.image, picture.size
    scale = (image.width / width, image.height / height)
    if box is None:
        return Crop(picture._replace(size=image.size), (0, 0), scale)
    x, y, w, h = box
    padding = margin * max(w, h)
    left, upper = (max(0, math.floor((start - padding) * factor)) for start, factor in zip((x, y), scale, strict=True))
    right, lower = (
        min(limit, math.ceil((start + side + padding) * factor))
        for start, side, factor, limit in zip((x, y), (w, h), scale, image.size, strict=True)
    )
    if right <= left or lower <= upper:
        raise UserError(
            f"{picture.name}: the box {list(box)} (x, y, width, height) lies outside the image of {width} x {height} "
            "pixels. Correct it, or leave it out"
        )
    part = image.crop((left, upper, right, lower))
    return Crop(Picture(part, part.size, picture.name), (left, upper), scale)


def mirror_crop(crop: Crop) -> Crop:
    """Return the mirror image of a crop."""
    image = crop.picture.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return crop._replace(picture=crop.picture._replace(image=image), mirrored=not crop.mirrored)


def enlarge_box(box: Box, points: Float[Tensor, "k 2"]) -> Box:
    """Enlarge a box to contain points, whose pixel centres are at integers.

    >>> enlarge_box((10, 10, 20, 10), torch.tensor([[15.0, 29.5]]))
    (10.0, 10.0, 20.0, 20.0)
    """
    x, y, w, h = box
    corners = torch.cat((points + 0.5, torch.tensor([[x, y], [x + w, y + h]], dtype=torch.float32)))
    (left, upper), (right, lower) = corners.amin(0).tolist(), corners.amax(0).tolist()
    return left, upper, right - left, lower - upper
