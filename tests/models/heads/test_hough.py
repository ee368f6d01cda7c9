"""Convolutional Hough matching: convolution against loops, shared weights against distances, votes by hand."""

from itertools import product
from math import exp, log1p

import pytest
import torch
from tiny_cost_heads import CHANNELS, STRIDE, built, centres, maps, points
from torch.testing import assert_close

from semcorr.core.errors import UserError
from semcorr.core.types import FeatureMap
from semcorr.models.heads.correlation import correlation, mutual_matching, resize_correlation, transpose_correlation
from semcorr.models.heads.hough import HoughKernel, HoughMatching, conv6d


def convolve_slowly(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """The definition in six dimensions, one tap of one cell at a time."""
    out = torch.zeros_like(x)
    for cell, tap in product(product(*map(range, x.shape)), product(*map(range, kernel.shape))):
        near = tuple(c + t - size // 2 for c, t, size in zip(cell, tap, kernel.shape, strict=True))
        if all(0 <= n < size for n, size in zip(near, x.shape, strict=True)):
            out[cell] += kernel[tap] * x[near]
    return out


@pytest.mark.parametrize("kernel", [(3, 3, 1, 3, 3, 1), (1, 3, 1, 1, 1, 3), (5, 3, 1, 1, 1, 1)])
def test_the_convolution_in_six_dimensions_is_the_sum_over_all_taps(kernel):
    x, weight = torch.randn(3, 2, 2, 3, 3, 2, dtype=torch.double), torch.randn(kernel, dtype=torch.double)

    assert_close(conv6d(x[None], weight)[0], convolve_slowly(x, weight))


def test_gradients_of_the_convolution_are_those_of_finite_differences():
    x, weight = torch.randn(1, 2, 2, 2, 1, 2, 1).double(), torch.randn(3, 3, 1, 1, 3, 1).double()

    assert torch.autograd.gradcheck(conv6d, (x.requires_grad_(), weight.requires_grad_()))


@pytest.mark.parametrize(("sharing", "in_six", "in_four"), [("psi", 220, 55), ("iso", 45, 15), ("full", 5625, 625)])
def test_kernels_have_the_published_number_of_weights(sharing, in_six, in_four):
    assert HoughKernel(5, 3, sharing).weight.numel() == in_six
    assert HoughKernel(5, 1, sharing).weight.numel() == in_four


@pytest.mark.parametrize("sharing", ["psi", "iso", "full"])
def test_taps_share_a_weight_where_their_distances_are_the_same(sharing):
    """Every pair of taps of a small kernel; distances as lengths, in space and in scale."""
    kernel = HoughKernel(3, 3, sharing)
    torch.nn.init.uniform_(kernel.weight)
    taps = torch.tensor(list(product((-1.0, 0.0, 1.0), repeat=6)))
    apart = torch.stack(((taps[:, 0] - taps[:, 1]).abs(), (taps[:, 2:4] - taps[:, 4:]).norm(dim=1)), 1)
    from_middle = [taps[:, :2].abs(), torch.stack((taps[:, 2:4].norm(dim=1), taps[:, 4:].norm(dim=1)), 1)]
    signs = {
        "psi": torch.cat((apart, *(values.sort(1).values for values in from_middle)), 1),
        "iso": apart,
        "full": taps,
    }[sharing]

    weights = kernel().flatten()
    same = (signs[:, None] - signs).abs().amax(-1) < 1e-4

    assert torch.equal(weights[:, None] == weights, same)


def test_a_kernel_starts_as_its_middle():
    kernel = HoughKernel(5, 3, "psi")().detach()

    assert kernel[1, 1, 2, 2, 2, 2] == pytest.approx(1, abs=2e-3)
    kernel[1, 1, 2, 2, 2, 2] = 0
    assert 0 <= kernel.min() < kernel.max() <= 2e-3


def test_swapping_source_and_target_transposes_the_votes():
    head, volume = built("chm", kernel=3), torch.rand(2, 3, 3, 2, 3, 4, 2)

    assert_close(
        transpose_correlation(head.vote(volume)), head.vote(volume.permute(0, 2, 1, 5, 6, 3, 4)), atol=1e-6, rtol=1e-5
    )


def test_votes_by_hand_on_two_scales_and_two_cells():
    """A kernel that is the middle, plus 0.5 for one scale and one cell on in both images."""
    head = HoughMatching(CHANNELS, scales=[1, 2], kernel=3, sharing="full")
    with torch.no_grad():
        for kernel in (head.votes, head.shifts):
            kernel.weight.zero_()
        taps = list(product((-1, 0, 1), repeat=6))
        head.votes.weight[taps.index((0, 0, 0, 0, 0, 0))] = 1
        head.votes.weight[taps.index((1, 1, 0, 1, 0, 1))] = 0.5
        head.shifts.weight[40] = 2  # the middle of 3^4
        head.bias.copy_(torch.tensor([-0.3, 0.1]))
    volume = torch.rand(1, 2, 2, 1, 2, 1, 2)
    x = volume[0, :, :, 0, :, 0]  # scale, scale, column, column

    expected = torch.zeros(2, 2)
    for a, b in product(range(2), repeat=2):
        pairs = []
        for s, t in product(range(2), repeat=2):
            near = x[s + 1, t + 1, a + 1, b + 1] if max(s, t, a, b) == 0 else 0
            pairs.append(1 / (1 + exp(-(x[s, t, a, b] + 0.5 * near - 0.3))))
        expected[a, b] = log1p(exp(2 * max(pairs) + 0.1))

    assert_close(head.vote(volume)[0, 0, :, 0], expected)


def test_votes_have_gradients_of_finite_differences():
    head = built("chm", kernel=3).double()
    volume = torch.rand(1, 3, 3, 1, 2, 2, 1, dtype=torch.double, requires_grad=True)

    assert torch.autograd.gradcheck(head.vote, volume)


def test_matches_that_shift_alike_outvote_a_better_one_that_is_alone():
    head = HoughMatching(CHANNELS, scales=[1], kernel=3, sharing="iso")
    with torch.no_grad():
        for kernel in (head.votes, head.shifts):
            alike = kernel.groups[len(kernel.groups) // 2]  # taps at no distance from each other: of like shift
            kernel.weight.zero_()
            kernel.weight[alike] = kernel.sizes[alike]
    volume = torch.zeros(1, 1, 1, 3, 3, 3, 3)
    for y, x in product(range(3), range(2)):
        volume[0, 0, 0, y, x, y, x + 1] = 0.7  # all one column to the right
    volume[0, 0, 0, 1, 0, 1, 0] = 0.9

    votes = head.vote(volume)[0, 1, 0]

    assert volume[0, 0, 0, 1, 0].flatten().argmax() == 3  # row 1, column 0: what looks most alike
    assert votes.flatten().argmax() == 4  # row 1, column 1


def test_scales_are_compared_on_one_grid_by_the_places_of_their_cells():
    """A map of one ramp: at every scale a cell has the value at its place, away from the border."""
    head = HoughMatching(2, width=2, scales=[0.25, 1])
    with torch.no_grad():
        for convolution in head.projections:
            convolution.weight[:, :, 1, 1] = torch.eye(2)
    angle = torch.linspace(0, 1, 8)
    ramp = torch.stack((angle.cos(), angle.sin()))[None, :, None].expand(-1, -1, 4, -1)

    volume = head.correlate_scales(ramp, ramp[:, :, :2])

    assert volume.shape == (1, 2, 2, 4, 8, 2, 8)
    assert_close(volume[0, 1, 1], correlation(ramp, ramp[:, :, :2])[0], atol=1e-5, rtol=0)
    plain = correlation(ramp, ramp[:, :, :2])[0, 1, 1:-1, 1, 1:-1]
    for s, t in product(range(2), repeat=2):
        assert_close(volume[0, s, t, 1, 1:-1, 1, 1:-1], plain, atol=0.02, rtol=0)


def test_resized_correlations_keep_places_and_the_order_of_axes():
    volume = torch.arange(4.0).view(1, 1, 4, 1, 1) + 10 * torch.arange(2.0).view(1, 1, 1, 1, 2)

    larger = resize_correlation(volume, (1, 2), (3, 4))

    assert larger.shape == (1, 1, 2, 3, 4)
    assert larger[0, 0, :, 0, 0].tolist() == [0.5, 2.5]
    assert larger[0, 0, 0, 2].tolist() == [0.5, 3, 8, 10.5]
    assert resize_correlation(volume, (1, 4), (1, 2)).equal(volume)


def test_similarity_is_the_votes_between_0_and_1():
    head, source, target = built("chm"), maps(1), maps(1)
    votes = head.vote(head.correlate_scales(source.values, target.values))
    expected = mutual_matching(votes) / votes.amax((3, 4), keepdim=True)

    found = head(source, target, centres())

    assert 0 <= found.min() < found.max() <= 1
    assert_close(found, expected.flatten(1, 2), atol=1e-4, rtol=0)


def test_one_scale_and_one_cell_are_enough():
    head = built("chm", scales=[1], scale_kernel=1, kernel=1)

    found = head(FeatureMap(torch.randn(1, CHANNELS, 1, 1), STRIDE), maps(1, 1, 3), points(1, 2))

    assert found.shape == (1, 2, 1, 3)
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": []}, r"`head.scales` must be areas between 1/16 and 16, got \[\]"),
        ({"scales": [1, 100]}, "between 1/16 and 16, got"),
        ({"kernel": 4}, "`head.kernel` must be odd and positive, got 4"),
        ({"sharing": "all"}, "`head.sharing` must be one of psi, iso, full, got 'all'"),
    ],
)
def test_options_out_of_range_are_refused_with_their_range(options, message):
    with pytest.raises(UserError, match=message):
        HoughMatching(CHANNELS, **options)
