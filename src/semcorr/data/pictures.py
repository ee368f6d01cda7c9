"""Any picture of a user's to upright RGB: files, PIL images, arrays and tensors, of any depth.

Benchmarks have a reader of their own (`transforms.load_image`): their annotations know no EXIF.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Integer
from PIL import Image
from torch import Tensor

from semcorr.data.open_image import open_image
from semcorr.errors import UserError

REDUCED = 2**24  # pixels of a JPEG from which it is decoded at a half, a quarter or an eighth of its sides
ENOUGH = 1024  # pixels of the shorter side that are left then, at least: of one below 2048 nothing is reduced
ORIENTATION = 0x0112  # EXIF's
TURNS = {  # its values, and what turns the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
SWAPPING = [TURNS[value] for value in (5, 6, 7, 8)]
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif")
SIXTEEN = ("I;16", "I;16B", "I;16L", "I;16N", "I")  # modes that hold 16 bits
Source = str | Path | Image.Image | np.ndarray | Tensor


class Picture(NamedTuple):
    """An upright image, and what it is called."""

    image: Image.Image  # RGB; of a huge JPEG a smaller rendering
    size: tuple[int, int]  # width, height in original pixels, upright
    name: str


def picture(source: Source, name: str = "image") -> Picture:
    """Of a file, a PIL image, an array (H W), (H W 1), (H W 3) or (H W 4), or a tensor (H W) or (C H W).

    Upright means as viewers show it: EXIF orientation is applied, to files and PIL images alike. Integers
    count from 0 to the largest of their type, floats from 0 to 1. What is transparent is laid on white.

    Args:
        source: The picture.
        name: For messages, where the source has no name.

    Raises:
        UserError: It is none, or damaged, or too large to be decoded.
    """
    if isinstance(source, str | Path):
        return _read(Path(source))
    if isinstance(source, Image.Image):
        return _upright(source, str(getattr(source, "filename", "") or name))
    if isinstance(source, Tensor):
        source = _channels_last(source.detach().cpu(), name)
    if not isinstance(source, np.ndarray):
        raise UserError(
            f"`{name}` must be a path, a PIL image, an array or a tensor, got {type(source).__name__}. "
            "Give the file's path, for instance"
        )
    image = _rgb(_from_array(source, name))
    return Picture(image, image.size, name)


def pictures_in(folder: Path) -> list[Path]:
    """Its image files, at least one."""
    if not (found := image_files(folder)):
        raise UserError(f"{folder} has no images ({', '.join(SUFFIXES)}). Give a folder of images, or a file")
    return found


def image_files(folder: Path, below: bool = False) -> list[Path]:
    """By their endings, in order; with `below`, of folders below, too. Hidden ones, as macOS's ._a.jpg, are none."""
    files = sorted(folder.rglob("*") if below else folder.iterdir())
    seen = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    return [path for path in seen if path.suffix.lower() in SUFFIXES and path.is_file()]


def _read(path: Path) -> Picture:
    with open_image(path, "Replace the file", "Give the path of an image") as image:
        return _upright(image, str(path), reduced=_reduced(image))


def _reduced(image: Image.Image) -> tuple[int, int] | None:
    """Have a huge JPEG decoded at a fraction of its sides, unless it is a strip; return its true size then."""
    size = width, height = image.size
    if image.format not in ("JPEG", "MPO") or width * height <= REDUCED:
        return None
    share = min(1.0, ENOUGH / min(size))
    image.draft(None, (max(1, int(width * share)), max(1, int(height * share))))  # type: ignore[arg-type]
    return size


def _upright(image: Image.Image, name: str, reduced: tuple[int, int] | None = None) -> Picture:
    before = image.size
    image.load()
    size = reduced or image.size
    if image.format == "TIFF" and before != size:  # PIL says that it turned it, and did not: so with CMYK
        raise UserError(f"{name} is a TIFF that could not be turned upright. Save it as PNG or JPEG")
    turn = None if image.format == "TIFF" else TURNS.get(image.getexif().get(ORIENTATION, 1))  # TIFF: done by PIL
    rgb = _rgb(image)
    upright = rgb if turn is None else rgb.transpose(turn)
    return Picture(upright, size[::-1] if turn in SWAPPING else size, name)


def _rgb(image: Image.Image) -> Image.Image:
    """8 bits each; `convert` alone clips 16 bits and shows what lies under transparency."""
    if image.mode in SIXTEEN:
        image = _from_array(np.asarray(image).astype(np.int64).clip(0, 65535).astype(np.uint16), "image")
    elif image.mode == "F":
        image = _from_array(np.asarray(image), "image")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    return image.convert("RGB")


def _channels_last(tensor: Float[Tensor, "*c h w"] | Integer[Tensor, "*c h w"] | Any, name: str) -> np.ndarray:
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    if tensor.ndim == 3 and tensor.shape[0] in (1, 3, 4):
        tensor = tensor.movedim(0, -1)
    elif tensor.ndim != 2:
        raise UserError(
            f"`{name}`: a tensor must be (H W) or (C H W) with 1, 3 or 4 channels, got {tuple(tensor.shape)}"
        )
    return np.asarray(tensor.numpy())


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))) or not array.size:
        raise UserError(f"`{name}`: an array must be (H W), (H W 3) or (H W 4), with pixels, got {array.shape}")
    return Image.fromarray(_bytes(array, name))


def _bytes(array: np.ndarray, name: str) -> np.ndarray:
    """To 8 bits."""
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return (array.astype(np.float32) / 257).round().astype(np.uint8)
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"`{name}` must hold uint8, uint16, bool or floats from 0 to 1, got {array.dtype}")
    low, high = float(array.min()), float(array.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN fails, too; a resized image may overshoot by a hair
        raise UserError(f"`{name}`: floats must be from 0 to 1, got {low:g} to {high:g}. Divide by 255, for instance")
    return (array.clip(0, 1) * 255).round().astype(np.uint8)
