"""Losses, weighted and added up."""

from collections.abc import Mapping
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from semcorr.core.errors import UserError
from semcorr.core.ranges import Temperature, Weight, check_arguments
from semcorr.models.losses.contrastive import SymmetricContrastive
from semcorr.models.losses.gaussian_cross_entropy import GaussianCrossEntropy
from semcorr.models.losses.inputs import Loss, LossInputs, evaluate_loss, reads_descriptors, reads_whole_cells
from semcorr.models.losses.soft_argmax_distance import SoftArgmaxDistance


class WeightedSum(nn.Module):
    """The weighted sum of losses of any kind.

    Args:
        terms: By name.
        weights: By the same names.

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
        self.terms, self.weights = dict(terms), dict(weights)
        self.learned = nn.ModuleDict({name: each for name, each in terms.items() if isinstance(each, nn.Module)})
        self.reads_descriptors = any(map(reads_descriptors, terms.values()))
        self.whole_cells = any(map(reads_whole_cells, terms.values()))

    def forward(self, step: LossInputs) -> Float[Tensor, ""]:
        """All of the same step."""
        return add_terms(self.parts(step))

    def parts(self, step: LossInputs) -> dict[str, Float[Tensor, ""]]:
        """Each by its name, weighted."""
        return {name: self.weights[name] * evaluate_loss(term, step) for name, term in self.terms.items()}


def loss_terms(loss: Loss, step: LossInputs) -> dict[str, Float[Tensor, ""]]:
    """What a loss adds up, by name; of one that adds nothing up, itself."""
    if isinstance(loss, WeightedSum):
        return loss.parts(step)
    function = loss.func if isinstance(loss, partial) else loss
    return {getattr(function, "__name__", type(function).__name__): evaluate_loss(loss, step)}


def add_terms(terms: Mapping[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
    """The sum of the terms of a loss."""
    first, *others = terms.values()
    return sum(others, start=first)


@check_arguments("loss")
def weighted_sum(
    dense: Weight = 1.0,
    contrastive: Weight = 1.0,
    cross_entropy: Weight = 0.0,
    temperature: Temperature = 0.02,
    noise: Weight = 0.1,
    contrastive_flips: bool = True,
    integer_source: bool = False,
    trained_grid: int | None = None,
) -> WeightedSum:
    """The losses of this package by their weights; with no weight a loss is left out.

    The defaults are the objective of "Telling Left from Right": dense and contrastive, added up.

    Args:
        dense: Weight of `Dense`,
        contrastive: of `SymmetricContrastive`,
        cross_entropy: of `GaussianCrossEntropy`, with its own defaults.
        temperature: Of the dense loss, as the rest:
        noise: see there.
        contrastive_flips: `flips` of the contrastive loss.
        integer_source: See `Dense`, and
        trained_grid: likewise.
    """
    weights = {"dense": dense, "contrastive": contrastive, "cross_entropy": cross_entropy}
    if not any(weights.values()):
        told = ", ".join(f"{name}={weight:g}" for name, weight in weights.items())
        raise UserError(f"`loss`: weights must be 0 or more, and one of them more, got {told}")
    kinds = {
        "dense": lambda: SoftArgmaxDistance(temperature, noise, integer_source, trained_grid),
        "contrastive": lambda: SymmetricContrastive(flips=contrastive_flips),
        "cross_entropy": GaussianCrossEntropy,
    }
    weights = {name: weight for name, weight in weights.items() if weight}
    return WeightedSum({name: kinds[name]() for name in weights}, weights)
