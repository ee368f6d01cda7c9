"""Bootstrap intervals over images of a run's PCK, and differences of two runs on the same pairs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from semcorr.core.shapes import check_shapes
from semcorr.core.text_files import JsonObject
from semcorr.metrics.predictions import Predictions, correct_per_pair, require_row_per_alpha, subset_masks

MIN_IMAGES = 10  # images: with less in a stratum, all strata are one; with less in all, there is no interval
DRAWS_PER_CHUNK = 100  # draws


class ImageOverlap(NamedTuple):
    """Images of each pair, and the images that are drawn together."""

    source: Int[np.ndarray, " p"]  # index of each pair's image
    target: Int[np.ndarray, " p"]
    stratum: Int[np.ndarray, " i"]  # of every image: 0, 1, 2 ...


class BootstrapDraws(NamedTuple):
    """Statistics of the data, and of each of b resamples of it."""

    value: Float[np.ndarray, " k"]
    draws: Float[np.ndarray, "b k"]


def image_overlap(
    source: Int[np.ndarray, " p"], target: Int[np.ndarray, " p"], category: Int[np.ndarray, " p"], images: int
) -> ImageOverlap:
    """Group images into strata: categories, joined where they share images; one for all where any has few images.

    A benchmark's categories are fixed, its images are a sample of theirs. Joined strata vary more, never less.

    Args:
        source: Index of each pair's source image.
        target: Index of each pair's target image.
        category: Index of each pair's category.
        images: Number of images; each must be of some pair.
    """
    root = np.arange(category.max(initial=-1) + 1)
    first = np.full(images, -1)
    for ends in (source, target):
        for image, c in set(zip(ends.tolist(), category.tolist(), strict=True)):
            if first[image] < 0:
                first[image] = c
            root[root == root[c]] = root[first[image]]
    _, stratum = np.unique(root[first], return_inverse=True)
    if np.bincount(stratum).min(initial=MIN_IMAGES) < MIN_IMAGES:
        stratum = np.zeros(images, int)
    return ImageOverlap(source, target, stratum)


def resample_ratio(
    part: Float[np.ndarray, "k p"],
    whole: Float[np.ndarray, "k p"],
    shared: ImageOverlap,
    draws: int = 2000,
    seed: int = 0,
) -> BootstrapDraws | None:
    """Draw the ratios `sum part / sum whole` of k statistics; None where there are too few images.

    Args:
        part: Per-image PCK: the share of the pair's keypoints that is correct. Per-point PCK: their number.
        whole: Per-image PCK: 1 where the pair has any keypoint, else 0. Per-point PCK: the number of its keypoints.
        shared: Images of the pairs, and their strata.
        draws: Number of resamples.
        seed: Seed of the draws, which are the same every time, so that two runs on the same pairs can be
            compared draw by draw.
    """
    if len(shared.stratum) < MIN_IMAGES or not whole.any(axis=1).all():
        return None
    value = part.sum(1) / whole.sum(1)
    samples = np.concatenate(
        [_resampled_ratios(part, whole, shared, *chunk) for chunk in _count_draws(shared, draws, seed)]
    )
    residual = (part - value[:, None] * whole) / whole.sum(1)[:, None]
    spread, target_spread = samples.std(axis=0), np.sqrt(_variance(residual, shared)) * _student_factor(shared)
    if not np.isfinite(samples).all() or not np.isfinite(target_spread).all():
        return None  # a resample without a pair to score, or no two pairs of different images
    factor = np.divide(target_spread, spread, out=np.zeros_like(target_spread), where=spread > 0)
    return BootstrapDraws(value, value + (samples - samples.mean(axis=0)) * factor)


def percentile_interval(draws: BootstrapDraws, level: float = 0.95) -> Float[np.ndarray, "k 2"]:
    """Return the two percentiles of the draws of each statistic that enclose the share `level` of them."""
    outside = (1 - level) / 2
    return np.quantile(draws.draws, [outside, 1 - outside], axis=0).T


def _count_draws(shared: ImageOverlap, draws: int, seed: int) -> Sequence[tuple[Int[np.ndarray, "b i"]]]:
    """Count how often each image is drawn, in chunks of draws."""
    random = np.random.default_rng(seed)
    counts = np.zeros((draws, len(shared.stratum)), np.int64)
    for stratum in range(shared.stratum.max() + 1):
        members = np.flatnonzero(shared.stratum == stratum)
        counts[:, members] = random.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
    return [(counts[i : i + DRAWS_PER_CHUNK],) for i in range(0, draws, DRAWS_PER_CHUNK)]


def _resampled_ratios(
    part: Float[np.ndarray, "k p"],
    whole: Float[np.ndarray, "k p"],
    shared: ImageOverlap,
    counts: Int[np.ndarray, "b i"],
) -> Float[np.ndarray, "b k"]:
    """Compute the ratios of some draws; NaN where no pair is drawn."""
    source, target = counts[:, shared.source], counts[:, shared.target]
    weight = np.where(shared.source == shared.target, source, source * target).astype(float)
    below = weight @ whole.T
    return np.divide(weight @ part.T, below, out=np.full_like(below, np.nan), where=below > 0)


def _variance(residual: Float[np.ndarray, "k p"], shared: ImageOverlap) -> Float[np.ndarray, " k"]:
    """Estimate the variance of the statistics, from residuals that add up to 0.

    Per stratum of P pairs, S of whose P^2 pairs of pairs share an image: the sum of d_p d_q over those
    S, over 1 - S / P^2 (what centring takes away), and at least what independent pairs would have.
    """
    total = np.zeros(len(residual))
    stratum = shared.stratum[shared.source]
    low, high = np.minimum(shared.source, shared.target), np.maximum(shared.source, shared.target)
    _, dyad = np.unique(low * len(shared.stratum) + high, return_inverse=True)
    for s in np.unique(stratum):
        members = stratum == s
        d = residual[:, members]
        d = d - d.mean(axis=1, keepdims=True)
        is_self_pair = low[members] == high[members]  # an image paired with itself is one image, and its own dyad
        ends = np.concatenate((low[members], high[members][~is_self_pair]))
        image_residuals = np.concatenate((d, d[:, ~is_self_pair]), axis=1)
        image_dyad = dyad[members][~is_self_pair]
        image_sums = (
            _sum_group_squares(image_residuals, ends) - _sum_group_squares(d[:, ~is_self_pair], image_dyad),
            _sum_group_squares(np.ones((1, len(ends))), ends),
        )
        pairs, shared_pairs = (
            members.sum(),
            image_sums[1][0] - _sum_group_squares(np.ones((1, len(image_dyad))), image_dyad)[0],
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            independent = (d * d).sum(axis=1) * pairs / (pairs - 1)
            total += np.maximum(image_sums[0] / (1 - shared_pairs / pairs**2), independent)
    return total


def _student_factor(shared: ImageOverlap) -> float:
    """Return by how much Student's t is wider than the normal: a spread from few images is uncertain itself."""
    from scipy.special import ndtri, stdtrit  # it takes a second to import, and only the end of a run needs it

    free = len(shared.stratum) - len(np.unique(shared.stratum))
    return float(stdtrit(free, 0.975) / ndtri(0.975))


