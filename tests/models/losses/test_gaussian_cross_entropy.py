"""The cross-entropy to a Gaussian against the published form, a form that selects, and by hand."""

import math
from functools import partial
from itertools import product

import pytest
import torch
from random_steps import made_step
from torch.nn.functional import grid_sample

from semcorr.models.losses import GaussianCrossEntropy, annealed_value, gaussian_cross_entropy

SIGMA = 1.5
DENSITY = {
    (dx, dy): math.exp(-(dx**2 + dy**2) / (2 * SIGMA**2)) / (2 * math.pi * SIGMA**2)
    for dx in range(-3, 4)
    for dy in range(-3, 4)
}
CELLS = torch.tensor(
    [[[5.3, 4.7], [0.0, 0.0], [11.0, 8.0]], [[0.2, 7.9], [10.6, 0.4], [-0.4, 3.2]]], dtype=torch.double
)  # inside, at corners, near borders and in the outer half of a border cell of a 9 x 12 map


def slow_loss(similarity: torch.Tensor, cells: torch.Tensor, mask: torch.Tensor, temperature: float) -> float:
    """As published: interpolate the probability, then take its log; the mean of a pair, then of the pairs."""
    b, n, h, w = similarity.shape
    pairs = []
    for i in range(b):
        losses = []
        for j in range(n):
            if not mask[i, j]:
                continue
            p = (similarity[i, j] / temperature).flatten().softmax(0).reshape(1, 1, h, w)
            loss = 0.0
            for (dx, dy), density in DENSITY.items():
                x, y = cells[i, j, 0] + dx, cells[i, j, 1] + dy
                if 0 <= x <= w - 1 and 0 <= y <= h - 1:
                    at = torch.stack((2 * x / (w - 1) - 1, 2 * y / (h - 1) - 1)).reshape(1, 1, 1, 2)
                    loss -= density * grid_sample(p, at, align_corners=True).log().item()
            losses.append(loss)
        pairs += [sum(losses) / len(losses)] if losses else []
    return sum(pairs) / len(pairs)


def masked_loss(similarity: torch.Tensor, cells: torch.Tensor, mask: torch.Tensor, temperature: float) -> torch.Tensor:
    """In log space as ours, but on the points of the mask alone: their number is asked of the device."""
    log_p = (similarity / temperature).flatten(2).log_softmax(-1)[mask].unflatten(-1, similarity.shape[-2:])
    losses = []
    for p, (x, y), points in zip(log_p, cells[mask], mask.sum(-1, keepdim=True).expand(mask.shape)[mask], strict=True):
        for (dx, dy), density in DENSITY.items():
            across, down = x + dx, y + dy
            if not (0 <= across <= p.shape[1] - 1 and 0 <= down <= p.shape[0] - 1):
                continue
            i, j = int(down), int(across)
            corners = [
                p[k, m] + ((1 - abs(across - m)) * (1 - abs(down - k))).log()
                for k, m in product((i, i + 1), (j, j + 1))
                if abs(across - m) < 1 and abs(down - k) < 1
            ]
            losses.append(-density * torch.stack(corners).logsumexp(0) / points)
    return torch.stack(losses).sum() / mask.any(-1).sum()


@pytest.mark.parametrize("temperature", [0.03, 0.3])
def test_masking_without_selecting_is_selecting(temperature):
    similarity = torch.rand(2, 3, 9, 12, dtype=torch.double)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    ours, reference = similarity.clone().requires_grad_(), similarity.clone().requires_grad_()

    loss, expected = (
        loss_of(s, CELLS, mask, temperature)
        for loss_of, s in ((gaussian_cross_entropy, ours), (masked_loss, reference))
    )
    loss.backward()
    expected.backward()

    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rubbish", [torch.nan, torch.inf, -torch.inf])
def test_rubbish_outside_the_mask_reaches_neither_loss_nor_gradient(rubbish):
    similarity, cells, mask = torch.rand(2, 3, 9, 12), CELLS.float().clone(), torch.zeros(2, 3, dtype=torch.bool)
    mask[0, 1] = True
    clean = gaussian_cross_entropy(similarity, cells, mask)
    similarity[~mask], cells[~mask] = rubbish, rubbish
    similarity.requires_grad_()

    loss = gaussian_cross_entropy(similarity, cells, mask)
    loss.backward()

    assert loss == clean
    assert similarity.grad.isfinite().all()
    assert not similarity.grad[~mask].any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_on_a_gpu_waits_for_nothing():
    similarity = torch.rand(2, 3, 9, 12, device="cuda", requires_grad=True)
    cells, mask = CELLS.float().cuda(), torch.tensor([[True, False, True], [True, True, False]]).cuda()
    gaussian_cross_entropy(similarity, cells, mask).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = gaussian_cross_entropy(similarity, cells, mask)
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")

    expected = gaussian_cross_entropy(*(value.detach().cpu() for value in (similarity, cells, mask)))
    torch.testing.assert_close(loss.detach().cpu(), expected)


@pytest.mark.parametrize("temperature", [0.03, 0.3])
def test_the_loss_is_the_published_one(temperature):
    similarity = torch.rand(2, 3, 9, 12, dtype=torch.double) / 2  # a wider range drowns in grid_sample's rounding
    mask = torch.tensor([[True, True, True], [True, True, True]])

    loss = gaussian_cross_entropy(similarity, CELLS, mask, temperature)

    assert loss.item() == pytest.approx(slow_loss(similarity, CELLS, mask, temperature), rel=1e-5)


