"""Table of tracks: one row per query point and evaluated frame; and its scores."""

import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from semcorr.core.text_files import JsonObject
from semcorr.metrics.tracking import Scores, tapvid_metrics

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
    """Build one row per query and evaluated frame; points in the official 256 x 256 frame."""
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
