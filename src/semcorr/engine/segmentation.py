"""Video object segmentation: the first frame's masks are propagated by features; and what an evaluation writes."""

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, UInt8
from rich.table import Table
from torch import Tensor
from torch.nn.functional import interpolate, one_hot

from semcorr.core.coords import cell_centres, from_view
from semcorr.core.device import full_float32, read_clock
from semcorr.core.files import write_json
from semcorr.core.terminal import Terminal
from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.core.types import FeatureMap
from semcorr.data.davis import DAVIS, SegmentedVideo, read_mask
from semcorr.data.views import SquareFit, load_image
from semcorr.engine.evaluation_only import EvaluationModule
from semcorr.evaluation.results import write_picture
from semcorr.matching.propagation import PropagationRule, propagate_labels, sharpen_labels
from semcorr.metrics.predictions import gather_tables, write_predictions
from semcorr.metrics.segmentation import (
    ORDER,
    SCHEMA,
    boundary_accuracy,
    build_mask_rows,
    mean_scores,
    object_scores,
    region_similarity,
)
from semcorr.visualization import masks as draw_masks

DISPLAYED_VIDEOS, DISPLAYED_FRAMES = 6, 4


class SegmentationResult(NamedTuple):
    """Scores of videos, the same on every process, and the rows that they are computed from.

    Attributes:
        scores: Means over the objects of all videos.
        videos: Scores of each object of each video.
        table: Rows, one per object and scored frame.
        seconds: Time by stage.
    """

    scores: JsonObject
    videos: JsonObject
    table: pa.Table
    seconds: dict[str, float]


