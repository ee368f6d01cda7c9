"""CNNGeo's head: warps that are known, its network by loops, its gradients, and what it learns."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy.interpolate import RBFInterpolator
from tiny_cost_heads import STRIDE, built, centres, maps
from torch.nn.functional import conv2d, interpolate
from torch.testing import assert_close

from semcorr.core.coords import cells_to_unit, to_grid, to_image, unit_to_cells
from semcorr.core.errors import UserError
from semcorr.core.thin_plate import control_points
from semcorr.matching.readouts import argmax, kernel_soft_argmax, soft_argmax, window_soft_argmax
from semcorr.models.heads.geometric import Geometric, WarpRegression, apply_affine, warp_features
from semcorr.models.heads.places import place_similarity, resample
from semcorr.models.losses import gaussian_cross_entropy

TRANSFORMS = ["affine", "tps", "affine_tps"]


def steered(transform: str, affine: list[float] | None = None, offsets: torch.Tensor | None = None) -> Geometric:
    """A head that answers with these numbers whatever it sees."""
    head = Geometric(transform)
    if affine is not None:
        head.affine.linear.bias.data = torch.tensor(affine)
    if offsets is not None:
        head.tps.linear.bias.data = offsets.flatten()
    return head.eval()


def place(head: Geometric, h: int = 20, w: int = 20) -> torch.Tensor:
    """Where it sends the middle part of a map, in cells; and these cells."""
    requested = torch.tensor(list(product(range(7, 13), repeat=2))).float()
    similarity = head(maps(1, h, w), maps(1, h, w), to_image(requested, STRIDE)[None])
    return window_soft_argmax(similarity)[0], requested


# -- warps --


@pytest.mark.parametrize("name", TRANSFORMS)
def test_an_untrained_head_leaves_every_point_where_it_is(name):
    head, requested = built("geometric", trained=False, transform=name), centres(20, 20)

    similarity = head(maps(1, 20, 20), maps(1, 20, 20), requested)

    assert torch.equal(argmax(similarity)[0], to_grid(requested[0], STRIDE))


@pytest.mark.parametrize("transform", ["affine", "affine_tps"])
@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([0, 0, 0.2, 0, 0, -0.1], lambda x, y: (x + 2, y - 1)),  # 20 cells are 2 units
        ([-1, -1, 0, 1, -1, 0], lambda x, y: (9.5 - (y - 9.5), 9.5 + (x - 9.5))),  # a quarter turn about the middle
        ([0.5, 0, 0, 0, 0.5, 0], lambda x, y: (9.5 + 1.5 * (x - 9.5), 9.5 + 1.5 * (y - 9.5))),
    ],
    ids=["translation", "rotation", "enlargement"],
)
def test_known_affine_maps_take_points_where_they_say(transform, numbers, expected):
    found, requested = place(steered(transform, [float(number) for number in numbers]))

    assert_close(found, torch.stack(expected(*requested.unbind(-1)), dim=-1), atol=0.01, rtol=0)


@pytest.mark.parametrize("transform", ["tps", "affine_tps"])
def test_a_thin_plate_takes_points_where_scipys_does(transform):
    offsets = 0.2 * torch.randn(9, 2)
    found, requested = place(steered(transform, offsets=offsets))

    unit = cells_to_unit(requested, 20, 20)
    expected = RBFInterpolator(control_points(3).numpy(), offsets.numpy(), kernel="thin_plate_spline", degree=1)
    places = unit_to_cells(unit + torch.from_numpy(expected(unit.numpy())).float(), 20, 20)
    assert (places - requested).norm(dim=-1).max() > 0.5  # something to compare
    assert_close(found, places, atol=0.01, rtol=0)


def test_of_a_thin_plate_and_an_affine_map_the_plate_comes_first():
    """The plate leads to the target as the affine map shows it."""
    offsets, numbers = 0.2 * torch.randn(9, 2), [0.2, -0.3, 0.1, 0.3, 0.1, -0.2]
    head, requested = steered("affine_tps", numbers, offsets), torch.rand(1, 6, 2) - 0.5

    found = head.locate(maps(1).values, maps(1).values, requested)

    plate = steered("tps", offsets=offsets).locate(maps(1).values, maps(1).values, requested)
    assert_close(found, apply_affine(torch.tensor([numbers]), plate), atol=1e-6, rtol=1e-5)


def test_features_are_warped_to_where_the_affine_map_leads():
    """Cell by cell, bilinear by hand; for the second stage the target's features lie on the source's cells."""
    values, numbers = torch.randn(1, 3, 5, 5).double(), torch.tensor([[0.1, -0.3, 0.1, 0.2, -0.2, 0.05]]).double()

    found = warp_features(values, numbers)

    padded, (row1, row2) = np.pad(values[0].numpy(), ((0, 0), (3, 3), (3, 3))), numbers[0].view(2, 3).tolist()
    for i, j in product(range(5), range(5)):
        u, v = (j + 0.5) * 2 / 5 - 1, (i + 0.5) * 2 / 5 - 1
        x = (u + row1[0] * u + row1[1] * v + row1[2] + 1) * 5 / 2 - 0.5 + 3
        y = (v + row2[0] * u + row2[1] * v + row2[2] + 1) * 5 / 2 - 0.5 + 3
        left, top, across, down = math.floor(x), math.floor(y), x % 1, y % 1
        upper = padded[:, top, left] * (1 - across) + padded[:, top, left + 1] * across
        lower = padded[:, top + 1, left] * (1 - across) + padded[:, top + 1, left + 1] * across
        assert_close(found[0, :, i, j], torch.from_numpy(upper * (1 - down) + lower * down))


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_same_warp_is_found_on_grids_of_any_size(transform):
    """In the shares of an image; source and target have other shapes, too."""
    head = steered(
        transform,
        None if transform == "tps" else [0.0, 0.1, 0.2, 0.0, 0.0, -0.1],
        None if transform == "affine" else 0.1 * torch.randn(9, 2),
    )
    shapes, places = [((20, 20), (20, 20)), ((40, 40), (40, 40)), ((20, 30), (30, 25))], []
    for (h, w), (height, width) in shapes:
        requested = unit_to_cells(torch.tensor([[0.1, 0.2], [-0.2, 0.15]]), w, h)
        similarity = head(maps(1, h, w), maps(1, height, width), to_image(requested, STRIDE)[None])
        places.append(cells_to_unit(window_soft_argmax(similarity)[0], width, height))

    assert_close(places[1], places[0], atol=1e-3, rtol=0)
    assert_close(places[2], places[0], atol=1e-3, rtol=0)


# -- the network --


def test_the_regression_is_cnngeos_by_loops():
    network, (source, target) = WarpRegression(11, 6), torch.randn(2, 1, 4, 11, 11)
    torch.nn.init.normal_(network.linear.weight)
    matches = torch.zeros(1, 121, 11, 11)
    for i, j in product(range(11), range(11)):
        a = source[0, :, i, j] / source[0, :, i, j].norm()
        cosines = [float(a @ (b := target[0, :, k // 11, k % 11]) / b.norm()) for k in range(121)]
        row = torch.tensor([max(cosine, 0.0) for cosine in cosines])
        matches[0, :, i, j] = row / row.norm()

    first, norm1, _, second, norm2, *_ = network.layers
    for convolution, norm in ((first, norm1), (second, norm2)):
        matches = conv2d(matches, convolution.weight, convolution.bias)
        mean, spread = matches.mean(), matches.var(correction=0)
        matches = (matches - mean) / (spread + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
        matches = matches.clamp(min=0)

    expected = network.linear.weight @ matches.flatten() + network.linear.bias
    assert_close(network(source, target)[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("transform", "last"), [("affine", 6), ("tps", 18)])
def test_the_head_has_the_weights_of_cnngeo(transform, last):
    """225 cells of a 15 x 15 map to 128 channels of 9 x 9, to 64 of 5 x 5; norms as many numbers as batch norms."""
    convolutions = 225 * 49 * 128 + 128 + 128 * 25 * 64 + 64 + 2 * 128 + 2 * 64

    found = sum(parameter.numel() for parameter in Geometric(transform).parameters())

    assert found == convolutions + (1600 + 1) * last


def test_maps_are_resampled_as_pictures_are():
    values = torch.randn(1, 3, 30, 30)

    assert torch.equal(resample(values, 30), values)
    assert_close(resample(torch.ones(1, 1, 7, 40), 15), torch.ones(1, 1, 15, 15))
    assert_close(
        resample(values[..., :15, :15], 30), interpolate(values[..., :15, :15], scale_factor=2, mode="bilinear")
    )
    line = torch.linspace(-1, 1, 61)[1::2]  # centres of 30 cells
    ramp = resample(line.expand(1, 1, 30, 30), 15)[0, 0, 0]
    assert_close(ramp[1:-1], torch.linspace(-1, 1, 31)[1::2][1:-1], atol=1e-6, rtol=0)  # centres stay centres


# -- similarity --


def test_readouts_find_a_place_between_cells():
    places = 4 + torch.rand(1, 20, 2) * 8

    similarity = place_similarity(places, 17, 17)

    assert_close(argmax(similarity), places.round())
    for readout in (soft_argmax, window_soft_argmax):
        assert_close(readout(similarity), places, atol=0.01, rtol=0)
    assert_close(kernel_soft_argmax(similarity, sigma=7.0), places, atol=0.3, rtol=0)  # towards the best cell


@pytest.mark.parametrize("far", [-30.0, 50.0])
def test_a_place_beyond_the_border_is_on_it_and_is_pulled_back(far):
    places = torch.tensor([[[far, 3.0]]], requires_grad=True)
    similarity = place_similarity(places, 8, 8)

    gaussian_cross_entropy(similarity, torch.tensor([[[4.0, 3.0]]]), torch.tensor([[True]])).backward()

    border = 0.0 if far < 0 else 7.0
    assert_close(window_soft_argmax(similarity)[0, 0], torch.tensor([border, 3.0]), atol=0.2, rtol=0)
    assert places.grad[0, 0, 0] * (far - 4) > 0  # a step down leads back


def test_far_from_the_border_the_cross_entropy_is_a_squared_distance():
    """CNNGeo's grid loss: at a temperature of 0.03, d^2 and what does not depend on the place."""
    true, mask = torch.tensor([[[20.0, 20.0]]]), torch.tensor([[True]])
    places = [torch.tensor([[[20.0 + d, 20.0]]]) for d in (0.0, 1.0, 3.0, 6.0)]

    values = [float(gaussian_cross_entropy(place_similarity(p, 41, 41), true, mask, kernel=1)) for p in places]

    weight = 1 / (2 * math.pi * 1.5**2)  # of the one step
    assert [(value - values[0]) / weight for value in values] == pytest.approx([0, 1, 9, 36], abs=1e-3)


