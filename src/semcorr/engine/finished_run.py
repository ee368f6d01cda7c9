"""What a finished evaluation left: its metrics, and the rows that they follow from."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from semcorr.core.errors import UserError
from semcorr.core.text_files import JsonMapping, read_mapping

if TYPE_CHECKING:  # they bring torch, which --help can do without
    from semcorr.metrics.predictions import Predictions

SAME = ("keypoint", "target", "extent", "ambiguous", "source_image", "target_image")


class EvaluatedRun(NamedTuple):
    """A finished evaluation: what it reports and the rows that follow from."""

    name: str
    metrics: JsonMapping
    rows: "Predictions"


def read_evaluated_run(folder: Path) -> EvaluatedRun:
    """The rows of the read-out and protocol that metrics.json reports.

    Raises:
        UserError: The folder is not that of a finished run on pairs.
    """
    from semcorr.metrics import predictions_table as table
    from semcorr.metrics.predictions import load_predictions, split_by_spec

    absent = [name for name in ("metrics.json", "predictions.parquet") if not (folder / name).is_file()]
    if absent:
        raise UserError(f"{folder} has no {' and no '.join(absent)}. Give the run_dir of a finished evaluation")
    try:
        metrics = read_mapping(folder / "metrics.json", "Evaluate again")
        found = split_by_spec(table.read_predictions(folder / "predictions.parquet"))
        wanted = (metrics["protocol"], metrics["localise"])
    except UserError as error:
        raise UserError(f"{folder} holds no run on pairs: {error}") from None
    except KeyError as error:
        raise UserError(f"{folder} holds no run on pairs: metrics.json has no {error}. Evaluate again") from None
    if not all(isinstance(word, str) for word in wanted) or wanted not in found:
        raise UserError(f"{folder}: predictions.parquet has no rows of {wanted[1]} under protocol {wanted[0]}")
    return EvaluatedRun(str(folder), metrics, load_predictions(found[wanted]))


def require_same_pairs(first: EvaluatedRun, second: EvaluatedRun) -> None:
    """Differences are of something only where everything but the predictions is the same."""
    protocols = [run.metrics["protocol"] for run in (first, second)]
    if protocols[0] != protocols[1]:
        raise UserError(
            f"{first.name} is under protocol {protocols[0]}, {second.name} under {protocols[1]}. "
            "Give runs under the same protocol"
        )
    mine, theirs = set(first.rows.pairs), set(second.rows.pairs)
    if mine != theirs:
        raise UserError(
            f"{first.name} scored {len(mine)} pairs and {second.name} {len(theirs)}, {len(mine & theirs)} of them the "
            "same. Give runs on the same pairs"
        )
    values = [{name: getattr(run.rows, name) for name in ("pair", *SAME)} for run in (first, second)]
    odd = [name for name, value in values[0].items() if not _alike(value, values[1][name])]
    if odd or first.rows.images != second.rows.images:
        raise UserError(
            f"{first.name} and {second.name} scored pairs of the same names, but of other {(odd or ['images'])[0]}: "
            "another version of the benchmark? Give runs on the same pairs"
        )


def _alike(mine: object, theirs: object) -> bool:
    """Equal; points, in pixels, but for the rounding of views of other sizes, which they have been through."""
    import numpy as np

    return mine.shape == theirs.shape and np.allclose(mine, theirs, rtol=1e-5, atol=0.01)
