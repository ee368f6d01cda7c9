"""Gromov-Wasserstein transport: its cost against four loops, turned and shuffled points, and the head."""

from itertools import pairwise
from math import cos, sin

import pytest
import torch
from tiny_cost_heads import CHANNELS, STRIDE, built, centres, maps, points
from torch.testing import assert_close

from semcorr.core.errors import UserError
from semcorr.core.types import FeatureMap
from semcorr.models.heads.correlation import correlation
from semcorr.models.heads.cosine import Cosine
from semcorr.models.heads.gromov_wasserstein import (
    GromovProblem,
    GromovWasserstein,
    cell_distances,
    linearise,
    match_structures,
)
from semcorr.models.heads.transport import Transport, sinkhorn


def distances(places: torch.Tensor) -> torch.Tensor:
    return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")[None]


def problem(
    source: torch.Tensor, target: torch.Tensor, structure: float = 1.0, temperature: float = 1e-2, features: float = 0
) -> GromovProblem:
    """Of two sets of points, with random features or none."""
    n, m = len(source), len(target)
    return GromovProblem(
        features * torch.rand(1, n, m, dtype=source.dtype),
        distances(source),
        distances(target),
        torch.full((1, n), 1 / n, dtype=source.dtype),
        torch.full((1, m), 1 / m, dtype=source.dtype),
        structure,
        temperature,
    )


def gromov_cost(one: GromovProblem, plan: torch.Tensor) -> torch.Tensor:
    """The sum over i, j, k, l of (source distance i k - target distance j l)^2 P_ij P_kl, as it is written."""
    a, b, p = one.source_distances[0], one.target_distances[0], plan[0]
    apart = (a[:, None, :, None] - b[None, :, None, :]).square()
    return torch.einsum("ijkl,ij,kl->", apart, p, p)[None]


def solve(one: GromovProblem, steps: int, iterations: int) -> torch.Tensor:
    linear = match_structures(one, steps, iterations)
    return sinkhorn(linear, one.source_weights, one.target_weights, one.temperature, iterations)


