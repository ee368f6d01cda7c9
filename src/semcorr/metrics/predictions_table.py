"""The predictions table: one row per matched keypoint, from which every number can be computed."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.core.files import replace_file
from semcorr.core.parquet import read_parquet, write_parquet
from semcorr.core.text_files import JsonObject

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
    """Build the rows of a batch's shared keypoints; `points` are source, target and predicted (x, y)."""
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
    """Return the rows of the same keypoints by another specification; columns in common are reused."""
    x, y = predicted[shared].cpu().unbind(-1)
    changed = {"predicted_x": x, "predicted_y": y, "score": score[shared].cpu(), "error": error[shared].cpu()}
    columns = {name: pa.array(values.numpy(), SCHEMA.field(name).type) for name, values in changed.items()}
    columns |= {key: pa.repeat(value, len(table)) for key, value in (("localise", localise), ("protocol", protocol))}
    return pa.table([columns.get(name, table[name]) for name in SCHEMA.names], schema=SCHEMA)


def gather_tables(tables: Sequence[pa.Table], schema: pa.Schema = SCHEMA, order: Sequence[str] = ORDER) -> pa.Table:
    """Gather all processes' rows on every process, sorted."""
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
