"""Views: records resized into the square that a backbone sees, and their cache."""

from collections.abc import Sequence

import torch
from jaxtyping import UInt8
from PIL import ImageOps
from torch import Tensor

from semcorr.core.coords import to_view
from semcorr.core.errors import UserError
from semcorr.core.types import View
from semcorr.data.image_variants import ImageVariant
from semcorr.data.pixel_cache import PixelCache
from semcorr.data.record import ImageRecord
from semcorr.data.transforms import bytes_to_unit, fit_to_square, load_image, render_square


def make_view(record: ImageRecord, side: int, resize: str, pixels: bool = True) -> View:
    """Return the view of a record: resized into a square, keypoints and box with it."""
    fit = fit_to_square(record.size, side, resize)
    scale, offset = torch.tensor(fit.scale), torch.tensor(fit.offset, dtype=torch.float32)
    box = to_view(torch.tensor(record.box).reshape(2, 2), scale, offset).flatten()
    keypoints = to_view(record.keypoints, scale, offset)
    image = bytes_to_unit(render_view(record, side, resize)) if pixels else torch.empty(3, 0, side)
    return View(image, keypoints, record.visible, box, scale, offset, ImageVariant(record).name)


def render_view(record: ImageRecord, side: int, resize: str) -> UInt8[Tensor, "3 s s"]:
    """Return the pixels of the record's view, in bytes."""
    image = load_image(record.path, record.upright)
    if image.size != record.size:
        raise UserError(
            f"{record.path} is {image.size[0]} x {image.size[1]} pixels, its annotation says "
            f"{record.size[0]} x {record.size[1]}. Restore the image that was annotated."
        )
    if record.mirrored:
        image = ImageOps.mirror(image)
    return render_square(image, side, fit_to_square(record.size, side, resize))


class ViewCache:
    """The views of all records, for repeated access.

    Coordinates are computed once; pixels are decoded at each use, or once if `cache_gb` has room.
    """

    def __init__(
        self, records: Sequence[ImageRecord], side: int, resize: str, pixels: bool = True, cache_gb: float = 0.0
    ) -> None:
        self.records, self.side, self.resize, self.pixels = records, side, resize, pixels
        self.bare: dict[int, View] = {}
        slots: dict[str, int] = {}  # an image may have many records
        self.slots = [slots.setdefault(record.name, len(slots)) for record in records]
        self.cache = PixelCache(len(slots), side, cache_gb) if pixels and cache_gb else None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> View:
        if index not in self.bare:
            self.bare[index] = make_view(self.records[index], self.side, self.resize, pixels=False)
        return self.bare[index]._replace(image=self._read_pixels(index)) if self.pixels else self.bare[index]

    def _read_pixels(self, index: int) -> Tensor:
        def render() -> Tensor:
            return render_view(self.records[index], self.side, self.resize)

        return bytes_to_unit(self.cache.get(self.slots[index], render) if self.cache else render())
