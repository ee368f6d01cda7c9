import math

import pytest
import torch
from torch.nn.functional import grid_sample, pixel_unshuffle
from torch.testing import assert_close

from semcorr.core.coords import to_image
from semcorr.core.types import FeatureMap
from semcorr.matching.readouts import argmax
from semcorr.matching.similarity import cosine_similarity, sample_descriptors
from semcorr.models.heads.cosine import Cosine

STRIDES = [8, 14, 16]


def cells_of(h: int, w: int) -> torch.Tensor:
    """Every cell (x, y) of a grid, x slowest."""
    return torch.cartesian_prod(torch.arange(w), torch.arange(h)).float()[None]


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize(("h", "w"), [(4, 6), (5, 5)])  # not square: catches swapped axes
def test_sampling_the_centre_of_a_cell_returns_that_cell(stride, h, w):
    features = torch.randn(1, 3, h, w)
    cells = cells_of(h, w)

    sampled = sample_descriptors(features, to_image(cells, stride), stride)

    x, y = cells[0].long().T
    assert_close(sampled[0], features[0, :, y, x].T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stride", STRIDES)
def test_halfway_between_two_centres_is_their_mean(stride):
    features = torch.randn(1, 3, 4, 6)
    halfway = to_image(torch.tensor([[[2.5, 1.0], [2.0, 1.5]]]), stride)

    beside, below = sample_descriptors(features, halfway, stride)[0]

    assert_close(beside, (features[0, :, 1, 2] + features[0, :, 1, 3]) / 2, atol=1e-5, rtol=1e-5)
    assert_close(below, (features[0, :, 1, 2] + features[0, :, 2, 2]) / 2, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stride", STRIDES)
def test_a_linear_ramp_is_read_exactly_everywhere(stride):
    """The test of section 3 of the style guide: no convention but the right one has no error."""
    h, w = 5, 7
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    ramp = to_image(torch.stack((x, y), -1).float(), stride).permute(2, 0, 1)[None]  # each cell holds its own pixel
    inner = torch.rand(1, 50, 2) * torch.tensor([(w - 1) * stride, (h - 1) * stride]) + (stride - 1) / 2

    assert_close(sample_descriptors(ramp, inner, stride), inner, atol=1e-3, rtol=0)


def test_points_beyond_the_border_cells_get_the_border_cell():
    features = torch.randn(1, 3, 4, 6)
    points = torch.tensor([[[-30.0, 3.5], [-0.5, -0.5], [47.5, 31.5], [400.0, 400.0]]])

    sampled = sample_descriptors(features, points, stride=8)[0]

    for got, (x, y) in zip(sampled, [(0, 0), (0, 0), (5, 3), (5, 3)], strict=True):
        assert_close(got, features[0, :, y, x], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_reading_four_cells_agrees_with_interpolating_the_whole_map(dtype):
    """PyTorch's own grid_sample, its gradient too; points inside, on the border and beyond."""
    features = torch.randn(2, 3, 4, 6).to(dtype).requires_grad_()
    points = torch.rand(2, 40, 2) * torch.tensor([70.0, 50.0]) - 10
    grid = (points + 0.5) / torch.tensor([24.0, 16.0]) - 1  # 6 x 4 cells of 8 pixels
    weights = torch.randn(2, 40, 3)

    whole = grid_sample(features.float(), grid[:, :, None], padding_mode="border", align_corners=False)
    expected = whole[..., 0].transpose(1, 2)
    sampled = sample_descriptors(features, points, stride=8)

    assert_close(sampled, expected, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad((it * weights).sum(), features)[0] for it in (sampled, expected)]
    assert_close(*gradients, atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=1e-2)


def test_cosine_agrees_with_a_double_loop():
    descriptors, features = torch.randn(2, 4, 5), torch.randn(2, 5, 3, 6)

    similarity = cosine_similarity(descriptors, features)

    for b in range(2):
        for n in range(4):
            for y in range(3):
                for x in range(6):
                    a, c = descriptors[b, n].tolist(), features[b, :, y, x].tolist()
                    expected = sum(i * j for i, j in zip(a, c, strict=True)) / (math.hypot(*a) * math.hypot(*c))
                    assert similarity[b, n, y, x].item() == pytest.approx(expected, abs=1e-5)


def test_the_length_of_features_does_not_matter():
    descriptors, features = torch.randn(1, 4, 5), torch.randn(1, 5, 3, 6)
    lengths = torch.rand(1, 1, 3, 6) * 100 + 0.01

    assert_close(
        cosine_similarity(descriptors * 1e3, features * lengths),
        cosine_similarity(descriptors, features),
        atol=1e-5,
        rtol=0,
    )


def test_a_descriptor_of_zeros_is_similar_to_nothing():
    assert cosine_similarity(torch.zeros(1, 1, 3), torch.randn(1, 3, 2, 2)).tolist() == [[[[0, 0], [0, 0]]]]


def test_swapping_source_and_target_transposes_the_similarity():
    one, other = FeatureMap(torch.randn(1, 5, 3, 4), stride=8), FeatureMap(torch.randn(1, 5, 4, 6), stride=8)
    centres, others = to_image(cells_of(3, 4), 8), to_image(cells_of(4, 6), 8)

    there = Cosine()(one, other, centres)[0].transpose(1, 2).flatten(1)  # x slowest, as in cells_of
    back = Cosine()(other, one, others)[0].transpose(1, 2).flatten(1)

    assert_close(there, back.T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize(("right", "down"), [(1, 0), (0, 1), (-2, 1)])
def test_a_target_shifted_by_whole_patches_is_found_that_many_cells_away(stride, right, down):
    source = torch.rand(1, 3, 6 * stride, 9 * stride)
    target = source.roll((down * stride, right * stride), dims=(2, 3))
    points = to_image(torch.tensor([[[2.0, 1.0], [4.0, 3.0], [6.0, 4.0]]]), stride)
    features = [FeatureMap(pixel_unshuffle(image, stride) - 0.5, stride) for image in (source, target)]

    found = to_image(argmax(Cosine()(*features, points)), stride)

    assert_close(found - points, torch.tensor([right * stride, down * stride]).float().expand_as(points))


def test_features_of_lower_precision_are_read_at_the_exact_point():
    """In bfloat16 the coordinate 419.6 of 840 pixels would be rounded by up to a pixel."""
    ramp = torch.linspace(0, 1, 60).repeat(60, 1)[None, None].bfloat16()
    points = 13.5 + 813 * torch.rand(1, 200, 2)

    low, exact = sample_descriptors(ramp, points, 14), sample_descriptors(ramp.float(), points, 14)

    assert_close(low, exact, atol=0, rtol=0)
