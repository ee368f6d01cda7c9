"""CATs++: convolutions and attention over the correlation against plain loops; IFCAT's variant by hand."""

from itertools import product

import pytest
import torch
from tiny_cost_heads import CHANNELS, STRIDE, built, centres, maps, points
from torch.nn.functional import adaptive_avg_pool2d, conv2d, interpolate, max_pool2d
from torch.testing import assert_close

from semcorr.core.errors import UserError
from semcorr.core.types import FeatureMap
from semcorr.models.heads.cats_plus_plus import (
    Aggregated,
    CATsPlusPlus,
    CrossAggregation,
    EfficientBlock,
    average_to,
)
from semcorr.models.heads.conv4d import PivotConv4d, conv4d
from semcorr.models.heads.correlation import correlation

SIZES = {"width": 2, "features": 4, "projected": 8, "mlp": 2}


def drawn_block(integrate: bool) -> EfficientBlock:
    block = EfficientBlock(2, 4, 8, 2, integrate).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return block


def given(h: int = 2, w: int = 3, k: int = 3, l: int = 2) -> Aggregated:  # noqa: E741
    return Aggregated(torch.rand(1, 2, h, w, k, l).double(), torch.randn(1, 4, h, w).double())


def test_a_pivot_convolution_is_a_full_one_whose_other_taps_are_zero():
    layer, x = PivotConv4d(2, 3), torch.randn(2, 2, 3, 4, 2, 5)
    full = torch.zeros(3, 2, 3, 3, 3, 3)
    full[:, :, :, :, 1, 1] = layer.source.weight.detach()
    full[:, :, 1, 1] += layer.target.weight.detach()

    assert_close(layer(x), conv4d(x, full, layer.source.bias + layer.target.bias), atol=1e-5, rtol=1e-4)


