"""The predictions table, one row per matched keypoint: written, read, and as arrays for every number."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.core.files import replace_file
from semcorr.core.parquet import read_parquet, write_parquet
from semcorr.core.shapes import check_shapes
from semcorr.core.text_files import JsonObject
from semcorr.metrics.pck import INCLUSIVE, Tolerance, normalised_error


class Predictions(NamedTuple):
    """Rows of one readout under one protocol; pairs, images and categories are indices into their sorted names."""

    pair: Int[np.ndarray, " m"]
    keypoint: Int[np.ndarray, " m"]  # original id
    predicted: Float[np.ndarray, "m 2"]  # original target pixels
    target: Float[np.ndarray, "m 2"]
    extent: Float[np.ndarray, " m"]  # what alpha is a fraction of, in original target pixels
    ambiguous: Bool[np.ndarray, " m"]  # geometry-aware
    error: Float[np.ndarray, " m"]  # distance over extent, in the frame of the protocol
    category: Int[np.ndarray, " p"]  # of every pair
    source_image: Int[np.ndarray, " p"]
    target_image: Int[np.ndarray, " p"]
    pairs: Sequence[str]
    images: Sequence[str]
    categories: Sequence[str]


def load_predictions(table: pa.Table) -> Predictions:
    """Read the arrays of a table, whatever the order of its rows.

    Raises:
        UserError: A keypoint of a pair has two rows: there are several readouts or protocols, choose one.
    """
    table = table.sort_by([("pair", "ascending"), ("keypoint", "ascending")])
    column = {name: table[name].to_numpy() for name in table.schema.names}
    pairs, first, pair = np.unique(column["pair"].astype(str), return_index=True, return_inverse=True)
    keypoint = column["keypoint"].astype(int)
    if bool(((np.diff(pair) == 0) & (np.diff(keypoint) == 0)).any()):
        raise UserError("a keypoint has two rows in the table: there are several readouts or protocols. Choose one")
    ends = np.concatenate([column[side][first].astype(str) for side in ("source", "target")])
    images, image = np.unique(ends, return_inverse=True)
    categories, category = np.unique(column["category"][first].astype(str), return_inverse=True)
    predicted, target = (np.stack([column[f"{what}_{axis}"] for axis in "xy"], -1) for what in ("predicted", "target"))
    return Predictions(
        pair=pair,
        keypoint=keypoint,
        predicted=predicted.astype(float),
        target=target.astype(float),
        extent=column["extent"].astype(float),
        ambiguous=column["ambiguous"].astype(bool),
        error=error_column(table),
        category=category,
        source_image=image[: len(pairs)],
        target_image=image[len(pairs) :],
        pairs=pairs.tolist(),
        images=images.tolist(),
        categories=categories.tolist(),
    )


def error_column(table: pa.Table) -> Float[np.ndarray, " m"]:
    """Return the column `error`; for an older table without it, `metrics.pck.normalised_error` of its coordinates."""
    if "error" in table.schema.names:
        return table["error"].to_numpy().astype(float)
    points = [torch.tensor(np.stack([table[f"{w}_{a}"].to_numpy() for a in "xy"], -1)) for w in ("predicted", "target")]
    return normalised_error(points[0][:, None], points[1][:, None], torch.tensor(table["extent"].to_numpy()))[
        :, 0
    ].numpy()


def split_by_spec(table: pa.Table) -> dict[tuple[str, str], pa.Table]:
    """Split a table by (protocol, readout). An older table without the column `protocol` is our own protocol's."""
    if "protocol" not in table.schema.names:
        table = table.append_column("protocol", pa.array(["semcorr"] * table.num_rows, pa.string()))
    tables: dict[tuple[str, str], pa.Table] = {}
    for protocol in sorted(table["protocol"].unique().to_pylist()):
        protocol_rows = table.filter(pc.equal(table["protocol"], protocol))
        for readout in sorted(protocol_rows["localise"].unique().to_pylist()):
            tables[protocol, readout] = protocol_rows.filter(pc.equal(protocol_rows["localise"], readout))
    return tables


@check_shapes
def is_correct(rows: Predictions, alphas: Sequence[float], tolerance: Tolerance = INCLUSIVE) -> Bool[np.ndarray, "a m"]:
    """Tell whether each keypoint is correct at each alpha: error <= alpha, or < alpha where the protocol is strict."""
    return tolerance.is_correct(rows.error, np.asarray(tolerance.round_alphas(alphas))[:, None])


def subset_masks(rows: Predictions) -> dict[str, Bool[np.ndarray, " m"]]:
    """Return masks of the rows of `all`, `geo` and `std`."""
    return {"all": np.ones_like(rows.ambiguous), "geo": rows.ambiguous, "std": ~rows.ambiguous}


@check_shapes
def correct_per_pair(
    rows: Predictions, correct: Bool[np.ndarray, "a m"], mask: Bool[np.ndarray, " m"]
) -> tuple[Int[np.ndarray, "a p"], Int[np.ndarray, " p"]]:
    """Count each pair's correct keypoints in `mask`, and all its keypoints in `mask`."""
    count = len(rows.pairs)
    counts = [np.bincount(rows.pair[mask & is_correct], minlength=count) for is_correct in correct]
    return np.stack(counts), np.bincount(rows.pair[mask], minlength=count)


def require_row_per_alpha(correct: Bool[np.ndarray, "a m"], alphas: Sequence[float]) -> None:
    """Refuse another number of rows than of tolerances: they would be paired wrongly."""
    if len(correct) != len(alphas):
        raise UserError(f"`correct` has {len(correct)} rows for {len(alphas)} alphas. Give a row for each alpha")


