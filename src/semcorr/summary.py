"""What a run says beside its PCK: everything that its table, its grid and the benchmark's annotations give away."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch

from semcorr.data.datamodule import PairDataModule
from semcorr.data.record import PairRecord
from semcorr.data.transforms import fit
from semcorr.metrics.ceiling import nearest_centres
from semcorr.metrics.classes import LABELS, by_class, sensitivity
from semcorr.metrics.confusion import landmarks_of, left_right
from semcorr.metrics.dagger import own_is_nearest
from semcorr.metrics.kap import KAP_ALPHAS, kap
from semcorr.metrics.pck import ALPHAS, SUBSETS, error
from semcorr.metrics.scored import Scored, right, scored
from semcorr.metrics.uncertainty import intervals
from semcorr.metrics.views import category_mean, pck_of, proportions

SHOWN = 0.1  # the alpha of intervals and classes


def summary(
    table: pa.Table, data: PairDataModule, grid: tuple[int, int] | None, strict: bool = False
) -> dict[str, Any]:
    """Beside `pck`, all from the rows of one read-out under one protocol; JSON's types.

    Args:
        table: Those rows.
        data: What they were predicted of.
        grid: Columns and rows of the similarities; None: there were none.
        strict: Of the protocol.
    """
    rows = scored(table)
    records = {pair.name: pair for pair in data.pairs(data.split)}
    pairs = [records[name] for name in rows.pairs]
    hits = right(rows, ALPHAS, strict)
    known = {pair.category: pair.flip for pair in pairs if pair.flip is not None}
    return {
        "intervals": intervals(rows, hits[[ALPHAS.index(SHOWN)]], [SHOWN]),
        "category_mean": category_mean(pck_of(rows, ALPHAS, hits)["category"]),
        "dagger": pck_of(rows, ALPHAS, hits & own_is_nearest(rows))["pck"],
        "geometry_aware": proportions(rows),
        "left_right": left_right(rows, landmarks_of(rows, pairs), known),
        "ceiling": None if grid is None else ceiling(rows, pairs, data.size, data.resize, grid),
        "classes": classes(rows, pairs, strict),
    }


def ceiling(rows: Scored, pairs: Sequence[PairRecord], side: int, resize: str, grid: tuple[int, int]) -> dict[str, Any]:
    """PCK of the best cell centre for every keypoint, under our own protocol."""
    how = [fit(pair.target.size, side, resize) for pair in pairs]
    scale = torch.tensor([one.scale for one in how], dtype=torch.double)[rows.pair]
    offset = torch.tensor([one.offset for one in how], dtype=torch.double)[rows.pair]
    truth = torch.from_numpy(rows.target)[:, None]
    best = nearest_centres(truth, scale, offset, grid, side / grid[0])
    away = error(best, truth, torch.from_numpy(rows.extent))[:, 0].numpy()
    return pck_of(rows._replace(predicted=best[:, 0].numpy(), error=away))["pck"]  # type: ignore[no-any-return]


def classes(rows: Scored, pairs: Sequence[PairRecord], strict: bool = False) -> dict[str, Any]:
    """PCK by each kind of class that at least one pair's annotation knows; sensitivity to the azimuth."""
    found: dict[str, Any] = {}
    for kind, names in LABELS.items():
        labels = {pair.name: pair.details.get(kind) for pair in pairs}
        if any(value is not None for value in labels.values()):
            found[kind] = by_class(rows, labels, names, [SHOWN], right(rows, [SHOWN], strict))
    if "azimuth_difference" in found:
        found["azimuth_sensitivity"] = sensitivity(found["azimuth_difference"], LABELS["azimuth_difference"])
    return found


def kap_summary(detections: pa.Table) -> dict[str, Any]:
    """KAP at every alpha, by its definition and as released."""
    return {
        name: {f"{alpha:g}": kap(detections, alpha, released) for alpha in KAP_ALPHAS}
        for name, released in (("definition", False), ("released", True))
    }


def in_words(metrics: Mapping[str, Any]) -> str:
    """One line: the intervals of the three subsets, per image."""
    alpha = f"{SHOWN:g}"
    ends = {subset: metrics["intervals"][subset]["image"][alpha] for subset in SUBSETS}
    if not any(ends.values()):
        return "no intervals: too few images"
    said = (f"{subset} {100 * end[0]:.1f} to {100 * end[1]:.1f}" for subset, end in ends.items() if end)
    return f"per image at {alpha}, 95 % over images: {', '.join(said)}"
