"""A warp takes points and pixels to the same place, there and back."""

import pytest
import torch
from augmented_pairs import KINDS, away, chance
from torch.testing import assert_close

from semcorr.core.coords import from_unit, to_unit
from semcorr.data.augment import Augmentation
from semcorr.data.warp import (
    ImageWarp,
    affine_matrix,
    original_to_warp,
    thin_plate_coefficients,
    thin_plate_displacement,
    warp_image,
    warp_points,
)

STRONGEST = Augmentation(flip=0.5, rotate=180, scale=1, shift=0.2, shear=45, crop=0.5, thin_plate=0.2)


def warp_to_original(warp: ImageWarp, points: torch.Tensor) -> torch.Tensor:
    """Map points of the result to the points of the original seen there, in unit coordinates."""
    bent = points if warp.spline is None else points + thin_plate_displacement(warp.spline, points)
    return bent @ warp.affine[:2, :2].T + warp.affine[:2, 2]


@pytest.mark.parametrize("number", range(8))
def test_the_way_there_and_back_ends_within_a_thousandth_of_a_pixel(number):
    warp = STRONGEST.sample_geometry(chance(number)).warp
    points = torch.rand(200, 2, generator=torch.Generator().manual_seed(number)).double() * 840

    there = from_unit(warp_to_original(warp, to_unit(points, 840)), 840)
    back = from_unit(original_to_warp(warp, to_unit(there, 840)), 840)

    assert_close(back, points, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.0]),
        ({"rotate": 90.0}, [0.0, 0.5]),  # clockwise, y points down
        ({"zoom": 2.0}, [1.0, 0.0]),
        ({"shift": (0.25, -0.125)}, [0.75, -0.125]),
        ({"window": (0.5, 0.25, 0.5)}, [0.0, -0.5]),  # the window's centre fills the middle
        ({"rotate": 90.0, "zoom": 2.0, "shift": (0.25, 0.0)}, [0.25, 1.0]),
    ],
)
def test_an_affine_warp_takes_a_point_where_it_says(options, expected):
    found = original_to_warp(ImageWarp(affine_matrix(**options)), torch.tensor([[0.5, 0.0]], dtype=torch.float64))

    assert_close(found[0], torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)


def test_shear_leans_vertical_lines_and_keeps_horizontal_ones():
    points = torch.tensor([[0.0, 0.5], [0.5, 0.0]], dtype=torch.float64)

    found = original_to_warp(ImageWarp(affine_matrix(shear=45.0)), points)

    assert_close(found, torch.tensor([[0.5, 0.5], [0.5, 0.0]], dtype=torch.float64), atol=1e-9, rtol=0)


def test_a_thin_plate_takes_the_given_offsets_at_its_control_points():
    line = torch.linspace(-1, 1, 4, dtype=torch.float64)
    offsets = 0.02 * torch.randn(16, 2, generator=torch.Generator().manual_seed(0)).double()

    found = thin_plate_displacement(thin_plate_coefficients(offsets), torch.cartesian_prod(line, line))

    assert_close(found, offsets, atol=1e-9, rtol=0)


@pytest.mark.parametrize("number", range(8))
def test_no_thin_plate_folds(number):
    """A fold would turn the determinant of the slopes negative; fourfold what `augment` allows."""
    spline = thin_plate_coefficients(torch.from_numpy(chance(number).uniform(-1.6, 1.6, (16, 2))))
    line = torch.linspace(-1.2, 1.2, 241, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)

    bent = (points + thin_plate_displacement(spline, points)).unflatten(0, (241, 241))

    x, y = (bent.diff(dim=k) / 0.01 for k in (0, 1))
    area = x[:, :-1, 0] * y[:-1, :, 1] - x[:, :-1, 1] * y[:-1, :, 0]
    assert area.min() > 0.2


def test_a_warp_that_does_nothing_changes_no_pixel():
    image = torch.rand(3, 37, 37)

    assert_close(
        warp_image(image, ImageWarp(affine_matrix(), thin_plate_coefficients(torch.zeros(16, 2)))),
        image,
        atol=1e-4,
        rtol=0,
    )


@pytest.mark.parametrize("side", [63, 600])
@pytest.mark.parametrize("number", range(4))
def test_every_pixel_comes_from_where_the_warp_says(side, number):
    """An image whose colours are its own coordinates, within 1/20 px."""
    line = torch.arange(side).float()
    y, x = torch.meshgrid(line, line, indexing="ij")
    warp = KINDS["all"].sample_geometry(chance(number)).warp

    found = warp_image(torch.stack((x, y, torch.ones_like(x))), warp).flatten(1).T

    there = from_unit(
        warp_to_original(warp, to_unit(torch.stack((x, y), -1).flatten(0, 1).double(), side)), side
    ).float()
    inside = ((there >= 1) & (there <= side - 2)).all(-1)  # not fading to black
    assert inside.float().mean() > 0.3
    assert_close(found[inside, :2], there[inside], atol=0.05, rtol=0)


def test_what_lies_outside_is_black():
    image = warp_image(torch.ones(3, 8, 8), away(0.5))

    assert_close(image, torch.ones(3, 8, 8).index_fill(2, torch.arange(4, 8), 0.0))


def test_points_of_every_image_size_keep_the_convention():
    """A point on a pixel centre of a doubled image is where that pixel centre went."""
    for side in (31, 64):
        found = warp_points(torch.tensor([[0.0, 0.0], [side - 1.0, 0.0]]), ImageWarp(affine_matrix(zoom=2.0)), side)
        centre = (side - 1) / 2
        assert_close(found, torch.tensor([[-centre, -centre], [side - 1 + centre, -centre]]), atol=1e-4, rtol=0)
