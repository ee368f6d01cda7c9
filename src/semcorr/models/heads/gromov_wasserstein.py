"""Gromov-Wasserstein transport, fused with features: what lies far apart in one image must in the other; no weights."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from semcorr.core.device import full_float32
from semcorr.core.ranges import Count, Temperature, Weight, check_arguments
from semcorr.core.types import FeatureMap
from semcorr.matching.similarity import cosine_similarity, sample_descriptors
from semcorr.models.heads.correlation import correlation, sample_correlation
from semcorr.models.heads.transport import Iterations, sinkhorn, solve_scalings


class GromovProblem(NamedTuple):
    """The search for the plan P of the largest <P, similarity> - structure * (its Gromov-Wasserstein cost) + entropy.

    Attributes:
        similarity: Similarity of every source cell with every target cell; zeros for structure alone.
        source_distances: Distances between the cells of the source, symmetric.
        target_distances: Distances between the cells of the target, symmetric.
        source_weights: Mass of every source cell, positive.
        target_weights: Mass of every target cell, positive, of the same sum.
        structure: Weight of the cost, in similarities; alpha / (1 - alpha) of fused Gromov-Wasserstein.
        temperature: Weight of the entropy, in similarities.
    """

    similarity: Float[Tensor, "b n m"]
    source_distances: Float[Tensor, "#b n n"]
    target_distances: Float[Tensor, "#b m m"]
    source_weights: Float[Tensor, "b n"]
    target_weights: Float[Tensor, "b m"]
    structure: float
    temperature: float


def linearise(problem: GromovProblem, plan: Float[Tensor, "b n m"]) -> Float[Tensor, "b n m"]:
    """Return the similarity less the structure's gradient at a plan, but for constants of rows and columns.

    Those change no plan: all plans have the same marginals.
    """
    return problem.similarity + 4 * problem.structure * _carry_distances(problem, plan)


def _carry_distances(problem: GromovProblem, plan: Float[Tensor, "b n m"]) -> Float[Tensor, "b n m"]:
    with full_float32(plan.device.type):
        return problem.source_distances @ plan @ problem.target_distances


def match_structures(problem: GromovProblem, steps: int, iterations: int) -> Float[Tensor, "b n m"]:
    """Return the linearised similarity of the last of some steps of mirror descent: its Sinkhorn plan is the solution.

    Each step solves the transport problem that is linear at the last plan (Peyre et al. 2016); the first plan is that
    of the similarity alone. Distances of points, as here, are conditionally negative definite: the cost is concave
    among plans of the same marginals, so no step makes the objective worse. What it ends in is a local optimum.

    Args:
        problem: Problem to solve.
        steps: Number of linear problems that are solved; at least one.
        iterations: Number of Sinkhorn's iterations in each of them.
    """
    similarity = problem.similarity
    for _ in range(steps):
        plan = sinkhorn(similarity, problem.source_weights, problem.target_weights, problem.temperature, iterations)
        similarity = linearise(problem, plan)
    return similarity


def cell_distances(like: Float[Tensor, "b c h w"]) -> Float[Tensor, "1 n n"]:
    """Compute the distances between the cells of a map, row by row; those of opposite corners are about 1."""
    h, w = like.shape[-2:]
    rows, columns = torch.arange(h, device=like.device), torch.arange(w, device=like.device)
    cells = torch.cartesian_prod(rows, columns).view(-1, 2).float()
    return (cells[:, None] - cells).square().sum(-1).sqrt()[None] / (h**2 + w**2) ** 0.5


class GromovWasserstein(nn.Module):
    """Optimal transport that also keeps distances between cells: neighbours go to neighbours.

    Entropic, with square loss and uniform marginals, as Peyre, Cuturi and Solomon (2016); fused with the cosines of the
    features, as Vayer et al. (2019). Snelgar et al. (2026, "GWOT") have the idea for semantic correspondence; this is
    no copy of theirs. The structure of an image is here the distance between its cells, over the diagonal.

    A step multiplies n x n matrices, so maps are averaged until a side has at most `cells`. What comes out for these
    is enlarged again, and added to the cosines of the full maps: peaks stay as fine as features make them.

    The scale is that of `Transport`: returned is what `head=cosine` returns, plus structure and price, which are 0 on
    average over the target. Where nothing is averaged, its softmax at `temperature` is the row of the plan.

    Args:
        structure: Weight of the structure against the cosines; alpha / (1 - alpha) of fused Gromov-Wasserstein.
        temperature: Weight of the entropy, in cosines.
        steps: Number of steps of mirror descent.
        iterations: Number of Sinkhorn's iterations in each step.
        cells: Largest number of cells along a side; larger maps are averaged.
    """

    @check_arguments("head")
    def __init__(
        self,
        structure: Weight = 1.0,
        temperature: Temperature = 0.05,
        steps: Iterations = 5,
        iterations: Iterations = 10,
        cells: Count = 30,
    ) -> None:
        super().__init__()
        self.structure, self.temperature, self.steps = structure, temperature, steps
        self.iterations, self.cells = iterations, cells

    def forward(
        self, source: FeatureMap, target: FeatureMap, points: Float[Tensor, "b n 2"]
    ) -> Float[Tensor, "b n h w"]:
        """Compute the similarity of `points`, given in source pixels, with every target cell."""
        with torch.autocast(source.values.device.type, enabled=False):
            descriptors = sample_descriptors(source.values, points, source.stride)
            cosines = cosine_similarity(descriptors, target.values)
            (coarse_source, source_factor), (coarse_target, target_factor) = (
                self._average(maps.values) for maps in (source, target)
            )
            change = self.compare_structures(coarse_source, coarse_target)
            rows = sample_correlation(change, points, source.stride * source_factor)
            return cosines + _enlarge(rows, target_factor, *cosines.shape[-2:])

    def compare_structures(
        self, source: Float[Tensor, "b c h w"], target: Float[Tensor, "b c k l"]
    ) -> Float[Tensor, "b h w k l"]:
        """Compute what structure and prices add to the cosine of every two cells; 0 on average over the target."""
        cosines = correlation(source, target)
        similarity = cosines.flatten(1, 2).flatten(2)
        _, n, m = similarity.shape
        problem = GromovProblem(
            similarity,
            cell_distances(source),
            cell_distances(target),
            torch.full_like(similarity[..., 0], 1 / n),
            torch.full_like(similarity[:, 0], 1 / m),
            self.structure,
            self.temperature,
        )
        linear = match_structures(problem, self.steps, self.iterations)
        scalings = solve_scalings(
            linear, problem.source_weights, problem.target_weights, self.temperature, self.iterations
        )
        change = linear - similarity + self.temperature * scalings.target[:, None]
        return (change - change.mean(-1, keepdim=True)).view_as(cosines)

    def _average(self, values: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b c k l"], int]:
        """Average the cells of a map in squares; return how many cells a side of a square has, too."""
        factor = -(-max(values.shape[-2:]) // self.cells)
        return (avg_pool2d(values.float(), factor, ceil_mode=True), factor) if factor > 1 else (values, 1)


def _enlarge(rows: Float[Tensor, "b n k l"], factor: int, h: int, w: int) -> Float[Tensor, "b n h w"]:
    """Enlarge maps, whose last cells may reach beyond the border."""
    if factor == 1:
        return rows
    images = rows.flatten(0, 1)[:, None]  # there may be no points, but never no channels
    large = interpolate(images, scale_factor=float(factor), mode="bilinear", align_corners=False)
    return large[:, 0, :h, :w].unflatten(0, rows.shape[:2])
