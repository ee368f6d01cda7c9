"""Point tracking by matching: every frame is a target of the query frames; and what an evaluation of it writes."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import torch
from jaxtyping import Float, Int
from rich.table import Table
from torch import Tensor

from semcorr.core.coords import from_corner, from_view, to_corner, to_image, to_view
from semcorr.core.device import full_float32, read_clock
from semcorr.core.errors import UserError
from semcorr.core.files import write_json
from semcorr.core.terminal import Terminal, format_score
from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.core.types import FeatureMap
from semcorr.data.tapvid import TapVid, TrackQueries, VideoTracks
from semcorr.engine.evaluation_only import EvaluationModule
from semcorr.engine.module import CorrespondenceModule
from semcorr.evaluation.results import write_picture
from semcorr.matching.batched import cell_stride
from semcorr.matching.readouts import readout_label
from semcorr.metrics.predictions import gather_tables, write_predictions
from semcorr.metrics.tracking import ORDER, SCHEMA, THRESHOLDS, build_track_rows, mean_over_videos, video_scores
from semcorr.visualization import tracks as draw_tracks

POINTS = 256  # queries matched at once
VALUES = 2**26  # features and similarities of the targets in memory at once: 256 MiB in single precision


class FrameMatches(NamedTuple):
    """Matches of each query in each frame; only evaluated frames are filled in."""

    points: Float[Tensor, "q t 2"]  # pixels the backbone sees
    cycle_points: Float[Tensor, "q t 2"]  # the same point, matched back into the query frame
    score: Float[Tensor, "q t"]  # similarity of the best cell


class TrackingResult(NamedTuple):
    """Scores of videos, the same on every process, and the rows that they are computed from.

    Attributes:
        scores: Means over videos.
        videos: Scores of each video.
        table: Rows, one per query and evaluated frame.
        localise: Name of the readout.
        seconds: Time by stage.
    """

    scores: JsonObject
    videos: JsonObject
    table: pa.Table
    localise: str
    seconds: dict[str, float]


class TrackingModule(EvaluationModule):
    """A tracker of points, made of the backbone, head and readout of a `CorrespondenceModule`; a batch is one video.

    Frames are matched independently: there is no motion model, and nothing is trained.

    Args:
        matcher: Module with the backbone, head and readout.
        cycle: Largest distance from its query, in pixels of the official frame, at which a point that is matched back
            is predicted visible; None predicts every point visible.
    """

    result: TrackingResult

    def __init__(self, matcher: CorrespondenceModule, cycle: float | None = None) -> None:
        super().__init__(matcher)
        self.cycle = cycle
        self.tables: list[pa.Table] = []
        self.seconds = {"encode": 0.0, "match": 0.0}

    @property
    def _data(self) -> TapVid:
        data = getattr(self.trainer, "datamodule", None)
        assert isinstance(data, TapVid)
        return data

    def test_step(self, batch: VideoTracks) -> None:
        """Encode a video's frames once, track its queries, and store the rows."""
        start = read_clock(self.device)
        images = self._data.images(batch.video)
        maps = torch.cat([self.compute_maps(frames).values for frames in images])  # transformed as they are matched
        self.require_finite_maps(maps, [f"{i} of video {batch.video}" for i in range(len(maps))])
        encoded = read_clock(self.device)
        with full_float32(self.device.type):  # bfloat16 cannot tell 0.997 from 1
            self.tables.append(self.track_video(maps.float(), batch))
        self.seconds["encode"] += encoded - start
        self.seconds["match"] += read_clock(self.device) - encoded

    def on_test_epoch_end(self) -> None:
        """Gather the rows, score every video, and log the means over videos."""
        table = gather_tables(self.tables, SCHEMA, ORDER)
        videos = video_scores(table)
        scores = mean_over_videos(videos)
        self.result = TrackingResult(scores, videos, table, readout_label(self.matcher.localise), self.seconds)
        for key in ("delta_avg", "OA", "AJ"):
            if scores[key] is not None:
                self.log(f"test/{key}", scores[key])

    def write_results(self, run_dir: Path) -> JsonObject:
        """Write metrics.json, predictions.parquet and tracks.png, and return the metrics."""
        return write_tracks(self.result, self._data, run_dir)

    def print_scores(self, metrics: JsonMapping, title: str) -> None:
        """Print the three scores; see `print_tracks`."""
        print_tracks(metrics, title)

    def track_video(self, maps: Float[Tensor, "t c h w"], batch: VideoTracks) -> pa.Table:
        """Track the queries of a video from its features, and return its rows."""
        queries, geometry = batch.queries, (batch.scale, batch.offset)
        rows = torch.arange(len(queries.frame), device=maps.device)
        query = batch.points[rows, queries.frame]
        matches = self.match(maps, queries, to_view(from_corner(query), *geometry))
        not_finite = queries.evaluated & ~(matches.points.isfinite().all(-1) & matches.score.isfinite())
        if bool(not_finite.any()):
            row, frame = not_finite.nonzero()[0].tolist()
            raise UserError(
                f"`localise`: track {int(queries.track[row])} has no finite place in frame {frame} of video "
                f"{batch.video}. Check the weights of the head, and `localise`'s options"
            )
        predicted, returned = (to_corner(from_view(p.flatten(0, 1), *geometry)).view_as(p) for p in matches[:2])
        occluded = (returned - query[:, None]).norm(dim=-1) > (torch.inf if self.cycle is None else self.cycle)
        return build_track_rows(
            video=batch.video,
            track=queries.track,
            query_frame=queries.frame,
            query=query,
            truth=batch.points,
            predicted=predicted,
            occluded=batch.occluded,
            predicted_occluded=occluded,
            evaluated=queries.evaluated,
            score=matches.score,
            localise=readout_label(self.matcher.localise),
        )

    def match(
        self, maps: Float[Tensor, "t c h w"], queries: TrackQueries, points: Float[Tensor, "q 2"]
    ) -> FrameMatches:
        """Match every query to every evaluated frame.

        Args:
            maps: Features of all frames, as the backbone gives them.
            queries: The queries, each with its frame and the frames to evaluate.
            points: (x, y) of each query in its frame, in pixels the backbone sees.
        """
        initial = points[:, None].repeat(1, len(maps), 1)
        matches = FrameMatches(initial, initial.clone(), torch.zeros_like(initial[..., 0]))
        for source, rows, targets in split_queries(queries, frames_per_chunk(maps)):
            source_maps = maps[source].expand(len(targets), -1, -1, -1)
            target_maps = maps[targets]
            query_points = points[rows].expand(len(targets), -1, -1)
            matched, score = self._transfer(source_maps, target_maps, query_points)
            index = (rows[:, None], targets)
            matches.points[index], matches.score[index] = matched.transpose(0, 1), score.T
            if self.cycle is not None:
                matches.cycle_points[index] = self._transfer(target_maps, source_maps, matched)[0].transpose(0, 1)
        return matches

    def _transfer(
        self, source: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"], points: Float[Tensor, "b n 2"]
    ) -> tuple[Float[Tensor, "b n 2"], Float[Tensor, "b n"]]:
        source_maps, target_maps = (FeatureMap(maps, self.backbone.stride) for maps in (source, target))
        similarity = self.matcher.head(source_maps, target_maps, points).float()
        matched = to_image(self.matcher.localise(similarity), cell_stride(target_maps, similarity))
        return matched, similarity.flatten(2).amax(-1)