class SegmentationModule(EvaluationModule):
    """A propagation of masks through videos by the features of a `CorrespondenceModule`; a batch is one video."""

    result: SegmentationResult

    def on_test_start(self) -> None:
        """Clear the rows, the seconds and the pictures of an earlier test."""
        self.tables: list[pa.Table] = []
        self.seconds = {"encode": 0.0, "propagate": 0.0, "score": 0.0}
        self.displayed: dict[str, list[np.ndarray]] = {}

    @property
    def _data(self) -> DAVIS:
        data = getattr(self.trainer, "datamodule", None)
        assert isinstance(data, DAVIS)
        return data

    def test_step(self, batch: SegmentedVideo) -> None:
        """Propagate the first masks of a video frame by frame, score all but the first and the last, store the rows."""
        data, objects = self._data, range(1, batch.objects + 1)
        rule = PropagationRule(data.neighbours, data.radius, data.temperature)
        fit = data.fit(batch)
        first: tuple[Tensor, Tensor] | None = None
        earlier: deque[tuple[Tensor, Tensor]] = deque(maxlen=data.previous)
        region, boundary, displayed = [], [], []
        for i, cells in enumerate(self._iterate_features(batch)):
            start = read_clock(self.device)
            if first is None:
                mask = read_mask(batch.masks[0], batch.size).to(self.device)
                first = cells.values[0], labels_of_cells(mask, batch.objects, fit, cells)
                predicted = mask
            else:
                features, labels = (torch.stack(parts) for parts in zip(first, *earlier, strict=True))
                with full_float32(self.device.type):  # bfloat16 cannot tell 0.997 from 1
                    cell_labels = propagate_labels(cells.values[0], features, labels, rule)
                earlier.append((cells.values[0], cell_labels))
                predicted = masks_of_labels(cell_labels, fit, data.size, batch.size)
            propagated = read_clock(self.device)
            if 0 < i < len(batch.frames) - 1:
                truth = read_mask(batch.masks[i], batch.size).to(self.device)
                masks, true_masks = (torch.stack([mask == number for number in objects]) for mask in (predicted, truth))
                region.append(region_similarity(masks, true_masks))
                boundary.append(boundary_accuracy(masks, true_masks))
            if i in _displayed_frames(len(batch.frames)):
                displayed.append(predicted.cpu().numpy())
            self.seconds["propagate"] += propagated - start
            self.seconds["score"] += read_clock(self.device) - propagated
        self.displayed[batch.name] = displayed
        scored = range(1, len(batch.frames) - 1)
        self.tables.append(
            build_mask_rows(batch.name, objects, scored, torch.stack(region).cpu(), torch.stack(boundary).cpu())
        )

    def _iterate_features(self, video: SegmentedVideo) -> Iterator[FeatureMap]:
        """Yield the features of each frame; those of `encode_batch` frames are in memory at once."""
        frame = 0
        start = read_clock(self.device)
        for images in self._data.images(video):
            names = [f"{path.name} of video {video.name}" for path in video.frames[frame : frame + len(images)]]
            maps, frame = self.encode(images, names), frame + len(images)
            self.seconds["encode"] += read_clock(self.device) - start
            for values in maps.values.split(1):
                yield FeatureMap(values, maps.stride)
            start = read_clock(self.device)

    def on_test_epoch_end(self) -> None:
        """Gather the rows, score every object, and log the means."""
        table = gather_tables(self.tables, SCHEMA, ORDER)
        videos = object_scores(table)
        scores = mean_scores(entry for objects in videos.values() for entry in objects.values())
        self.result = SegmentationResult(scores, videos, table, self.seconds)
        for key in ("JF", "J", "F"):
            self.log(f"test/{key}", scores[key])

    def write_results(self, run_dir: Path) -> JsonObject:
        """Write metrics.json, masks.parquet and masks.png, and return the metrics."""
        result, data = self.result, self._data
        all_videos = {video.name: video for video in data.cases(data.split)}
        videos = {name: all_videos[name] for name in result.videos}  # those that were scored
        metrics = {
            "segmentation": result.scores,
            "video": {
                name: {**mean_scores(objects.values()), "objects": objects} for name, objects in result.videos.items()
            },
            "objects": sum(map(len, result.videos.values())),
            "frames": sum(len(video.frames) for video in videos.values()),
            "videos": len(videos),
            "propagation": {
                key: getattr(data, key) for key in ("neighbours", "radius", "previous", "temperature", "resolution")
            },
            "protocol": "davis",
            "split": f"{data.name} {data.split}",
            "seconds": {key: round(value, 3) for key, value in result.seconds.items()},
        }
        write_predictions(result.table, run_dir / "masks.parquet")
        write_json(run_dir / "metrics.json", metrics, "run_dir")
        chosen = list(self.displayed)[:: max(1, len(self.displayed) // DISPLAYED_VIDEOS)][:DISPLAYED_VIDEOS]
        write_picture(
            run_dir / "masks.png",
            lambda: draw_masks.plot_masks([_displayed_row(videos[name], self.displayed[name]) for name in chosen]),
        )
        return metrics

    def print_scores(self, metrics: JsonMapping, title: str) -> None:
        """Print J&F, J and F with recall and decay, in percent."""
        scores = metrics["segmentation"]
        table = Table(
            title=title,
            caption=f"DAVIS in percent, mean over {metrics['objects']} objects of {metrics['videos']} videos; "
            f"J&F {100 * scores['JF']:.1f}",
        )
        for header in ("", "mean", "recall", "decay"):
            table.add_column(header, justify="right" if header else "left")
        for name, what in (("J", "region"), ("F", "boundary")):
            values = (scores[key] for key in (name, f"{name}_recall", f"{name}_decay"))
            table.add_row(f"{name} ({what})", *(f"{100 * value:.1f}" for value in values))
        Terminal().print_table(table)


def labels_of_cells(
    mask: UInt8[Tensor, "height width"], objects: int, fit: SquareFit, cells: FeatureMap
) -> Float[Tensor, "n h w"]:
    """Return the label of the pixel at each cell's centre, one-hot; cells in the padding are background.

    Args:
        mask: Object of each pixel of the original frame, counted from 1; 0 is background.
        objects: Number of objects of the video.
        fit: Placement of the frame in the backbone's square.
        cells: Features of the frame, of which only grid and stride are used.

    Returns:
        A map for the background, then one for each object.
    """
    h, w = cells.values.shape[-2:]
    points = cell_centres((h, w), cells.stride, mask.device, torch.float64).flatten(0, 1)
    scale, offset = (torch.tensor(value, dtype=torch.float64, device=mask.device) for value in (fit.scale, fit.offset))
    x, y = (from_view(points, scale, offset) + 0.5).floor().long().unbind(-1)  # of the pixel that holds the centre
    height, width = mask.shape
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    values = torch.where(inside, mask[y.clamp(0, height - 1), x.clamp(0, width - 1)].long(), 0)
    return one_hot(values.unflatten(0, (h, w)), objects + 1).permute(2, 0, 1).float()


def masks_of_labels(
    labels: Float[Tensor, "n h w"], fit: SquareFit, side: int, size: tuple[int, int]
) -> UInt8[Tensor, "height width"]:
    """Return the most likely object of each pixel of the original frame, 0 for background.

    Labels are enlarged to the square (bilinear), stretched, and decided there; the original then takes the nearest
    pixel, as in DINO's evaluation.

    Args:
        labels: Weights of the background and of each object in the cells of a frame.
        fit: Placement of the frame in the backbone's square.
        side: Side of the square in pixels.
        size: Width and height of the original frame in pixels.
    """
    square = interpolate(labels[None], (side, side), mode="bilinear", align_corners=False)[0]
    (x, y), (width, height) = fit.offset, fit.size
    hard_labels = sharpen_labels(square[:, y : y + height, x : x + width]).argmax(0).to(torch.uint8)
    return interpolate(hard_labels[None, None].float(), size[::-1], mode="nearest-exact")[0, 0].to(torch.uint8)


def _displayed_frames(count: int) -> list[int]:
    return sorted({round(i * (count - 1) / (DISPLAYED_FRAMES - 1)) for i in range(DISPLAYED_FRAMES)})


def _displayed_row(video: SegmentedVideo, masks: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    frames = [np.asarray(load_image(video.frames[i])) for i in _displayed_frames(len(video.frames))]
    return list(zip(frames, masks, strict=True))
