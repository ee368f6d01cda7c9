"""Scores of point tracks: position accuracy, occlusion accuracy, and both at once.

All definitions are those of TAP-Vid (Doersch et al. 2022) and its released evaluation: pixels of a
256 x 256 frame, strictly nearer than the threshold, per video over all its queries, then the plain
mean over videos.
"""

import math
from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from semcorr.core.shapes import check_shapes
from semcorr.core.text_files import JsonObject

THRESHOLDS = (1, 2, 4, 8, 16)  # pixels of the 256 x 256 frame

Scores = JsonObject  # {"delta_avg", "OA", "AJ": value, "delta", "jaccard": {threshold: value}}


@check_shapes
def tapvid_metrics(
    predicted: Float[Tensor, "n t 2"],
    predicted_occluded: Bool[Tensor, "n t"],
    truth: Float[Tensor, "n t 2"],
    occluded: Bool[Tensor, "n t"],
    evaluated: Bool[Tensor, "n t"],
) -> Scores:
    """Compute TAP-Vid's scores of one video: delta_avg, OA (occlusion accuracy), AJ (average Jaccard), in [0, 1].

    delta at a threshold: of the truly visible points, those within it, whatever the predicted
    occlusion. Jaccard: within and predicted visible, over the truly visible plus those wrongly predicted
    visible (hidden in truth, or not within). A score is None where there is nothing to divide by.

    Args:
        predicted: Predicted (x, y) of every query in every frame, in pixels of the 256 x 256 frame.
        predicted_occluded: Where the tracker predicts occlusion.
        truth: True (x, y) in the same pixels; of no meaning where `occluded`.
        occluded: Where the point is truly occluded.
        evaluated: Which frames of each query are scored; never its own.

    Example:
        >>> import torch
        >>> truth = torch.zeros(1, 4, 2)  # the query is frame 0; the point is hidden in frame 3
        >>> predicted = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [3.0, 0.0], [0.0, 0.0]]])
        >>> hidden = torch.tensor([[False, False, False, True]])
        >>> called = torch.zeros(1, 4, dtype=torch.bool)
        >>> scores = tapvid_metrics(predicted, called, truth, hidden, torch.arange(4)[None] > 0)
        >>> scores["delta"]  # one of two within 1 and 2, both within 4
        {'1': 0.5, '2': 0.5, '4': 1.0, '8': 1.0, '16': 1.0}
        >>> scores["jaccard"]["1"], scores["jaccard"]["8"]  # 1 / (2 visible + 2 wrongly so), 2 / (2 + 1)
        (0.25, 0.6666666666666666)
        >>> scores["delta_avg"], scores["AJ"], scores["OA"]
        (0.8, 0.5, 0.6666666666666666)
    """
    visible, predicted_visible = ~occluded & evaluated, ~predicted_occluded & evaluated
    squared = (predicted.double() - truth.double()).square().sum(-1)  # double: ties are the same everywhere
    delta, jaccard = {}, {}
    for threshold in THRESHOLDS:
        within = (squared < threshold**2) & visible
        delta[str(threshold)] = _ratio(within.sum(), visible.sum())
        jaccard[str(threshold)] = _ratio(
            (within & predicted_visible).sum(), visible.sum() + (predicted_visible & ~within).sum()
        )
    agreement = (predicted_occluded == occluded) & evaluated
    return {
        "delta_avg": _mean(delta.values()),
        "OA": _ratio(agreement.sum(), evaluated.sum()),
        "AJ": _mean(jaccard.values()),
        "delta": delta,
        "jaccard": jaccard,
    }


def mean_over_videos(videos: Mapping[str, Scores]) -> Scores:
    """Average every score over videos; a video where it is None is left out of that score.

    >>> mean_over_videos({"a": {"OA": 1.0, "delta": {"1": 0.5}}, "b": {"OA": None, "delta": {"1": 0.0}}})
    {'OA': 1.0, 'delta': {'1': 0.25}}
    """
    means: Scores = {}
    for key, first in next(iter(videos.values())).items():
        values_by_video = {name: scores[key] for name, scores in videos.items()}
        defined = [value for value in values_by_video.values() if value is not None]
        means[key] = mean_over_videos(values_by_video) if isinstance(first, Mapping) else _mean(defined or [None])
    return means


