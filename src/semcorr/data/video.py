"""Frames of a video, one after the other, so that a long one is never in memory: of a file, or of a folder."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from semcorr.core.errors import UserError
from semcorr.core.extras import require_extra
from semcorr.core.paths import open_plain, require_plain
from semcorr.data.colours import to_rgb
from semcorr.data.open_image import open_image
from semcorr.data.pictures import Picture, list_pictures

log = logging.getLogger(__name__)

REMEDY = (
    "Give a video file, or a folder of frames, as `ffmpeg -i video.mp4 -fps_mode passthrough -start_number 0 "
    "frames/%06d.png` writes them"
)
QUARTERS = {  # frames are stored turned, and say by how many degrees, counterclockwise, a player turns them
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


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
    require_video(path)
    frames = _read_animation(path) if _is_animation(path) else _decode_video(path)
    read = False
    for picture in frames:
        read = True
        yield picture
    if not read:
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


def _decode_video(path: Path) -> Iterator[Picture]:
    """Decode the frames of the first video stream of a file."""
    import av

    place, number = str(path), -1
    try:  # by its absolute path: of a relative one, what is before a colon would be a protocol
        with av.open(str(path.absolute()), metadata_errors="replace") as container:
            stream = next(iter(container.streams.video), None)
            if stream is None or stream.codec_context is None:  # decoding without a codec would end the process
                raise UserError(f"{path} has no stream of video that can be decoded. {REMEDY}")
            stream.thread_type = "AUTO"
            for number, frame in enumerate(container.decode(stream)):
                place = f"{path}, after frame {number}"
                yield _to_picture(frame.to_image(), frame.rotation, f"{path}, frame {number}")
            if stream.frames not in (0, number + 1):  # 0: the file does not say
                log.warning(
                    "%s says that it has %d frames, and %d are decoded: other tools may number them otherwise",
                    path,
                    stream.frames,
                    number + 1,
                )
    except av.FFmpegError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{place} is damaged or no video ({reason}). {REMEDY}") from None


def _to_picture(image: Image.Image, rotation: float, name: str) -> Picture:
    """Turn a frame upright, as players do.

    Args:
        image: The frame as stored.
        rotation: Degrees by which a player turns it, counterclockwise.
        name: Name for messages.

    Raises:
        UserError: The frame is turned by no multiple of 90 degrees.
    """
    quarter = round(rotation) % 360
    if quarter not in (0, *QUARTERS):
        raise UserError(f"{name} is shown turned by {quarter} degrees, and only quarter turns are read. {REMEDY}")
    rgb = to_rgb(image if quarter == 0 else image.transpose(QUARTERS[quarter]), name)
    return Picture(rgb, rgb.size, name)
