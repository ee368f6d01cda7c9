"""TAP-Vid-DAVIS (Doersch et al. 2022): thirty videos with tracked points, from the official pickle.

Points stay in the official frame, 256 x 256 with the corner at 0, until they are looked up.
"""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from semcorr.core.errors import UserError
from semcorr.core.ranges import OptionsOf, Positive, Whole, check_arguments
from semcorr.data.datamodule import PairDataModule
from semcorr.data.download.recipe import ArchiveInfo, DownloadRecipe
from semcorr.data.loading import encoding_batch_size, num_loader_workers, require_shared_memory, require_workers
from semcorr.data.record import require_root
from semcorr.data.sampler import require_enough_batches, shard
from semcorr.data.tapvid_videos import FILE, SIDE, FrameDataset, TapVidVideo, find_pickle, read_videos
from semcorr.data.transforms import RESIZES, fit_to_square

EVERY = 5  # frames between the query frames of `strided`
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
    query_index, track = (~occluded[:, ::EVERY]).T.nonzero(as_tuple=True)
    frame = query_index * EVERY
    return TrackQueries(track, frame, torch.arange(occluded.shape[1]) != frame[:, None])


MODES: Mapping[str, Callable[[Tensor], TrackQueries]] = {"first": first_queries, "strided": strided_queries}


class TapVid(LightningDataModule):
    """The official pickle, `tapvid_davis.pkl`, in `root` or its sub-folder `tapvid_davis`.

    Args:
        root: The folder of the pickle.
        size: Side of the square the backbone sees, in pixels.
        split: There is only `test`.
        resize: `squash` or `letterbox`; the same thing unless `frames` is `native`.
        encode_batch: Frames encoded at once; as in `loading` if left out.
        workers: Loader processes; as in `loading` if left out.
        query: `first` or `strided`.
        occlusion: `visible` calls every point visible: a matcher always finds something. `cycle` calls it
            visible if, matched back into the query frame, it returns to the query.
        cycle_threshold: How near it must return, in pixels of the official frame.
        frames: Side to which the frames are resized before anything else. The official protocol says 256,
            from which the backbone's size is enlarged again; `native` leaves that out.
        training: Training options of other benchmarks, ignored: this one is for evaluation alone.
    """

    name = "tapvid_davis"
    splits = ("test",)
    official: Mapping[str, int] = MappingProxyType({"videos": 30})
    recipe = DownloadRecipe(
        licence="annotations CC BY 4.0; the DAVIS videos have terms of their own (not verified here: see DAVIS)",
        archives=(ArchiveInfo("tapvid_davis.zip", "https://storage.googleapis.com/dm-tapnet/tapvid_davis.zip"),),
        landmark=FILE,
    )

    @check_arguments("data")
    def __init__(
        self,
        root: str,
        size: int,
        split: str = "test",
        resize: str = "squash",
        encode_batch: int | None = None,
        workers: Whole | None = None,
        query: str = "first",
        occlusion: str = "visible",
        cycle_threshold: Positive = 8.0,
        frames: int | str | None = SIDE,
        **training: Annotated[Any, OptionsOf(PairDataModule)],
    ) -> None:
        super().__init__()
        choices = {"split": self.splits, "resize": RESIZES, "query": tuple(MODES), "occlusion": OCCLUSIONS}
        for (key, allowed), value in zip(choices.items(), (split, resize, query, occlusion), strict=True):
            if value not in allowed:
                raise UserError(f"`data.{key}` must be one of {', '.join(allowed)}, got {value!r}")
        side = None if frames == "native" else frames
        if isinstance(side, str) or (side is not None and side < 1):
            raise UserError(f"`data.frames` must be a side in pixels or native, got {frames!r}")
        if encode_batch is not None and encode_batch < 1:
            raise UserError(f"`data.encode_batch` must be positive, got {encode_batch}")
        require_workers(workers)
        self.root, self.size, self.split, self.resize = Path(root), size, split, resize
        self.encode_batch, self.workers, self.side = encode_batch, workers, side
        self.query, self.occlusion, self.cycle_threshold = query, occlusion, cycle_threshold
        self.videos = cache(self._read)

    def setup(self, stage: str) -> None:
        """Read the pickle now, so that bad data is reported before anything runs."""
        if stage != "test":
            raise UserError(
                f"`{self.name}` has nothing to train on. Train on another benchmark, for example data=spair, then "
                f"python -m semcorr.evaluate checkpoint=RUN_DIR data={self.name}."
            )
        self.videos()

    def test_dataloader(self) -> DataLoader[VideoTracks]:
        """Return the loader of this process's share of the videos: their queries, one video a batch."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        names = list(self.videos())
        videos = [[i] for i in range(len(names))]
        require_enough_batches(videos, world)
        return DataLoader([self.tracks(names[i]) for (i,) in shard(videos, rank, world)], batch_size=None)  # type: ignore[arg-type]

    def tracks(self, name: str) -> VideoTracks:
        """Return a video's queries and their ground truth."""
        video = self.videos()[name]
        queries = MODES[self.query](video.occluded)
        fit = fit_to_square((self.side, self.side) if self.side else video.frames.shape[2:0:-1], self.size, self.resize)
        scale, offset = torch.tensor(fit.size) / SIDE, torch.tensor(fit.offset, dtype=torch.float32)
        return VideoTracks(name, queries, video.points[queries.track], video.occluded[queries.track], scale, offset)

    def images(self, name: str) -> DataLoader[Tensor]:
        """Return a video's frames as the backbone sees them, in batches of `encode_batch`."""
        dataset = FrameDataset(self.videos()[name].frames, self.side, self.size, self.resize)
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        at_once, workers = encoding_batch_size(self.encode_batch, on_gpu), num_loader_workers(self.workers, on_gpu)
        require_shared_memory(workers, at_once, self.size)
        return DataLoader(dataset, at_once, num_workers=workers, pin_memory=on_gpu)

    def _read(self) -> dict[str, TapVidVideo]:
        require_root(self.root, "TAP-Vid-DAVIS", "Run `python -m semcorr.prepare tapvid_davis`, or give data.root=DIR.")
        path = find_pickle(self.root)
        videos = read_videos(path)
        if not any(MODES[self.query](video.occluded).evaluated.any() for video in videos.values()):
            raise UserError(f"{path}: no point is visible in any video, so there is nothing to follow.")
        return videos
