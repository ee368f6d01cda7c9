"""Point tracking by matching: every frame is a target of the frames that are asked about."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import torch
from jaxtyping import Float, Int
from lightning import LightningModule
from torch import Tensor

from semcorr.core.coords import from_corner, from_view, to_corner, to_image, to_view
from semcorr.core.errors import UserError
from semcorr.core.finite import require_finite
from semcorr.core.interfaces import Backbone
from semcorr.core.text_files import JsonObject
from semcorr.core.types import FeatureMap
from semcorr.data.tapvid import TapVid, TrackQueries, VideoTracks
from semcorr.engine.module import CorrespondenceModule
from semcorr.matching.batched import cell_stride
from semcorr.matching.readout_names import readout_label
from semcorr.metrics.predictions_table import gather_tables
from semcorr.metrics.tracking import mean_over_videos
from semcorr.metrics.tracking_table import ORDER, SCHEMA, build_track_rows, video_scores
from semcorr.store.frozen import feature_origin

POINTS = 256  # queries matched at once
VALUES = 2**26  # features and similarities held at once for the targets: 256 MiB in single precision


class FrameMatches(NamedTuple):
    """What matching says of each query in each frame; only evaluated frames are filled in."""

    points: Float[Tensor, "q t 2"]  # pixels the backbone sees
    returned: Float[Tensor, "q t 2"]  # the same point, matched back into the query frame
    score: Float[Tensor, "q t"]  # similarity of the best cell


class TrackingResult(NamedTuple):
    """Scores of videos, the same on every process, and the rows that they follow from.

    Attributes:
        scores: Means over videos.
        videos: Scores of each video.
        table: A row per query and evaluated frame.
        localise: The read-out.
        seconds: Time by stage.
    """

    scores: JsonObject
    videos: JsonObject
    table: pa.Table
    localise: str
    seconds: dict[str, float]


class TrackingModule(LightningModule):
    """Follows points with the parts of a `Correspondence`; a batch is one video.

    Frames know nothing of each other: there is no motion model, and nothing is learnt.

    Args:
        matcher: Its backbone, head and localiser.
        cycle: A point is called visible if it returns within this many pixels of its query, in the
            official frame, when matched back; None calls every point visible.
    """

    result: TrackingResult

    def __init__(self, matcher: CorrespondenceModule, cycle: float | None = None) -> None:
        super().__init__()
        self.matcher, self.cycle = matcher, cycle
        self.tables: list[pa.Table] = []
        self.seconds = {"encode": 0.0, "match": 0.0}

    @property
    def backbone(self) -> Backbone:
        """The matcher's."""
        return self.matcher.backbone

    @property
    def _data(self) -> TapVid:
        data = getattr(self.trainer, "datamodule", None)
        assert isinstance(data, TapVid)
        return data

    def test_step(self, batch: VideoTracks) -> None:
        """Encode a video's frames once, follow its queries, keep the rows."""
        start = time.perf_counter()
        images = self._data.images(batch.video)
        maps = torch.cat([self.backbone(image.to(self.device, non_blocking=True)).values for image in images])
        frames = [f"{i} of video {batch.video}" for i in range(len(maps))]
        require_finite(feature_origin(self.backbone), frames, {"maps": maps})
        encoded = time.perf_counter()
        with torch.autocast(self.device.type, enabled=False):  # bfloat16 cannot tell 0.997 from 1
            self.tables.append(self.follow(maps.float(), batch))
        self.seconds["encode"] += encoded - start
        self.seconds["match"] += time.perf_counter() - encoded

    def on_test_epoch_end(self) -> None:
        """Gather the rows; score every video; log the means over videos."""
        table = gather_tables(self.tables, SCHEMA, ORDER)
        videos = video_scores(table)
        scores = mean_over_videos(videos)
        self.result = TrackingResult(scores, videos, table, readout_label(self.matcher.localise), self.seconds)
        for key in ("delta_avg", "OA", "AJ"):
            if scores[key] is not None:
                self.log(f"test/{key}", scores[key])

    def follow(self, maps: Float[Tensor, "t c h w"], batch: VideoTracks) -> pa.Table:
        """The rows of a video from its features."""
        queries, place = batch.queries, (batch.scale, batch.offset)
        each = torch.arange(len(queries.frame), device=maps.device)
        query = batch.points[each, queries.frame]
        found = self.match(maps, queries, to_view(from_corner(query), *place))
        wrong = queries.evaluated & ~(found.points.isfinite().all(-1) & found.score.isfinite())
        if bool(wrong.any()):
            row, frame = wrong.nonzero()[0].tolist()
            raise UserError(
                f"`localise`: track {int(queries.track[row])} has no finite place in frame {frame} of video "
                f"{batch.video}. Check the weights of the head, and `localise`'s options"
            )
        predicted, returned = (to_corner(from_view(p.flatten(0, 1), *place)).view_as(p) for p in found[:2])
        lost = (returned - query[:, None]).norm(dim=-1) > (torch.inf if self.cycle is None else self.cycle)
        return build_track_rows(
            video=batch.video,
            track=queries.track,
            query_frame=queries.frame,
            query=query,
            truth=batch.points,
            predicted=predicted,
            occluded=batch.occluded,
            predicted_occluded=lost,
            evaluated=queries.evaluated,
            score=found.score,
            localise=readout_label(self.matcher.localise),
        )

    def match(
        self, maps: Float[Tensor, "t c h w"], queries: TrackQueries, points: Float[Tensor, "q 2"]
    ) -> FrameMatches:
        """Every query against every frame that counts; `points` in pixels the backbone sees."""
        followed = points[:, None].repeat(1, len(maps), 1)
        found = FrameMatches(followed, followed.clone(), torch.zeros_like(followed[..., 0]))
        for source, rows, targets in split_queries(queries, frames_per_chunk(maps)):
            here = maps[source].expand(len(targets), -1, -1, -1)
            there = maps[targets]
            asked = points[rows].expand(len(targets), -1, -1)
            reached, score = self._transfer(here, there, asked)
            at = (rows[:, None], targets)
            found.points[at], found.score[at] = reached.transpose(0, 1), score.T
            if self.cycle is not None:
                found.returned[at] = self._transfer(there, here, reached)[0].transpose(0, 1)
        return found

    def _transfer(
        self, source: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"], points: Float[Tensor, "b n 2"]
    ) -> tuple[Float[Tensor, "b n 2"], Float[Tensor, "b n"]]:
        here, there = (FeatureMap(maps, self.backbone.stride) for maps in (source, target))
        similarity = self.matcher.head(here, there, points).float()
        found = to_image(self.matcher.localise(similarity), cell_stride(there, similarity))
        return found, similarity.flatten(2).amax(-1)


def split_queries(queries: TrackQueries, frames: int) -> Iterator[tuple[int, Int[Tensor, " n"], Int[Tensor, " b"]]]:
    """Source frame, queries and target frames of each matching; at most `frames` targets.

    Queries of the same frame have the same frames to be looked for in. The chunks do not depend on
    the number of processes, so neither do the results.
    """
    for source in queries.frame.unique().tolist():
        for rows in (queries.frame == source).nonzero()[:, 0].split(POINTS):
            targets = queries.evaluated[rows[0]].nonzero()[:, 0]
            for some in targets.split(frames):
                if len(some):
                    yield source, rows, some


def frames_per_chunk(maps: Float[Tensor, "t c h w"]) -> int:
    """Target frames whose features and similarities fit into `VALUES`."""
    _, c, h, w = maps.shape
    return max(1, VALUES // ((c + POINTS) * h * w))
