"""A frame that PyAV decoded as a picture: upright, as players show it, and without transparency."""

from collections.abc import Sequence
from math import cos, radians, sin
from typing import TYPE_CHECKING, cast

import numpy as np
from PIL import Image

from semcorr.core.errors import UserError
from semcorr.data.colours import to_rgb
from semcorr.data.pictures import Picture

if TYPE_CHECKING:  # an optional package
    from collections.abc import Mapping

    from av import VideoFrame
    from av.buffer import Buffer

REMEDY = (
    "Give a video file, or a folder of frames, as `ffmpeg -i video.mp4 -fps_mode passthrough -start_number 0 "
    "frames/%06d.png` writes them"
)
TURNS = {  # by the signs of a, b, c and d of a display matrix, which shows (x, y) at (ax + cy, bx + dy)
    (1, 0, 0, 1): None,
    (0, 0, 0, 0): None,  # left empty
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
SLIGHT = 0.01  # share of the largest number of a display matrix that counts as 0: half a degree


def to_picture(frame: "VideoFrame", name: str) -> Picture:
    """Turn and mirror a frame as players do, and lay what is transparent on white.

    Args:
        frame: The frame as stored.
        name: Name for messages.

    Raises:
        UserError: The frame is turned by no multiple of 90 degrees.
    """
    turn = find_turn(read_matrix(frame), name)
    if frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
        image = Image.fromarray(frame.to_ndarray(format="rgba"))
    else:
        image = frame.to_image()
    rgb = to_rgb(image if turn is None else image.transpose(turn), name)
    return Picture(rgb, rgb.size, name)


def read_matrix(frame: "VideoFrame") -> list[int]:
    """Read the display matrix of a frame; where PyAV does not know a kind of the frame's data, only its rotation."""
    try:
        data = cast("Mapping[str, Buffer]", frame.side_data)  # which PyAV annotates as one of its kinds alone
        return np.frombuffer(bytes(data["DISPLAYMATRIX"]), np.int32).tolist()
    except KeyError:
        return [65536, 0, 0, 0, 65536, 0, 0, 0, 2**30]
    except ValueError:
        angle = radians(frame.rotation)  # counterclockwise
        return [round(65536 * part) for part in (cos(angle), -sin(angle), 0, sin(angle), cos(angle), 0, 0, 0, 16384)]


def find_turn(matrix: Sequence[int], name: str) -> Image.Transpose | None:
    """Return the turn or reflection that a display matrix stands for; None for none.

    Args:
        matrix: Nine fixed-point numbers a, b, u, c, d, v, x, y, w of ISO/IEC 14496-12, 6.2.2.
        name: Name for messages.

    Raises:
        UserError: The matrix stands for another turn, or for a distortion.

    >>> find_turn([-65536, 0, 0, 0, 65536, 0, 0, 0, 2**30], "frame 0")
    <Transpose.FLIP_LEFT_RIGHT: 0>
    """
    numbers = [matrix[i] for i in (0, 1, 3, 4)]
    least = SLIGHT * max(map(abs, numbers))
    signs = tuple((number > least) - (number < -least) for number in numbers)
    if signs not in TURNS or matrix[2] or matrix[5]:
        shown = ", ".join(f"{number / 65536:g}" for number in numbers)
        raise UserError(
            f"{name} is shown turned or distorted by the matrix ({shown}), and only quarter turns and mirror images "
            f"are read. {REMEDY}"
        )
    return TURNS[signs]
