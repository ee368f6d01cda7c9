"""Pictures encoded for matching, and the flows and round trips between them."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from semcorr.core.coords import from_view, to_grid, to_view
from semcorr.core.errors import UserError
from semcorr.core.plain_values import require_unmasked, to_plain_tensor
from semcorr.core.types import FeatureMap, ImageMaps
from semcorr.data.pictures import Picture
from semcorr.data.views import fit_to_square, render_square
from semcorr.inference.displayed import DisplayedPicture
from semcorr.inference.encoder import Encoder

log = logging.getLogger(__name__)
FLAT = 4  # levels of 255 by which pixels of a plain border may differ: JPEG does not keep one colour exactly
ROWS, POINT = "rows of x and y, as [[120, 80], [200, 40]]", "x and y, as (120, 80)"  # in messages
SHOWN = 60  # characters of a value that a message shows


class PicturePlacement(NamedTuple):
    """The placement of a picture in the network's square; coordinates as in `semcorr.core.coords`."""

    size: tuple[int, int]  # width, height of the original, upright
    scale: Float[Tensor, " 2"]  # view pixels per original pixel
    offset: Float[Tensor, " 2"]  # position of the original's corner in view pixels; see coords.to_view
    visible_box: Float[Tensor, " 4"]  # x1 y1 x2 y2 of the visible part, in view pixels

    def to_view(self, points: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
        """Convert points from original pixels to view pixels."""
        return to_view(points, self.scale.to(points), self.offset.to(points))

    def from_view(self, points: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
        """Convert points from view to original pixels; those in the padding move to the border of the picture."""
        original = from_view(points, self.scale.to(points), self.offset.to(points))
        limit = torch.tensor(self.size, dtype=original.dtype, device=original.device) - 0.5
        return original.clamp(min=-0.5).minimum(limit)

    def cells(
        self, x: Float[Tensor, " w"], y: Float[Tensor, " h"], stride: float
    ) -> tuple[Float[Tensor, " w"], Float[Tensor, " h"]]:
        """Convert columns and rows of the original to cells of a map.

        Args:
            x: Columns in original pixels.
            y: Rows in original pixels.
            stride: Pixels of the square per cell of the map.
        """
        scale, offset = self.scale.tolist(), self.offset.tolist()
        columns, rows = (
            ((coordinate + 0.5) * factor + shift) / stride - 0.5
            for coordinate, factor, shift in zip((x, y), scale, offset, strict=True)
        )
        return columns, rows

    def shows(self, points: Float[Tensor, "n 2"]) -> Bool[Tensor, " n"]:
        """Tell which points of the view lie on the picture, and not in the padding."""
        low, high = self.visible_box.to(points).split(2)
        return ((points >= low) & (points <= high)).all(-1)

    def covers(self, x: Float[Tensor, " w"], y: Float[Tensor, " h"], stride: float) -> Bool[Tensor, "h w"]:
        """Tell which crossings of columns and rows lie on the visible part, or at most half a cell beyond it.

        Args:
            x: Columns in cells of a map.
            y: Rows in cells of the map.
            stride: Pixels of the square per cell of the map.
        """
        low, high = (to_grid(corner, stride).tolist() for corner in self.visible_box.cpu().split(2))
        columns_inside, rows_inside = (
            (coordinate >= first - 0.5) & (coordinate <= last + 0.5)
            for coordinate, first, last in zip((x, y), low, high, strict=True)
        )
        return rows_inside[:, None] & columns_inside


class EncodedPicture(NamedTuple):
    """A picture's features, which can be matched repeatedly.

    For a backbone that must see both pictures of a pair it holds no features, but what the backbone computes of one
    (`joint`), or else pixels.
    """

    maps: FeatureMap | None  # features of one image, transformed by the head
    pixels: Float[Tensor, "1 3 s s"] | None
    placement: PicturePlacement
    name: str
    displayed: DisplayedPicture | None = None  # what matches are drawn on
    image_maps: ImageMaps | None = None  # what a joint backbone joins with those of another picture
    encoder: Encoder | None = None  # what encoded it; None where that is not known

    @property
    def nbytes(self) -> int:
        """Bytes of all that is held of the picture for the network."""
        tensors = [*(self.image_maps.values.values() if self.image_maps is not None else ())]
        tensors += [tensor for tensor in (self.maps and self.maps.values, self.pixels) if tensor is not None]
        return sum(tensor.nbytes for tensor in tensors)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the original in pixels, upright."""
        return self.placement.size


def place_picture(
    picture: Picture, side: int, resize: str, trim: bool = True
) -> tuple[UInt8[Tensor, "3 s s"], PicturePlacement]:
    """Render the network's square, in bytes, and return the placement of the picture in it.

    Args:
        picture: The upright picture.
        side: Side of the square, in pixels.
        resize: Way of resizing, as `data.resize`.
        trim: Whether plain borders are left out (`trim_borders`): a picture and its padded copy then look the same.

    Returns:
        RGB bytes of the square, and the placement.
    """
    image, (width, height) = picture.image, picture.size
    box = trim_borders(image) if trim else (0, 0, *image.size)
    fit = fit_to_square((box[2] - box[0], box[3] - box[1]), side, resize)
    visible = image if box == (0, 0, *image.size) else image.crop(box)
    scale, offset, size = (torch.tensor(pair, dtype=torch.float32) for pair in (fit.scale, fit.offset, fit.size))
    corner = torch.tensor(box[:2], dtype=torch.float32)
    share = [image.width / width, image.height / height]  # below 1 for a huge JPEG only
    inside = torch.cat((offset, offset + size)) - 0.5
    return render_square(visible, side, fit), PicturePlacement(
        (width, height), scale * torch.tensor(share, dtype=torch.float32), offset - corner * scale, inside
    )


def trim_borders(image: Image.Image) -> tuple[int, int, int, int]:
    """Return the left, upper, right and lower edge of a picture without rows and columns of one colour at its borders.

    Such borders are padding. A picture whose rows or columns are all plain, as stripes, is not trimmed.
    """
    pixels = np.asarray(image)
    left, right = _find_ends(pixels.swapaxes(0, 1))
    if left == right:
        return (0, 0, *image.size)
    upper, lower = _find_ends(pixels[:, left:right])
    return (left, upper, right, lower) if upper < lower else (0, 0, *image.size)


def _find_ends(rows: np.ndarray) -> tuple[int, int]:
    """Return the index of the first row that is not plain, and the index after the last."""

    def is_plain(row: np.ndarray) -> bool:
        return bool((row.max(0).astype(int) - row.min(0) <= FLAT).all())

    first = next((i for i in range(len(rows)) if not is_plain(rows[i])), None)
    if first is None:
        return 0, 0
    return first, next(i for i in range(len(rows), 0, -1) if not is_plain(rows[i - 1]))


def parse_points(points: object, picture: EncodedPicture, name: str = "points") -> Float[Tensor, "n 2"]:
    """Convert points of a picture to a tensor in single precision, on the CPU.

    Args:
        points: Rows of x and y in original pixels, as a list, an array or a tensor; no points at all are allowed.
        picture: The picture.
        name: Argument or option that holds the points, for messages.

    Raises:
        UserError: They are not points, or lie outside the picture.
    """
    values = _parse_numbers(points, name, ROWS)
    if values.numel() == 0:
        return values.reshape(0, 2)
    if values.ndim != 2 or values.shape[-1] != 2:
        given = f"the shape {tuple(values.shape)}" if values.ndim else f"{points!r:.{SHOWN}}"
        raise UserError(f"`{name}` must be {ROWS}, got {given}")
    require_inside(values.tolist(), picture.size, picture.name, name)
    return values


def parse_point(point: object, picture: EncodedPicture) -> Float[Tensor, "1 2"]:
    """Convert one point of a picture as `parse_points` does many.

    Args:
        point: x and y in original pixels, as a tuple, an array or a tensor.
        picture: The picture.

    Raises:
        UserError: It is not a point, or lies outside the picture.
    """
    values = _parse_numbers(list(point) if isinstance(point, Iterator) else point, "point", POINT)
    if values.shape != (2,):
        given = f"the shape {tuple(values.shape)}" if values.ndim else f"{point!r:.{SHOWN}}"
        raise UserError(f"`point` must be {POINT}, got {given}")
    require_inside([values.tolist()], picture.size, picture.name, "point")
    return values[None]


def _parse_numbers(values: object, name: str, form: str) -> Float[Tensor, "..."]:
    """Convert real numbers of any type to single precision, on the CPU.

    Args:
        values: Numbers in a list, an array or a tensor.
        name: Argument that holds them, for messages.
        form: What they must be, for messages.
    """
    require_unmasked(values, name)
    if isinstance(values, Tensor):
        values = to_plain_tensor(values, name)
    try:
        numbers = values if isinstance(values, Tensor) else torch.from_numpy(_to_native(np.array(values, order="C")))
    except (TypeError, ValueError, RuntimeError):
        given = f"{type(values).__name__}. Give a list"
        if values is None or isinstance(values, str | bytes | list | tuple):
            given = shorten(repr(values), SHOWN, placeholder="...")
        elif isinstance(values, np.ndarray):
            given = f"an array of type {values.dtype}"
        raise UserError(f"`{name}` must be {form}, got {given}") from None
    if numbers.is_complex() or numbers.dtype == torch.bool:
        raise UserError(f"`{name}` must be {form}, got numbers of type {numbers.dtype}")
    return numbers.float()


def _to_native(values: np.ndarray) -> np.ndarray:
    """Convert real numbers to a type that PyTorch knows: it has none of the other byte order, or of 80 bits."""
    return values.astype(np.float64) if values.dtype.kind in "iuf" else values


def require_inside(
    points: Sequence[Sequence[float]], size: tuple[int, int], picture: str, name: str = "points"
) -> None:
    """Refuse points that lie outside a picture, NaN included.

    Args:
        points: x and y in pixels of the picture.
        size: Width and height of the picture.
        picture: Name of the picture, for messages.
        name: Argument or option that holds the points, for messages.
    """
    width, height = size
    for x, y in points:
        if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
            raise UserError(
                f"`{name}`: ({x:g}, {y:g}) lies outside {picture}, which is {width} x {height} pixels. "
                f"Give x from 0 to {width - 1} and y from 0 to {height - 1}"
            )


SINGLE = str | bytes | Path | Image.Image | Picture | EncodedPicture  # of which Python iterates over some


def iterate_pictures(images: object, name: str) -> Iterator[Any]:
    """Return an iterator over many pictures; one picture is not a list of them, though Python iterates over most kinds.

    Args:
        images: Pictures in any iterable; an array or a tensor of several has four dimensions.
        name: Argument that holds them, for messages.

    Raises:
        UserError: It is a single picture, or nothing that holds several.
    """
    given = type(images).__name__
    is_single = isinstance(images, SINGLE)
    if isinstance(images, np.ndarray | Tensor):
        given, is_single = f"{given} of the shape {tuple(images.shape)}", images.ndim < 4
    if is_single or not isinstance(images, Iterable):
        raise UserError(
            f"`{name}`: give a list of pictures, got {given}. For one picture give a list of one, as [picture]"
        )
    return iter(images)


def require_picture_or_list(images: object, name: str) -> None:
    """Refuse pictures in anything but a list, where one picture is allowed as well.

    Args:
        images: A picture, or a list of them.
        name: Argument that holds it, for messages.

    Raises:
        UserError: It is another iterable, as a tuple.
    """
    if isinstance(images, Iterable) and not isinstance(images, list | np.ndarray | Tensor | SINGLE):
        raise UserError(
            f"`{name}` must be a picture or a list of pictures, got {type(images).__name__}. Give a list, as [b, c]"
        )


def require_encoder(picture: EncodedPicture, encoder: Encoder, name: str) -> None:
    """Refuse a picture that another matcher encoded, whose features mean nothing to this one.

    Args:
        picture: The encoded picture.
        encoder: What encodes pictures here.
        name: Argument that holds the picture, for messages.

    Raises:
        UserError: Something else encoded it.
    """
    if picture.encoder is not None and picture.encoder != encoder:
        raise UserError(
            f"`{name}`: {picture.name} was encoded by another matcher, which differs in "
            f"{picture.encoder.describe_difference(encoder)}. Encode it with the matcher that matches it"
        )


class Flow(NamedTuple):
    """The match of every pixel of one picture in another."""

    flow: Float[Tensor, "h w 2"]  # displacement to add to a pixel's (x, y), in original pixels
    confidence: Float[Tensor, "h w"]  # similarity of cycle-consistent matches, 0 elsewhere and in padding


class RoundTrip(NamedTuple):
    """Matches and their matches back, in pixels of the two squares that the network sees."""

    points: Float[Tensor, "n 2"]  # in the target
    scores: Float[Tensor, " n"]
    consistent: Bool[Tensor, " n"]  # whether the match back lies near the query point
    cycle_points: Float[Tensor, "n 2"]  # matched back, in the source