# -- gradients --


def test_gradients_are_those_of_finite_differences():
    """In double precision; places are smooth in the numbers of every warp, and in the features."""
    head = Geometric("affine_tps").double()
    numbers, offsets = (0.1 * torch.randn(2, n, dtype=torch.float64, requires_grad=True) for n in (6, 18))
    requested, values = (
        torch.rand(2, 4, 2).double() - 0.5,
        torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True),
    )

    def warped(numbers: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        bent = requested + head.bend(offsets, requested)
        return place_similarity(unit_to_cells(apply_affine(numbers, bent), 5, 4), 4, 5)

    assert torch.autograd.gradcheck(warped, (numbers, offsets))
    assert torch.autograd.gradcheck(lambda values: resample(values, 11), values)
    assert torch.autograd.gradcheck(warp_features, (values, numbers))


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_gradients_of_features_are_those_of_finite_differences(transform):
    """Along a direction, in a step that crosses few of the ReLUs' kinks."""
    head, (a, b), requested = (
        built("geometric", transform=transform),
        torch.randn(2, 1, 12, 15, 15),
        torch.rand(1, 3, 2),
    )
    (p, q), step = torch.randn(2, 1, 12, 15, 15), 1e-4
    a.requires_grad_()
    b.requires_grad_()

    def total(t: float) -> torch.Tensor:
        return head.locate(a + t * p, b + t * q, requested).sum()

    total(0.0).backward()
    with torch.no_grad():
        slope = (total(step) - total(-step)) / (2 * step)

    assert_close((a.grad * p).sum() + (b.grad * q).sum(), slope, atol=0.01, rtol=0.02)


# -- learning --


@pytest.mark.slow
def test_the_head_learns_the_warps_of_a_map_without_keypoints():
    """Pairs of a smooth map and what an affine map shows of it: the error falls to a fraction."""
    torch.manual_seed(0)
    head = Geometric(cells=11)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    requested = (torch.rand(1, 30, 2) - 0.5).expand(8, -1, -1)

    def errors() -> tuple[torch.Tensor, torch.Tensor]:
        source = interpolate(torch.randn(8, 16, 6, 6), (11, 11), mode="bicubic")
        shift = 0.4 * (torch.rand(8, 2) * 2 - 1)
        numbers = torch.zeros(8, 6).index_copy(1, torch.tensor([2, 5]), -shift)
        target = warp_features(source, numbers)  # at q the target shows q - shift: p is seen at p + shift
        found = head.locate(source, target, requested)
        return (found - requested - shift[:, None]).norm(dim=-1).mean(), shift.norm(dim=-1).mean()

    for _ in range(80):
        optimizer.zero_grad()
        errors()[0].backward()
        optimizer.step()

    with torch.no_grad():
        error, moved = errors()
    assert error < 0.5 * moved


def test_options_out_of_range_are_refused_with_their_range():
    with pytest.raises(UserError, match=r"`head\.cells` must be between 11 and 60, got 10"):
        Geometric(cells=10)
    with pytest.raises(UserError, match=r"`head\.transform` must be .*affine.*tps"):
        Geometric(transform="homography")
