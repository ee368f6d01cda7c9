"""Attention within an image and across a pair: equal to its slow twin, and it knows where a cell is."""

import pytest
import torch
from test_heads import built, maps, points
from torch.testing import assert_close

from semcorr.core.types import FeatureMap
from semcorr.models.heads.attention import linear_attention, sine_position_encoding


def slow_attention(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Every query with every key."""
    positive = [torch.where(some > 0, some + 1, some.exp()) for some in (queries, keys)]
    weights = torch.einsum("bnhd,bmhd->bhnm", *positive)
    return torch.einsum("bhnm,bmhe->bnhe", weights / weights.sum(-1, keepdim=True), values)


def test_linear_attention_is_attention_with_every_key():
    queries, keys, values = torch.randn(2, 7, 3, 4), torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 6)

    assert_close(linear_attention(queries, keys, values), slow_attention(queries, keys, values))


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16], ids=str)
def test_sums_over_many_cells_overflow_in_no_precision(precision):
    """4,096 keys of size 100 add up to six times what float16 can hold."""
    queries, keys, values = (torch.full((1, n, 1, 4), 100.0, dtype=precision) for n in (1, 4096, 4096))

    assert_close(linear_attention(queries, keys, values), torch.full((1, 1, 1, 4), 100.0))


def test_a_cell_has_the_same_position_on_every_grid_and_no_other_cell_has_it():
    small, large = sine_position_encoding(3, 5, 16).view(3, 5, 16), sine_position_encoding(6, 9, 16).view(6, 9, 16)

    assert torch.equal(small, large[:3, :5])
    assert torch.cdist(large.flatten(0, 1), large.flatten(0, 1)).add(torch.eye(54)).min() > 0.05
    assert_close(large.norm(dim=-1), torch.full((6, 9), 8**0.5))


def test_attention_knows_where_a_cell_is():
    """Features that are moved give other descriptors, not just moved ones."""
    head, x = built("self_attention"), maps(1, 4, 6)

    moved = FeatureMap(x.values.roll(1, dims=-1), 8)

    assert not torch.allclose(head.transform(moved).values, head.transform(x).values.roll(1, dims=-1), atol=1e-3)


def test_a_cell_hears_of_its_whole_image_and_of_the_other_one_only_where_it_should():
    x, other = maps(1, 4, 6), maps(1, 5, 3)
    changed = FeatureMap(x.values.clone(), 8)
    changed.values[..., 3, 5] += 1
    alone, both = built("self_attention"), built("cross_attention")

    assert (alone.transform(x).values - alone.transform(changed).values)[..., 0, 0].abs().max() > 1e-4
    first, second = both.transform_both(x, other)
    after, heard = both.transform_both(changed, other)
    assert (first.values - after.values)[..., 0, 0].abs().max() > 1e-4
    assert (second.values - heard.values)[..., 0, 0].abs().max() > 1e-5


@pytest.mark.parametrize("name", ["self_attention", "cross_attention"])
def test_the_scale_of_a_backbone_does_not_matter_to_attention(name):
    """Concatenated layers have cells of length 1, DINOv2 of about 50."""
    head, source, target, requested = built(name), maps(1, 4, 6), maps(1, 4, 6), points(1, 5)
    scaled = [FeatureMap(each.values * factor, 8) for each, factor in ((source, 100), (target, 0.01))]

    assert_close(head(*scaled, requested), head(source, target, requested), atol=1e-5, rtol=0)


def test_the_same_image_twice_is_adapted_to_the_same_twice():
    x = maps(1, 4, 6)

    first, second = built("cross_attention").transform_both(x, x)

    assert torch.equal(first.values, second.values)
