"""The correlation of two maps, mutual matching, and the rows of points: each against its formula."""

from itertools import product

import pytest
import torch
from tiny_cost_heads import STRIDE, points
from torch.nn.functional import grid_sample
from torch.testing import assert_close

from semcorr.models.heads.correlation import correlation, mutual_matching, sample_correlation


def test_the_correlation_is_the_cosine_of_every_two_cells():
    source, target = torch.randn(2, 5, 3, 2), torch.randn(2, 5, 2, 4)

    found = correlation(source, target)

    for b, h, w, k, l in product(range(2), range(3), range(2), range(2), range(4)):  # noqa: E741
        one, other = source[b, :, h, w], target[b, :, k, l]
        assert found[b, h, w, k, l].item() == pytest.approx((one @ other / one.norm() / other.norm()).item(), abs=1e-5)


def test_mutual_matching_keeps_a_permutation():
    matrix = torch.eye(6)[torch.randperm(6)].view(1, 2, 3, 3, 2)

    assert_close(mutual_matching(matrix), matrix, atol=3e-5, rtol=0)


def test_mutual_matching_is_the_published_formula():
    matrix = torch.rand(2, 3, 2, 2, 4)

    found = mutual_matching(matrix)

    for b, h, w, k, l in product(range(2), range(3), range(2), range(2), range(4)):  # noqa: E741
        value, of_target, of_source = matrix[b, h, w, k, l], matrix[b, :, :, k, l].max(), matrix[b, h, w].max()
        expected = value * (value / (of_target + 1e-5)) * (value / (of_source + 1e-5))
        assert found[b, h, w, k, l].item() == pytest.approx(expected.item(), rel=1e-5)


def test_rows_of_points_are_interpolated_over_the_sources_cells():
    """PyTorch's own interpolation; points inside, on the border and beyond; its gradient too."""
    volume, requested = torch.randn(2, 3, 5, 2, 4, requires_grad=True), points(2, 30)
    grid = (requested + 0.5) * 2 / torch.tensor([5 * STRIDE, 3 * STRIDE]) - 1
    images = volume.flatten(3).permute(0, 3, 1, 2)

    expected = grid_sample(images, grid[:, :, None], padding_mode="border", align_corners=False)
    expected = expected[..., 0].transpose(1, 2).unflatten(-1, (2, 4))
    found = sample_correlation(volume, requested, STRIDE)

    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad((it * weights).sum(), volume)[0] for it in (found, expected)]
    assert_close(*gradients, atol=1e-5, rtol=1e-5)
