"""The weighted sum of several losses."""

from collections.abc import Mapping
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from semcorr.core.errors import UserError
from semcorr.core.ranges import Temperature, Weight, Window, check_arguments, require
from semcorr.models.losses.consistency import CycleConsistency, WarpConsistency
from semcorr.models.losses.contrastive import SymmetricContrastive
from semcorr.models.losses.gaussian_cross_entropy import GaussianCrossEntropy
from semcorr.models.losses.image_level import ImageLevel
from semcorr.models.losses.inputs import (
    LOOKUPS,
    ExtraInput,
    Lookup,
    Loss,
    LossInputs,
    evaluate_loss,
    list_reads,
    point_lookup,
    reads_descriptors,
)
from semcorr.models.losses.mask_consistency import MaskConsistency
from semcorr.models.losses.mined_matches import MinedMatches
from semcorr.models.losses.pseudo_labels import PseudoLabels
from semcorr.models.losses.soft_argmax_distance import SoftArgmaxDistance


class WeightedSum(nn.Module):
    """The weighted sum of losses of any kind.

    Args:
        terms: Losses by name.
        weights: Weights by the same names; a loss with weight 0 is left out.

    Raises:
        UserError: Names differ, a weight is negative, all are 0, or the losses read features in ways that exclude each
            other.

    >>> import torch
    >>> step = LossInputs(torch.ones(1, 1, 2, 2), *[torch.zeros(1, 1)] * 4, number=0)
    >>> losses = {"first": lambda similarity, cells, mask: similarity.sum(), "second": lambda *_: torch.tensor(1.0)}
    >>> WeightedSum(losses, {"first": 0.5, "second": 3.0})(step)
    tensor(5.)
    """

    def __init__(self, terms: Mapping[str, Loss], weights: Mapping[str, float]) -> None:
        super().__init__()
        if terms.keys() != weights.keys():
            raise UserError(
                f"`loss`: {', '.join(terms)} need a weight each, got weights of {', '.join(weights) or 'nothing'}"
            )
        for name, weight in weights.items():
            require(f"loss.weights.{name}", weight, Weight)
        terms = {name: term for name, term in terms.items() if weights[name]}
        if not terms:
            raise UserError("`loss.weights`: one must be more than 0, and all are 0")
        self.terms, self.weights = terms, {name: weights[name] for name in terms}
        self.learned = nn.ModuleDict({name: term for name, term in terms.items() if isinstance(term, nn.Module)})
        self.reads_descriptors = any(map(reads_descriptors, terms.values()))
        self.reads: list[ExtraInput] = sorted({name for term in terms.values() for name in list_reads(term)})
        lookups = {point_lookup(term) for term in terms.values()}
        if "aligned" in lookups and len(lookups) > 1:
            raise UserError(
                "`loss`: a sum has one place where features are read, and its losses differ in it: "
                f"{', '.join(sorted(lookups))}. Make all of them `aligned`, or none."
            )
        self.lookup: Lookup = max(lookups, key=LOOKUPS.index, default="centre")

    def forward(self, step: LossInputs) -> Float[Tensor, ""]:
        """Compute the weighted sum of the losses of one step."""
        return add_terms(self.parts(step))

    def parts(self, step: LossInputs) -> dict[str, Float[Tensor, ""]]:
        """Compute the weighted losses of one step, by name."""
        return {name: self.weights[name] * evaluate_loss(term, step) for name, term in self.terms.items()}


def loss_terms(loss: Loss, step: LossInputs) -> dict[str, Float[Tensor, ""]]:
    """Compute the terms of a loss by name; a loss that is not a sum is its only term."""
    if isinstance(loss, WeightedSum):
        return loss.parts(step)
    function = loss.func if isinstance(loss, partial) else loss
    return {getattr(function, "__name__", type(function).__name__): evaluate_loss(loss, step)}


def add_terms(terms: Mapping[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
    """Add up the terms of a loss."""
    first, *others = terms.values()
    return sum(others, start=first)


@check_arguments("loss")
def weighted_sum(
    dense: Weight = 1.0,
    contrastive: Weight = 1.0,
    cross_entropy: Weight = 0.0,
    image_level: Weight = 0.0,
    pseudo_labels: Weight = 0.0,
    cycle: Weight = 0.0,
    warp: Weight = 0.0,
    mask: Weight = 0.0,
    mined_matches: Weight = 0.0,
    temperature: Temperature = 0.02,
    noise: Weight = 0.1,
    contrastive_flips: bool = True,
    integer_source: bool = False,
    trained_grid: int | None = None,
    window: Window | None = None,
) -> WeightedSum:
    """Build the weighted sum of the losses of this package; a loss with weight 0 is left out.

    The defaults are the objective of "Telling Left from Right": dense and contrastive, added up.

    Args:
        dense: Weight of `SoftArgmaxDistance`.
        contrastive: Weight of `SymmetricContrastive`.
        cross_entropy: Weight of `GaussianCrossEntropy`, which like the losses below has its own defaults.
        image_level: Weight of `ImageLevel`.
        pseudo_labels: Weight of `PseudoLabels`, which needs a teacher.
        cycle: Weight of `CycleConsistency`.
        warp: Weight of `WarpConsistency`.
        mask: Weight of `MaskConsistency`.
        mined_matches: Weight of `MinedMatches`, which needs a teacher.
        temperature: `temperature` of `SoftArgmaxDistance`.
        noise: `noise` of `SoftArgmaxDistance`.
        contrastive_flips: `flips` of `SymmetricContrastive`.
        integer_source: `integer_source` of `SoftArgmaxDistance`.
        trained_grid: `trained_grid` of `SoftArgmaxDistance`.
        window: `window` of `SoftArgmaxDistance`.
    """
    weights = {
        "dense": dense,
        "contrastive": contrastive,
        "cross_entropy": cross_entropy,
        "image_level": image_level,
        "pseudo_labels": pseudo_labels,
        "cycle": cycle,
        "warp": warp,
        "mask": mask,
        "mined_matches": mined_matches,
    }
    if not any(weights.values()):
        raise UserError(f"`loss`: one of the weights {', '.join(weights)} must be more than 0, and all are 0")
    kinds = {
        "dense": lambda: SoftArgmaxDistance(temperature, noise, integer_source, trained_grid, window),
        "contrastive": lambda: SymmetricContrastive(flips=contrastive_flips),
        "cross_entropy": GaussianCrossEntropy,
        "image_level": ImageLevel,
        "pseudo_labels": PseudoLabels,
        "cycle": CycleConsistency,
        "warp": WarpConsistency,
        "mask": MaskConsistency,
        "mined_matches": MinedMatches,
    }
    weights = {name: weight for name, weight in weights.items() if weight}
    return WeightedSum({name: kinds[name]() for name in weights}, weights)
