"""Summary of a run beside its PCK: what follows from its table, its grid and the benchmark's annotations."""

from collections.abc import Sequence

import pyarrow as pa
import torch

from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.data.datamodule import PairDataModule
from semcorr.data.record import PairRecord
from semcorr.data.transforms import fit_to_square
from semcorr.metrics.breakdown import category_mean, pck_from_predictions, subset_proportions
from semcorr.metrics.ceiling import nearest_centres
from semcorr.metrics.classes import LABELS, pck_by_class, sensitivity
from semcorr.metrics.confidence import pck_intervals
from semcorr.metrics.confusion import left_right_confusion, target_landmarks
from semcorr.metrics.kap import KAP_ALPHAS, keypoint_average_precision
from semcorr.metrics.pck import ALPHAS, SUBSETS, normalised_error
from semcorr.metrics.pck_dagger import own_is_nearest
from semcorr.metrics.predictions import Predictions, is_correct, load_predictions

SHOWN = 0.1  # the alpha of intervals and classes


def summarise_predictions(
    table: pa.Table, data: PairDataModule, grid: tuple[int, int] | None, strict: bool = False
) -> JsonObject:
    """Summarise the rows of one read-out under one protocol, beside `pck`, in JSON's types.

    Args:
        table: Rows of the predictions.
        data: The benchmark.
        grid: Columns and rows of the similarities; None where features were matched at the image's own resolution.
        strict: Whether the protocol counts only errors below alpha, not equal to it.
    """
    rows = load_predictions(table)
    records = {pair.name: pair for pair in data.pairs(data.split)}
    pairs = [records[name] for name in rows.pairs]
    correct = is_correct(rows, ALPHAS, strict)
    flips = {pair.category: pair.flip for pair in pairs if pair.flip is not None}
    return {
        "intervals": pck_intervals(rows, correct[[ALPHAS.index(SHOWN)]], [SHOWN]),
        "category_mean": category_mean(pck_from_predictions(rows, ALPHAS, correct)["category"]),
        "dagger": pck_from_predictions(rows, ALPHAS, correct & own_is_nearest(rows))["pck"],
        "geometry_aware": subset_proportions(rows),
        "left_right": left_right_confusion(rows, target_landmarks(rows, pairs), flips),
        "ceiling": None if grid is None else quantisation_ceiling(rows, pairs, data.size, data.resize, grid),
        "classes": pck_by_classes(rows, pairs, strict),
    }


def quantisation_ceiling(
    rows: Predictions, pairs: Sequence[PairRecord], side: int, resize: str, grid: tuple[int, int]
) -> JsonObject:
    """Compute the PCK of the best cell centre for every keypoint, under our own protocol."""
    fits = [fit_to_square(pair.target.size, side, resize) for pair in pairs]
    scale = torch.tensor([fit.scale for fit in fits], dtype=torch.double)[rows.pair]
    offset = torch.tensor([fit.offset for fit in fits], dtype=torch.double)[rows.pair]
    truth = torch.from_numpy(rows.target)[:, None]
    best = nearest_centres(truth, scale, offset, grid, side / grid[0])
    error = normalised_error(best, truth, torch.from_numpy(rows.extent))[:, 0].numpy()
    return pck_from_predictions(rows._replace(predicted=best[:, 0].numpy(), error=error))["pck"]


def pck_by_classes(rows: Predictions, pairs: Sequence[PairRecord], strict: bool = False) -> JsonObject:
    """Compute PCK by each kind of class that at least one pair's annotation has; and the sensitivity to the azimuth."""
    metrics: JsonObject = {}
    for kind, names in LABELS.items():
        labels = {pair.name: pair.details.get(kind) for pair in pairs}
        if any(value is not None for value in labels.values()):
            metrics[kind] = pck_by_class(rows, labels, names, [SHOWN], is_correct(rows, [SHOWN], strict))
    if "azimuth_difference" in metrics:
        metrics["azimuth_sensitivity"] = sensitivity(metrics["azimuth_difference"], LABELS["azimuth_difference"])
    return metrics


def kap_summary(detections: pa.Table) -> JsonObject:
    """Compute KAP at every alpha, by its definition and as released."""
    return {
        name: {f"{alpha:g}": keypoint_average_precision(detections, alpha, released) for alpha in KAP_ALPHAS}
        for name, released in (("definition", False), ("released", True))
    }


def format_intervals(metrics: JsonMapping) -> str:
    """Format the intervals of the three subsets, per image, in one line."""
    alpha = f"{SHOWN:g}"
    intervals = {subset: metrics["intervals"][subset]["image"][alpha] for subset in SUBSETS}
    if not any(intervals.values()):
        return "no intervals: too few images"
    parts = (
        f"{subset} {100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
        for subset, interval in intervals.items()
        if interval
    )
    return f"per image at {alpha}, 95 % over images: {', '.join(parts)}"
