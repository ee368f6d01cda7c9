"""PCK: the function, and the metric that adds it up exactly.

Both follow our own protocol: distances in original target pixels, correct if distance <= alpha *
extent (as HPF, DIFT and the unified benchmark; GeoAware-SC uses <).
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

from semcorr.core.errors import UserError
from semcorr.core.ranges import Positive, Whole, check_arguments
from semcorr.core.shapes import check_shapes
from semcorr.core.text_files import JsonMapping, JsonObject

SUBSETS = ("all", "geo", "std")
ALPHAS = (0.01, 0.05, 0.1, 0.15, 0.2)
Pooling = Literal["image", "point", "category", "category_by_pairs"]

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


@check_arguments()
@check_shapes
def pck(
    predicted: Float[Tensor, "b n 2"],
    target: Float[Tensor, "b n 2"],
    extent: Float[Tensor, " b"],
    alpha: Positive = 0.1,
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

    Raises:
        UserError: Shapes or types do not fit each other; on a CPU, an extent is not positive or a point is NaN.

    Example:
        >>> predicted = torch.tensor([[[10.0, 10.0], [40.0, 10.0]]])
        >>> target = torch.tensor([[[10.0, 19.0], [40.0, 21.0]]])  # 9 and 11 px away
        >>> pck(predicted, target, extent=torch.tensor([100.0]))  # tolerance 10 px
        tensor([0.5000])
    """
    mask = torch.ones_like(target[..., 0], dtype=torch.bool) if mask is None else mask
    errors = normalised_error(predicted, target, extent)
    _require_numbers(errors, mask)
    correct = (errors <= alpha) & mask
    return correct.sum(-1) / mask.sum(-1)


@check_shapes
def normalised_error(
    predicted: Float[Tensor, "b n 2"], target: Float[Tensor, "b n 2"], extent: Float[Tensor, " b"]
) -> Float[Tensor, "b n"]:
    """Compute distance as a fraction of ``extent``, the same digits on every device: ties with alpha must not differ.

    It is computed in double precision, one elementary operation after the other: `norm` may fuse them. PyTorch's square
    root on a CPU may be MKL's, which can be off by the last bit; NumPy's, as a GPU's, is rounded correctly.
    """
    _require_extent(extent)
    x, y = (predicted.detach().double() - target.double()).unbind(-1)
    squared = x * x + y * y
    distance = torch.from_numpy(np.sqrt(squared.numpy())) if squared.device.type == "cpu" else squared.sqrt()
    return distance / extent.double()[:, None]


def _require_extent(extent: Float[Tensor, " b"]) -> None:
    """Refuse a length that is not positive, on a CPU: a GPU would be waited for."""
    if extent.device.type == "cpu" and not bool(((extent > 0) & extent.isfinite()).all()):
        wrong = extent[~((extent > 0) & extent.isfinite())][0].item()
        raise UserError(f"`extent` must be positive, got {wrong:g}. Give the longer side of each box or image")


def _require_numbers(errors: Float[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> None:
    """Refuse NaN at a keypoint that is scored, on a CPU: it would count as wrong."""
    if errors.device.type == "cpu" and bool((errors.isnan() & mask).any()):
        raise UserError("`predicted` or `target` is NaN at a keypoint to score. Give numbers, or mask it out")


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

    Raises:
        UserError: An option is out of range, or a name is given twice.
    """

    full_state_update = False
    higher_is_better = True
    correct: Int[Tensor, "subsets categories alphas counts"]
    pairs: Int[Tensor, "subsets categories counts"]

    @check_arguments()
    def __init__(
        self,
        categories: Sequence[str],
        keypoints: Whole,
        alphas: Sequence[Positive] = ALPHAS,
        tolerance: Tolerance = INCLUSIVE,
        pooling: Pooling = "image",
    ) -> None:
        super().__init__()
        if isinstance(categories, str):
            raise UserError(f"`categories` must be a list of names, got {categories!r}. Give [{categories!r}]")
        for option, names in (("categories", categories), ("alphas", [f"{alpha:g}" for alpha in alphas])):
            if duplicates := [name for i, name in enumerate(names) if name in names[:i]]:
                raise UserError(f"`{option}` has {duplicates[0]} twice. Give each once")
        self.tolerance, self.pooling = tolerance, pooling
        self.categories, self.alphas = tuple(categories), tuple(alphas)
        shape = (len(SUBSETS), len(self.categories))
        zeros = torch.zeros(*shape, len(self.alphas), keypoints + 1, dtype=torch.long)
        self.add_state("correct", zeros, dist_reduce_fx="sum")
        self.add_state("pairs", zeros[:, :, 0].clone(), dist_reduce_fx="sum")

    @check_shapes
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

        Raises:
            UserError: Shapes or types do not fit each other; on a CPU, an extent is not positive, a category is unknown
                or a point is NaN.
        """
        _require_extent(extent)
        self._require_known(shared.shape[1], category)
        category = category.long()
        errors = normalised_error(predicted, target, extent) if errors is None else errors
        _require_numbers(errors, shared)
        values = self.tolerance.round_alphas(self.alphas)
        alphas = torch.tensor(values, dtype=torch.double, device=extent.device)[:, None]
        is_correct = self.tolerance.is_correct(errors[:, None], alphas)  # (b alphas n)
        for s, mask in enumerate((shared, shared & ambiguous, shared & ~ambiguous)):
            n = mask.sum(-1)  # 0 for a pair with nothing to score: counted, and left out by `compute`
            self.pairs[s].index_put_((category, n), torch.ones_like(n), accumulate=True)
            correct_of_n = (is_correct & mask[:, None]).sum(-1)  # (b alphas)
            self.correct[s].transpose(1, 2).index_put_((category, n), correct_of_n, accumulate=True)

    def _require_known(self, keypoints: int, category: Int[Tensor, " b"]) -> None:
        """Refuse more keypoints than counts were made for, and on a CPU a category that has no name."""
        most = self.pairs.shape[-1] - 1
        if keypoints > most:
            raise UserError(
                f"`shared` has {keypoints} keypoints for each pair, and the metric counts up to {most}. "
                f"Build it with keypoints={keypoints}"
            )
        if category.device.type == "cpu":
            wrong = category[(category < 0) | (category >= len(self.categories))].tolist()
            if wrong:
                raise UserError(
                    f"`category` must be an index into the {len(self.categories)} categories, from 0 to "
                    f"{len(self.categories) - 1}, got {wrong[0]}. Give the index of each pair's category"
                )

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
