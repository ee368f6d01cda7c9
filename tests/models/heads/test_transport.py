"""Optimal transport: its marginals, known answers, matrix scaling and a linear program beside it; and the head."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from tiny_cost_heads import CHANNELS, STRIDE, built, centres, maps, points
from torch.testing import assert_close

from semcorr.core.errors import UserError
from semcorr.core.types import FeatureMap
from semcorr.models.heads.correlation import correlation
from semcorr.models.heads.cosine import Cosine
from semcorr.models.heads.transport import Transport, add_dustbins, sinkhorn, solve_scalings, staircase, weigh_cells


def masses(batch: int, n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    weights = torch.rand(batch, n, dtype=dtype) + 0.2
    return weights / weights.sum(-1, keepdim=True)


def scale_matrix(similarity: np.ndarray, rows: np.ndarray, columns: np.ndarray, temperature: float, times: int):
    """Sinkhorn and Knopp's own form: a kernel whose columns and rows are divided in turn."""
    kernel = np.exp(similarity / temperature)
    left = np.ones(len(rows))
    for _ in range(times):
        right = columns / (kernel.T @ left)
        left = rows / (kernel @ right)
    return left[:, None] * kernel * right


@pytest.mark.parametrize("temperature", [0.5, 0.05])
def test_a_plan_has_the_masses_of_both_images(temperature):
    similarity, rows, columns = torch.rand(3, 6, 9) * 2 - 1, masses(3, 6), masses(3, 9)

    plan = sinkhorn(similarity, rows, columns, temperature, 500)

    assert plan.min() >= 0
    assert_close(plan.sum(-1), rows, atol=1e-6, rtol=1e-5)  # the rows come last
    assert_close(plan.sum(-2), columns, atol=1e-4, rtol=0)


@pytest.mark.parametrize("iterations", [1, 3, 50])
def test_logarithms_give_what_scaling_the_matrix_gives(iterations):
    similarity, rows, columns = torch.rand(2, 4, 6).double(), masses(2, 4, torch.double), masses(2, 6, torch.double)

    plan = sinkhorn(similarity, rows, columns, 0.1, iterations)

    for ours, *given in zip(plan, similarity, rows, columns, strict=True):
        expected = scale_matrix(*(one.numpy() for one in given), 0.1, iterations)
        assert_close(ours, torch.from_numpy(expected), atol=1e-12, rtol=0)


def test_a_small_temperature_gives_what_a_linear_program_gives():
    similarity, rows, columns = torch.rand(1, 5, 5), masses(1, 5), masses(1, 5)
    sums = np.concatenate([np.kron(np.eye(5), np.ones(5)), np.kron(np.ones(5), np.eye(5))])
    best = linprog(
        -similarity.flatten().numpy().astype(float), A_eq=sums[:-1], b_eq=torch.cat((rows, columns), 1)[0, :-1].numpy()
    )

    plan = sinkhorn(similarity.double(), rows, columns, 2e-3, 5_000)[0]

    assert_close(plan, torch.from_numpy(best.x).view(5, 5), atol=2e-3, rtol=0)
    assert (plan * similarity[0]).sum().item() == pytest.approx(-best.fun, abs=1e-3)


def test_a_permutation_is_found_and_so_is_the_identity():
    order = torch.tensor([2, 0, 3, 1])
    uniform = torch.full((1, 4), 0.25)

    for similarity in (torch.eye(4), torch.eye(4)[order]):
        plan = sinkhorn(similarity[None], uniform, uniform, 0.05, 50)
        assert_close(plan[0], similarity / 4, atol=1e-6, rtol=0)


def test_one_iteration_of_flat_similarity_spreads_every_cell_over_the_other_image():
    rows, columns = masses(2, 3), masses(2, 5)

    plan = sinkhorn(torch.full((2, 3, 5), 0.7), rows, columns, 0.05, 1)

    assert_close(plan, rows[..., None] * columns[:, None], atol=1e-6, rtol=1e-5)


