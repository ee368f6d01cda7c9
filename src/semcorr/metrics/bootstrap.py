"""How far a mean over pairs would move with other images: 95 % intervals by resampling images.

Pairs share images, so they are not 12,234 independent things; images are drawn, with replacement and
within their stratum, and a pair counts the product of how often its two images are. That moves as an
image does, but takes what is a pair's own three times over: the variance of the draws is, over pairs
p, q and their residuals d, sum d_p d_q (1 if they share one image, 3 if both), and the truth is the
same with 1 for both. So the draws keep their shape and get that spread ("dyadic-robust", Aronow, Samii
and Assenova 2015), made unbiased for few images.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import norm, t

FEWEST = 10  # images in a stratum, or the strata are one; and in all, or there is no interval
AT_ONCE = 100  # draws


class ImageOverlap(NamedTuple):
    """Which images each pair is of, and which images are drawn together."""

    source: Int[np.ndarray, " p"]
    target: Int[np.ndarray, " p"]
    stratum: Int[np.ndarray, " i"]  # of every image: 0, 1, 2 ...


class BootstrapDraws(NamedTuple):
    """Statistics of the data, and of each resample of it."""

    value: Float[np.ndarray, " k"]
    draws: Float[np.ndarray, "b k"]


def image_overlap(
    source: Int[np.ndarray, " p"], target: Int[np.ndarray, " p"], category: Int[np.ndarray, " p"], images: int
) -> ImageOverlap:
    """Strata are categories, joined where they share images; one for all where any has few images.

    A benchmark's categories are fixed, its images are a sample of theirs. Joined strata vary more, never less.
    """
    root = np.arange(category.max(initial=-1) + 1)
    first = np.full(images, -1)
    for ends in (source, target):
        for image, c in set(zip(ends.tolist(), category.tolist(), strict=True)):
            if first[image] < 0:
                first[image] = c
            root[root == root[c]] = root[first[image]]
    _, stratum = np.unique(root[first], return_inverse=True)
    if np.bincount(stratum).min(initial=FEWEST) < FEWEST:
        stratum = np.zeros(images, int)
    return ImageOverlap(source, target, stratum)


def resample_ratio(
    part: Float[np.ndarray, "k p"],
    whole: Float[np.ndarray, "k p"],
    shared: ImageOverlap,
    draws: int = 2000,
    seed: int = 0,
) -> BootstrapDraws | None:
    """Draws of the ratios `sum part / sum whole`; None where there are too few images to say.

    Args:
        part: Per-image PCK: the share of the pair's keypoints that is right. Per-point: their number.
        whole: 1 where the pair has any, else 0. Per-point: how many it has.
        shared: Images of the pairs.
        draws: Resamples.
        seed: The same draws every time, so that two runs on the same pairs can be compared draw by draw.
    """
    if len(shared.stratum) < FEWEST or not whole.any(axis=1).all():
        return None
    value = part.sum(1) / whole.sum(1)
    drawn = np.concatenate([_ratios(part, whole, shared, *some) for some in _counts(shared, draws, seed)])
    residual = (part - value[:, None] * whole) / whole.sum(1)[:, None]
    spread, true = drawn.std(axis=0), np.sqrt(_variance(residual, shared)) * _student(shared)
    if not np.isfinite(drawn).all() or not np.isfinite(true).all():
        return None  # a resample without a pair to score, or no two pairs of different images
    factor = np.divide(true, spread, out=np.zeros_like(true), where=spread > 0)
    return BootstrapDraws(value, value + (drawn - drawn.mean(axis=0)) * factor)


def percentile_interval(draws: BootstrapDraws, level: float = 0.95) -> Float[np.ndarray, "k 2"]:
    """Percentiles of the draws."""
    outside = (1 - level) / 2
    return np.quantile(draws.draws, [outside, 1 - outside], axis=0).T


def _counts(shared: ImageOverlap, draws: int, seed: int) -> Sequence[tuple[Int[np.ndarray, "b i"]]]:
    """How often each image is drawn, some draws at a time."""
    random = np.random.default_rng(seed)
    counts = np.zeros((draws, len(shared.stratum)), np.int64)
    for stratum in range(shared.stratum.max() + 1):
        members = np.flatnonzero(shared.stratum == stratum)
        counts[:, members] = random.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
    return [(counts[i : i + AT_ONCE],) for i in range(0, draws, AT_ONCE)]


def _ratios(
    part: Float[np.ndarray, "k p"],
    whole: Float[np.ndarray, "k p"],
    shared: ImageOverlap,
    counts: Int[np.ndarray, "b i"],
) -> Float[np.ndarray, "b k"]:
    source, target = counts[:, shared.source], counts[:, shared.target]
    weight = np.where(shared.source == shared.target, source, source * target).astype(float)
    below = weight @ whole.T
    return np.divide(weight @ part.T, below, out=np.full_like(below, np.nan), where=below > 0)


def _variance(residual: Float[np.ndarray, "k p"], shared: ImageOverlap) -> Float[np.ndarray, " k"]:
    """Of the statistics, from residuals that add up to nothing.

    Per stratum of P pairs, S of whose P^2 pairs of pairs share an image: the sum of d_p d_q over those
    S, over 1 - S / P^2 (what centring takes away), and at least what independent pairs would have.
    """
    total = np.zeros(len(residual))
    stratum = shared.stratum[shared.source]
    low, high = np.minimum(shared.source, shared.target), np.maximum(shared.source, shared.target)
    _, dyad = np.unique(low * len(shared.stratum) + high, return_inverse=True)
    for s in np.unique(stratum):
        mine = stratum == s
        d = residual[:, mine]
        d = d - d.mean(axis=1, keepdims=True)
        alone = low[mine] == high[mine]  # an image paired with itself is one image, and its own dyad
        ends = np.concatenate((low[mine], high[mine][~alone]))
        each = np.concatenate((d, d[:, ~alone]), axis=1)
        twice = dyad[mine][~alone]
        together = (_squares(each, ends) - _squares(d[:, ~alone], twice), _squares(np.ones((1, len(ends))), ends))
        pairs, sharing = mine.sum(), together[1][0] - _squares(np.ones((1, len(twice))), twice)[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            independent = (d * d).sum(axis=1) * pairs / (pairs - 1)
            total += np.maximum(together[0] / (1 - sharing / pairs**2), independent)
    return total


def _student(shared: ImageOverlap) -> float:
    """A spread estimated from few images is uncertain itself: by how much Student's t is wider than the normal."""
    free = len(shared.stratum) - len(np.unique(shared.stratum))
    return float(t.ppf(0.975, free) / norm.ppf(0.975))


def _squares(values: Float[np.ndarray, "k n"], group: Int[np.ndarray, " n"]) -> Float[np.ndarray, " k"]:
    """The sum over groups of the square of each group's sum."""
    return np.stack([(np.bincount(group, row) ** 2).sum() if len(row) else 0.0 for row in values])
