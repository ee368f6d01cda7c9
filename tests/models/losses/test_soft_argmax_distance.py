"""The distance of soft-argmax: its noise, whole source cells, a trained grid."""

import math

import pytest
import torch
from random_steps import SIDE, made_step

from semcorr.core.errors import UserError
from semcorr.matching.readouts import soft_argmax
from semcorr.models.losses import LossInputs, SoftArgmaxDistance, soft_argmax_distance


def test_the_noise_puts_the_radius_of_pck_at_two_standard_deviations():
    """Similarity so sharp that soft-argmax is the true cell: what is left is the noise, along x twice that along y."""
    similarity = torch.zeros(1, 4000, 3, 3)
    similarity[..., 1, 1] = 1e3
    cells, mask = torch.ones(1, 4000, 2), torch.ones(1, 4000, dtype=torch.bool)
    step = LossInputs(similarity, cells, mask, cells, torch.tensor([40.0, 20.0]).expand(1, 4000, 2), 0)
    torch.manual_seed(0)

    loss = SoftArgmaxDistance(noise=0.1)(step)

    expected = (torch.randn(10**6, 2) * torch.tensor([2.0, 1.0])).norm(dim=-1).mean()  # 0.1 * extent / 2
    assert loss.item() == pytest.approx(expected.item(), rel=0.03)
    assert SoftArgmaxDistance(noise=0.0)(step) == pytest.approx(0, abs=1e-5)


def test_the_whole_source_cell_moves_the_truth_by_what_was_cut_away():
    """Of a source 0.2 cells right of its cell's centre, 0.7 are cut away from its corner; half of one is right."""
    similarity = torch.zeros(1, 1, 5, 5)
    similarity[0, 0, 2, 2] = 1e3
    step = LossInputs(similarity, torch.tensor([[[2.0, 2.0]]]), torch.tensor([[True]]), torch.tensor([[[3.2, 1.0]]]),
                torch.ones(1, 1, 2), 0)  # fmt: skip

    assert SoftArgmaxDistance(noise=0.0, integer_source=True)(step).item() == pytest.approx(0.2, abs=1e-4)
    assert SoftArgmaxDistance(noise=0.0)(step).item() == pytest.approx(0.0, abs=1e-4)


def test_a_trained_grid_starts_as_the_cells_and_moves():
    step, _ = made_step(torch.ones(1, 3, dtype=torch.bool), torch.float)
    free, fixed = SoftArgmaxDistance(noise=0.0, trained_grid=SIDE), SoftArgmaxDistance(noise=0.0)
    torch.testing.assert_close(free(step), fixed(step), check_dtype=False)

    free(step).backward()

    assert free.grid.shape == (2, SIDE)
    assert free.grid.grad.any()
    with pytest.raises(UserError, match=r"`loss\.trained_grid` must be the cells along a side, 5 x 5 here, got 60"):
        SoftArgmaxDistance(trained_grid=60)(step)


def test_the_dense_loss_is_the_mean_distance_in_cells():
    step, _ = made_step(torch.tensor([[True, True, False]]))
    found = soft_argmax(step.similarity, 0.02)
    expected = [math.dist(found[0, i].tolist(), step.cells[0, i].tolist()) for i in range(2)]

    assert soft_argmax_distance(*step[:3]).item() == pytest.approx(sum(expected) / 2)


@pytest.mark.parametrize("window", [1, 3, 5, 99])
def test_a_window_is_averaged_by_a_loop_over_its_cells(window):
    step, _ = made_step(torch.tensor([[True, True, False], [True, False, True]]))
    step = step._replace(similarity=step.similarity.detach().double(), cells=step.cells.detach())

    pairs = []
    for b in range(2):
        distances = []
        for n in step.mask[b].nonzero().flatten().tolist():
            similarity = step.similarity[b, n]
            row, column = divmod(int(similarity.argmax()), similarity.shape[1])
            near = [
                (x, y, math.exp(float(similarity[y, x] - similarity.max()) / 0.1))
                for y in range(similarity.shape[0])
                for x in range(similarity.shape[1])
                if max(abs(x - column), abs(y - row)) <= window // 2
            ]
            total = sum(weight for *_, weight in near)
            mean = [sum(cell[axis] * cell[2] for cell in near) / total for axis in range(2)]
            distances.append(math.dist(mean, step.cells[b, n].tolist()))
        pairs.append(sum(distances) / len(distances))

    found = SoftArgmaxDistance(temperature=0.1, noise=0.0, window=window)(step)

    assert found.item() == pytest.approx(sum(pairs) / 2, rel=1e-6)


def test_a_window_as_wide_as_the_map_is_the_whole_map():
    step, _ = made_step(torch.ones(1, 3, dtype=torch.bool), torch.float)
    whole, wide = SoftArgmaxDistance(noise=0.0), SoftArgmaxDistance(noise=0.0, window=2 * SIDE + 1)

    torch.testing.assert_close(whole(step), wide(step))


def test_cells_outside_the_window_have_no_gradient():
    similarity = torch.zeros(1, 1, 7, 7)
    similarity[0, 0, 1, 1] = 1.0
    similarity.requires_grad_()

    soft_argmax_distance(similarity, torch.tensor([[[5.0, 5.0]]]), torch.tensor([[True]]), 1.0, 3).backward()

    inside = torch.zeros(7, 7, dtype=torch.bool)
    inside[:3, :3] = True
    assert not similarity.grad[0, 0][~inside].any()
    assert similarity.grad[0, 0][inside].any()


def test_a_window_and_a_trained_grid_exclude_each_other():
    with pytest.raises(UserError, match=r"`loss.window` and `loss.trained_grid` exclude each other, got 7 and 60"):
        SoftArgmaxDistance(window=7, trained_grid=60)