def test_cells_in_another_order_have_the_same_plan_in_that_order():
    similarity, rows, columns = torch.rand(2, 6, 5), masses(2, 6), masses(2, 5)
    source, target = torch.randperm(6), torch.randperm(5)

    plan = sinkhorn(similarity, rows, columns, 0.1, 30)
    moved = sinkhorn(similarity[:, source][..., target], rows[:, source], columns[:, target], 0.1, 30)

    assert_close(moved, plan[:, source][..., target], atol=1e-6, rtol=1e-4)


def test_constants_of_rows_and_columns_change_no_plan():
    similarity, rows, columns = torch.rand(1, 4, 4), masses(1, 4), masses(1, 4)
    shifted = similarity + torch.randn(1, 4, 1) + torch.randn(1, 1, 4)

    assert_close(
        sinkhorn(shifted, rows, columns, 0.2, 300), sinkhorn(similarity, rows, columns, 0.2, 300), atol=1e-5, rtol=0
    )


def test_gradients_are_those_of_differences():
    similarity = torch.rand(2, 3, 4, dtype=torch.double, requires_grad=True)
    rows, columns = masses(2, 3, torch.double).requires_grad_(), masses(2, 4, torch.double).requires_grad_()

    assert torch.autograd.gradcheck(lambda *given: sinkhorn(*given, 0.2, 5), (similarity, rows, columns))


def test_what_is_kept_for_backward_is_one_matrix_whatever_the_number_of_iterations():
    def kept(iterations: int) -> int:
        total, similarity = set(), torch.rand(1, 20, 20, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda one: total.add(one.data_ptr()) or one if one.numel() >= 400 else one, lambda one: one
        ):
            scalings = solve_scalings(similarity, masses(1, 20), masses(1, 20), 0.1, iterations)
        assert scalings.source.requires_grad
        return len(total)

    assert kept(2) == kept(12) <= 2


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_single(precision):
    similarity, rows, columns = (torch.rand(1, 5, 5) * 2 - 1).to(precision), masses(1, 5), masses(1, 5)

    with torch.autocast("cpu", torch.bfloat16):
        plan = sinkhorn(similarity, rows, columns, 0.01, 100)

    assert plan.dtype == torch.float32
    assert plan.isfinite().all()
    assert_close(plan, sinkhorn(similarity.float(), rows, columns, 0.01, 100), atol=0, rtol=0)


# -- dustbins --


def test_dustbins_take_what_is_left_and_no_mass_is_lost():
    """Three cells against five, of another mass: what is not matched lies in the bins."""
    rows, columns = torch.ones(1, 3), torch.ones(1, 5)

    plan = sinkhorn(*add_dustbins(torch.rand(1, 3, 5), rows, columns, 0.5), 0.1, 500)

    assert plan.shape == (1, 4, 6)
    assert_close(plan.sum(-1), torch.tensor([[1.0, 1, 1, 5]]), atol=1e-4, rtol=0)
    assert_close(plan.sum(-2), torch.tensor([[1.0, 1, 1, 1, 1, 3]]), atol=1e-4, rtol=0)
    assert plan[0, :-1, :-1].sum() < 3


def test_the_score_decides_who_is_matched():
    similarity = torch.tensor([[[0.9, 0.1], [0.1, 0.2]]])

    matched = sinkhorn(*add_dustbins(similarity, torch.ones(1, 2), torch.ones(1, 2), 0.5), 0.02, 300)[0]
    everybody = sinkhorn(*add_dustbins(similarity, torch.ones(1, 2), torch.ones(1, 2), -1.0), 0.02, 300)[0]

    assert_close(matched[:2, :2], torch.tensor([[1.0, 0], [0, 0]]), atol=1e-2, rtol=0)
    assert_close(everybody[:2, :2], torch.eye(2), atol=1e-2, rtol=0)


# -- marginals --