def split_queries(queries: TrackQueries, frames: int) -> Iterator[tuple[int, Int[Tensor, " n"], Int[Tensor, " b"]]]:
    """Yield the source frame, queries and target frames of each chunk to match; at most `frames` targets.

    Queries of the same frame have the same evaluated frames. The chunks do not depend on the number of processes, so
    neither do the results.
    """
    for source in queries.frame.unique().tolist():
        for rows in (queries.frame == source).nonzero()[:, 0].split(POINTS):
            targets = queries.evaluated[rows[0]].nonzero()[:, 0]
            for chunk in targets.split(frames):
                if len(chunk):
                    yield source, rows, chunk


def frames_per_chunk(maps: Float[Tensor, "t c h w"]) -> int:
    """Return the number of target frames whose features and similarities fit into `VALUES`."""
    _, c, h, w = maps.shape
    return max(1, VALUES // ((c + POINTS) * h * w))


DISPLAYED_VIDEOS = 6  # videos in the picture


def write_tracks(result: TrackingResult, data: TapVid, run_dir: Path) -> JsonObject:
    """Write metrics.json, predictions.parquet and tracks.png, and return the metrics."""
    table, videos = result.table, {name: data.videos()[name].frames for name in result.videos}
    cycle = f"cycle(threshold={data.cycle_threshold:g})"
    metrics = {
        "tracking": result.scores,
        "video": result.videos,
        "queries": table.group_by(["video", "query"]).aggregate([]).num_rows,
        "frames": sum(len(frames) for frames in videos.values()),
        "videos": len(videos),
        "query_mode": data.query,
        "occlusion": data.occlusion if data.occlusion == "visible" else cycle,
        "localise": result.localise,
        "protocol": "tapvid",
        "split": f"{data.name} {data.split}",
        "seconds": {key: round(value, 3) for key, value in result.seconds.items()},
    }
    write_predictions(table, run_dir / "predictions.parquet")
    write_json(run_dir / "metrics.json", metrics, "run_dir")
    step = max(1, len(videos) // DISPLAYED_VIDEOS)
    displayed = dict(list(videos.items())[::step][:DISPLAYED_VIDEOS])
    write_picture(run_dir / "tracks.png", lambda: draw_tracks.plot_tracks(displayed, table))
    return metrics


def print_tracks(metrics: JsonMapping, title: str) -> None:
    """Print the three scores, and the values that delta_avg and AJ are the means of, in percent."""
    scores = metrics["tracking"]
    table = Table(
        title=title,
        caption=f"TAP-Vid in percent, mean over {metrics['videos']} videos, {metrics['queries']} queries "
        f"({metrics['query_mode']}), occlusion: {metrics['occlusion']}, {metrics['localise']}",
    )
    for header in ("", "mean", *(f"{threshold} px" for threshold in THRESHOLDS)):
        table.add_column(header, justify="right" if header else "left")
    for name, mean, parts in (("delta", "delta_avg", "delta"), ("Jaccard", "AJ", "jaccard")):
        table.add_row(name, *(format_score(value) for value in (scores[mean], *scores[parts].values())))
    table.add_row("occlusion accuracy", format_score(scores["OA"]))
    Terminal().print_table(table)
