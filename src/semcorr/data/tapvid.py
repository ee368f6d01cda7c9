"""TAP-Vid-DAVIS (Doersch et al. 2022): thirty videos with tracked points, from the official pickle.

Points stay in the official frame, 256 x 256 with the corner at 0, until they are looked up.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from semcorr.core.errors import UserError
from semcorr.core.ranges import OptionsOf, Positive, check_arguments
from semcorr.data.datamodule import PairDataModule
from semcorr.data.download.recipe import ArchiveInfo, DownloadRecipe
from semcorr.data.evaluation_only import EvaluationBenchmark
from semcorr.data.record import require_root
from semcorr.data.safe_pickle import load_arrays
from semcorr.data.views import RESIZES, fit_to_square, render_square

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
    """Find the pickle in its folder, or in the folder that its archive makes there.

    Raises:
        UserError: There is none.
    """
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
    """A video's frames, resized to `side` if there is one and then into the backbone's square.

    Args:
        frames: Frames (t h w 3) of bytes, RGB.
        side: Side of the square that frames are resized to first, in pixels; None: they are not.
        size: Side of the square that the backbone sees, in pixels.
        resize: How images become that square, as in `BenchmarkModule`.
    """

    def __init__(self, frames: np.ndarray, side: int | None, size: int, resize: str) -> None:
        self.frames, self.side, self.size, self.resize = frames, side, size, resize

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 size size"]:
        image = Image.fromarray(self.frames[index])
        if self.side:  # Lanczos, as the official reader
            image = image.resize((self.side, self.side), Image.Resampling.LANCZOS)
        return render_square(image, self.size, fit_to_square(image.size, self.size, self.resize))


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
        raise UserError(
            f"{path}: video {name}: `{field}` must be {expected}, got {value.dtype} {value.shape}. "
            "Restore the official file."
        )
    return value


def count_outside_frame(video: TapVidVideo) -> int:
    """Count the points annotated as visible outside the frame."""
    visible = video.points[~video.occluded]
    return int(((visible < 0) | (visible > SIDE)).any(-1).sum())


QUERY_INTERVAL = 5  # frames between the query frames of `strided`
OCCLUSIONS = ("visible", "cycle")


class TrackQueries(NamedTuple):
    """The query points of a video: in place of the official (t, y, x), where to find them."""

    track: Int[Tensor, " q"]  # row of the video's points
    frame: Int[Tensor, " q"]
    evaluated: Bool[Tensor, "q t"]  # the frames that count


class VideoTracks(NamedTuple):
    """A video's queries and ground truth, without its pixels: the input of a test step."""

    video: str
    queries: TrackQueries
    points: Float[Tensor, "q t 2"]  # (x, y), the official frame
    occluded: Bool[Tensor, "q t"]
    scale: Float[Tensor, " 2"]  # pixels the backbone sees per pixel of the official frame
    offset: Float[Tensor, " 2"]  # where the official corner went; see coords.to_view


def first_queries(occluded: Bool[Tensor, "n t"]) -> TrackQueries:
    """Query each track from its first visible frame; only later frames count. Tracks never visible are dropped.

    >>> first_queries(torch.tensor([[True, False, False], [True, True, True]]))
    TrackQueries(track=tensor([0]), frame=tensor([1]), evaluated=tensor([[False, False,  True]]))
    """
    track = (~occluded).any(1).nonzero()[:, 0]
    frame = (~occluded[track]).int().argmax(1)  # the first of equals
    return TrackQueries(track, frame, torch.arange(occluded.shape[1]) > frame[:, None])


def strided_queries(occluded: Bool[Tensor, "n t"]) -> TrackQueries:
    """Query all visible points in every fifth frame; all frames but the query's count.

    >>> strided_queries(torch.tensor([[False, False], [True, False]]))
    TrackQueries(track=tensor([0]), frame=tensor([0]), evaluated=tensor([[False,  True]]))
    """
    query_index, track = (~occluded[:, ::QUERY_INTERVAL]).T.nonzero(as_tuple=True)
    frame = query_index * QUERY_INTERVAL
    return TrackQueries(track, frame, torch.arange(occluded.shape[1]) != frame[:, None])


