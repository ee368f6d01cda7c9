"""Neighbourhood consensus: by hand, against its published form, and in bounds."""

from itertools import product

import pytest
import torch
from tiny_cost_heads import built, centres, maps
from torch import nn
from torch.testing import assert_close

from semcorr.models.heads.consensus import Consensus
from semcorr.models.heads.correlation import correlation, mutual_matching, transpose_correlation


@pytest.mark.parametrize(("name", "weights"), [("consensus", 6_497), ("consensus_original", 180_033)])
def test_neighbourhood_consensus_has_the_published_number_of_weights(name, weights):
    assert sum(parameter.numel() for parameter in built(name).parameters()) == weights


def test_swapping_source_and_target_transposes_what_consensus_finds():
    head, matrix = built("consensus"), torch.rand(2, 3, 4, 2, 5)

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
    head, pair, asked = built("consensus"), (maps(), maps()), centres().expand(2, -1, -1)
    similarity = head(*pair, asked)
    with torch.no_grad():
        head.layers[-1].weight *= 100
        head.layers[-1].bias *= 100
    louder = head(*pair, asked)

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
