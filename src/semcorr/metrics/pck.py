"""PCK: the function, and the metric that adds it up exactly.

Both follow our own protocol: distances in original target pixels, correct if distance <= alpha *
extent (as HPF, DIFT and the unified benchmark; GeoAware-SC uses <).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

from semcorr.core.text_files import JsonMapping, JsonObject

SUBSETS = ("all", "geo", "std")
ALPHAS = (0.01, 0.05, 0.1, 0.15, 0.2)

Scores = dict[str, dict[str, dict[str, float | None]]]
Values = TypeVar("Values", Tensor, np.ndarray)


class Tolerance(NamedTuple):
    """Comparison of an error with alpha.

    Attributes:
        strict: Whether an error must be less than alpha, or at most alpha.
        single: Whether alpha is rounded to single precision: 0.1 and 0.05 become larger, 0.01 smaller.
    """

    strict: bool = False
    single: bool = False

    @classmethod
    def of_metrics(cls, metrics: JsonMapping) -> "Tolerance":
        """Return the tolerance of a run by its metrics.json; older ones without `alphas` compared in double."""
        return cls(bool(metrics.get("strict")), metrics.get("alphas") == "single")

    def round_alphas(self, alphas: Sequence[float]) -> list[float]:
        """Return alphas in the precision that errors are compared in.

        >>> Tolerance(single=True).round_alphas([0.01, 0.05, 0.1])
        [0.009999999776482582, 0.05000000074505806, 0.10000000149011612]
        """
        return [float(np.float32(alpha)) if self.single else float(alpha) for alpha in alphas]

    def is_correct(self, errors: Values, alphas: Values) -> Values:
        """Tell which errors are correct at alphas that `round_alphas` has rounded.

        >>> error = np.array([0.1, 0.2])
        >>> Tolerance().is_correct(error, np.array(0.1)), Tolerance(strict=True).is_correct(error, np.array(0.1))
        (array([ True, False]), array([False, False]))
        """
        return errors < alphas if self.strict else errors <= alphas


INCLUSIVE = Tolerance()


def pck(
    predicted: Float[Tensor, "b n 2"],
    target: Float[Tensor, "b n 2"],
    extent: Float[Tensor, " b"],
    alpha: float = 0.1,
    mask: Bool[Tensor, "b n"] | None = None,
) -> Float[Tensor, " b"]:
    """Compute the Percentage of Correct Keypoints, one value per pair, in [0, 1].

    A keypoint is correct when it lands within ``alpha * extent`` of its target, where ``extent`` is
    the longer side of the target object's box (PCK@bbox) or of the target image (PCK@img). Pairs with
    no keypoint in ``mask`` give NaN, so that a mean over pairs cannot mistake "nothing to score" for
    "nothing right".

    Args:
        predicted: Predicted keypoints, in original target pixels.
        target: True keypoints, in original target pixels.
        extent: The length that ``alpha`` is a fraction of, in the same pixels as the points.
        alpha: Tolerance as a fraction of ``extent``.
        mask: Keypoints to score; all of them if left out.

    Example:
        >>> predicted = torch.tensor([[[10.0, 10.0], [40.0, 10.0]]])
        >>> target = torch.tensor([[[10.0, 19.0], [40.0, 21.0]]])  # 9 and 11 px away
        >>> pck(predicted, target, extent=torch.tensor([100.0]))  # tolerance 10 px
        tensor([0.5000])
    """
    mask = torch.ones_like(target[..., 0], dtype=torch.bool) if mask is None else mask
    correct = (normalised_error(predicted, target, extent) <= alpha) & mask
    return correct.sum(-1) / mask.sum(-1)


def normalised_error(
    predicted: Float[Tensor, "b n 2"], target: Float[Tensor, "b n 2"], extent: Float[Tensor, " b"]
) -> Float[Tensor, "b n"]:
    """Compute distance as a fraction of ``extent``, the same digits on every device: ties with alpha must not differ.

    It is computed in double precision, one elementary operation after the other: `norm` may fuse them. PyTorch's square
    root on a CPU may be MKL's, which can be off by the last bit; NumPy's, as a GPU's, is rounded correctly.
    """
    x, y = (predicted.detach().double() - target.double()).unbind(-1)
    squared = x * x + y * y
    distance = torch.from_numpy(np.sqrt(squared.numpy())) if squared.device.type == "cpu" else squared.sqrt()
    return distance / extent.double()[:, None]


def pck_from_counts(
    correct: Int[Tensor, "subsets alphas counts"], pairs: Int[Tensor, "subsets counts"], alphas: Sequence[float]
) -> Scores:
    """Compute PCK from integers: per image `sum_n correct[n] / n / pairs`, per point `correct / (pairs n)`.

    The sum over n is rounded once, at its end: no order, no number of rows changes a digit. A score is None where a
    subset has no keypoint at all.

    Args:
        correct: Number of correct keypoints of the pairs that have n = 0, 1, 2 ... keypoints.
        pairs: Number of pairs that have n = 0, 1, 2 ... keypoints.
        alphas: Tolerances along the second axis of `correct`.
    """
    scores: Scores = {}
    for subset, subset_correct, count in zip(SUBSETS, correct.tolist(), pairs.tolist(), strict=True):
        images, points = sum(count[1:]), sum(n * k for n, k in enumerate(count))
        image = [
            math.fsum(k / n for n, k in enumerate(row) if n) / images if images else None for row in subset_correct
        ]
        point = [sum(row[1:]) / points if points else None for row in subset_correct]
        names = [f"{alpha:g}" for alpha in alphas]
        scores[subset] = {
            "image": dict(zip(names, image, strict=True)),
            "point": dict(zip(names, point, strict=True)),
        }
    return scores


class PCK(Metric):
    """PCK over several alphas, subsets and categories, per image and per point.

    Only integers are added up. A pair that has k of n keypoints correct contributes k/n to the
    per-image mean, so pairs are grouped by n and the division is left to `compute`: any number of
    processes, in any order, gives the same digits.

    Subsets: `all` shared keypoints; `geo`, the geometry-aware ones; `std`, the rest. (The papers'
    "Std." column is our `all`.)

    Args:
        categories: Names of the categories; `update` takes indices into them.
        keypoints: Rows of a keypoint array, the largest n there can be.
        alphas: Tolerances, fractions of the extent.
        tolerance: Comparison of errors with alphas: at most alpha, or less (GeoAware-SC).
        pooling: Pooling of the headline: over pairs (`image`), keypoints (`point`), or categories of the latter, alike
            (`category`) or by their pairs (`category_by_pairs`).
    """

    full_state_update = False
    higher_is_better = True
    correct: Int[Tensor, "subsets categories alphas counts"]
    pairs: Int[Tensor, "subsets categories counts"]

    def __init__(
        self,
        categories: Sequence[str],
        keypoints: int,
        alphas: Sequence[float] = ALPHAS,
        tolerance: Tolerance = INCLUSIVE,
        pooling: str = "image",
    ) -> None:
        super().__init__()
        self.tolerance, self.pooling = tolerance, pooling
        self.categories, self.alphas = tuple(categories), tuple(alphas)
        shape = (len(SUBSETS), len(self.categories))
        zeros = torch.zeros(*shape, len(self.alphas), keypoints + 1, dtype=torch.long)
        self.add_state("correct", zeros, dist_reduce_fx="sum")
        self.add_state("pairs", zeros[:, :, 0].clone(), dist_reduce_fx="sum")

    def update(
        self,
        predicted: Float[Tensor, "b n 2"],
        target: Float[Tensor, "b n 2"],
        extent: Float[Tensor, " b"],
        shared: Bool[Tensor, "b n"],
        ambiguous: Bool[Tensor, "b n"],
        category: Int[Tensor, " b"],
        errors: Float[Tensor, "b n"] | None = None,
    ) -> None:
        """Add a batch of pairs.

        Args:
            predicted: Predicted keypoints, in original target pixels.
            target: True keypoints, in original target pixels.
            extent: Length that alpha is a fraction of, in original target pixels.
            shared: Which keypoints both images show; the others are not scored.
            ambiguous: Which keypoints are geometry-aware.
            category: Index of each pair's category in `categories`.
            errors: Errors as another protocol measures them, fractions of the extent; if left out, they are computed
                from the points.
        """
        errors = normalised_error(predicted, target, extent) if errors is None else errors
        values = self.tolerance.round_alphas(self.alphas)
        alphas = torch.tensor(values, dtype=torch.double, device=extent.device)[:, None]
        is_correct = self.tolerance.is_correct(errors[:, None], alphas)  # (b alphas n)
        for s, mask in enumerate((shared, shared & ambiguous, shared & ~ambiguous)):
            n = mask.sum(-1)  # 0 for a pair with nothing to score: counted, and left out by `compute`
            self.pairs[s].index_put_((category, n), torch.ones_like(n), accumulate=True)
            correct_of_n = (is_correct & mask[:, None]).sum(-1)  # (b alphas)
            self.correct[s].transpose(1, 2).index_put_((category, n), correct_of_n, accumulate=True)

    def compute(self) -> JsonObject:
        """Return `{"pck": {subset: {"image"|"point": {alpha: value}}}, "category": {name: ...}, "headline": {...}}`.

        The scores of a category are as those of `pck`.

        The headline is `{alpha: value}` of all keypoints, by `pooling`. A value is None where there is
        no keypoint at all.
        """
        by_category = {
            name: pck_from_counts(self.correct[:, i], self.pairs[:, i], self.alphas)
            for i, name in enumerate(self.categories)
        }
        pooled = pck_from_counts(self.correct.sum(1), self.pairs.sum(1), self.alphas)
        return {"pck": pooled, "category": by_category, "headline": self._headline(pooled, by_category)}

    def _headline(self, pooled: Scores, by_category: dict[str, Scores]) -> dict[str, float | None]:
        """Pool all shared keypoints as this protocol's authors do."""
        if self.pooling in ("image", "point"):
            return pooled["all"][self.pooling]
        pairs = self.pairs[0, :, 1:].sum(-1)
        counts = (pairs if self.pooling == "category_by_pairs" else (pairs > 0).long()).tolist()
        headline: dict[str, float | None] = {}
        for alpha in pooled["all"]["point"]:
            terms = zip(counts, (by_category[name]["all"]["point"][alpha] for name in self.categories), strict=True)
            total = math.fsum(count * value for count, value in terms if value is not None)
            headline[alpha] = total / sum(counts) if sum(counts) else None
        return headline
