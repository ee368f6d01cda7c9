"""Heads without weights: optimal transport between the cells of two images, by Sinkhorn's iterations.

Everything is computed in logarithms and in single precision at least: at a temperature of 0.02, two cosines that are 1
apart differ by a factor of e^50.
"""

from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from semcorr.core.ranges import Range, Temperature, check_arguments
from semcorr.core.types import FeatureMap
from semcorr.matching.similarity import cosine_similarity, sample_descriptors
from semcorr.models.heads.correlation import correlation

Marginals = Literal["uniform", "staircase"]
Iterations = Annotated[int, Range(least=1, most=10_000)]
BinScore = Annotated[float, Range(least=-1, most=1)]
STEPS = ((0.4, 0.3), (0.5, 0.1), (0.6, 0.1))  # SCOT's staircase: above 0.4 of the largest activation 0.3 more, ...
FLOOR = 0.5  # the weight of all other cells


class LogScalings(NamedTuple):
    """Logarithms of the factors by which rows and columns of exp(similarity / temperature) become a transport plan."""

    source: Float[Tensor, "b n"]
    target: Float[Tensor, "b m"]


def sinkhorn(
    similarity: Float[Tensor, "b n m"],
    source_weights: Float[Tensor, "b n"],
    target_weights: Float[Tensor, "b m"],
    temperature: float,
    iterations: int,
) -> Float[Tensor, "b n m"]:
    """Compute the plan P of entropic optimal transport: the largest <P, similarity> + temperature * entropy of P.

    By the iterations of Sinkhorn (Cuturi 2013). The rows of P sum to `source_weights` exactly, its columns to
    `target_weights` after enough iterations.

    Args:
        similarity: Negative cost; a constant more or less in a row or a column changes nothing.
        source_weights: Mass of every source cell, positive.
        target_weights: Mass of every target cell, positive, of the same sum.
        temperature: Weight of the entropy: at a small one plans are close to permutations, and need more iterations.
        iterations: Number of updates of all columns, then of all rows.

    >>> plan = sinkhorn(torch.tensor([[[1.0, 0.9], [0.9, 0.0]]]), torch.ones(1, 2), torch.ones(1, 2), 0.1, 200)
    >>> plan.round(decimals=2)  # each would take the first column; the second row has nothing else
    tensor([[[0.0200, 0.9800],
             [0.9800, 0.0200]]])
    """
    with torch.autocast(similarity.device.type, enabled=False):
        rows, columns = solve_scalings(similarity, source_weights, target_weights, temperature, iterations)
        logits = similarity.to(rows.dtype) / temperature
        return (logits + rows[..., None] + columns[..., None, :]).exp()


def solve_scalings(
    similarity: Float[Tensor, "b n m"],
    source_weights: Float[Tensor, "b n"],
    target_weights: Float[Tensor, "b m"],
    temperature: float,
    iterations: int,
) -> LogScalings:
    """Compute the scalings of `sinkhorn`'s plan; in training, memory holds one iteration at a time.

    Args:
        similarity: Negative cost.
        source_weights: Mass of every source cell, positive.
        target_weights: Mass of every target cell, positive, of the same sum.
        temperature: Weight of the entropy.
        iterations: Number of updates of all columns, then of all rows.
    """
    with torch.autocast(similarity.device.type, enabled=False):
        single = torch.promote_types(similarity.dtype, torch.float32)
        logits = similarity.to(single) / temperature
        log_rows, log_columns = source_weights.to(single).log(), target_weights.to(single).log()
        rows = torch.zeros_like(log_rows)
        columns = torch.zeros_like(log_columns)
        for _ in range(iterations):
            if torch.is_grad_enabled() and logits.requires_grad:
                rows, columns = checkpoint(
                    _scale_once, logits, log_rows, log_columns, rows, use_reentrant=False, preserve_rng_state=False
                )
            else:
                rows, columns = _scale_once(logits, log_rows, log_columns, rows)
        return LogScalings(rows, columns)


def _scale_once(
    logits: Float[Tensor, "b n m"],
    log_rows: Float[Tensor, "b n"],
    log_columns: Float[Tensor, "b m"],
    rows: Float[Tensor, "b n"],
) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b m"]]:
    """Scale the columns to their sums, then the rows to theirs."""
    columns = log_columns - (logits + rows[..., None]).logsumexp(-2)
    return log_rows - (logits + columns[..., None, :]).logsumexp(-1), columns


