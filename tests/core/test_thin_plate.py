"""Thin plates: SciPy's, and warps that are known."""

import math

import pytest
import torch
from scipy.interpolate import RBFInterpolator
from torch.testing import assert_close

from semcorr.core.thin_plate import control_points, thin_plate_kernel, thin_plate_solver


def displace(values: torch.Tensor, points: torch.Tensor, side: int) -> torch.Tensor:
    return thin_plate_kernel(points, control_points(side)) @ (thin_plate_solver(side) @ values)


@pytest.mark.parametrize("side", [2, 3, 4, 7])
def test_a_thin_plate_is_scipys(side):
    values, points = torch.randn(side**2, 2).double(), torch.rand(50, 2).double() * 3 - 1.5

    expected = RBFInterpolator(control_points(side).numpy(), values.numpy(), kernel="thin_plate_spline", degree=1)

    assert_close(displace(values, points, side), torch.from_numpy(expected(points.numpy())), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "matrix",
    [
        [[1, 0], [0, 1]],
        [[math.cos(0.7), -math.sin(0.7)], [math.sin(0.7), math.cos(0.7)]],
        [[1.3, 0.4], [-0.2, 0.6]],
    ],
    ids=["identity", "rotation", "any"],
)
def test_of_an_affine_map_a_thin_plate_bends_nothing(matrix):
    linear, shift = torch.tensor(matrix).double(), torch.tensor([0.25, -0.5]).double()
    points = torch.rand(50, 2).double() * 4 - 2  # outside, too

    assert_close(displace(control_points(3) @ linear.T + shift, points, 3), points @ linear.T + shift)


def test_points_of_several_images_are_bent_each_by_its_own_numbers():
    values, points = torch.randn(3, 9, 2).double(), torch.rand(3, 5, 2).double()

    together = displace(values, points, 3)

    assert_close(together, torch.stack([displace(*one, 3) for one in zip(values, points, strict=True)]))
