"""Where points and cells lie, as each protocol has it: there and back, and known distances apart."""

import pytest
import torch
from torch.testing import assert_close

from semcorr.core.bilinear import bilinear_neighbours
from semcorr.evaluation.conventions import (
    original_to_view,
    resize_geometry,
    target_cell_to_view,
    view_to_original,
    view_to_source_cell,
)
from semcorr.evaluation.protocols import AXES


@pytest.mark.parametrize("how", ["exact", "ratio", "aligned"])
def test_scaled_points_come_back(how):
    sizes = torch.tensor([[500.0, 375.0], [333.0, 500.0]]).double()
    at = resize_geometry(
        sizes,
        torch.tensor([[840.0, 630.0], [559.0, 840.0]]).double(),
        torch.tensor([[0.0, 105.0], [140.0, 0.0]]).double(),
        840,
    )
    points = torch.rand(2, 9, 2).double() * 300

    assert_close(view_to_original(original_to_view(points, at, how), at, how), points)


def test_the_same_cell_lies_up_to_seven_pixels_apart():
    """At 840 pixels and 60 cells: half a cell, and the corners; STYLE.md's table of ramps."""
    first = torch.zeros(1, 1, 2).double()

    places = {how: target_cell_to_view(first, 840, 60, how)[0, 0, 0].item() for how in AXES["decode"][:-1]}
    cells = {how: view_to_source_cell(first + 420, 840, 60, how)[0, 0, 0].item() for how in AXES["lookup"]}

    assert places == {"centre": 6.5, "half_stride": 7.0, "aligned": 0.0, "fraction": 0.0}
    assert cells == pytest.approx(
        {"centre": 29.5357, "containing": 30, "aligned": 29.5352, "fraction": 30, "aligned_fraction": 29.5}, abs=1e-4
    )


def test_the_weights_of_four_cells_add_up_to_one():
    _, weights = bilinear_neighbours(torch.rand(2, 50, 2).double() * 7, (8, 8))

    assert_close(weights.sum(-1), torch.ones(2, 50).double())
    assert (weights >= 0).all()