def _sum_group_squares(values: Float[np.ndarray, "k n"], group: Int[np.ndarray, " n"]) -> Float[np.ndarray, " k"]:
    """Return the sum over groups of the square of each group's sum."""
    return np.stack([(np.bincount(group, row) ** 2).sum() if len(row) else 0.0 for row in values])


Interval = list[float] | None
POOLINGS = ("image", "point")


class PCKRatio(NamedTuple):
    """A PCK as `sum part / sum whole` over the pairs."""

    subset: str  # all, geo or std
    by: str  # image or point
    alpha: float
    part: Float[np.ndarray, " p"]
    whole: Float[np.ndarray, " p"]


class McNemarResult(NamedTuple):
    """Result of McNemar's test on keypoints."""

    only_first: int  # keypoints that are correct in the first run alone
    only_second: int  # keypoints that are correct in the second run alone
    p: float


def pck_ratios(rows: Predictions, correct: Bool[np.ndarray, "a m"], alphas: Sequence[float]) -> list[PCKRatio]:
    """Return the ratios per image and per point of every subset that has a keypoint."""
    require_row_per_alpha(correct, alphas)
    ratios = []
    for subset, mask in subset_masks(rows).items():
        pair_correct, n = correct_per_pair(rows, correct, mask)
        if not n.any():
            continue
        for alpha, k in zip(alphas, pair_correct, strict=True):
            ratios.append(PCKRatio(subset, "image", alpha, k / np.maximum(n, 1), (n > 0).astype(float)))
            ratios.append(PCKRatio(subset, "point", alpha, k.astype(float), n.astype(float)))
    return ratios


