"""RTN's head: its look-up and its field by loops, known maps, gradients, and what its steps are for."""

from itertools import product

import pytest
import torch
from tiny_cost_heads import STRIDE, built, centres, maps
from torch.nn.functional import interpolate
from torch.testing import assert_close

from semcorr.core.coords import cells_to_unit, to_grid
from semcorr.core.errors import UserError
from semcorr.matching.readouts import argmax, window_soft_argmax
from semcorr.models.heads.geometric import warp_features
from semcorr.models.heads.local_affine import LocalAffine, read_field, sample_windows


def centre(i: int, j: int, g: int) -> torch.Tensor:
    return torch.tensor([(j + 0.5) * 2 / g - 1, (i + 0.5) * 2 / g - 1], dtype=torch.float64)


def interpolated(image: torch.Tensor, place: torch.Tensor) -> float:
    """Bilinear in a map by hand, 0 beyond its border; `place` in [-1, 1]."""
    g, total = len(image), 0.0
    x, y = ((place + 1) * g / 2 - 0.5).tolist()
    for i, j in product(range(g), range(g)):
        total += float(image[i, j]) * max(0.0, 1 - abs(x - j)) * max(0.0, 1 - abs(y - i))
    return total


def test_a_step_looks_where_the_map_of_a_cell_takes_its_neighbours():
    g, window = 4, 3
    matches, field = torch.rand(1, g, g, g, g).double(), 0.3 * torch.randn(1, g, g, 6).double()

    found = sample_windows(matches, field, window)

    for i, j, row, column in product(range(g), range(g), range(window), range(window)):
        turn, shift = field[0, i, j].view(2, 3).split((2, 1), dim=1)
        offset = torch.tensor([column - 1, row - 1]).double() * 2 / g
        place = centre(i, j, g) + shift[:, 0] + offset + turn @ offset
        expected = interpolated(matches[0, i, j], place)
        assert float(found[0, i, j, row * window + column]) == pytest.approx(expected, abs=1e-9)


def test_a_point_goes_where_the_maps_of_the_cells_around_it_take_it():
    g, field = 4, 0.3 * torch.randn(1, 4, 4, 6).double()
    requested = torch.rand(1, 20, 2).double() * 1.4 - 0.7  # within the outer cells' centres

    found = read_field(field, requested)

    for point, place in zip(requested[0], found[0], strict=True):
        expected, (x, y) = torch.zeros(2).double(), ((point + 1) * g / 2 - 0.5).tolist()
        for i, j in product(range(g), range(g)):
            turn, shift = field[0, i, j].view(2, 3).split((2, 1), dim=1)
            share = max(0.0, 1 - abs(x - j)) * max(0.0, 1 - abs(y - i))
            expected += share * (point + shift[:, 0] + turn @ (point - centre(i, j, g)))
        assert_close(place, expected, atol=1e-5, rtol=0)  # weights are in single precision


def test_cells_that_all_have_one_affine_map_apply_it():
    g, linear, move = 8, torch.tensor([[0.2, -0.4], [0.3, -0.1]]), torch.tensor([0.1, -0.2])
    places = cells_to_unit(torch.stack(torch.meshgrid(*[torch.arange(8.0)] * 2, indexing="xy"), dim=-1), g, g)
    field = torch.cat((linear.expand(g, g, 2, 2), (places @ linear.T + move)[..., None]), dim=-1).flatten(2)[None]
    requested = torch.rand(1, 30, 2) * 1.8 - 0.9

    assert_close(read_field(field, requested), requested + requested @ linear.T + move, atol=1e-5, rtol=0)


def test_an_untrained_head_leaves_every_point_where_it_is():
    requested = centres(20, 20)

    similarity = built("local_affine", trained=False)(maps(1, 20, 20), maps(1, 20, 20), requested)

    assert torch.equal(argmax(similarity)[0], to_grid(requested[0], STRIDE))


@pytest.mark.parametrize("steps", [1, 3])
def test_every_step_adds_to_the_field(steps):
    head, requested = LocalAffine(steps=steps), centres(20, 20)[:, 168:172]
    head.decode.bias.data[[2, 5]] = torch.tensor([0.1, -0.05])  # a cell to the right, half a cell up

    found = window_soft_argmax(head(maps(1, 20, 20), maps(1, 20, 20), requested))

    assert_close(found[0], to_grid(requested[0], STRIDE) + steps * torch.tensor([1.0, -0.5]), atol=0.01, rtol=0)


def test_gradients_are_those_of_finite_differences():
    """In double precision; window positions lie between cells, where interpolation is smooth."""
    matches = torch.rand(1, 3, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    field = (0.2 * torch.randn(1, 3, 3, 6).double() + 0.05).requires_grad_()
    requested = torch.rand(1, 4, 2).double() - 0.5

    assert torch.autograd.gradcheck(lambda a, b: sample_windows(a, b, 3), (matches, field))
    assert torch.autograd.gradcheck(lambda a: read_field(a, requested), field)


@pytest.mark.slow
def test_the_head_learns_shifts_that_one_step_cannot_reach():
    """Of up to three cells, by windows that reach one: three steps find what one step does not."""

    def train(steps: int) -> float:
        torch.manual_seed(0)
        head, errors = LocalAffine(steps=steps, window=3, cells=12, width=32), []
        optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
        for _ in range(120):
            source = interpolate(torch.randn(4, 16, 6, 6), (12, 12), mode="bicubic")
            shift = 0.5 * (torch.rand(4, 2) * 2 - 1)
            numbers = torch.zeros(4, 6).index_copy(1, torch.tensor([2, 5]), -shift)
            requested = torch.rand(4, 30, 2) - 0.5
            found = read_field(head.refine(source, warp_features(source, numbers)), requested)
            error = (found - requested - shift[:, None]).norm(dim=-1).mean()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            errors.append(float(error.detach() / shift.norm(dim=-1).mean()))
        return sum(errors[-20:]) / 20

    one, three = train(1), train(3)

    assert three < 0.7 * one
    assert three < 0.6


def test_options_out_of_range_are_refused_with_their_range():
    with pytest.raises(UserError, match=r"`head\.window` must be odd, between 1 and 31, got 8"):
        LocalAffine(window=8)
    with pytest.raises(UserError, match=r"`head\.steps` must be"):
        LocalAffine(steps=0)