def test_with_a_stride_the_axes_that_are_not_convolved_are_reduced_by_their_largest_values():
    layer, x = PivotConv4d(2, 3, stride=2), torch.randn(1, 2, 3, 4, 2, 5)

    found = layer(x)

    assert found.shape == (1, 3, 2, 2, 1, 3)
    for i, j, m, n in product(range(2), range(2), range(1), range(3)):
        by_target = x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].amax((2, 3))
        by_source = x[:, :, :, :, 2 * m : 2 * m + 2, 2 * n : 2 * n + 2].amax((4, 5))
        one = conv2d(by_source, layer.source.weight, layer.source.bias, 2, 1)[0, :, i, j]
        other = conv2d(by_target, layer.target.weight, layer.target.bias, 2, 1)[0, :, m, n]
        assert_close(found[0, :, i, j, m, n], one + other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("integrate", [False, True])
def test_a_block_is_attention_cell_by_cell_and_an_mlp(integrate):
    """One query, one key and one value at a time; the target has no more cells than are pooled to."""
    block, (volume, features) = drawn_block(integrate), given(2, 3, 4, 8)
    cells = list(product(range(2), range(3)))

    def norm(layer, x):
        scaled = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()
        return scaled * layer.weight.view(-1, 1, 1, 1, 1) + layer.bias.view(-1, 1, 1, 1, 1)

    normed = norm(block.norm1, volume)
    convolved, value = (
        norm(of, layer(normed)) for of, layer in ((block.norm_qk, block.convolve), (block.norm_value, block.value))
    )
    place = interpolate(block.position[None], (2, 3), mode="bilinear", align_corners=False)[0]
    queries, keys = {}, {}
    for i, j in cells:
        rows = convolved[0, :, i, j].repeat_interleave(2, 1)  # 4 x 8 cells to 8 x 8
        both = block.qk(torch.cat((rows.flatten(), features[0, :, i, j]))).view(2, 2, 4) + place[:, i, j]
        queries[i, j], keys[i, j] = both
    expected, aggregated = volume.clone(), features.clone()
    for cell, head in product(cells, range(2)):
        weights = torch.stack([queries[cell][head] @ keys[other][head] / 2 for other in cells]).softmax(0)
        for weight, other in zip(weights, cells, strict=True):
            expected[(0, head, *cell)] += weight * value[(0, head, *other)]
            if integrate:
                own = block.feature_value.weight[:, :, 0, 0] @ features[(0, slice(None), *other)]
                own = (own + block.feature_value.bias)[2 * head : 2 * head + 2]
                aggregated[(0, slice(None), *cell)] += (
                    weight * block.merge.weight[:, 2 * head : 2 * head + 2, 0, 0] @ own
                )
    if integrate:
        aggregated += block.merge.bias.view(-1, 1, 1)
    expected = expected + block.mlp(norm(block.norm2, expected))

    found = block(Aggregated(volume, features))

    assert (expected - volume).std() > 0.05
    assert_close(found.volume, expected)
    assert_close(found.features, aggregated)


@pytest.mark.parametrize("integrate", [False, True])
def test_a_blocks_gradients_are_those_of_finite_differences(integrate):
    block = drawn_block(integrate)

    assert torch.autograd.gradcheck(lambda *x: tuple(block(Aggregated(*x))), [x.requires_grad_() for x in given()])


def test_cells_of_two_images_attend_by_their_features_and_their_correlation():
    layer, (volume, features), others = CrossAggregation(2, 4).double(), given(), torch.randn(1, 4, 3, 2).double()

    def project(convolution, values):
        return torch.einsum("oi,ihw->ohw", convolution.weight[:, :, 0, 0], values[0]) + convolution.bias[:, None, None]

    query, key, value = project(layer.query, features), project(layer.key, others), project(layer.value, others)
    found = torch.zeros(4, 2, 3, dtype=torch.double)
    for head, i, j in product(range(2), range(2), range(3)):
        part = slice(2 * head, 2 * head + 2)
        logits = torch.einsum("c,ckl->kl", query[part, i, j], key[part]) / 2**0.5 + volume[0, head, i, j]
        found[part, i, j] = torch.einsum("kl,ckl->c", logits.flatten().softmax(0).view(3, 2), value[part])

    assert_close(layer(features, others, volume)[0], features[0] + project(layer.merge, found[None]))


def test_an_untrained_head_is_the_cosine_to_the_bit():
    for integrate in (False, True):
        source, target = maps(1, 3, 5), maps(1, 4, 2)

        found = built("cats_plus_plus", trained=False, integrate=integrate)(source, target, centres(3, 5))

        assert torch.equal(found.flatten(1, 2), correlation(source.values, target.values).flatten(1, 3))


def test_the_result_is_the_cosine_and_the_sum_of_three_volumes_enlarged():
    head, source, target = built("cats_plus_plus", **SIZES), maps(1, 4, 6), maps(1, 3, 2)
    with torch.no_grad():
        head.out.normal_()
    cosines = correlation(source.values, target.values)
    volume = head.embed(cosines.relu()[:, None])
    turned = volume.permute(0, 1, 4, 5, 2, 3)
    sums = volume + head.blocks(Aggregated(volume, head.project(source.values))).volume
    sums = sums + head.blocks(Aggregated(turned, head.project(target.values))).volume.permute(0, 1, 4, 5, 2, 3)
    update = (sums * head.out.view(-1, 1, 1, 1, 1)).sum(1)
    rows = [interpolate(update[:, i, j][:, None], (3, 2), mode="bilinear") for i in range(2) for j in range(3)]
    cells = torch.stack(rows, -1).view(1, 1, 3, 2, 2, 3)
    large = [interpolate(cells[:, :, m, n], (4, 6), mode="bilinear") for m in range(3) for n in range(2)]
    expected = cosines + torch.stack(large, -1).view(1, 4, 6, 3, 2)

    found = head(source, target, centres(4, 6))[0]

    assert update.std() > 0.1
    assert_close(found, expected[0].flatten(0, 1), atol=1e-5, rtol=1e-4)


def test_features_that_are_aggregated_match_as_one_more_channel():
    head, source, target = built("cats_plus_plus", integrate=True, **SIZES), maps(1), maps(1)
    with torch.no_grad():
        head.out.copy_(torch.tensor([0.0, 0.0, 1.0]))

    update = head.aggregate(correlation(source.values, target.values).relu(), source.values, target.values)

    assert update.shape == (1, 2, 2, 2, 2)
    assert update.std() > 0.01
    assert update.abs().max() <= 1 + 1e-6


@pytest.mark.parametrize(("integrate", "more"), [(False, 0), (True, 6 * (128**2 + 128) + 1)])
def test_the_number_of_weights_depends_on_the_features_and_on_no_grid(integrate, more):
    pivot = lambda inputs, outputs: 2 * (9 * inputs * outputs + outputs)  # noqa: E731
    around = pivot(1, 4) + 8 + 768 * 128 * 9 + 128 + 4
    block = 4 * 8 + 2 * pivot(4, 4) + (4 * 64 + 128 + 1) * 1024 + 128 * 64 + pivot(4, 16) + pivot(16, 4)

    assert sum(p.numel() for p in CATsPlusPlus(768, integrate=integrate).parameters()) == around + block + more


def test_reduction_of_an_odd_side_keeps_its_last_cells():
    assert max_pool2d(torch.arange(3.0)[None, None, None], (1, 2), ceil_mode=True).tolist() == [[[[1, 2]]]]
    assert PivotConv4d(1, 1, stride=2)(torch.rand(1, 1, 1, 3, 5, 7)).shape == (1, 1, 1, 2, 3, 4)


@pytest.mark.parametrize("integrate", [False, True])
def test_a_map_of_one_cell_is_enough(integrate):
    head = built("cats_plus_plus", integrate=integrate)

    found = head(FeatureMap(torch.randn(1, CHANNELS, 1, 1), STRIDE), maps(1, 1, 3), points(1, 2))

    assert found.shape == (1, 2, 1, 3)
    assert found.isfinite().all()


@pytest.mark.parametrize("option", ["features", "projected"])
def test_channels_that_heads_cannot_share_are_refused(option):
    with pytest.raises(UserError, match=rf"`head.{option}` must be a multiple of `head.width`, 3, got 4"):
        CATsPlusPlus(8, 3, **({"features": 3, "projected": 3} | {option: 4}))


@pytest.mark.parametrize("size", [(8, 16), (15, 30), (7, 9), (4, 1)], ids=str)
def test_averages_with_a_deterministic_gradient_are_those_of_adaptive_pooling(monkeypatch, size):
    maps = torch.randn(3, 2, *size, requires_grad=True)
    weights = torch.randn(3, 2, 8, 8)
    expected = adaptive_avg_pool2d(maps, 8)
    gradient = torch.autograd.grad((expected * weights).sum(), maps)
    assert torch.equal(average_to(maps, 8), expected)

    monkeypatch.setattr("torch.are_deterministic_algorithms_enabled", lambda: True)
    monkeypatch.setattr("semcorr.models.heads.cats_plus_plus.adaptive_avg_pool2d", None)
    found = average_to(maps, 8)

    assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert_close(torch.autograd.grad((found * weights).sum(), maps), gradient, atol=1e-6, rtol=1e-6)
