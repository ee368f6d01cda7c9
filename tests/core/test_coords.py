import pytest
import torch
from torch.testing import assert_close

from semcorr.core.coords import from_view, to_grid, to_image, to_view


@pytest.mark.parametrize(("stride", "centre"), [(8, 3.5), (14, 6.5), (16, 7.5)])
def test_the_first_cell_is_centred_half_a_stride_from_the_corner(stride, centre):
    assert to_image(torch.zeros(2), stride).tolist() == [centre, centre]
    assert to_grid(torch.tensor([centre, centre + 3 * stride]), stride).tolist() == [0, 3]


@pytest.mark.parametrize("stride", [8, 14, 16])
def test_the_corners_of_image_and_grid_coincide(stride):
    width, height = 6 * stride, 4 * stride
    corners = torch.tensor([[-0.5, -0.5], [width - 0.5, height - 0.5]])

    assert_close(to_grid(corners, stride), torch.tensor([[-0.5, -0.5], [5.5, 3.5]]))


@pytest.mark.parametrize("stride", [8, 14, 16])
def test_to_image_undoes_to_grid(stride):
    points = torch.rand(3, 5, 2, dtype=torch.double) * 840 - 10

    assert_close(to_image(to_grid(points, stride), stride), points)
    assert_close(to_grid(to_image(points, stride), stride), points)


def test_a_doubled_image_shifts_its_pixel_centres_by_half_a_pixel():
    points = torch.tensor([[0.0, 0.0], [10.0, 3.0]])

    doubled = to_view(points, scale=torch.tensor([2.0, 2.0]), offset=torch.tensor([0.0, 0.0]))

    assert doubled.tolist() == [[0.5, 0.5], [20.5, 6.5]]  # pixel 0 becomes pixels 0 and 1


def test_padding_shifts_by_whole_pixels_after_scaling():
    point = torch.tensor([[10.0, 3.0]])

    padded = to_view(point, scale=torch.tensor([1.0, 2.0]), offset=torch.tensor([7.0, 25.0]))

    assert padded.tolist() == [[17.0, 31.5]]


def test_from_view_undoes_to_view():
    points = torch.rand(3, 5, 2, dtype=torch.double) * 400
    scale, offset = torch.rand(3, 2, dtype=torch.double) + 0.1, torch.rand(3, 2, dtype=torch.double) * 50

    assert_close(from_view(to_view(points, scale, offset), scale, offset), points)


def test_every_image_of_a_batch_has_its_own_scale_and_offset():
    points, scale, offset = torch.rand(3, 5, 2), torch.rand(3, 2), torch.rand(3, 2)

    together = to_view(points, scale, offset)

    for i in range(3):
        for n in range(5):
            for axis in range(2):
                alone = (points[i, n, axis] + 0.5) * scale[i, axis] + offset[i, axis] - 0.5
                assert_close(together[i, n, axis], alone)
