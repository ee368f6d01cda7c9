"""Joint bilateral upsampling: the colours of the image say which cells a fine cell belongs to."""

import math

import numpy as np
import pytest
import torch
from backbone_cases import tiny
from torch.nn.functional import interpolate
from torch.testing import assert_close

from semcorr.core.errors import UserError
from semcorr.models.backbones.joint_bilateral import JointBilateral, joint_bilateral_upsampling


def upsampled_slowly(values, guide, factor, radius, sigma_space, sigma_colour) -> np.ndarray:
    """Kopf et al. 2007, Eq. 3, fine cell by fine cell, in coordinates of the coarse grid."""
    (channels, h, w), (_, rows, columns) = values.shape, guide.shape
    fine = np.zeros((channels, rows, columns))
    for y in range(rows):
        for x in range(columns):
            total = 0.0
            for q in range(y // factor - radius, y // factor + radius + 1):
                for p in range(x // factor - radius, x // factor + radius + 1):
                    if not (0 <= q < h and 0 <= p < w):
                        continue
                    colour = guide[:, q * factor : (q + 1) * factor, p * factor : (p + 1) * factor].mean((1, 2))
                    distance = ((y + 0.5) / factor - 0.5 - q) ** 2 + ((x + 0.5) / factor - 0.5 - p) ** 2
                    difference = ((guide[:, y, x] - colour) ** 2).sum()
                    weight = math.exp(-distance / (2 * sigma_space**2)) * math.exp(-difference / (2 * sigma_colour**2))
                    fine[:, y, x] += weight * values[:, q, p]
                    total += weight
            fine[:, y, x] /= total
    return fine


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize(("radius", "sigma_space", "sigma_colour"), [(2, 0.5, 0.3), (1, 2.0, 1.0)])
def test_upsampling_is_the_slow_reference_on_a_grid_that_is_not_square(factor, radius, sigma_space, sigma_colour):
    options = (factor, radius, sigma_space, sigma_colour)
    values, guide = torch.randn(2, 5, 3, 4), torch.rand(2, 3, 3 * factor, 4 * factor)

    fine = joint_bilateral_upsampling(values, guide, *options)

    expected = [upsampled_slowly(v.numpy(), g.numpy(), *options) for v, g in zip(values, guide, strict=True)]
    assert_close(fine.double(), torch.from_numpy(np.stack(expected)), atol=1e-5, rtol=1e-5)


def test_a_constant_map_stays_constant_whatever_the_image():
    values = torch.randn(1, 7, 1, 1).expand(1, 7, 6, 5)

    fine = joint_bilateral_upsampling(values, torch.rand(1, 3, 24, 20), 4, 2, 0.5, 0.01)

    assert_close(fine, values[..., :1, :1].expand(1, 7, 24, 20))


def test_an_edge_of_the_image_keeps_features_apart_inside_a_cell():
    """The edge is a quarter into a cell whose features are half of each; bilinear interpolation would blur over it."""
    guide = torch.zeros(1, 3, 12, 24)
    guide[..., 9:] = 1.0
    values = torch.zeros(1, 1, 3, 6)
    values[..., 2], values[..., 3:] = 0.75, 1.0

    sharp = joint_bilateral_upsampling(values, guide, 4, 2, 1.0, 0.1)[0, 0, 5]
    blurred = interpolate(values, scale_factor=4, mode="bilinear")[0, 0, 5]

    assert sharp[:9].max() < 0.01
    assert sharp[9:].min() > 0.9
    assert blurred[9] - blurred[8] < 0.2


def test_without_an_edge_distance_decides():
    values = torch.randn(1, 4, 3, 3)

    fine = joint_bilateral_upsampling(values, torch.full((1, 3, 6, 6), 0.5), 2, 1, 0.01, 0.1)

    assert_close(fine, values.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_gradients_reach_the_features():
    values = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    guide = torch.rand(1, 3, 4, 6, dtype=torch.float64)

    assert torch.autograd.gradcheck(lambda x: joint_bilateral_upsampling(x, guide, 2, 1, 0.5, 0.3), values)


def test_half_precision_stays_and_colours_that_are_far_apart_give_no_nan():
    values, guide = torch.randn(1, 2, 3, 3), (torch.rand(1, 3, 6, 6) > 0.5).float()

    fine = joint_bilateral_upsampling(values, guide, 2, 1, 0.01, 0.001)
    half = joint_bilateral_upsampling(values.bfloat16(), guide, 2, 1, 0.5, 0.1)

    assert bool(fine.isfinite().all())
    assert half.dtype == torch.bfloat16
    assert_close(half.float(), joint_bilateral_upsampling(values, guide, 2, 1, 0.5, 0.1), atol=0.05, rtol=0.05)


def test_the_guide_is_the_mean_colour_of_every_fine_cell_also_of_half_a_stride():
    image = torch.rand(1, 3, 28, 42)

    guide = JointBilateral(factor=4).make_guide(image, (2, 3))

    assert guide.shape == (1, 3, 8, 12)
    assert_close(guide[0, :, 0, 0], image[0, :, :4, :4].mean((1, 2)))  # 3.5 pixels, and those they share
    assert_close(JointBilateral(factor=2).make_guide(image, (2, 3))[0, :, 1, 2], image[0, :, 7:14, 14:21].mean((1, 2)))


@pytest.mark.parametrize(("options", "name"), [({"factor": 0}, "factor"), ({"sigma_colour": 0.0}, "sigma_colour")])
def test_options_out_of_range_are_refused(options, name):
    with pytest.raises(UserError, match=f"`backbone.upsample.{name}` must be"):
        JointBilateral(**options)
    assert tiny().stride == 8
