"""Neighbourhood consensus: by hand, against its published form, and in bounds."""

from itertools import product

import pytest
import torch
from tiny_cost_heads import built, centres, maps
from torch import nn
from torch.testing import assert_close

from semcorr.core.types import FeatureMap
from semcorr.models.heads.consensus import Consensus, average_cells
from semcorr.models.heads.correlation import correlation, mutual_matching, transpose_correlation


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("consensus", 6_497),
        ("consensus_original", 180_033),
        ("consensus_adaptive", 8 * 9 * 25 + 8 + 8 * 25**2 + 8 + (16 * 16 * 25**2 + 16) + (16 * 25**2 + 1)),
        ("consensus_dual", 2_609),  # 3-3 and 16-1
    ],
)
def test_neighbourhood_consensus_has_the_published_number_of_weights(name, weights):
    assert sum(parameter.numel() for parameter in built(name).parameters()) == weights


@pytest.mark.parametrize("name", ["consensus", "consensus_adaptive"])
def test_swapping_source_and_target_transposes_what_consensus_finds(name):
    head, matrix = built(name), torch.rand(2, 3, 4, 2, 5)

    assert_close(
        transpose_correlation(head.filter(matrix)), head.filter(transpose_correlation(matrix)), atol=1e-6, rtol=1e-4
    )


def test_consensus_by_hand_on_two_by_two_cells():
    """One kernel of two taps, the middle and the next column of the source; a bias that silences the weakest."""
    head = Consensus(kernels=[3], widths=[1])
    with torch.no_grad():
        head.layers[0].weight.zero_()
        head.layers[0].weight[0, 0, 1, 1, 1, 1] = 2.0
        head.layers[0].weight[0, 0, 1, 2, 1, 1] = 1.0
        head.layers[0].bias.fill_(-0.3)
    source, target = maps(1, 2, 2), maps(1, 2, 2)
    cells = list(product(range(2), repeat=4))

    def mutual(x):
        best = lambda a, b: max(x[c] for c in cells if (c[:2] == a or a is None) and (c[2:] == b or b is None))  # noqa: E731
        return {c: x[c] ** 3 / ((best(c[:2], None) + 1e-5) * (best(None, c[2:]) + 1e-5)) for c in cells}

    cosines = correlation(source.values, target.values)[0]
    x = mutual({c: max(0.0, cosines[c].item()) for c in cells})
    y = {
        (a, b, c, d): max(0, 2 * x[a, b, c, d] + (x[a, 1, c, d] if b == 0 else 0) - 0.3)
        + max(0, 2 * x[a, b, c, d] + (x[a, b, c, 1] if d == 0 else 0) - 0.3)
        for a, b, c, d in cells
    }
    assert 0 < sum(value == 0 for value in y.values()) < 14
    z = mutual(y)
    expected = [z[c] / (max(y[*c[:2], *other] for other in product(range(2), repeat=2)) + 1e-5) for c in cells]

    found = head(source, target, centres(2, 2))

    assert_close(found.flatten(), torch.tensor(expected), atol=1e-5, rtol=1e-4)


def test_the_second_pass_sees_the_transposed_volume():
    head, matrix = built("consensus_original"), torch.rand(1, 3, 2, 4, 3)
    stack = nn.Sequential(*(layer for one in head.layers for layer in (one, nn.ReLU())))

    def both(volume):
        volume = mutual_matching(volume)
        there, back = stack(volume[:, None])[:, 0], stack(transpose_correlation(volume)[:, None])[:, 0]
        return there + transpose_correlation(back)

    assert_close(head.filter(matrix), both(matrix), atol=1e-5, rtol=1e-4)
    weights = torch.randn(1, 3, 2, 4, 3)
    ours, plain = (
        torch.autograd.grad((of(matrix) * weights).sum(), [*head.parameters()]) for of in (head.filter, both)
    )
    for one, other in zip(ours, plain, strict=True):
        assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_consensus_lies_between_0_and_1_whatever_the_filters_scale_is():
    head, pair, requested = built("consensus"), (maps(), maps()), centres().expand(2, -1, -1)
    similarity = head(*pair, requested)
    with torch.no_grad():
        head.layers[-1].weight *= 100
        head.layers[-1].bias *= 100
    louder = head(*pair, requested)

    assert similarity.min() >= 0
    assert similarity.amax((1, 2, 3)).tolist() == pytest.approx([1, 1], abs=1e-2)
    assert similarity.max() <= 1
    assert_close(louder, similarity, atol=1e-2, rtol=0)


def test_what_consensus_keeps_for_backward_does_not_grow_with_its_layers():
    def kept(depth: int) -> int:
        head, total, matrix = Consensus([3] * depth, [8] * (depth - 1) + [1]), [], torch.rand(1, 5, 5, 5, 5)
        with torch.autograd.graph.saved_tensors_hooks(lambda one: total.append(one.numel()) or one, lambda one: one):
            head.filter(matrix)
        return sum(total)

    assert kept(4) == kept(2) < 6 * 5**4