def test_the_linearised_similarity_is_the_gradient_but_for_rows_and_columns():
    one = problem(torch.rand(3, 2).double(), torch.rand(4, 2).double(), structure=0.7, features=1)
    plan = sinkhorn(torch.rand(1, 3, 4).double(), one.source_weights, one.target_weights, 0.3, 2000).requires_grad_()
    objective = (plan * one.similarity).sum() - 0.7 * gromov_cost(one, plan).sum()

    (gradient,) = torch.autograd.grad(objective, plan)

    rest = (gradient - linearise(one, plan)).detach()
    rest = rest - rest.mean(-1, keepdim=True)
    assert_close(rest, rest.mean(-2, keepdim=True).expand_as(rest), atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_points_that_are_turned_and_shuffled_find_themselves(seed):
    """Without features: only the distances within each set are known."""
    generator = torch.Generator().manual_seed(seed)
    source, order = torch.rand(6, 2, generator=generator), torch.randperm(6, generator=generator)
    turn = torch.tensor([[cos(2.0), -sin(2.0)], [sin(2.0), cos(2.0)]])
    target = (source @ turn.T + 3)[order]

    one = problem(source, target, temperature=2e-3)
    plan = solve(one, 50, 100)

    assert plan[0].argmax(-1).tolist() == order.argsort().tolist()
    nowhere = one.source_weights[..., None] * one.target_weights[:, None]
    assert gromov_cost(one, plan) < 0.05 * gromov_cost(one, nowhere)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("structure", [0.3, 1.0, 10.0])
def test_no_step_makes_the_objective_worse(structure):
    torch.manual_seed(1)
    one = problem(torch.rand(7, 2).double(), torch.rand(9, 2).double(), structure, 0.05, features=1)

    def objective(plan):
        entropy = -(plan * plan.log()).sum()
        return ((plan * one.similarity).sum() - structure * gromov_cost(one, plan).sum() + 0.05 * entropy).item()

    first = sinkhorn(one.similarity, one.source_weights, one.target_weights, 0.05, 1000)
    values = [objective(first)] + [objective(solve(one, steps, 1000)) for steps in (1, 2, 4, 8)]

    assert all(later >= earlier - 1e-7 for earlier, later in pairwise(values))
    assert values[-1] > values[0] + 1e-4


def test_distances_of_cells_are_shares_of_the_diagonal():
    found = cell_distances(torch.zeros(1, 1, 3, 4))[0]

    assert_close(found[0, [1, 4, 11]], torch.tensor([1.0, 1.0, 13**0.5]) / 5)
    assert_close(found, found.T)
    assert not found.diagonal().any()


def test_gradients_are_those_of_differences():
    one = problem(torch.rand(3, 2).double(), torch.rand(4, 2).double(), temperature=0.2)

    def linear(similarity):
        return match_structures(one._replace(similarity=similarity), 2, 3)

    assert torch.autograd.gradcheck(linear, torch.rand(1, 3, 4, dtype=torch.double, requires_grad=True))


# -- the head --


def test_without_structure_it_is_transport():
    source, target, requested = maps(2, 3, 4), maps(2, 4, 2), points(2, 5)

    found = GromovWasserstein(structure=0, temperature=0.1, steps=1, iterations=9)(source, target, requested)

    assert_close(found, Transport(temperature=0.1, iterations=9)(source, target, requested), atol=1e-5, rtol=1e-4)


def test_a_softmax_of_the_head_is_the_row_of_the_plan():
    head, source, target = GromovWasserstein(2.0, 0.1, 3, 9), maps(1, 3, 4), maps(1, 2, 5)
    similarity = correlation(source.values, target.values).flatten(1, 2).flatten(2)
    one = GromovProblem(
        similarity,
        cell_distances(source.values),
        cell_distances(target.values),
        torch.full((1, 12), 1 / 12),
        torch.full((1, 10), 0.1),
        2.0,
        0.1,
    )

    found = head(source, target, centres(3, 4)).flatten(2)

    assert_close((found / 0.1).softmax(-1), 12 * solve(one, 3, 9), atol=1e-5, rtol=1e-3)
    assert_close((found - similarity).mean(-1), torch.zeros(1, 12), atol=1e-5, rtol=0)


def test_two_parts_that_look_the_same_are_told_apart_by_their_neighbours():
    """Cells of a row, of which the second and the fifth look alike; cosines take the first of both."""
    looks = torch.eye(6)[:, [0, 1, 2, 3, 1, 5]].reshape(1, 6, 1, 6)
    both = FeatureMap(looks, STRIDE)

    nearest, kept = (
        head(both, both, centres(1, 6)).flatten(2).argmax(-1)[0].tolist() for head in (Cosine(), GromovWasserstein())
    )

    assert nearest == [0, 1, 2, 3, 1, 5]
    assert kept == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("h", "w"), [(6, 8), (7, 5)])
def test_averaged_maps_change_the_cosines_smoothly_on_the_whole_grid(h, w):
    """Structure of 3 x 4 or 4 x 3 cells is enlarged; features stay as fine as they are."""
    source, target, requested = maps(1, h, w), maps(1, w, h), points(1, 4)

    change = built("gromov_wasserstein", cells=4)(source, target, requested) - Cosine()(source, target, requested)

    assert change.shape == (1, 4, w, h)
    assert change.std() > 1e-3
    steps = [change.diff(dim=axis).abs().max() for axis in (-1, -2)]
    assert max(steps) < 0.6 * (change.max() - change.min())  # half of that between two averaged cells
    assert built("gromov_wasserstein", cells=4)(source, target, points(1, 0)).shape == (1, 0, w, h)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structure": -1.0}, "`head.structure` must be 0, which is off, or more, got -1"),
        ({"steps": 0}, "`head.steps` must be between 1 and 10000, got 0"),
        ({"cells": 0}, "`head.cells` must be at least 1, got 0"),
    ],
)
def test_options_out_of_range_are_refused_with_their_range(options, message):
    with pytest.raises(UserError) as error:
        GromovWasserstein(**options)

    assert message in str(error.value)


def test_gradients_reach_the_features_of_both_images():
    head, pair = built("gromov_wasserstein", cells=2), [maps(), maps()]
    for one in pair:
        one.values.requires_grad_()

    head(*pair, points(2, 3)).square().sum().backward()

    assert not [*head.parameters()]
    assert all(one.values.grad.any() and one.values.grad.isfinite().all() for one in pair)
    assert pair[0].values.shape[1] == CHANNELS
