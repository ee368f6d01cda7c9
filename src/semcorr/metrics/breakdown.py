"""PCK of a table, pooled in every published way; proportions of the geometry-aware subset; distribution of errors.

All of it follows from which keypoints are correct (`predictions.is_correct`, or another rule).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float

from semcorr.core.text_files import JsonObject
from semcorr.metrics.pck import ALPHAS, SUBSETS, Scores, pck_from_counts
from semcorr.metrics.predictions import Predictions, correct_per_pair, is_correct, subset_masks


def pck_from_predictions(
    rows: Predictions, alphas: Sequence[float] = ALPHAS, hits: Bool[np.ndarray, "a m"] | None = None
) -> JsonObject:
    """Compute what `metrics.pck.PCK.compute` gives for the same predictions, digit by digit.

    Args:
        rows: Predictions of one read-out and protocol.
        alphas: Tolerances.
        hits: Which keypoints are correct at each alpha; those whose error is at most alpha, if left out.
    """
    hits = is_correct(rows, alphas) if hits is None else hits
    max_keypoints = int(np.bincount(rows.pair).max(initial=0))
    shape = (len(SUBSETS), len(rows.categories), len(alphas), max_keypoints + 1)
    correct, pairs = np.zeros(shape, int), np.zeros((shape[0], shape[1], shape[3]), int)
    for s, mask in enumerate(subset_masks(rows).values()):
        pair_correct, n = correct_per_pair(rows, hits, mask)
        np.add.at(pairs[s], (rows.category, n), 1)
        np.add.at(correct[s].transpose(0, 2, 1), (rows.category, n), pair_correct.T)
    counts = torch.from_numpy(correct), torch.from_numpy(pairs)
    by_category = {
        name: pck_from_counts(counts[0][:, i], counts[1][:, i], alphas) for i, name in enumerate(rows.categories)
    }
    return {"pck": pck_from_counts(counts[0].sum(1), counts[1].sum(1), alphas), "category": by_category}


def category_mean(category: dict[str, Scores]) -> JsonObject:
    """Average over categories, with equal weight, and count those with a value: `point` is probe3d's macro recall.

    >>> one = {"all": {"image": {"0.1": 0.5}}}
    >>> category_mean({"cat": one, "dog": {"all": {"image": {"0.1": 1.0}}}, "bus": {"all": {"image": {"0.1": None}}}})
    {'all': {'image': {'0.1': 0.75}, 'categories': 2}}
    """
    mean: JsonObject = {}
    for subset, ways in next(iter(category.values()), {}).items():
        mean[subset] = {by: {} for by in ways}
        for by, values in ways.items():
            for alpha in values:
                defined = [v for scores in category.values() if (v := scores[subset][by][alpha]) is not None]
                mean[subset][by][alpha] = math.fsum(defined) / len(defined) if defined else None
                mean[subset]["categories"] = len(defined)
    return mean


def subset_proportions(rows: Predictions) -> dict[str, float]:
    """Compute the proportions of the benchmark that are geometry-aware.

    `pairs`: with at least one such keypoint; `keypoints`: of all; `category_pairs`: the plain mean over categories of
    the share of pairs, which is what GeoAware-SC prints (82.4 % of SPair-71k, with 59.6 % of its keypoints).
    """
    has_ambiguous = np.bincount(rows.pair[rows.ambiguous], minlength=len(rows.pairs)) > 0
    shares = [has_ambiguous[rows.category == c].mean() for c in range(len(rows.categories))]
    return {
        "pairs": float(has_ambiguous.mean()),
        "keypoints": float(rows.ambiguous.mean()),
        "category_pairs": float(np.mean(shares)),
    }


def error_cdf(rows: Predictions, subset: str = "all") -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Return per-point PCK as a function of alpha: the distinct errors, and the share of keypoints up to each."""
    values, counts = np.unique(rows.error[subset_masks(rows)[subset]], return_counts=True)
    return values, np.cumsum(counts) / max(counts.sum(), 1)