def _ratio(part: Tensor, whole: Tensor) -> float | None:
    """Divide two counts; None where the divisor is 0."""
    return int(part) / int(whole) if whole else None


def _mean(values: Iterable[float | None]) -> float | None:
    """Average values; None where one of them is. `fsum`: in any order the same digits."""
    terms = list(values)
    defined = [value for value in terms if value is not None]
    return math.fsum(defined) / len(terms) if len(defined) == len(terms) else None


SCHEMA = pa.schema(
    [
        ("video", pa.string()),
        ("query", pa.int32()),  # counts the video's query points
        ("track", pa.int32()),  # the official row of the query point
        ("query_frame", pa.int32()),
        ("frame", pa.int32()),
        ("query_x", pa.float32()),
        ("query_y", pa.float32()),  # the official 256 x 256 frame: pixel k is [k, k + 1]
        ("true_x", pa.float32()),
        ("true_y", pa.float32()),
        ("predicted_x", pa.float32()),
        ("predicted_y", pa.float32()),
        ("true_occluded", pa.bool_()),
        ("predicted_occluded", pa.bool_()),
        ("score", pa.float32()),  # similarity of the best cell
        ("localise", pa.string()),
    ]
)
ORDER = ("video", "query", "frame")  # of the table's rows


def video_scores(table: pa.Table) -> dict[str, Scores]:
    """Compute every video's scores from its rows alone: the same digits with any number of processes."""
    return {
        name: _score_rows(table.filter(pc.equal(table["video"], name)))
        for name in sorted(table["video"].unique().to_pylist())
    }


def build_track_rows(
    *,
    video: str,
    track: Int[Tensor, " n"],
    query_frame: Int[Tensor, " n"],
    query: Float[Tensor, "n 2"],
    truth: Float[Tensor, "n t 2"],
    predicted: Float[Tensor, "n t 2"],
    occluded: Bool[Tensor, "n t"],
    predicted_occluded: Bool[Tensor, "n t"],
    evaluated: Bool[Tensor, "n t"],
    score: Float[Tensor, "n t"],
    localise: str,
) -> pa.Table:
    """Build one row per query and evaluated frame, with the columns of `SCHEMA`.

    Args:
        video: Name of the video.
        track: Official row of each query point.
        query_frame: Frame of each query.
        query: Query points, in pixels of the official 256 x 256 frame.
        truth: True points in every frame, in the same pixels.
        predicted: Predicted points in every frame, in the same pixels.
        occluded: Where a point is truly occluded.
        predicted_occluded: Where the tracker predicts occlusion.
        evaluated: Which frames of each query are scored.
        score: Similarity of the best cell.
        localise: Label of the readout.
    """
    query_index, frame = evaluated.nonzero(as_tuple=True)
    points = torch.cat((query[:, None].expand_as(truth), truth, predicted), dim=-1)[query_index, frame]
    names = [f"{what}_{axis}" for what in ("query", "true", "predicted") for axis in "xy"]
    tensors = {
        "query": query_index,
        "track": track[query_index],
        "query_frame": query_frame[query_index],
        "frame": frame,
        **dict(zip(names, points.unbind(-1), strict=True)),
        "true_occluded": occluded[evaluated],
        "predicted_occluded": predicted_occluded[evaluated],
        "score": score[evaluated],
    }
    columns: JsonObject = {name: values.cpu().numpy() for name, values in tensors.items()}
    constants = {"video": [video] * len(query_index), "localise": [localise] * len(query_index)}
    return pa.table({name: pa.array((columns | constants)[name], SCHEMA.field(name).type) for name in SCHEMA.names})


def _score_rows(table: pa.Table) -> Scores:
    """Score all the rows of a video as one long track: only sums over them are needed."""
    column = {name: torch.tensor(table[name].to_numpy()) for name in SCHEMA.names if name[:4] in ("true", "pred")}
    truth, predicted = (torch.stack((column[f"{w}_x"], column[f"{w}_y"]), -1)[None] for w in ("true", "predicted"))
    occluded, predicted_occluded = column["true_occluded"][None], column["predicted_occluded"][None]
    return tapvid_metrics(predicted, predicted_occluded, truth, occluded, torch.ones_like(occluded))
