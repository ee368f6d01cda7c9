"""The table of tracks: one row per query point and evaluated frame, and its scores."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from semcorr.metrics.tracking import Scores, tapvid_metrics

SCHEMA = pa.schema(
    [
        ("video", pa.string()),
        ("query", pa.int32()),  # counts the video's query points
        ("track", pa.int32()),  # the official row of the point that is asked for
        ("query_frame", pa.int32()), ("frame", pa.int32()),
        ("query_x", pa.float32()), ("query_y", pa.float32()),  # the official 256 x 256 frame: pixel k is [k, k + 1]
        ("true_x", pa.float32()), ("true_y", pa.float32()),
        ("predicted_x", pa.float32()), ("predicted_y", pa.float32()),
        ("true_occluded", pa.bool_()), ("predicted_occluded", pa.bool_()),
        ("score", pa.float32()),  # similarity of the best cell
        ("localise", pa.string()),
    ]
)  # fmt: skip
ORDER = ("video", "query", "frame")  # of the table's rows


def video_scores(table: pa.Table) -> dict[str, Scores]:
    """Every video's scores, from its rows alone: any number of processes, the same digits."""
    return {
        name: _of_rows(table.filter(pc.equal(table["video"], name)))
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
    """One row per query and evaluated frame; points in the official 256 x 256 frame."""
    which, frame = evaluated.nonzero(as_tuple=True)
    points = torch.cat((query[:, None].expand_as(truth), truth, predicted), dim=-1)[which, frame]
    names = [f"{what}_{axis}" for what in ("query", "true", "predicted") for axis in "xy"]
    tensors = {
        "query": which, "track": track[which], "query_frame": query_frame[which], "frame": frame,
        **dict(zip(names, points.unbind(-1), strict=True)),
        "true_occluded": occluded[evaluated], "predicted_occluded": predicted_occluded[evaluated],
        "score": score[evaluated],
    }  # fmt: skip
    columns: dict[str, Any] = {name: values.cpu().numpy() for name, values in tensors.items()}
    same = {"video": [video] * len(which), "localise": [localise] * len(which)}
    return pa.table({name: pa.array((columns | same)[name], SCHEMA.field(name).type) for name in SCHEMA.names})


def _of_rows(table: pa.Table) -> Scores:
    """All the rows of a video as one long track: only sums over them are asked for."""
    column = {name: torch.tensor(table[name].to_numpy()) for name in SCHEMA.names if name[:4] in ("true", "pred")}
    truth, predicted = (torch.stack((column[f"{w}_x"], column[f"{w}_y"]), -1)[None] for w in ("true", "predicted"))
    occluded, called = column["true_occluded"][None], column["predicted_occluded"][None]
    return tapvid_metrics(predicted, called, truth, occluded, torch.ones_like(occluded))