SCHEMA = pa.schema(
    [
        ("pair", pa.string()),
        ("source", pa.string()),
        ("target", pa.string()),
        ("category", pa.string()),
        ("keypoint", pa.int32()),  # original id
        ("source_x", pa.float32()),
        ("source_y", pa.float32()),  # original source pixels
        ("target_x", pa.float32()),
        ("target_y", pa.float32()),  # original target pixels, as predicted_*
        ("predicted_x", pa.float32()),
        ("predicted_y", pa.float32()),
        ("extent", pa.float32()),
        ("ambiguous", pa.bool_()),
        ("score", pa.float32()),  # similarity of the best cell
        ("localise", pa.string()),
        ("protocol", pa.string()),
        ("error", pa.float64()),  # distance / extent, in the protocol's frame: right if at most alpha (or less)
    ]
)
OPTIONAL = ("source_x", "source_y", "score", "protocol", "error")  # columns that an older table may lack
ORDER = ("pair", "keypoint", "localise", "protocol")  # of the rows


def build_rows(
    *,
    pair: Sequence[str],
    source: Sequence[str],
    target: Sequence[str],
    category: Sequence[str],
    points: Float[Tensor, "b n 6"],
    extent: Float[Tensor, " b"],
    shared: Bool[Tensor, "b n"],
    ambiguous: Bool[Tensor, "b n"],
    score: Float[Tensor, "b n"],
    localise: str,
    protocol: str,
    error: Float[Tensor, "b n"],
) -> pa.Table:
    """Build the rows of a batch's shared keypoints, with the columns of `SCHEMA`.

    Args:
        pair: Name of each pair.
        source: Name of each source image.
        target: Name of each target image.
        category: Category of each pair.
        points: Source, target and predicted (x, y) of every keypoint, each in the image's original pixels.
        extent: Length that alpha is a fraction of, in original target pixels.
        shared: Which keypoints both images show.
        ambiguous: Which keypoints are geometry-aware.
        score: Similarity of the best cell.
        localise: Label of the readout.
        protocol: Name of the protocol.
        error: Distance over extent, in the protocol's frame.
    """
    pair_index, keypoint = (index.tolist() for index in shared.nonzero(as_tuple=True))
    extents = extent.tolist()
    columns: JsonObject = {
        "pair": [pair[i] for i in pair_index],
        "source": [source[i] for i in pair_index],
        "target": [target[i] for i in pair_index],
        "category": [category[i] for i in pair_index],
        "keypoint": keypoint,
        "extent": [extents[i] for i in pair_index],
        "ambiguous": ambiguous[shared].tolist(),
        "score": score[shared].tolist(),
        "localise": [localise] * len(pair_index),
        "protocol": [protocol] * len(pair_index),
        "error": error[shared].tolist(),
    }
    names = [f"{what}_{axis}" for what in ("source", "target", "predicted") for axis in "xy"]
    columns |= dict(zip(names, points[shared].T.tolist(), strict=True))
    return pa.table(columns, schema=SCHEMA)


def with_predictions(
    table: pa.Table,
    *,
    predicted: Float[Tensor, "b n 2"],
    shared: Bool[Tensor, "b n"],
    score: Float[Tensor, "b n"],
    localise: str,
    protocol: str,
    error: Float[Tensor, "b n"],
) -> pa.Table:
    """Return the rows of the same keypoints by another specification; columns in common are reused.

    Args:
        table: Rows of the batch, as `build_rows` returns them.
        predicted: Predicted keypoints, in original target pixels.
        shared: Which keypoints both images show, as it was given to `build_rows`.
        score: Similarity of the best cell.
        localise: Label of the readout.
        protocol: Name of the protocol.
        error: Distance over extent, in the protocol's frame.
    """
    x, y = predicted[shared].cpu().unbind(-1)
    changed = {"predicted_x": x, "predicted_y": y, "score": score[shared].cpu(), "error": error[shared].cpu()}
    columns = {name: pa.array(values.numpy(), SCHEMA.field(name).type) for name, values in changed.items()}
    columns |= {key: pa.repeat(value, len(table)) for key, value in (("localise", localise), ("protocol", protocol))}
    return pa.table([columns.get(name, table[name]) for name in SCHEMA.names], schema=SCHEMA)


def gather_tables(tables: Sequence[pa.Table], schema: pa.Schema = SCHEMA, order: Sequence[str] = ORDER) -> pa.Table:
    """Gather all processes' rows on every process, sorted; every process must call it.

    Args:
        tables: Tables of this process, of one schema.
        schema: Schema of the tables.
        order: Columns that rows are sorted by.
    """
    local_table = pa.concat_tables([schema.empty_table(), *tables])
    parts: list[pa.Table | None] = [local_table]
    if dist.is_available() and dist.is_initialized():
        parts = [None] * dist.get_world_size()
        dist.all_gather_object(parts, local_table)
    return pa.concat_tables(parts).sort_by([(column, "ascending") for column in order])


def write_predictions(table: pa.Table, path: Path) -> None:
    """Write a table as Parquet; never a half-written file under the final name."""
    with replace_file(path) as temporary:
        write_parquet(table, temporary)


def read_predictions(path: Path) -> pa.Table:
    """Read a predictions table that a run left.

    Raises:
        UserError: It is missing, damaged, or no predictions table.
    """
    table = read_parquet(path, SCHEMA, OPTIONAL)
    if incomplete := [name for name in table.schema.names if table[name].null_count]:
        raise UserError(f"{path}: column {incomplete[0]} has rows without a value. Evaluate again")
    return table
