"""Views: records resized into the square that a backbone sees, the geometry back, and a cache of resized images."""

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from semcorr.core.coords import to_view
from semcorr.core.errors import UserError
from semcorr.core.limits import SHARED_MEMORY
from semcorr.core.types import View
from semcorr.data.image_variants import ImageVariant
from semcorr.data.pictures import read_whole
from semcorr.data.record import ImageRecord

RESIZES = ("squash", "letterbox", "corner")


class SquareFit(NamedTuple):
    """The geometry of an original image of one size within a square."""

    size: tuple[int, int]  # width, height of the resized original inside the square
    scale: tuple[float, float]  # square pixels per original pixel, exactly size / original
    offset: tuple[int, int]  # padding to the left and above


def fit_to_square(original: tuple[int, int], side: int, resize: str) -> SquareFit:
    """Compute the geometry of an image in a square, without pixels.

    Sides are rounded half to even, as NumPy rounds them in GeoAware-SC (utils_dataset.py:22) and sd-dino.

    Args:
        original: Width and height of the image, in pixels.
        side: Side of the square, in pixels.
        resize: `squash`, `letterbox` or `corner`; or `corner+PIXELS`, with a margin on all sides.

    Raises:
        UserError: `resize` is something else, or its margin leaves nothing of the square.

    >>> fit_to_square((400, 200), side=100, resize="letterbox")
    SquareFit(size=(100, 50), scale=(0.25, 0.25), offset=(0, 25))
    >>> fit_to_square((400, 200), side=100, resize="squash").scale
    (0.25, 0.5)
    >>> fit_to_square((400, 200), side=112, resize="corner+6")
    SquareFit(size=(100, 50), scale=(0.25, 0.25), offset=(6, 6))
    """
    kind, margin = split_resize(resize)
    if 2 * margin >= side:
        raise UserError(f"`data.resize`: {resize} leaves nothing of a square of {side} pixels. Give a smaller margin")
    width, height = original
    inner, longer = side - 2 * margin, max(original)
    if kind == "squash":
        inside = (inner, inner)
    else:  # multiplied first: GeoAware-SC, sd-dino and probe3d round the quotient of integers
        inside = (max(1, round(width * inner / longer)), max(1, round(height * inner / longer)))
    offset = (margin, margin) if kind == "corner" else ((side - inside[0]) // 2, (side - inside[1]) // 2)
    return SquareFit(inside, (inside[0] / width, inside[1] / height), offset)


def split_resize(resize: str, option: str = "data.resize") -> tuple[str, int]:
    """Split a way of resizing into its kind and its margin.

    A margin is as probe3d's, which pads its squares on all sides to a whole number of patches.

    Args:
        resize: The way of resizing.
        option: Option that holds it, for messages.

    Raises:
        UserError: `resize` is not such a text.

    >>> split_resize("corner+6"), split_resize("letterbox")
    (('corner', 6), ('letterbox', 0))
    """
    text = resize if isinstance(resize, str) else ""  # from Python it may be anything
    match = re.fullmatch(r"(squash|letterbox|corner)|(corner)\+([1-9]\d{0,3})", text)
    if match is None:
        raise UserError(
            f"`{option}` must be one of {', '.join(RESIZES)} or corner+PIXELS, a margin on all sides, got {resize!r}"
        )
    return match[1] or match[2], int(match[3] or 0)


def load_image(path: Path, upright: bool = False) -> Image.Image:
    """Decode an image to RGB, as stored (what annotations of the official benchmarks refer to) or upright."""
    return read_whole(path, upright)


def load_record(record: ImageRecord) -> Image.Image:
    """Decode the image of a record as it is matched: upright, corrupted and mirrored, where the record says so.

    Raises:
        UserError: The file has another size than the annotated image.
    """
    image = load_image(record.path, record.upright)
    if image.size != record.size:
        raise UserError(
            f"{record.path} is {image.size[0]} x {image.size[1]} pixels, its annotation says "
            f"{record.size[0]} x {record.size[1]}. Restore the image that was annotated."
        )
    if record.corruption is not None:
        image = record.corruption(image, record.name)
    return ImageOps.mirror(image) if record.mirrored else image


def to_unit_range(image: Float[Tensor, "*b 3 h w"] | UInt8[Tensor, "*b 3 h w"]) -> Float[Tensor, "*b 3 h w"]:
    """Convert the bytes of images to RGB in [0, 1], on their device; return floating point images as they are.

    Bytes are a quarter of the floats to pass on and to copy, so this comes last, right before the backbone. The
    quotients are the same to the last bit on every device: a GPU would multiply by the rounded inverse of a plain 255.
    The floats are divided in place: at 840 px memory for a second copy costs ten times the division.
    """
    if image.is_floating_point():
        return image
    return image.float().div_(torch.full((), 255.0, dtype=torch.float32, device=image.device))


def render_square(image: Image.Image, side: int, fit: SquareFit) -> UInt8[Tensor, "3 side side"]:
    """Resize (bicubic, antialiased) and pad an image to a square of bytes: resizing yields bytes.

    Args:
        image: RGB.
        side: Side of the square, in pixels.
        fit: Geometry of the image in the square, by `fit_to_square`.
    """
    pixels = torch.zeros(3, side, side, dtype=torch.uint8)
    x, y = fit.offset
    resized = image.resize(fit.size, Image.Resampling.BICUBIC)
    pixels[:, y : y + fit.size[1], x : x + fit.size[0]] = torch.from_numpy(np.array(resized)).movedim(-1, 0)
    return pixels


class LocalProcesses(NamedTuple):
    """Processes of a run on this machine, which share its memory.

    Attributes:
        number: Number of them.
        wait: Function that returns as soon as every process of the run has called it.
    """

    number: int = 1
    wait: Callable[[], None] = lambda: None


ALONE = LocalProcesses()


class PixelCache:
    """As many squares as fit `gigabytes` (1e9 bytes); the others are rendered at every use.

    No lock: two processes that render the same square at once write the same bytes, and a square counts
    as present only after its last byte.

    Args:
        images: Number of images.
        side: Side of their squares, in pixels.
        gigabytes: Largest size of the cache.
        processes: Processes of the run on this machine, each of which makes a cache of its own, at the same time.

    Raises:
        UserError: Shared memory has no room for the caches of all processes.
    """

    def __init__(self, images: int, side: int, gigabytes: float, processes: LocalProcesses = ALONE) -> None:
        slots = min(images, int(gigabytes * 1e9 / (3 * side * side)))
        _require_memory(slots * 3 * side * side * processes.number)
        processes.wait()  # until all have asked how much is free: what one takes, the others would not find
        self.squares = torch.empty(slots, 3, side, side, dtype=torch.uint8).share_memory_()
        self.present = torch.zeros(slots, dtype=torch.bool).share_memory_()

    def get(self, slot: int, render: Callable[[], UInt8[Tensor, "3 s s"]]) -> UInt8[Tensor, "3 s s"]:
        """Return the square of image `slot`, made by `render` if it is not cached. It must not be written to."""
        if slot >= len(self.present):
            return render()
        if not self.present[slot]:
            self.squares[slot] = render()
            self.present[slot] = True
        return self.squares[slot]


def _require_memory(needed: int) -> None:
    """Require enough free memory: a lack of it would end the process by a bus error, much later."""
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else needed
    if needed > free:
        raise UserError(
            f"`data.cache_gb`: {needed / 1e9:.2f} GB of images do not fit the shared memory of this machine, of which "
            f"{free / 1e9:.2f} GB are free ({SHARED_MEMORY}). Give less, or enlarge it (docker run --shm-size)."
        )


def make_view(record: ImageRecord, side: int, resize: str, pixels: bool = True) -> View:
    """Return the view of a record: resized into a square of bytes, keypoints and box with it.

    Args:
        record: The image.
        side: Side of the square, in pixels.
        resize: How the image becomes a square, as in `fit_to_square`.
        pixels: Whether the view comes with its pixels; without, its image has no height.
    """
    fit = fit_to_square(record.size, side, resize)
    scale, offset = (torch.tensor(pair, dtype=torch.float32) for pair in (fit.scale, fit.offset))
    box = to_view(torch.tensor(record.box, dtype=torch.float32).reshape(2, 2), scale, offset).flatten()
    keypoints = to_view(record.keypoints, scale, offset)
    image = render_view(record, side, resize) if pixels else torch.empty(3, 0, side, dtype=torch.float32)
    return View(image, keypoints, record.visible, box, scale, offset, ImageVariant(record).name)


def render_view(record: ImageRecord, side: int, resize: str) -> UInt8[Tensor, "3 s s"]:
    """Return the pixels of the record's view, in bytes."""
    return render_square(load_record(record), side, fit_to_square(record.size, side, resize))


class ViewCache:
    """The views of all records, for repeated access.

    Coordinates are computed once; pixels are decoded at each use, or once if `cache_gb` has room.

    Args:
        records: The images.
        side: Side of the square that they are resized to, in pixels.
        resize: How images become squares, as in `fit_to_square`.
        pixels: Whether views come with their pixels.
        cache_gb: Memory for resized images, in GB of 10^9 bytes; 0: none.
        processes: Processes of the run on this machine, which make their caches at the same time.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        side: int,
        resize: str,
        pixels: bool = True,
        cache_gb: float = 0.0,
        processes: LocalProcesses = ALONE,
    ) -> None:
        self.records, self.side, self.resize, self.pixels = records, side, resize, pixels
        self.geometries: dict[int, View] = {}
        slots: dict[str, int] = {}  # an image may have many records
        self.slots = [slots.setdefault(ImageVariant(record).name, len(slots)) for record in records]
        self.cache = PixelCache(len(slots), side, cache_gb, processes) if pixels and cache_gb else None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> View:
        if index not in self.geometries:
            self.geometries[index] = make_view(self.records[index], self.side, self.resize, pixels=False)
        return (
            self.geometries[index]._replace(image=self._read_pixels(index)) if self.pixels else self.geometries[index]
        )

    def _read_pixels(self, index: int) -> UInt8[Tensor, "3 s s"]:
        def render() -> UInt8[Tensor, "3 s s"]:
            return render_view(self.records[index], self.side, self.resize)

        return self.cache.get(self.slots[index], render) if self.cache else render()
