"""A picture as a matcher keeps it: features, and what leads from its pixels to the network's square and back."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from semcorr.core.coords import from_view, to_grid, to_view
from semcorr.core.errors import UserError
from semcorr.core.types import FeatureMap
from semcorr.data.pictures import Picture
from semcorr.data.transforms import fit_to_square, render_image

FLAT = 4  # levels of 255 that the pixels of a plain border may lie apart: what JPEG leaves of one colour


class PicturePlacement(NamedTuple):
    """Where a picture lies in the square that the network sees; all in `coords`'s convention."""

    size: tuple[int, int]  # width, height of the original, upright
    scale: Float[Tensor, " 2"]  # view pixels per original pixel
    offset: Float[Tensor, " 2"]  # where the original's corner went, in view pixels; see coords.to_view
    inside: Float[Tensor, " 4"]  # x1 y1 x2 y2 of what is shown of it, in view pixels

    def to_view(self, points: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
        """Original pixels to the network's."""
        return to_view(points, self.scale.to(points), self.offset.to(points))

    def from_view(self, points: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
        """Back, and onto the picture: what lies in the padding becomes the nearest place that does not."""
        found = from_view(points, self.scale.to(points), self.offset.to(points))
        most = torch.tensor(self.size, dtype=found.dtype, device=found.device) - 0.5
        return found.clamp(min=-0.5).minimum(most)

    def cells(
        self, x: Float[Tensor, " w"], y: Float[Tensor, " h"], stride: float
    ) -> tuple[Float[Tensor, " w"], Float[Tensor, " h"]]:
        """Columns and rows of the original in cells of a map."""
        scale, offset = self.scale.tolist(), self.offset.tolist()
        columns, rows = (((at + 0.5) * s + o) / stride - 0.5 for at, s, o in zip((x, y), scale, offset, strict=True))
        return columns, rows

    def shows(self, points: Float[Tensor, "n 2"]) -> Bool[Tensor, " n"]:
        """Which points of the view lie on the picture, and not in the padding."""
        low, high = self.inside.to(points).split(2)
        return ((points >= low) & (points <= high)).all(-1)

    def covers(self, x: Float[Tensor, " w"], y: Float[Tensor, " h"], stride: float) -> Bool[Tensor, "h w"]:
        """Which places of columns and rows, in cells of a map, were shown, or lie at most half a cell beyond."""
        low, high = (to_grid(corner, stride).tolist() for corner in self.inside.cpu().split(2))
        wide, tall = (
            (at >= first - 0.5) & (at <= last + 0.5) for at, first, last in zip((x, y), low, high, strict=True)
        )
        return tall[:, None] & wide


class EncodedPicture(NamedTuple):
    """A picture's features, to be matched again and again.

    Of a backbone that must see both pictures of a pair (`pairwise`) its pixels are kept, and no features.
    """

    maps: FeatureMap | None  # of one image, adapted by the head
    pixels: Float[Tensor, "1 3 s s"] | None
    placed: PicturePlacement
    name: str

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the original in pixels, upright."""
        return self.placed.size


def place_picture(
    picture: Picture, side: int, resize: str, trim: bool = True
) -> tuple[Float[Tensor, "3 s s"], PicturePlacement]:
    """The square that the network sees, RGB in [0, 1], and where the picture lies in it.

    Args:
        picture: Upright.
        side: Of the square.
        resize: As `data.resize`.
        trim: Leave plain borders out, see `trimmed`: a picture and its padded copy then look the same.
    """
    image, (width, height) = picture.image, picture.size
    box = trim_borders(image) if trim else (0, 0, *image.size)
    how = fit_to_square((box[2] - box[0], box[3] - box[1]), side, resize)
    shown = image if box == (0, 0, *image.size) else image.crop(box)
    scale, offset = torch.tensor(how.scale), torch.tensor(how.offset, dtype=torch.float32)
    corner = torch.tensor(box[:2])
    reduced = torch.tensor([image.width / width, image.height / height])  # of a huge JPEG; 1
    inside = torch.cat((offset, offset + torch.tensor(how.size))) - 0.5
    return render_image(shown, side, how), PicturePlacement(
        (width, height), scale * reduced, offset - corner * scale, inside
    )


def trim_borders(image: Image.Image) -> tuple[int, int, int, int]:
    """Left, upper, right and lower edge of what is left without rows and columns of one colour at its borders.

    That is what padding is. Of a picture that is plain all over, everything is left.
    """
    pixels = np.asarray(image)
    left, right = _ends(pixels.swapaxes(0, 1))
    if left == right:
        return (0, 0, *image.size)
    upper, lower = _ends(pixels[:, left:right])
    return left, upper, right, lower


def _ends(rows: np.ndarray) -> tuple[int, int]:
    """The first row that is not plain, and the one after the last."""

    def plain(row: np.ndarray) -> bool:
        return bool((row.max(0).astype(int) - row.min(0) <= FLAT).all())

    first = next((i for i in range(len(rows)) if not plain(rows[i])), None)
    if first is None:
        return 0, 0
    return first, next(i for i in range(len(rows), 0, -1) if not plain(rows[i - 1]))


def parse_points(points: Any, of: EncodedPicture, name: str = "points") -> Float[Tensor, "n 2"]:
    """Points of a picture that were given in any form.

    Raises:
        UserError: They are no points, or none of this picture.
    """
    try:
        given = torch.as_tensor(np.asarray(points.detach().cpu() if isinstance(points, Tensor) else points)).float()
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"`{name}` must be rows of x and y, as [[120, 80], [200, 40]]") from None
    if given.numel() == 0:
        return given.reshape(0, 2)
    if given.ndim != 2 or given.shape[-1] != 2:
        raise UserError(f"`{name}` must be rows of x and y, as [[120, 80]], got the shape {tuple(given.shape)}")
    require_inside(given.tolist(), of.size, of.name, name)
    return given


def require_inside(
    points: Sequence[Sequence[float]], size: tuple[int, int], picture: str, name: str = "points"
) -> None:
    """Refuse points that are not in a picture, NaN included.

    Args:
        points: x and y in its pixels.
        size: Its width and height.
        picture: Its name.
        name: What the user gave the points by.
    """
    width, height = size
    for x, y in points:
        if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
            raise UserError(
                f"`{name}`: ({x:g}, {y:g}) lies outside {picture}, which is {width} x {height} pixels. "
                f"Give x from 0 to {width - 1} and y from 0 to {height - 1}"
            )
