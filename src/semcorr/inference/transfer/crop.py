"""A part of a picture, cut out around a box, and the way from its pixels to the picture's and back."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.data.pictures import Picture

MARGIN = 0.1  # of a box's longer side, on all of its sides
Box = tuple[float, float, float, float]  # x y width height, as COCO has it: the picture's corner is at 0


class Crop(NamedTuple):
    """A part of a picture, and where it was."""

    picture: Picture  # the part
    corner: tuple[int, int]  # of it, in pixels of the image it was cut from
    scale: tuple[float, float]  # that image's pixels per original pixel; 1 but of a huge JPEG
    mirrored: bool = False

    def into(self, points: Float[Tensor, "k 2"]) -> Float[Tensor, "k 2"]:
        """Original pixels to the part's."""
        inside = (points + 0.5) * torch.tensor(self.scale) - 0.5 - torch.tensor(self.corner)
        return self._turned(inside)

    def out_of(self, points: Float[Tensor, "k 2"]) -> Float[Tensor, "k 2"]:
        """And back."""
        return (self._turned(points) + torch.tensor(self.corner) + 0.5) / torch.tensor(self.scale) - 0.5

    def _turned(self, points: Float[Tensor, "k 2"]) -> Float[Tensor, "k 2"]:
        x, y = points.unbind(-1)
        return torch.stack((self.picture.size[0] - 1 - x, y), dim=-1) if self.mirrored else points


def crop_picture(picture: Picture, box: Box | None, margin: float = MARGIN) -> Crop:
    """What lies in a box and around it; the whole picture, if there is none.

    >>> crop_picture(Picture(Image.new("RGB", (60, 40)), (60, 40), "a"), (10, 10, 20, 10), margin=0.1).picture.size
    (24, 14)
    """
    image, (width, height) = picture.image, picture.size
    scale = (image.width / width, image.height / height)
    if box is None:
        return Crop(picture._replace(size=image.size), (0, 0), scale)
    x, y, w, h = box
    more = margin * max(w, h)
    left, upper = (max(0, math.floor((at - more) * s)) for at, s in zip((x, y), scale, strict=True))
    right, lower = (
        min(most, math.ceil((at + side + more) * s))
        for at, side, s, most in zip((x, y), (w, h), scale, image.size, strict=True)
    )
    if right <= left or lower <= upper:
        raise UserError(f"{picture.name}: the box {list(box)} lies outside the image of {width} x {height} pixels")
    part = image.crop((left, upper, right, lower))
    return Crop(Picture(part, part.size, picture.name), (left, upper), scale)


def mirror_crop(one: Crop) -> Crop:
    """Its mirror image."""
    image = one.picture.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return one._replace(picture=one.picture._replace(image=image), mirrored=not one.mirrored)


def enlarge_box(box: Box, points: Float[Tensor, "k 2"]) -> Box:
    """A box, enlarged to hold points, which have pixel centres at integers.

    >>> enlarge_box((10, 10, 20, 10), torch.tensor([[15.0, 29.5]]))
    (10.0, 10.0, 20.0, 20.0)
    """
    x, y, w, h = box
    every = torch.cat((points + 0.5, torch.tensor([[x, y], [x + w, y + h]])))
    (left, upper), (right, lower) = every.amin(0).tolist(), every.amax(0).tolist()
    return left, upper, right - left, lower - upper