def convolve_slowly(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """A 4-D convolution by its definition, tap by tap."""
    out = bias.view(-1, 1, 1, 1, 1).expand(-1, *x.shape[1:]).clone()
    middle = [size // 2 for size in weight.shape[2:]]
    for cell in product(*map(range, x.shape[1:])):
        for tap in product(*map(range, weight.shape[2:])):
            near = [c + t - m for c, t, m in zip(cell, tap, middle, strict=True)]
            if all(0 <= n < size for n, size in zip(near, x.shape[1:], strict=True)):
                out[(slice(None), *cell)] += weight[(slice(None), slice(None), *tap)] @ x[(slice(None), *near)]
    return out


def test_kernels_side_by_side_are_those_of_anc_net():
    """NonIsotropicNCA of its code: both branches and the rest each f(x) + f(x^T)^T, with volumes turned around."""
    head = Consensus([[[1, 3], [3, 3]], 3, 1], [4, 2, 1]).double()
    for parameter in head.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter)
    one, two = head.layers[0].branches
    assert [one.weight.shape, two.weight.shape] == [(2, 1, 1, 1, 3, 3), (2, 1, 3, 3, 3, 3)]
    turn = lambda x: x.permute(0, 3, 4, 1, 2)  # noqa: E731
    both = lambda f, x: f(x) + turn(f(turn(x)))  # noqa: E731
    layer = lambda conv: lambda x: convolve_slowly(x, conv.weight.detach(), conv.bias.detach()).relu()  # noqa: E731
    matrix = torch.rand(1, 2, 3, 3, 2, dtype=torch.double)

    mixed = torch.cat([both(layer(branch), mutual_matching(matrix)) for branch in (one, two)])
    expected = both(lambda x: layer(head.layers[2])(layer(head.layers[1])(x)), mixed)

    assert expected.std() > 0.01
    assert_close(head.filter(matrix), expected)
    assert torch.autograd.gradcheck(head.filter, matrix.requires_grad_())


def test_layers_of_several_kernels_are_symmetric_alone_and_those_between_together():
    pair = [[1, 3], [3, 3]]
    head = Consensus([3, 3, pair, pair, 3, 3], [2, 2, 2, 2, 2, 1])

    places = {layer: i for i, layer in enumerate(head.layers)}
    assert [[places[layer] for layer in stage] for stage in head._group_layers()] == [[0, 1], [2], [3], [4, 5]]


def test_a_volume_that_is_larger_in_one_image_matches_through_the_kernel_of_its_shape():
    """Three cells of the target's row support one of the source: only a kernel of 1 x 3 reaches all, and no more."""
    head = Consensus([[[1, 3]]], [1])
    with torch.no_grad():
        head.layers[0].branches[0].weight.fill_(1)
    head.layers[0].branches[0].bias.data.zero_()
    volume = torch.zeros(1, 1, 3, 1, 5)
    volume[0, 0, 1, 0, 1:4] = 1  # a source cell that looks like three target cells

    direct = head.layers[0](volume[:, None])[0, 0, 0]

    assert direct[1, 0].tolist() == [1, 2, 3, 2, 1]
    assert not direct[[0, 2]].any()


@pytest.mark.parametrize("sizes", [((4, 4), (6, 2)), ((5, 3), (4, 7))])
def test_coarse_matches_guide_fine_ones_cell_by_cell(sizes):
    """DualRC-Net's: the score of coarse cells, times the cosine of the point and the fine cell in them."""
    head, (source, target) = built("consensus_dual"), (maps(1, *size) for size in sizes)
    plain = Consensus([3, 3], [16, 1])
    plain.load_state_dict(head.state_dict())
    h, w = sizes[1]

    def averaged(one):
        rows, columns = (range(0, size, 2) for size in one.shape[-2:])
        cells = [[one[:, :, i : i + 2, j : j + 2].mean((2, 3)) for j in columns] for i in rows]
        return FeatureMap(torch.stack([torch.stack(row, -1) for row in cells], -2), 16.0)

    guide = plain(averaged(source.values), averaged(target.values), centres(*sizes[0]))[0]
    cosines = correlation(source.values, target.values)[0].flatten(0, 1).relu()
    expected = torch.stack([guide[:, i // 2, j // 2] * cosines[:, i, j] for i in range(h) for j in range(w)], -1)

    found = head(source, target, centres(*sizes[0]))[0]

    assert expected.amax() > 0.1
    assert_close(found.flatten(1), expected, atol=1e-6, rtol=1e-4)


def test_coarse_cells_at_an_edge_average_those_that_there_are():
    coarse = average_cells(FeatureMap(torch.arange(15.0).view(1, 1, 3, 5), 14.0), 2)

    assert coarse.values[0, 0].tolist() == [[3, 5, 6.5], [10.5, 12.5, 14]]
    assert coarse.stride == 28


def test_the_guide_of_coarse_cells_needs_a_sixteenth_of_the_volume():
    def largest(coarse: int) -> int:
        sizes, head = [], Consensus([3], [1], coarse=coarse)
        with torch.autograd.graph.saved_tensors_hooks(lambda one: sizes.append(one.numel()) or one, lambda one: one):
            head(maps(1, 8, 8), maps(1, 8, 8), centres(1, 2))
        return max(sizes)

    assert largest(1) == 8**4
    assert largest(2) < 8**3 * 2
