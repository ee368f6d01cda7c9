"""The predictions table as arrays, from which every breakdown is computed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Float, Int

from semcorr.core.errors import UserError
from semcorr.metrics.pck import normalised_error


class Predictions(NamedTuple):
    """Rows of one read-out under one protocol; pairs, images and categories count into their sorted names."""

    pair: Int[np.ndarray, " m"]
    keypoint: Int[np.ndarray, " m"]  # original id
    predicted: Float[np.ndarray, "m 2"]  # original target pixels
    target: Float[np.ndarray, "m 2"]
    extent: Float[np.ndarray, " m"]
    ambiguous: Bool[np.ndarray, " m"]
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
        UserError: A keypoint of a pair has two rows: there are several read-outs or protocols, choose one.
    """
    table = table.sort_by([("pair", "ascending"), ("keypoint", "ascending")])
    column = {name: table[name].to_numpy() for name in table.schema.names}
    pairs, first, pair = np.unique(column["pair"].astype(str), return_index=True, return_inverse=True)
    keypoint = column["keypoint"].astype(int)
    if bool(((np.diff(pair) == 0) & (np.diff(keypoint) == 0)).any()):
        raise UserError("a keypoint has two rows in the table: there are several read-outs or protocols. Choose one")
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
    """Split a table by (protocol, read-out). An older table without the column `protocol` is our own protocol's."""
    if "protocol" not in table.schema.names:
        table = table.append_column("protocol", pa.array(["semcorr"] * table.num_rows, pa.string()))
    tables: dict[tuple[str, str], pa.Table] = {}
    for protocol in sorted(table["protocol"].unique().to_pylist()):
        protocol_rows = table.filter(pc.equal(table["protocol"], protocol))
        for rule in sorted(protocol_rows["localise"].unique().to_pylist()):
            tables[protocol, rule] = protocol_rows.filter(pc.equal(protocol_rows["localise"], rule))
    return tables


def is_correct(rows: Predictions, alphas: Sequence[float], strict: bool = False) -> Bool[np.ndarray, "a m"]:
    """Tell whether each keypoint is correct at each alpha: error <= alpha, or < alpha where the protocol is strict."""
    compare = np.less if strict else np.less_equal
    return compare(rows.error, np.asarray(alphas, float)[:, None])


def subset_masks(rows: Predictions) -> dict[str, Bool[np.ndarray, " m"]]:
    """Return masks of the rows of `all`, `geo` and `std`."""
    return {"all": np.ones_like(rows.ambiguous), "geo": rows.ambiguous, "std": ~rows.ambiguous}


def correct_per_pair(
    rows: Predictions, hits: Bool[np.ndarray, "a m"], mask: Bool[np.ndarray, " m"]
) -> tuple[Int[np.ndarray, "a p"], Int[np.ndarray, " p"]]:
    """Count each pair's correct keypoints in `mask`, and all its keypoints in `mask`."""
    count = len(rows.pairs)
    correct = [np.bincount(rows.pair[mask & hit], minlength=count) for hit in hits]
    return np.stack(correct), np.bincount(rows.pair[mask], minlength=count)