def test_the_staircase_climbs_at_the_published_steps():
    activation = torch.tensor([[0.0, 0.39, 0.41, 0.49, 0.51, 0.59, 0.61, 1.0]])

    assert_close(staircase(activation), torch.tensor([[0.5, 0.5, 0.8, 0.8, 0.9, 0.9, 1.0, 1.0]]))
    assert_close(staircase(3 * activation - 7), staircase(activation))  # of the range of an image
    assert_close(staircase(torch.full((1, 3), 0.2)), torch.full((1, 3), 0.5))  # which may be empty


def test_cells_with_a_like_in_the_other_image_weigh_more():
    similarity = torch.tensor([[[0.9, 0.0, 0.0], [0.0, 0.45, 0.0], [0.0, 0.0, 0.1]]])

    source, target = weigh_cells(similarity, "staircase")

    # The best of each row: 0.9, 0.45 and 0.1, which are 1, 0.44 and 0 of their range.
    assert_close(source, torch.tensor([[1.0, 0.8, 0.5]]) * 3 / 2.3)
    assert_close(target, source)  # the best of each column are the same
    assert all(bool((one == 1).all()) for one in weigh_cells(similarity, "uniform"))


# -- the head --


def test_a_softmax_of_the_head_is_the_row_of_the_plan():
    head, source, target = Transport(temperature=0.1, iterations=7), maps(2, 3, 4), maps(2, 5, 2)
    similarity = correlation(source.values, target.values).flatten(1, 2).flatten(2)
    plan = sinkhorn(similarity, torch.full((2, 12), 1 / 12), torch.full((2, 10), 0.1), 0.1, 7)

    found = head(source, target, centres(3, 4).expand(2, -1, -1)).flatten(2)

    assert_close((found / 0.1).softmax(-1), plan * 12, atol=1e-5, rtol=1e-4)
    assert_close((found - similarity).mean(-1), torch.zeros(2, 12), atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{}, {"marginals": "staircase"}, {"dustbin": 0.3}], ids=str)
def test_only_prices_of_target_cells_come_to_the_cosines(options):
    source, target, requested = maps(), maps(), points(2, 7)

    prices = built("transport", **options)(source, target, requested) - Cosine()(source, target, requested)

    assert prices.std((2, 3)).min() > 1e-3
    assert_close(prices, prices[:, :1].expand_as(prices), atol=1e-5, rtol=0)


def test_a_target_cell_that_everybody_prefers_is_left_to_the_one_that_needs_it():
    """Nearest neighbours send both cells to the same one; a plan does not."""
    source, target = (
        FeatureMap(torch.tensor(cells).T.reshape(1, 2, 1, 2), STRIDE)
        for cells in ([[1.0, 0.0], [0.8, 0.6]], [[0.9, 0.1], [0.0, 1.0]])
    )

    nearest = Cosine()(source, target, centres(1, 2)).flatten(2).argmax(-1)
    carried = Transport()(source, target, centres(1, 2)).flatten(2).argmax(-1)

    assert (nearest.tolist(), carried.tolist()) == ([[0, 0]], [[0, 1]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"marginals": "cam"}, "`head.marginals` must be one of uniform, staircase"),
        ({"dustbin": 2.0}, "`head.dustbin` must be between -1 and 1 or null, got 2"),
        ({"temperature": 0.0}, "`head.temperature` must be between"),
        ({"iterations": 0}, "`head.iterations` must be between 1 and 10000, got 0"),
    ],
)
def test_options_out_of_range_are_refused_with_their_range(options, message):
    with pytest.raises(UserError) as error:
        Transport(**options)

    assert message in str(error.value)


def test_transport_has_no_weights_and_passes_gradients_to_the_features():
    head, source, target = built("transport"), maps(), maps()
    for one in (source, target):
        one.values.requires_grad_()

    head(source, target, points(2, 3)).square().sum().backward()

    assert not [*head.parameters()]
    assert all(one.values.grad.any() and one.values.grad.isfinite().all() for one in (source, target))
    assert source.values.shape[1] == CHANNELS
