"""PCK by the benchmark's annotation of a pair: difference of azimuths, viewpoint, scale, truncation, occlusion."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.metrics.breakdown import pck_from_predictions
from semcorr.metrics.pck import Scores
from semcorr.metrics.predictions import Predictions

LABELS: Mapping[str, Sequence[str]] = {
    "azimuth_difference": ("0", "1", "2", "3", "4"),  # in steps of 45 degrees ("Telling Left from Right", section 3.3)
    "viewpoint_variation": ("easy", "medium", "hard"),
    "scale_variation": ("easy", "medium", "hard"),
    "truncation": ("none", "source", "target", "both"),
    "occlusion": ("none", "source", "target", "both"),
}


def pck_by_class(
    rows: Predictions, labels: Mapping[str, int | None], names: Sequence[str], alphas: Sequence[float],
    hits: Bool[np.ndarray, "a m"] | None = None,
) -> JsonObject:  # fmt: skip
    """Compute PCK of each class of pairs with its number of pairs, and count the pairs without a class.

    Args:
        rows: Predictions of one read-out and protocol.
        labels: Classes of pairs by name; None or absent where unknown.
        names: Names of the classes 0, 1, 2 ...
        alphas: Tolerances.
        hits: As in `pck_from_predictions`.
    """
    values = [labels.get(name) for name in rows.pairs]
    label = np.array([-1 if value is None else value for value in values])
    classes: JsonObject = {"unknown": int((label < 0).sum())}
    for i, name in enumerate(names):
        in_class = (label == i)[rows.pair]
        scores: Scores = pck_from_predictions(
            _select_rows(rows, in_class), alphas, None if hits is None else hits[:, in_class]
        )["pck"]
        classes[name] = {"pairs": int((label == i).sum()), **scores["all"]}
    return classes


def sensitivity(classes: JsonMapping, names: Sequence[str], by: str = "image") -> dict[str, float | None]:
    """Compute (best - worst) / best over the classes, for every alpha ("Telling Left from Right", section 3.3).

    None where a class has no pairs, or no class has a correct keypoint: it would be another quantity.

    >>> five = {str(i): {"image": {"0.1": value}} for i, value in enumerate((0.8, 0.7, 0.5, 0.4, 0.6))}
    >>> sensitivity(five, "01234")
    {'0.1': 0.5}
    """
    result: dict[str, float | None] = {}
    for alpha in classes[names[0]][by]:
        values = [classes[name][by][alpha] for name in names]
        result[alpha] = None if None in values or not max(values) else (max(values) - min(values)) / max(values)
    return result


def _select_rows(rows: Predictions, keep: Bool[np.ndarray, " m"]) -> Predictions:
    """Select some rows of the predictions."""
    return rows._replace(
        pair=rows.pair[keep], keypoint=rows.keypoint[keep], predicted=rows.predicted[keep], target=rows.target[keep],
        extent=rows.extent[keep], ambiguous=rows.ambiguous[keep], error=rows.error[keep],
    )  # fmt: skip