MODES: Mapping[str, Callable[[Tensor], TrackQueries]] = {"first": first_queries, "strided": strided_queries}


class TapVid(EvaluationBenchmark):
    """The official pickle, `tapvid_davis.pkl`, in `root` or its sub-folder `tapvid_davis`.

    Args:
        root: The folder of the pickle.
        size: Side of the square the backbone sees, in pixels.
        query: Query frames: `first`, see `first_queries`, or `strided`, see `strided_queries`.
        occlusion: `visible` calls every point visible: a matcher always finds something. `cycle` calls it
            visible if, matched back into the query frame, it returns to the query.
        cycle_threshold: How near it must return, in pixels of the official frame.
        frames: Side to which the frames are resized before anything else. The official protocol says 256,
            from which the backbone's size is enlarged again; `native` or None leaves that out.
        options: As for every benchmark; `resize` is `squash`, `letterbox` or `corner`, without a margin. They are the
            same unless `frames` is `native`.
    """

    name = "tapvid_davis"
    splits = ("test",)
    title, cases_name, section, is_video = "TAP-Vid", "videos", "tracking", True
    official: Mapping[str, int] = MappingProxyType({"videos": 30})
    recipe = DownloadRecipe(
        licence="annotations CC BY 4.0; the DAVIS videos have terms of their own (not verified here: see DAVIS)",
        archives=(ArchiveInfo("tapvid_davis.zip", "https://storage.googleapis.com/dm-tapnet/tapvid_davis.zip"),),
        marker_file=FILE,
    )

    @check_arguments("data")
    def __init__(
        self,
        root: str,
        size: int,
        query: str = "first",
        occlusion: str = "visible",
        cycle_threshold: Positive = 8.0,
        frames: int | str | None = SIDE,
        **options: Annotated[Any, OptionsOf(PairDataModule)],
    ) -> None:
        super().__init__(root, size, **options)
        choices = {"resize": RESIZES, "query": tuple(MODES), "occlusion": OCCLUSIONS}
        for (key, allowed), value in zip(choices.items(), (self.resize, query, occlusion), strict=True):
            if value not in allowed:
                raise UserError(f"`data.{key}` must be one of {', '.join(allowed)}, got {value!r}")
        side = None if frames == "native" else frames
        if isinstance(side, str) or (side is not None and side < 1):
            raise UserError(f"`data.frames` must be a side in pixels or native, got {frames!r}")
        self.side, self.query, self.occlusion, self.cycle_threshold = side, query, occlusion, cycle_threshold
        self.videos = cache(self._read)

    def cases(self, split: str) -> Sequence[VideoTracks]:
        """Return the queries of every video, without pixels."""
        return [self.tracks(name) for name in self.videos()]

    def check(self, split: str) -> None:
        """Read the pickle; the backbone's size, on which the queries' geometry depends, is not known yet."""
        self.videos()

    def tracks(self, name: str) -> VideoTracks:
        """Return a video's queries and their ground truth."""
        video = self.videos()[name]
        queries = MODES[self.query](video.occluded)
        fit = fit_to_square((self.side, self.side) if self.side else video.frames.shape[2:0:-1], self.size, self.resize)
        scale, offset = torch.tensor(fit.size) / SIDE, torch.tensor(fit.offset, dtype=torch.float32)
        return VideoTracks(name, queries, video.points[queries.track], video.occluded[queries.track], scale, offset)

    def images(self, name: str) -> DataLoader[Tensor]:
        """Return a video's frames as the backbone sees them, in batches of `encode_batch`."""
        return self.loader(FrameDataset(self.videos()[name].frames, self.side, self.size, self.resize))

    def _read(self) -> dict[str, TapVidVideo]:
        require_root(self.root, "TAP-Vid-DAVIS", "Run `python -m semcorr.prepare tapvid_davis`, or give data.root=DIR.")
        path = find_pickle(self.root)
        videos = read_videos(path)
        if not any(MODES[self.query](video.occluded).evaluated.any() for video in videos.values()):
            raise UserError(
                f"{path}: no point is visible in any video, so there is nothing to follow. Restore the official file."
            )
        return videos