@pytest.mark.parametrize("last", [[False, False, True], [False, False, False]])
def test_the_mean_is_over_the_points_of_each_pair_in_the_mask_then_over_pairs(last):
    """A pair without any is none."""
    similarity = torch.rand(2, 3, 9, 12, dtype=torch.double) / 2
    mask = torch.tensor([[True, False, True], last])

    loss = gaussian_cross_entropy(similarity, CELLS, mask)

    assert loss.item() == pytest.approx(slow_loss(similarity, CELLS, mask, 0.03), rel=1e-5)


def test_a_flat_map_costs_the_log_of_its_size():
    loss = gaussian_cross_entropy(torch.zeros(1, 1, 9, 12), torch.tensor([[[5.0, 4.0]]]), torch.tensor([[True]]))

    assert loss.item() == pytest.approx(sum(DENSITY.values()) * math.log(9 * 12), rel=1e-5)


def test_an_underflowing_softmax_gives_a_finite_loss_and_gradient():
    similarity = torch.full((1, 1, 15, 20), -1.0)
    similarity[0, 0, 2, 17] = 1.0
    similarity.requires_grad_()
    assert (similarity / 1e-3).flatten().softmax(0)[0] == 0  # p is 0 in float32 all around the true cell

    loss = gaussian_cross_entropy(similarity, torch.tensor([[[5.3, 8.6]]]), torch.tensor([[True]]), temperature=1e-3)
    loss.backward()

    assert loss.item() == pytest.approx(2000 * sum(DENSITY.values()), rel=1e-5)  # log p = -2 / 1e-3
    assert similarity.grad.isfinite().all()
    assert similarity.grad[0, 0, 9, 5] < 0 < similarity.grad[0, 0, 2, 17]  # up at the true cell, down at the peak


def test_points_outside_the_mask_do_not_matter():
    similarity = torch.rand(1, 3, 9, 12, requires_grad=True)
    cells, mask = CELLS[:1].float(), torch.tensor([[True, False, True]])
    loss = gaussian_cross_entropy(similarity, cells, mask)
    loss.backward()

    other = torch.where(mask[..., None, None], similarity.detach(), -7.0)
    elsewhere = torch.where(mask[..., None], cells, torch.nan)

    assert gaussian_cross_entropy(other, elsewhere, mask) == loss
    assert similarity.grad.flatten(2).abs().sum(-1).bool().tolist() == [[True, False, True]]


def test_nothing_to_score_is_no_loss_and_no_gradient():
    similarity = torch.rand(1, 3, 9, 12, requires_grad=True)

    loss = gaussian_cross_entropy(similarity, CELLS[:1].float(), torch.zeros(1, 3, dtype=torch.bool))
    loss.backward()

    assert loss == 0
    assert not similarity.grad.any()


@pytest.mark.parametrize(("x", "y"), [(6, 3), (0, 0), (11, 8)])
def test_the_loss_is_least_with_the_peak_at_the_true_cell(x, y):
    losses = {}
    for row in range(9):
        for column in range(12):
            similarity = torch.zeros(1, 1, 9, 12)
            similarity[0, 0, row, column] = 0.1
            true = torch.tensor([[[x, y]]]).float()
            losses[column, row] = gaussian_cross_entropy(similarity, true, torch.tensor([[True]])).item()

    assert min(losses, key=losses.get) == (x, y)


def test_the_gradient_is_that_of_finite_differences():
    similarity = torch.rand(1, 2, 4, 5, dtype=torch.double, requires_grad=True)
    cells = torch.tensor([[[2.3, 1.6], [0.0, 2.9]]], dtype=torch.double)
    loss = partial(gaussian_cross_entropy, cells=cells, mask=torch.tensor([[True, True]]), temperature=0.3, kernel=3)

    assert torch.autograd.gradcheck(loss, similarity)


def test_renormalised_weights_of_a_point_sum_to_one_wherever_it_lies():
    """On a flat map every step costs log 108: at the corner a quarter of the steps is left."""
    flat, mask = torch.zeros(1, 2, 9, 12), torch.tensor([[True, True]])
    for cell in ([0.0, 0.0], [5.5, 4.0]):
        cells = torch.tensor([[cell, cell]])
        loss = gaussian_cross_entropy(flat, cells, mask, renormalise=True)
        assert loss.item() == pytest.approx(math.log(108), rel=1e-5)

    quarter = sum(DENSITY[dx, dy] for dx in range(4) for dy in range(4)) * math.log(108)
    assert gaussian_cross_entropy(flat, torch.zeros(1, 2, 2), mask).item() == pytest.approx(quarter, rel=1e-5)


def test_epsilon_is_added_to_the_probability():
    similarity = torch.rand(1, 1, 5, 5, dtype=torch.double)
    cells, mask = torch.tensor([[[2.25, 1.5]]], dtype=torch.double), torch.tensor([[True]])
    p = (similarity / 0.1).flatten().softmax(0).view(5, 5) + 0.01
    read = 0.375 * (p[1, 2] + p[2, 2]) + 0.125 * (p[1, 3] + p[2, 3])

    loss = gaussian_cross_entropy(similarity, cells, mask, 0.1, kernel=1, sigma=1.0, epsilon=0.01)

    assert loss.item() == pytest.approx(-read.log().item() / (2 * math.pi), rel=1e-6)


def test_the_gaussian_narrows_with_the_step():
    loss = GaussianCrossEntropy(kernel=15, sigma=3.5, sigma_end=1.0, warmup=1000, until=12000)
    for number in (0, 999, 4000, 12000, 50000):
        step, _ = made_step(torch.ones(1, 3, dtype=torch.bool), number=number)
        expected = gaussian_cross_entropy(*step[:3], kernel=15, sigma=annealed_value(number))
        torch.testing.assert_close(loss(step), expected)
    assert [round(annealed_value(step), 2) for step in (0, 1000, 3000, 10000)] == [3.5, 3.5, 3.3, 1.2]
