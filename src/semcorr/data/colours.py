"""Conversion of pixels of any depth, channel count and transparency to 8-bit RGB, as a viewer shows them.

Colour profiles (ICC) are not applied: the stored numbers are taken for sRGB.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Integer
from PIL import Image
from torch import Tensor

from semcorr.core.errors import UserError

SIXTEEN = ("I;16", "I;16B", "I;16L", "I;16N", "I")  # modes that hold 16 bits
CLEAR = ("LA", "La", "PA", "RGBA", "RGBa")  # modes with transparency
PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114])  # of red, green and blue (ITU-R BT.601)
BITS, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # TIFF's tags of a pixel's depth and meaning


def is_converted(image: Image.Image) -> bool:
    """Return, from the header, whether `to_rgb` does more than `convert("RGB")`.

    The latter clips 16 bits and drops transparency.
    """
    palette = getattr(image, "palette", None)
    clear = image.mode in CLEAR or "transparency" in image.info or (palette and palette.mode.endswith("A"))
    return image.mode in (*SIXTEEN, "F") or bool(clear)


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert an image to RGB of 8 bits each; what is transparent is laid on white.

    Args:
        image: An image of any mode.
        name: The image, for messages.

    Raises:
        UserError: Its numbers are beyond their range, or its colours are not converted.
    """
    key = None
    if image.mode in SIXTEEN:
        key, image = image.info.get("transparency"), _from_sixteen(image, name)
    elif image.mode == "F":
        image = _from_floats(image, name)
    try:
        if image.mode in PREMULTIPLIED:
            image = image.convert(PREMULTIPLIED[image.mode])
        if image.has_transparency_data or key is not None:
            clear = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
        return image.convert("RGB")
    except ValueError:
        raise UserError(f"{name} is in the colours {image.mode}, which are not read. Save it as RGB") from None


def _from_sixteen(image: Image.Image, name: str) -> Image.Image:
    """Convert grey of up to 16 bits; the one value that a PNG may call transparent becomes transparent."""
    values = np.asarray(image).astype(np.int64)
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    tags: Mapping = getattr(image, "tag_v2", {})
    if image.mode == "I" and 0 <= low < high <= 255 and tags.get(BITS, (32,))[0] > 16:
        raise UserError(
            f"{name} holds numbers from {low} to {high} of 32 bits, and it is unclear whether 255 or 65535 is white. "
            "Save it with 8 or 16 bits"
        )
    if low < 0 or high > 65535:
        raise UserError(f"{name} holds numbers from {low} to {high}; read are 0 to 65535. Save it with 8 or 16 bits")
    key = image.info.get("transparency")
    clear = values == key if isinstance(key, int) else None
    bits = tags.get(BITS, (16,))[0]
    if 8 < bits < 16:  # of 12, 4095 is white
        values = (values * 65535 + 2 ** (bits - 1)) // (2**bits - 1)
    if bits <= 16 and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow turns those of 8 bits round, and not these
        values = 65535 - values
    grey = image_from_array(values.astype(np.uint16), name)
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
    return grey


def _from_floats(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image)
    if not are_unit_values(values):
        raise UserError(
            f"{name} holds floats from {values.min():g} to {values.max():g}; they must be from 0 to 1. "
            "Save it with 8 or 16 bits"
        )
    return image_from_array(values, name)


def to_array(tensor: Float[Tensor, "*c h w"] | Integer[Tensor, "*c h w"] | Tensor, name: str) -> np.ndarray:
    """Convert a tensor (H W) or (C H W) to an array (H W) or (H W C).

    Args:
        tensor: Pixels, on the CPU.
        name: The picture, for messages.

    Raises:
        UserError: It has another shape, or not 1, 3 or 4 channels.
    """
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    if tensor.ndim == 3 and tensor.shape[0] in (1, 3, 4):
        tensor = tensor.movedim(0, -1)
    elif tensor.ndim != 2:
        raise UserError(
            f"`{name}`: a tensor must be (H W) or (C H W) with 1, 3 or 4 channels, got {tuple(tensor.shape)}"
        )
    return np.asarray(tensor.numpy())


def image_from_array(array: np.ndarray, name: str) -> Image.Image:
    """Convert an array (H W), (H W 1), (H W 3) or (H W 4) to an image of 8 bits.

    Args:
        array: uint8, uint16, bool, or floats from 0 to 1.
        name: The picture, for messages.

    Raises:
        UserError: It has another shape or type, no pixels, or floats out of their range.
    """
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))) or not array.size:
        raise UserError(f"`{name}`: an array must be (H W), (H W 3) or (H W 4), with pixels, got {array.shape}")
    return Image.fromarray(_to_bytes(array, name))


def are_unit_values(values: np.ndarray) -> bool:
    """Return whether floats are from 0 to 1, or beyond by 0.001, as a resized image may be; NaN is not."""
    return bool(values.min() >= -1e-3 and values.max() <= 1 + 1e-3)


def _to_bytes(array: np.ndarray, name: str) -> np.ndarray:
    """Convert values to 8 bits."""
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return (array.astype(np.float32) / 257).round().astype(np.uint8)
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"`{name}` must hold uint8, uint16, bool or floats from 0 to 1, got {array.dtype}")
    if not are_unit_values(array):
        low, high = float(array.min()), float(array.max())
        if math.isnan(low):
            raise UserError(f"`{name}` holds NaN; floats must be from 0 to 1. Replace it, as numpy.nan_to_num does")
        raise UserError(f"`{name}`: floats must be from 0 to 1, got {low:g} to {high:g}. Divide by 255, for instance")
    return (array.clip(0, 1) * 255).round().astype(np.uint8)