@check_shapes
def pck_intervals(
    rows: Predictions, correct: Bool[np.ndarray, "a m"], alphas: Sequence[float], draws: int = 2000, seed: int = 0
) -> dict[str, dict[str, dict[str, Interval]]]:
    """Compute 95 % bootstrap intervals over images: {subset: {"image"|"point": {alpha: [low, high]}}}.

    An interval is None where there are too few images (`MIN_IMAGES`).

    Args:
        rows: Predictions of one readout and protocol.
        correct: Which keypoints are correct at each alpha.
        alphas: Tolerances, fractions of the extent.
        draws: Number of resamples of the images.
        seed: Seed of the resamples.
    """
    intervals: dict[str, dict[str, dict[str, Interval]]] = {}
    for subset in subset_masks(rows):
        ratios = [ratio for ratio in pck_ratios(rows, correct, alphas) if ratio.subset == subset]
        samples = _resample(rows, ratios, draws, seed) if ratios else None
        ends = [None] * len(ratios) if samples is None else percentile_interval(samples).tolist()
        intervals[subset] = {by: {f"{alpha:g}": None for alpha in alphas} for by in POOLINGS}
        for ratio, pair in zip(ratios, ends, strict=True):
            intervals[subset][ratio.by][f"{ratio.alpha:g}"] = pair
    return intervals


@check_shapes
def pck_differences(
    rows: Predictions,
    first: Bool[np.ndarray, "a m"],
    second: Bool[np.ndarray, "a m"],
    alphas: Sequence[float],
    draws: int = 2000,
    seed: int = 0,
) -> list[JsonObject]:
    """Compute second minus first, on the same keypoints: the same images are drawn for both.

    Every entry has subset, by, alpha, first, second, difference, interval and p. `p` is two-sided: twice
    the share of draws on the other side of no difference. Interval and p are None for too few images.

    Args:
        rows: Predictions of either run: only their keypoints, pairs and images matter.
        first: Which keypoints are correct at each alpha in the first run.
        second: Which keypoints are correct at each alpha in the second run.
        alphas: Tolerances, fractions of the extent.
        draws: Number of resamples of the images.
        seed: Seed of the resamples.
    """
    differences = []
    before, after = (pck_ratios(rows, hits, alphas) for hits in (first, second))
    for a, b in zip(before, after, strict=True):
        values = [ratio.part.sum() / ratio.whole.sum() for ratio in (a, b)]
        samples = _resample(rows, [a._replace(part=b.part - a.part)], draws, seed)
        ends = None if samples is None else percentile_interval(samples)[0].tolist()
        p = None if samples is None else _two_sided_p(samples.draws[:, 0])
        differences.append(
            {
                "subset": a.subset,
                "by": a.by,
                "alpha": a.alpha,
                "first": float(values[0]),
                "second": float(values[1]),
                "difference": float(values[1] - values[0]),
                "interval": ends,
                "p": p,
            }
        )
    return differences


@check_shapes
def mcnemar(first: Bool[np.ndarray, " m"], second: Bool[np.ndarray, " m"]) -> McNemarResult:
    """Apply McNemar's exact test to the keypoints that are correct in one run and wrong in the other.

    It assumes independent keypoints, which those of one pair and of one image are not: its p is too small.

    >>> mcnemar(np.array([True] * 5 + [False] * 3), np.array([False] * 4 + [True] * 4))  # 4 against 3
    McNemarResult(only_first=4, only_second=3, p=1.0)
    """
    from scipy.stats import binomtest  # it takes seconds to import, and only a comparison needs it

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
