"""Results of a finished evaluation: its metrics, and the rows of predictions that they are computed from."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from semcorr.core.errors import UserError
from semcorr.core.text_files import JsonMapping, read_mapping

if TYPE_CHECKING:  # these import torch, which --help does not need
    import numpy as np

    from semcorr.metrics.predictions import Predictions

SAME = ("keypoint", "target", "extent", "ambiguous", "source_image", "target_image", "category")
TEXTS = ("images", "categories")  # by which rows are numbered


class EvaluatedRun(NamedTuple):
    """A finished evaluation: its metrics and the rows of predictions that they are computed from."""

    name: str
    metrics: JsonMapping
    rows: "Predictions"


def read_evaluated_run(folder: Path) -> EvaluatedRun:
    """Read the metrics of a run, and the rows of the readout and protocol that metrics.json reports.

    Raises:
        UserError: The folder is not that of a finished run on pairs.
    """
    from semcorr.metrics import predictions as table
    from semcorr.metrics.predictions import load_predictions, split_by_spec

    missing = [name for name in ("metrics.json", "predictions.parquet") if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} has no {' and no '.join(missing)}. Give the run_dir of a finished evaluation")
    try:
        metrics = read_mapping(folder / "metrics.json", "Evaluate again")
        tables = split_by_spec(table.read_predictions(folder / "predictions.parquet"))
        spec = (metrics["protocol"], metrics["localise"])
    except UserError as error:
        raise UserError(f"{folder} holds no run on pairs: {error}") from None
    except KeyError as error:
        raise UserError(f"{folder} holds no run on pairs: metrics.json has no {error}. Evaluate again") from None
    if not all(isinstance(word, str) for word in spec) or spec not in tables:
        raise UserError(
            f"{folder}: predictions.parquet has no rows of {spec[1]} under protocol {spec[0]}. Evaluate again"
        )
    try:
        return EvaluatedRun(str(folder), metrics, load_predictions(tables[spec]))
    except UserError as error:
        raise UserError(f"{folder / 'predictions.parquet'}: {error}") from None


def require_same_pairs(first: EvaluatedRun, second: EvaluatedRun) -> None:
    """Refuse runs that differ in more than their predictions: only then do differences have a meaning."""
    protocols = [run.metrics["protocol"] for run in (first, second)]
    if protocols[0] != protocols[1]:
        raise UserError(
            f"{first.name} is under protocol {protocols[0]}, {second.name} under {protocols[1]}. "
            "Give runs under the same protocol"
        )
    first_pairs, second_pairs = set(first.rows.pairs), set(second.rows.pairs)
    if first_pairs != second_pairs:
        raise UserError(
            f"{first.name} scored {len(first_pairs)} pairs and {second.name} {len(second_pairs)}, "
            f"{len(first_pairs & second_pairs)} of them the same. Give runs on the same pairs"
        )
    values = [{name: getattr(run.rows, name) for name in ("pair", *SAME)} for run in (first, second)]
    different = [name for name, value in values[0].items() if not _are_close(value, values[1][name])]
    different += [name for name in TEXTS if getattr(first.rows, name) != getattr(second.rows, name)]
    if different:
        what = "numbers of keypoints" if different[0] == "pair" else different[0]
        raise UserError(
            f"{first.name} and {second.name} scored pairs of the same names, but of other {what}: "
            "another version of the benchmark? Give runs on the same pairs"
        )


def _are_close(first: "np.ndarray", second: "np.ndarray") -> bool:
    """Tell whether two arrays are equal, up to the rounding of points by views of different sizes, in pixels."""
    import numpy as np

    return first.shape == second.shape and np.allclose(first, second, rtol=1e-5, atol=0.01)
