"""Frames of a video, one after the other, so that a long one is never in memory: of a file, or of a folder."""

import re
from collections.abc import Iterator
from pathlib import Path

from semcorr.core.errors import UserError
from semcorr.core.extras import require_extra
from semcorr.core.paths import open_plain, require_plain
from semcorr.data.colours import to_rgb
from semcorr.data.open_image import open_image
from semcorr.data.pictures import Picture, list_pictures
from semcorr.data.video_frame import REMEDY
from semcorr.data.video_stream import decode_video


def list_frames(folder: Path) -> list[Path]:
    """List the pictures of a folder in the order of the numbers in their names: 2.png before 10.png."""
    return sorted(list_pictures(folder), key=lambda path: _natural_key(path.name))


def _natural_key(name: str) -> list[tuple[int, str]]:
    """Return a key by which numbers in names are compared as numbers.

    >>> sorted(["img10.png", "img2.png"], key=_natural_key)
    ['img2.png', 'img10.png']
    """
    return [
        (int(part), part) if part.isascii() and part.isdigit() else (-1, part) for part in re.split("([0-9]+)", name)
    ]


def require_video(path: Path) -> None:
    """Refuse, before any work, a video file that is absent, or that nothing installed decodes.

    Args:
        path: The file. GIF, PNG and WebP are read by Pillow, everything else by PyAV.

    Raises:
        UserError: There is no such file, or PyAV is needed and not installed.
    """
    try:
        require_plain(path)
        is_animation = _is_animation(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. {REMEDY}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). {REMEDY}") from None
    if not is_animation:
        try:
            require_extra(f"Reading the video {path}", "video", "av")
        except UserError as error:
            raise UserError(f"{error}. Or give a folder of its frames") from None


def read_frames(path: Path) -> Iterator[Picture]:
    """Read the frames of a video file, upright, one at a time.

    Args:
        path: The file.

    Raises:
        UserError: The file is not a video, or a frame of it is damaged.
    """
    for frame in read_or_explain(path):
        if isinstance(frame, UserError):
            raise frame
        yield frame


def read_or_explain(path: Path) -> Iterator[Picture | UserError]:
    """Read the frames of a video file, upright, one at a time, with the reason in place of each that is damaged.

    Args:
        path: The file.

    Raises:
        UserError: The file is not a video.
    """
    require_video(path)
    count = 0
    try:
        for frame in _read_animation(path) if _is_animation(path) else decode_video(path):
            count += 1
            yield frame
    except UserError as error:
        if not count:
            raise
        yield UserError(f"{error}. No frame after number {count - 1} is read")
    if not count:
        raise UserError(f"{path} has no frames. {REMEDY}")


def _is_animation(path: Path) -> bool:
    """Tell whether a file is of a format whose frames Pillow reads."""
    with open_plain(path) as file:
        head = file.read(12)
    return head.startswith((b"GIF8", b"\x89PNG")) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")


def _read_animation(path: Path) -> Iterator[Picture]:
    """Read the frames of a GIF, PNG or WebP."""
    with open_image(path, "Replace the file", REMEDY) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            name = f"{path}, frame {number}"
            frame = to_rgb(image.copy(), name)
            yield Picture(frame, frame.size, name)
