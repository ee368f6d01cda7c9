"""Scores of segmented videos: region similarity J, boundary accuracy F, and their mean.

All definitions are those of DAVIS 2017 (Pont-Tuset et al. 2017; Perazzi et al. 2016) and its released evaluation,
semi-supervised: one value per object and frame, the first and the last frame left out, statistics per object, then the
plain mean over the objects of all videos.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from semcorr.core.shapes import check_shapes
from semcorr.core.text_files import JsonObject

BOUNDARY_TOLERANCE = 0.008  # share of the frame's diagonal
RECALL_THRESHOLD = 0.5
DECAY_BINS = 4
SCHEMA = pa.schema(
    [
        ("video", pa.string()),
        ("object", pa.int32()),  # value of the object in the annotations
        ("frame", pa.int32()),
        ("J", pa.float64()),
        ("F", pa.float64()),
    ]
)
ORDER = ("video", "object", "frame")  # of the table's rows


@check_shapes
def region_similarity(predicted: Bool[Tensor, "*b h w"], truth: Bool[Tensor, "*b h w"]) -> Float[Tensor, "*b"]:
    """Return J, the intersection over union of masks; 1 where both are empty.

    >>> predicted, truth = torch.zeros(2, 4, dtype=torch.bool), torch.zeros(2, 4, dtype=torch.bool)
    >>> predicted[:, :2], truth[:, 1:3] = True, True
    >>> region_similarity(predicted, truth)
    tensor(0.3333, dtype=torch.float64)
    """
    union = (predicted | truth).sum((-2, -1))
    return torch.where(union > 0, (predicted & truth).sum((-2, -1)).double() / union.clamp(min=1), 1.0)


def mask_boundary(mask: Bool[Tensor, "*b h w"]) -> Bool[Tensor, "*b h w"]:
    """Return the boundary of masks, one pixel wide: what differs from its right, lower or lower right neighbour.

    Pixels of the last row have no lower neighbours, and those of the last column no right ones.
    """
    boundary = torch.zeros_like(mask)
    boundary[..., :, :-1] |= mask[..., :, :-1] ^ mask[..., :, 1:]
    boundary[..., :-1, :] |= mask[..., :-1, :] ^ mask[..., 1:, :]
    boundary[..., :-1, :-1] |= mask[..., :-1, :-1] ^ mask[..., 1:, 1:]
    return boundary


def dilate_disk(mask: Bool[Tensor, "*b h w"], radius: int) -> Bool[Tensor, "*b h w"]:
    """Dilate masks by a disk: return what lies within `radius` pixels of a pixel of the mask.

    A disk is a stack of rows, so rows are widened step by step, and each width is moved to the rows that have it.
    """
    half_widths = [math.isqrt(radius**2 - dy**2) for dy in range(radius + 1)]
    result, widened = torch.zeros_like(mask), mask.clone()
    for width in range(radius + 1):
        if width:
            _merge(widened, mask, width, dim=-1)
        for dy in (dy for dy, half_width in enumerate(half_widths) if half_width == width):
            _merge(result, widened, dy, dim=-2)
    return result


def _merge(result: Bool[Tensor, "*b h w"], mask: Bool[Tensor, "*b h w"], shift: int, dim: int) -> None:
    """Add a mask to `result`, moved by `shift` pixels in both directions of an axis."""
    length = mask.shape[dim] - shift
    if length > 0:
        for start, end in ((0, shift), (shift, 0)):
            result.narrow(dim, end, length).logical_or_(mask.narrow(dim, start, length))


@check_shapes
def boundary_accuracy(
    predicted: Bool[Tensor, "*b h w"], truth: Bool[Tensor, "*b h w"], tolerance: float = BOUNDARY_TOLERANCE
) -> Float[Tensor, "*b"]:
    """Return F, the harmonic mean of precision and recall of the boundaries of masks.

    A boundary pixel is right if it lies within a disk around one of the other boundary, whose radius is `tolerance`
    times the frame's diagonal, rounded up. F is 1 where neither mask has a boundary, and 0 where only one of them has.
    """
    radius = math.ceil(tolerance * math.hypot(*predicted.shape[-2:]))
    boundaries = [mask_boundary(mask) for mask in (predicted, truth)]
    counts = [boundary.sum((-2, -1)) for boundary in boundaries]
    right = [
        (boundary & dilate_disk(other, radius)).sum((-2, -1)) for boundary, other in (boundaries, reversed(boundaries))
    ]
    precision, recall = (
        torch.where(count > 0, hits.double() / count.clamp(min=1), 1.0)
        for hits, count in zip(right, counts, strict=True)
    )
    total = precision + recall
    f = torch.where(total > 0, 2 * precision * recall / torch.where(total > 0, total, 1.0), 0.0)
    return torch.where((counts[0] > 0) == (counts[1] > 0), f, 0.0)


def davis_statistics(values: Sequence[float]) -> dict[str, float]:
    """Return mean, recall and decay of the values of an object in consecutive frames.

    Recall is the share of frames above 0.5; decay is what the last of four parts of the video loses against the first.

    >>> davis_statistics([1.0, 1.0, 0.75, 0.25, 0.0])
    {'mean': 0.6, 'recall': 0.6, 'decay': 0.875}
    """
    array = np.asarray(values)
    ends = np.round(np.linspace(1, len(array), DECAY_BINS + 1) + 1e-10).astype(int) - 1  # as released
    first, last = array[ends[0] : ends[1] + 1], array[ends[-2] : ends[-1] + 1]
    return {
        "mean": _mean(array),
        "recall": _mean(array > RECALL_THRESHOLD),
        "decay": _mean(first) - _mean(last),
    }


def object_scores(table: pa.Table) -> dict[str, dict[str, dict[str, float]]]:
    """Compute the scores of every object of every video from its rows: {video: {object: {"JF", "J", "F", ...}}}."""
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for video in sorted(table["video"].unique().to_pylist()):
        rows = table.filter(pc.equal(table["video"], video)).sort_by([(name, "ascending") for name in ORDER])
        for number in sorted(rows["object"].unique().to_pylist()):
            part = rows.filter(pc.equal(rows["object"], number))
            region, boundary = (davis_statistics(part[name].to_pylist()) for name in "JF")
            scores.setdefault(video, {})[str(number)] = {
                "JF": (region["mean"] + boundary["mean"]) / 2,
                **{"J" if key == "mean" else f"J_{key}": value for key, value in region.items()},
                **{"F" if key == "mean" else f"F_{key}": value for key, value in boundary.items()},
            }
    return scores


def mean_scores(scores: Iterable[Mapping[str, float]]) -> JsonObject:
    """Average the scores of objects or categories, each with the same weight.

    >>> mean_scores([{"J": 0.5}, {"J": 1.0}])
    {'J': 0.75}
    """
    entries = list(scores)
    return {key: math.fsum(entry[key] for entry in entries) / len(entries) for key in entries[0]}


def build_mask_rows(
    video: str,
    objects: Sequence[int],
    frames: Sequence[int],
    region: Float[Tensor, "t n"],
    boundary: Float[Tensor, "t n"],
) -> pa.Table:
    """Build one row per frame and object, with the columns of `SCHEMA`.

    Args:
        video: Name of the video.
        objects: Value of each object in the annotations.
        frames: Number of each frame.
        region: J of each frame and object.
        boundary: F of each frame and object.
    """
    columns: JsonObject = {
        "video": [video] * (len(frames) * len(objects)),
        "object": list(objects) * len(frames),
        "frame": [frame for frame in frames for _ in objects],
        "J": region.flatten().tolist(),
        "F": boundary.flatten().tolist(),
    }
    return pa.table({name: pa.array(columns[name], SCHEMA.field(name).type) for name in SCHEMA.names})


def _mean(values: np.ndarray) -> float:
    """Average values; `fsum`: in any order the same digits."""
    return math.fsum(values.tolist()) / len(values)
