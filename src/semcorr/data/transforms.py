"""The transform of an original image into the square a backbone sees, and the geometry to invert it.

`squash` stretches both sides to the square; `letterbox` keeps the aspect and pads with black,
centred; `corner` likewise, to the right and below. None changes what a score means under our own
protocol: PCK is measured in original pixels.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from semcorr.core.errors import UserError
from semcorr.data.pictures import read_whole

RESIZES = ("squash", "letterbox", "corner")


class SquareFit(NamedTuple):
    """The geometry of an original image of one size within a square."""

    size: tuple[int, int]  # width, height of the resized original inside the square
    scale: tuple[float, float]  # square pixels per original pixel, exactly size / original
    offset: tuple[int, int]  # padding to the left and above


def fit_to_square(original: tuple[int, int], side: int, resize: str) -> SquareFit:
    """Compute the geometry of an image in a square, without pixels.

    >>> fit_to_square((400, 200), side=100, resize="letterbox")
    SquareFit(size=(100, 50), scale=(0.25, 0.25), offset=(0, 25))
    >>> fit_to_square((400, 200), side=100, resize="squash").scale
    (0.25, 0.5)
    """
    if resize not in RESIZES:
        raise UserError(f"`data.resize` must be one of {', '.join(RESIZES)}, got {resize!r}")
    width, height = original
    if resize == "squash":
        inside = (side, side)
    else:
        ratio = side / max(original)
        inside = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    offset = (0, 0) if resize == "corner" else ((side - inside[0]) // 2, (side - inside[1]) // 2)
    return SquareFit(inside, (inside[0] / width, inside[1] / height), offset)


def load_image(path: Path, upright: bool = False) -> Image.Image:
    """Decode an image to RGB, as stored (what annotations of the official benchmarks refer to) or upright."""
    return read_whole(path, upright)


def render_image(image: Image.Image, side: int, how: SquareFit) -> Float[Tensor, "3 side side"]:
    """Resize (bicubic, antialiased) and pad an image; RGB in [0, 1]."""
    return bytes_to_unit(render_square(image, side, how))


def bytes_to_unit(pixels: UInt8[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """Convert bytes to [0, 1]. In place: at 840 px memory for a second copy costs ten times the division."""
    return pixels.float().div_(255)


def render_square(image: Image.Image, side: int, how: SquareFit) -> UInt8[Tensor, "3 side side"]:
    """Resize and pad an image to a square of bytes, which loses nothing: resizing yields bytes."""
    pixels = torch.zeros(3, side, side, dtype=torch.uint8)
    x, y = how.offset
    resized = image.resize(how.size, Image.Resampling.BICUBIC)
    pixels[:, y : y + how.size[1], x : x + how.size[0]] = pil_to_tensor(resized)
    return pixels
