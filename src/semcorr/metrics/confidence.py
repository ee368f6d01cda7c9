"""Confidence intervals of a run's PCK, and differences of two runs on the same pairs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest

from semcorr.core.text_files import JsonObject
from semcorr.metrics.bootstrap import BootstrapDraws, image_overlap, percentile_interval, resample_ratio
from semcorr.metrics.predictions import Predictions, correct_per_pair, subset_masks

Interval = list[float] | None
WAYS = ("image", "point")


class PCKRatio(NamedTuple):
    """A PCK as `sum part / sum whole` over the pairs."""

    subset: str
    by: str
    alpha: float
    part: Float[np.ndarray, " p"]
    whole: Float[np.ndarray, " p"]


class McNemarResult(NamedTuple):
    """Result of McNemar's test on keypoints."""

    only_first: int  # right in the first run alone
    only_second: int
    p: float


def pck_ratios(rows: Predictions, hits: Bool[np.ndarray, "a m"], alphas: Sequence[float]) -> list[PCKRatio]:
    """Return the ratios per image and per point of every subset that has a keypoint."""
    ratios = []
    for subset, mask in subset_masks(rows).items():
        correct, n = correct_per_pair(rows, hits, mask)
        if not n.any():
            continue
        for alpha, k in zip(alphas, correct, strict=True):
            ratios.append(PCKRatio(subset, "image", alpha, k / np.maximum(n, 1), (n > 0).astype(float)))
            ratios.append(PCKRatio(subset, "point", alpha, k.astype(float), n.astype(float)))
    return ratios


def pck_intervals(
    rows: Predictions, hits: Bool[np.ndarray, "a m"], alphas: Sequence[float], draws: int = 2000, seed: int = 0
) -> dict[str, dict[str, dict[str, Interval]]]:
    """Compute 95 % bootstrap intervals over images: {subset: {"image"|"point": {alpha: [low, high]}}}.

    None where there are too few images (`bootstrap.FEWEST`).
    """
    intervals: dict[str, dict[str, dict[str, Interval]]] = {}
    for subset in subset_masks(rows):
        ratios = [ratio for ratio in pck_ratios(rows, hits, alphas) if ratio.subset == subset]
        samples = _resample(rows, ratios, draws, seed) if ratios else None
        ends = [None] * len(ratios) if samples is None else percentile_interval(samples).tolist()
        intervals[subset] = {by: {f"{alpha:g}": None for alpha in alphas} for by in WAYS}
        for ratio, pair in zip(ratios, ends, strict=True):
            intervals[subset][ratio.by][f"{ratio.alpha:g}"] = pair
    return intervals


def pck_differences(
    rows: Predictions, first: Bool[np.ndarray, "a m"], second: Bool[np.ndarray, "a m"], alphas: Sequence[float],
    draws: int = 2000, seed: int = 0,
) -> list[JsonObject]:  # fmt: skip
    """Compute second minus first, on the same keypoints: the same images are drawn for both.

    Every entry has subset, by, alpha, first, second, difference, interval and p. `p` is two-sided: twice
    the share of draws on the other side of no difference. Interval and p are None for too few images.
    """
    differences = []
    before, after = (pck_ratios(rows, hits, alphas) for hits in (first, second))
    for a, b in zip(before, after, strict=True):
        values = [ratio.part.sum() / ratio.whole.sum() for ratio in (a, b)]
        samples = _resample(rows, [a._replace(part=b.part - a.part)], draws, seed)
        ends = None if samples is None else percentile_interval(samples)[0].tolist()
        p = None if samples is None else _two_sided_p(samples.draws[:, 0])
        differences.append(
            {"subset": a.subset, "by": a.by, "alpha": a.alpha, "first": float(values[0]), "second": float(values[1]),
             "difference": float(values[1] - values[0]), "interval": ends, "p": p}
        )  # fmt: skip
    return differences


def mcnemar(first: Bool[np.ndarray, " m"], second: Bool[np.ndarray, " m"]) -> McNemarResult:
    """Test keypoints that are correct in one run and wrong in the other, by the exact test.

    It assumes independent keypoints, which those of one pair and of one image are not: its p is too small.

    >>> mcnemar(np.array([True] * 5 + [False] * 3), np.array([False] * 4 + [True] * 4))  # 4 against 3
    McNemarResult(only_first=4, only_second=3, p=1.0)
    """
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    return McNemarResult(b, c, float(binomtest(b, b + c).pvalue) if b + c else 1.0)


def _resample(rows: Predictions, ratios: Sequence[PCKRatio], draws: int, seed: int) -> BootstrapDraws | None:
    """Resample the images of some ratios."""
    shared = image_overlap(rows.source_image, rows.target_image, rows.category, len(rows.images))
    part, whole = (np.stack([ratio[i] for ratio in ratios]) for i in (3, 4))
    return resample_ratio(part, whole, shared, draws, seed)


def _two_sided_p(draws: Float[np.ndarray, " b"]) -> float:
    """Return the two-sided p of no difference; never 0, since the number of draws is finite."""
    sides: Int[np.ndarray, " 2"] = np.array([(draws <= 0).sum(), (draws >= 0).sum()])
    return float(min(1.0, 2 * (sides.min() + 1) / (len(draws) + 1)))
