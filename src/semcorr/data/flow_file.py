"""Reading of Middlebury's .flo files: two floats for every pixel, the displacement to its match."""

import struct
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.core.text_files import read_beginning, read_content

MAGIC = b"PIEH"  # 202021.25 as a float, by which its writers check the order of bytes
HEADER = struct.Struct("<4sii")  # magic, width, height
UNKNOWN = 1e9  # values above it are not displacements


def read_flow(path: Path, remedy: str) -> tuple[Float[Tensor, "h w 2"], Bool[Tensor, "h w"]]:
    """Read a flow, and which of its pixels have one; the flow of the others is 0.

    Args:
        path: The file.
        remedy: What to do about a file that cannot be read; ends the message.

    Returns:
        The displacement (x, y) of each pixel to its match, in pixels.
        Whether a pixel has a match.

    Raises:
        UserError: The file is absent, no .flo file, or of another length than its size says.
    """
    content = read_content(path, remedy)
    width, height = _parse_size(path, content, len(content), remedy)
    values = torch.from_numpy(np.frombuffer(content, "<f4", offset=HEADER.size).astype(np.float32))
    flow = values.view(height, width, 2)
    known = (flow.abs() <= UNKNOWN).all(-1)  # false for NaN, too
    return torch.where(known[..., None], flow, 0.0), known


def read_flow_size(path: Path, remedy: str) -> tuple[int, int]:
    """Return the width and height of a flow, by its header and its length: no pixel is read.

    Raises:
        UserError: As `read_flow`.
    """
    return _parse_size(path, *read_beginning(path, HEADER.size, remedy), remedy)


def _parse_size(path: Path, content: bytes, length: int, remedy: str) -> tuple[int, int]:
    """Return the width and height that a file's first bytes say, or refuse them, or a file of another length."""
    magic, width, height = HEADER.unpack_from(content) if len(content) >= HEADER.size else (b"", 0, 0)
    if magic != MAGIC:
        raise UserError(f"{path} is not a .flo file: it does not begin with {MAGIC.decode()}. {remedy}")
    if width < 1 or height < 1 or length != HEADER.size + 8 * width * height:
        raise UserError(f"{path} says {width} x {height} pixels and has {length} bytes. {remedy}")
    return width, height
