"""PCK: the function, and the metric that adds it up exactly.

Both follow our own protocol: distances in original target pixels, correct if distance <= alpha *
extent (as HPF, DIFT and the unified benchmark; GeoAware-SC uses <).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

SUBSETS = ("all", "geo", "std")
ALPHAS = (0.01, 0.05, 0.1, 0.15, 0.2)

Scores = dict[str, dict[str, dict[str, float | None]]]


def pck(
    predicted: Float[Tensor, "b n 2"],
    target: Float[Tensor, "b n 2"],
    extent: Float[Tensor, " b"],
    alpha: float = 0.1,
    mask: Bool[Tensor, "b n"] | None = None,
) -> Float[Tensor, " b"]:
    """Percentage of Correct Keypoints, one value per pair, in [0, 1].

    A keypoint is correct when it lands within ``alpha * extent`` of its target, where ``extent`` is
    the longer side of the target object's box (PCK@bbox) or of the target image (PCK@img). Pairs with
    no keypoint in ``mask`` give NaN, so that a mean over pairs cannot mistake "nothing to score" for
    "nothing right".

    Args:
        predicted: In original target pixels, as `target`.
        target: Where the keypoints truly are.
        extent: The length that ``alpha`` is a fraction of, in the same pixels as the points.
        alpha: Tolerance as a fraction of ``extent``.
        mask: Which keypoints to score. All of them if left out.

    Example:
        >>> predicted = torch.tensor([[[10.0, 10.0], [40.0, 10.0]]])
        >>> target = torch.tensor([[[10.0, 19.0], [40.0, 21.0]]])  # 9 and 11 px away
        >>> pck(predicted, target, extent=torch.tensor([100.0]))  # tolerance 10 px
        tensor([0.5000])
    """
    mask = torch.ones_like(target[..., 0], dtype=torch.bool) if mask is None else mask
    correct = (error(predicted, target, extent) <= alpha) & mask
    return correct.sum(-1) / mask.sum(-1)


def error(
    predicted: Float[Tensor, "b n 2"], target: Float[Tensor, "b n 2"], extent: Float[Tensor, " b"]
) -> Float[Tensor, "b n"]:
    """Distance as a fraction of ``extent``; in double precision, so that ties with alpha are the same everywhere."""
    distance = (predicted.double() - target.double()).norm(dim=-1)
    return distance / extent.double()[:, None]


class PCK(Metric):
    """PCK over several alphas, subsets and categories, per image and per point.

    Only whole numbers are added up. A pair that has k of n keypoints right contributes k/n to the
    per-image mean, so pairs are grouped by n and the division is left to `compute`: any number of
    processes, in any order, gives the same digits.

    Subsets: `all` shared keypoints; `geo`, the geometry-aware ones; `std`, the rest. (The papers'
    "Std." column is our `all`.)

    Args:
        categories: Their names; `update` takes indices into them.
        keypoints: Rows of a keypoint array, the largest n there can be.
        alphas: Tolerances, fractions of the extent.
        strict: Right only if nearer than that (GeoAware-SC), not if as far.
        pooling: Of the headline: over pairs (`image`), keypoints (`point`), or categories of the latter, alike
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
        strict: bool = False,
        pooling: str = "image",
    ) -> None:
        super().__init__()
        self.strict, self.pooling = strict, pooling
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
        """Add a batch of pairs; points in original target pixels, `errors` as another protocol measures them."""
        errors = error(predicted, target, extent) if errors is None else errors
        alphas = torch.tensor(self.alphas, dtype=torch.double, device=extent.device)[:, None]
        right = errors[:, None] < alphas if self.strict else errors[:, None] <= alphas  # (b alphas n)
        for s, mask in enumerate((shared, shared & ambiguous, shared & ~ambiguous)):
            n = mask.sum(-1)  # 0 for a pair with nothing to score: kept, and left out by `compute`
            self.pairs[s].index_put_((category, n), torch.ones_like(n), accumulate=True)
            right_of_n = (right & mask[:, None]).sum(-1)  # (b alphas)
            self.correct[s].transpose(1, 2).index_put_((category, n), right_of_n, accumulate=True)

    def compute(self) -> dict[str, Any]:
        """`{"pck": {subset: {"image"|"point": {alpha: value}}}, "category": {name: the same}, "headline": {...}}`.

        The last is `{alpha: value}` of all keypoints, by `pooling`. A value is None where there is
        no keypoint at all.
        """
        each = {name: self._scores(self.correct[:, i], self.pairs[:, i]) for i, name in enumerate(self.categories)}
        pooled = self._scores(self.correct.sum(1), self.pairs.sum(1))
        return {"pck": pooled, "category": each, "headline": self._headline(pooled, each)}

    def _headline(self, all_of: Scores, each: dict[str, Scores]) -> dict[str, float | None]:
        """All shared keypoints, pooled as this protocol's authors do."""
        if self.pooling in ("image", "point"):
            return all_of["all"][self.pooling]
        pairs = self.pairs[0, :, 1:].sum(-1)
        counts = (pairs if self.pooling == "category_by_pairs" else (pairs > 0).long()).tolist()
        found: dict[str, float | None] = {}
        for alpha in all_of["all"]["point"]:
            terms = zip(counts, (each[name]["all"]["point"][alpha] for name in self.categories), strict=True)
            total = math.fsum(count * value for count, value in terms if value is not None)
            found[alpha] = total / sum(counts) if sum(counts) else None
        return found

    def _scores(self, correct: Int[Tensor, "subsets alphas counts"], pairs: Int[Tensor, "subsets counts"]) -> Scores:
        correct, pairs = correct[..., 1:].double(), pairs[:, 1:].double()
        n = torch.arange(1, pairs.shape[-1] + 1, dtype=torch.double, device=pairs.device)
        image = (correct / n).sum(-1) / pairs.sum(-1)[:, None]
        point = correct.sum(-1) / (pairs * n).sum(-1)[:, None]
        return {
            subset: {"image": self._row(image[s]), "point": self._row(point[s])} for s, subset in enumerate(SUBSETS)
        }

    def _row(self, values: Float[Tensor, " alphas"]) -> dict[str, float | None]:
        """NaN, which JSON does not know, becomes None."""
        known = [None if v != v else v for v in values.tolist()]
        return {f"{alpha:g}": v for alpha, v in zip(self.alphas, known, strict=True)}
