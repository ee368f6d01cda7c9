"""Reading of TAP-Vid's pickle into videos with checked points, and of a video into frames for a backbone."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from semcorr.core.errors import UserError
from semcorr.data.safe_pickle import load_arrays
from semcorr.data.transforms import fit_to_square, render_image

log = logging.getLogger(__name__)

SIDE = 256  # of the official frame, pixels
FILE = "tapvid_davis.pkl"


class TapVidVideo(NamedTuple):
    """One entry of the pickle."""

    name: str
    frames: np.ndarray  # uint8 (t h w 3)
    points: Float[Tensor, "n t 2"]  # (x, y), the official frame
    occluded: Bool[Tensor, "n t"]


def find_pickle(root: Path) -> Path:
    """Find the pickle in its folder, or in the folder that its archive makes there."""
    for path in (root / FILE, root / "tapvid_davis" / FILE):
        if path.is_file():
            return path
    raise UserError(f"{root} holds neither {FILE} nor tapvid_davis/{FILE}. Unpack tapvid_davis.zip there.")


def read_videos(path: Path) -> dict[str, TapVidVideo]:
    """Read all videos by name, sorted.

    Raises:
        UserError: The file is damaged, or a field of a video is not what it has to be.
    """
    content = load_arrays(path)
    if not isinstance(content, Mapping) or not content or not all(isinstance(name, str) for name in content):
        raise UserError(f"{path}: must be a dictionary from names to videos. Restore the official file.")
    videos = {name: _read_video(content[name], name, path) for name in sorted(content)}
    outside = {name: count for name, video in videos.items() if (count := count_outside_frame(video))}
    if outside:
        log.warning(
            "%s: %d visible points lie outside their frame (%s); they are kept as annotated",
            path.name,
            sum(outside.values()),
            ", ".join(outside),
        )
    return videos


class FrameDataset(Dataset[Tensor]):
    """A video's frames, resized to `side` if there is one and then into the backbone's square."""

    def __init__(self, frames: np.ndarray, side: int | None, size: int, resize: str) -> None:
        self.frames, self.side, self.size, self.resize = frames, side, size, resize

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Float[Tensor, "3 size size"]:
        image = Image.fromarray(self.frames[index])
        if self.side:  # Lanczos, as the official reader
            image = image.resize((self.side, self.side), Image.Resampling.LANCZOS)
        return render_image(image, self.size, fit_to_square(image.size, self.size, self.resize))


def _read_video(entry: object, name: str, path: Path) -> TapVidVideo:
    frames = _read_array(entry, "video", np.uint8, (None, None, None, 3), name, path)
    points = _read_array(entry, "points", np.floating, (None, len(frames), 2), name, path)
    occluded = _read_array(entry, "occluded", np.bool_, points.shape[:2], name, path)
    if not np.isfinite(points[~occluded]).all():
        raise UserError(f"{path}: video {name}: `points` is not finite where visible. Restore the official file.")
    coordinates = torch.tensor(points.astype(np.float32)) * SIDE  # an exact power of two
    return TapVidVideo(name, frames, coordinates, torch.tensor(occluded))


def _read_array(
    entry: object, field: str, kind: type, shape: tuple[int | None, ...], name: str, path: Path
) -> np.ndarray:
    """Return a field of a video, checked for kind and shape; None in a shape is any length but zero."""
    if not isinstance(entry, Mapping) or field not in entry:
        raise UserError(f"{path}: video {name} has no field `{field}`. Restore the official file.")
    value = entry[field]
    expected = f"{kind.__name__} ({', '.join('any' if n is None else str(n) for n in shape)})"
    if not isinstance(value, np.ndarray):
        raise UserError(f"{path}: video {name}: `{field}` must be an array, {expected}, got a {type(value).__name__}.")
    if value.nbytes > path.stat().st_size:  # made of a shape alone: nothing in the file fills it
        raise UserError(f"{path}: video {name}: `{field}` is larger than the file. Restore the official file.")
    fits = value.ndim == len(shape) and all(n > 0 and m in (None, n) for n, m in zip(value.shape, shape, strict=True))
    if not fits or not np.issubdtype(value.dtype, kind):
        raise UserError(f"{path}: video {name}: `{field}` must be {expected}, got {value.dtype} {value.shape}.")
    return value


def count_outside_frame(video: TapVidVideo) -> int:
    """Count the points annotated as visible outside the frame."""
    visible = video.points[~video.occluded]
    return int(((visible < 0) | (visible > SIDE)).any(-1).sum())