def add_dustbins(
    similarity: Float[Tensor, "b n m"],
    source_weights: Float[Tensor, "b n"],
    target_weights: Float[Tensor, "b m"],
    score: float,
) -> tuple[Float[Tensor, "b n+1 m+1"], Float[Tensor, "b n+1"], Float[Tensor, "b m+1"]]:
    """Add a row and a column that take what finds no match better than `score` (partial transport).

    As in SuperGlue (Sarlin et al. 2020) and GECO. Each bin has room for all mass of the other image, so the two masses
    need not be the same.

    Args:
        similarity: Similarity of every source cell with every target cell.
        source_weights: Mass of every source cell.
        target_weights: Mass of every target cell.
        score: Similarity of every cell with the bin of the other image, and of both bins.

    Returns:
        Similarity, source weights and target weights, each with the bin last.
    """
    similarity = nn.functional.pad(similarity, (0, 1, 0, 1), value=score)
    source_mass, target_mass = (weights.sum(-1, keepdim=True) for weights in (source_weights, target_weights))
    return (
        similarity,
        torch.cat((source_weights, target_mass), dim=-1),
        torch.cat((target_weights, source_mass), dim=-1),
    )


def staircase(activation: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """Return SCOT's weights of activations: 0.5; above 0.4, 0.5 and 0.6 of the range of an image 0.8, 0.9 and 1.

    >>> staircase(torch.tensor([[0.0, 0.45, 0.55, 1.0]]))
    tensor([[0.5000, 0.8000, 0.9000, 1.0000]])
    """
    low, high = activation.aminmax(dim=-1, keepdim=True)
    height = (activation - low) / (high - low).clamp_min(torch.finfo(activation.dtype).tiny)
    return sum((rise * (height > edge) for edge, rise in STEPS), torch.full_like(activation, FLOOR))


def weigh_cells(
    similarity: Float[Tensor, "b n m"], marginals: Marginals
) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b m"]]:
    """Return the mass of the cells of both images, 1 on average.

    The staircase needs an activation of every cell. SCOT's is the class activation map of a classifier, which a feature
    map does not have; in its place stands a cell's largest cosine with the other image: what both images show.
    """
    if marginals == "uniform":
        return torch.ones_like(similarity[..., 0]), torch.ones_like(similarity[..., 0, :])
    source, target = (staircase(similarity.detach().amax(axis)) for axis in (-1, -2))
    return source / source.mean(-1, keepdim=True), target / target.mean(-1, keepdim=True)


class Transport(nn.Module):
    """Optimal transport instead of nearest neighbours: a target cell that everybody prefers becomes expensive.

    As in Liu et al., "Semantic Correspondence as an Optimal Transport Problem" (SCOT), without the Hough voting that
    follows there. A match is the largest entry of a row of the plan. `iterations=1` is SCOT's released code, with its
    temperature of 0.05.

    Ours:
    - A plan has no scale that fits a readout. Returned is what `head=cosine` returns, plus the price of the target
      cell: temperature times the logarithm of its scaling, 0 on average. At the centre of a source cell, the softmax of
      that at `temperature` is the row of the plan; so the best cells are the same, and it has the scale of cosines.
      Prices belong to the target, and are the same for all points.
    - Cosines below zero stay as they are; SCOT has features after a ReLU, and makes the rest zero.
    - Readouts answer for every point. A dustbin changes prices, and no point is thrown into it.

    Args:
        marginals: Mass of the cells: `uniform`, or SCOT's `staircase` by a stand-in, see `weigh_cells`.
        dustbin: Cosine below which a cell would rather have no match: transport is partial. None: all mass moves.
        temperature: Weight of the entropy, in cosines.
        iterations: Number of Sinkhorn's iterations.
    """

    @check_arguments("head")
    def __init__(
        self,
        marginals: Marginals = "uniform",
        dustbin: BinScore | None = None,
        temperature: Temperature = 0.05,
        iterations: Iterations = 20,
    ) -> None:
        super().__init__()
        self.marginals: Marginals = marginals
        self.dustbin, self.temperature, self.iterations = dustbin, temperature, iterations

    def forward(
        self, source: FeatureMap, target: FeatureMap, points: Float[Tensor, "b n 2"]
    ) -> Float[Tensor, "b n h w"]:
        """Compute the similarity of `points`, given in source pixels, with every target cell."""
        with torch.autocast(source.values.device.type, enabled=False):
            prices = self.price(correlation(source.values, target.values).flatten(1, 2).flatten(2))
            descriptors = sample_descriptors(source.values, points, source.stride)
            cosines = cosine_similarity(descriptors, target.values)
            return cosines + prices[:, None].unflatten(-1, target.values.shape[-2:])

    def price(self, similarity: Float[Tensor, "b n m"]) -> Float[Tensor, "b m"]:
        """Compute what is added to the similarity of every target cell; 0 on average."""
        source, target = weigh_cells(similarity, self.marginals)
        if self.dustbin is None:
            source, target = source / source.shape[-1], target / target.shape[-1]  # equal masses
        else:
            similarity, source, target = add_dustbins(similarity, source, target, self.dustbin)
        scalings = solve_scalings(similarity, source, target, self.temperature, self.iterations)
        prices = self.temperature * (scalings.target if self.dustbin is None else scalings.target[..., :-1])
        return prices - prices.mean(-1, keepdim=True)
