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
from semcorr.core.parquet import is_kin, read_parquet, write_parquet
from semcorr.core.paths import quote_value
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
        UserError: A column is missing, of another type or has rows without a number; a keypoint of a pair has two rows,
            as those of several readouts or protocols; or the rows of a pair name several images or categories.
    """
    _require_columns(table)
    texts = {name: table[name].cast(pa.string()) for name in TEXTS}  # a data frame may have numbered them
    table = pa.table({name: texts.get(name, table[name]) for name in table.schema.names})
    table = table.sort_by([("pair", "ascending"), ("keypoint", "ascending")])
    column = {name: table[name].to_numpy() for name in table.schema.names}
    pairs, first, pair = np.unique(column["pair"].astype(str), return_index=True, return_inverse=True)
    keypoint = column["keypoint"].astype(int)
    if bool(((np.diff(pair) == 0) & (np.diff(keypoint) == 0)).any()):
        raise UserError("a keypoint has two rows in the table: there are several readouts or protocols. Choose one")
    for name in TEXTS[1:]:
        expected = column[name][first][pair]
        if len(rows := np.flatnonzero(column[name] != expected)):
            words = [quote_value(str(values[rows[0]])) for values in (pairs[pair], expected, column[name])]
            raise UserError(
                f"rows of pair {words[0]} name several: {name} {words[1]} and {words[2]}. Give each pair its own name"
            )
    ends = np.concatenate([column[side][first].astype(str) for side in ("source", "target")])
    images, image = np.unique(ends, return_inverse=True)
    categories, category = np.unique(column["category"][first].astype(str), return_inverse=True)
    predicted, target = (np.stack([column[f"{what}_{axis}"] for axis in "xy"], -1) for what in ("predicted", "target"))
    error = error_column(table)
    if len(rows := np.flatnonzero(~(error >= 0))):
        raise UserError(
            f"keypoint {keypoint[rows[0]]} of pair {quote_value(str(pairs[pair[rows[0]]]))} has the error "
            f"{error[rows[0]]:g}; it must be 0 or more. Correct its coordinates, or its column `error`"
        )
    return Predictions(
        pair=pair,
        keypoint=keypoint,
        predicted=predicted.astype(float),
        target=target.astype(float),
        extent=column["extent"].astype(float),
        ambiguous=column["ambiguous"].astype(bool),
        error=error,
        category=category,
        source_image=image[: len(pairs)],
        target_image=image[len(pairs) :],
        pairs=pairs.tolist(),
        images=images.tolist(),
        categories=categories.tolist(),
    )


def _require_columns(table: object) -> None:
    """Refuse anything but a table of the columns that scores need, all filled."""
    if not isinstance(table, pa.Table):
        raise UserError(f"`table` must be a pyarrow.Table, got {type(table).__name__}. Give pyarrow's read_table(path)")
    for field in SCHEMA:
        if field.name not in table.schema.names:
            if field.name in (*OPTIONAL, "localise"):
                continue
            raise UserError(f"the table has no column `{field.name}`. Add it: {', '.join(SCHEMA.names)}")
        column = table[field.name]
        is_number = pa.types.is_floating(field.type) and pa.types.is_integer(column.type)
        if not is_number and not is_kin(column.type, field.type):
            raise UserError(f"the column `{field.name}` is {column.type}, and must be {field.type}. Convert it")
        is_point = field.name.startswith(("predicted", "target_"))
        valid = pc.is_finite(column) if is_point else pc.is_valid(column)
        if not pc.all(valid, skip_nulls=False, min_count=0).as_py():
            row = pc.index(pc.fill_null(valid, False), False).as_py()
            raise UserError(
                f"the column `{field.name}` has {column[row].as_py()} in row {row + 1}, counted from 1, and must have "
                "a value in every row. Fill it in"
            )


def error_column(table: pa.Table) -> Float[np.ndarray, " m"]:
    """Return the column `error`; for an older table without it, `metrics.pck.normalised_error` of its coordinates."""
    if "error" in table.schema.names:
        return table["error"].to_numpy().astype(float)
    predicted, target = (
        torch.tensor(np.stack([_to_floats(table[f"{what}_{axis}"]) for axis in "xy"], -1))
        for what in ("predicted", "target")
    )
    extent = torch.tensor(_to_floats(table["extent"]))
    return normalised_error(predicted[:, None], target[:, None], extent)[:, 0].numpy()


def _to_floats(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of numbers in its own precision, whole numbers in double."""
    values: np.ndarray = column.to_numpy()
    return values if np.issubdtype(values.dtype, np.floating) else values.astype(float)


def split_by_spec(table: pa.Table) -> dict[tuple[str, str], pa.Table]:
    """Split a table by (protocol, readout). An older table without the column `protocol` is our own protocol's.

    Raises:
        UserError: The table has no column `localise`.
    """
    if "localise" not in table.schema.names:
        raise UserError("the table has no column `localise`, the readout of each row. Add it")
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
TEXTS = ("pair", "source", "target", "category")
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
