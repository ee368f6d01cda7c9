"""A backbone cut in two: what is recorded up to the cut is all that the rest needs."""

import pytest
import torch
from backbone_cases import IMAGE, PROMISES, dinov3, lite0, tiny
from torch import nn

from semcorr.core.errors import UserError
from semcorr.core.types import BackboneState, ImageMaps
from semcorr.models.backbones.sequential import CellGrid, intercept_blocks

pytestmark = pytest.mark.integration

CONTRACT = pytest.mark.parametrize("promise", PROMISES.values(), ids=PROMISES)


@pytest.mark.sampled(8)
@CONTRACT
@pytest.mark.parametrize("several", [False, True], ids=["one layer", "two layers"])
def test_the_halves_are_the_whole_at_every_depth(promise, several):
    backbone = promise.build(**({"layers": list(promise.several)} if several else {}))

    with torch.no_grad():
        whole = backbone(IMAGE)
        for depth in range(len(backbone.blocks) + 1):
            halves = backbone.suffix(backbone.prefix(IMAGE, depth), depth)
            assert torch.equal(halves.values, whole.values), depth
            assert halves.stride == whole.stride


@pytest.mark.sampled(8)
@CONTRACT
def test_maps_are_those_of_the_whole_after_a_cut_and_of_one_target_for_all_sources(promise):
    backbone, depth = promise.build(layers=list(promise.several)), promise.blocks - 1

    with torch.no_grad():
        maps, whole = backbone.read_maps(IMAGE), backbone(IMAGE)
        cut = backbone.finish_maps(backbone.prefix(IMAGE, depth), depth)
        one = ImageMaps({key: value[:1] for key, value in maps.values.items()})
        sources, targets = backbone.join_pair(maps, backbone.prepare_target(one))

    assert list(cut.values) == list(maps.values)
    assert all(torch.equal(cut.values[key], value) for key, value in maps.values.items())
    assert torch.equal(sources.values, whole.values)
    torch.testing.assert_close(targets.values, whole.values[:1].expand_as(whole.values), atol=1e-5, rtol=1e-5)
    assert sources.stride == targets.stride == whole.stride


@CONTRACT
def test_the_state_of_an_image_can_be_stored_by_itself(promise):
    backbone, depth = promise.build(layers=list(promise.several)), promise.blocks - 1

    with torch.no_grad():
        state = backbone.prefix(IMAGE, depth)
        second = BackboneState({key: value[1:] for key, value in state.values.items()}, state.size)
        torch.testing.assert_close(
            backbone.suffix(second, depth).values, backbone(IMAGE).values[1:], atol=1e-4, rtol=1e-4
        )


@CONTRACT
def test_the_prefix_computes_no_block_beyond_its_depth_and_the_suffix_none_before(promise):
    backbone = promise.build()
    called = []
    for i, block in enumerate(backbone.blocks):
        first = next(m for m in block.modules() if list(m.parameters(recurse=False)) and not list(m.children()))
        first.register_forward_pre_hook(lambda *_, i=i: called.append(i))
    depth = len(backbone.blocks) // 2

    with torch.no_grad():
        state = backbone.prefix(IMAGE, depth)
        assert set(called) == set(range(depth))
        called.clear()
        backbone.suffix(state, depth)
        assert set(called) == set(range(depth, len(backbone.blocks)))


@CONTRACT
def test_gradients_of_the_suffix_are_those_of_the_whole(promise):
    backbone = promise.build()
    depth = len(backbone.blocks) - 1
    last = list(backbone.blocks[-1].parameters())

    whole = torch.autograd.grad(backbone(IMAGE).values.square().sum(), last)
    with torch.no_grad():
        state = backbone.prefix(IMAGE, depth)
    halves = torch.autograd.grad(backbone.suffix(state, depth).values.square().sum(), last)

    assert any(gradient.abs().sum() > 0 for gradient in whole)
    for a, b in zip(whole, halves, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", [tiny, dinov3])
@pytest.mark.parametrize("facet", ["query", "key", "value"])
def test_facets_are_cut_like_tokens(build, facet):
    backbone = build(facet=facet, layers=[1, -1])

    with torch.no_grad():
        whole = backbone(IMAGE).values
        for depth in range(len(backbone.blocks) + 1):
            assert torch.equal(backbone.suffix(backbone.prefix(IMAGE, depth), depth).values, whole), depth


@pytest.mark.parametrize("depth", [-1, 5])
def test_a_depth_out_of_range_is_refused_with_its_range(depth):
    with pytest.raises(UserError, match=f"between 0 and 4, the blocks of vit_tiny_patch16_224, got {depth}"):
        tiny().prefix(IMAGE, depth)


def test_a_block_is_as_it_was_after_stepping_even_with_a_forward_of_its_own():
    plain, own = nn.Linear(2, 2), nn.Linear(2, 2)
    own.forward = lambda x: x + 1
    before = own.forward

    with (
        intercept_blocks([plain, own], lambda i, forward, x: x * i),
        intercept_blocks([own], lambda i, forward, x: forward(x) + 5),
    ):
        assert torch.equal(plain(torch.ones(2)), torch.zeros(2))
        assert torch.equal(own(torch.ones(2)), torch.full((2,), 6.0))

    assert "forward" not in plain.__dict__
    assert own.forward is before


@pytest.mark.parametrize(
    ("given", "side"),
    [((14, 14, 840, None), 840), ((14, 14, 840, 60), 840), ((16, 16, None, 32), 512), ((8, 16, 64, 16), 128)],
)
def test_a_side_is_given_in_pixels_or_in_cells(given, side):
    stride, multiple, size, grid = given
    assert CellGrid(stride, multiple).side("net", size, grid) == side


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((14, 14, 838, None), "must be a multiple of 14 pixels, got 838. Set `backbone.size` to 826 or 840"),
        ((14, 14, None, None), "got 0. Set `backbone.size` to 14"),
        ((8, 32, 64, 5), "must be a multiple of 32 pixels, got 40. Set `backbone.grid` to 4 or 8"),
        ((14, 14, 840, 0), "got 0. Set `backbone.grid` to 1"),
        ((14, 14, 840, -3), "got -42. Set `backbone.grid` to 1, for instance"),
    ],
)
def test_a_side_that_does_not_fit_is_refused_with_those_that_do(given, message):
    stride, multiple, size, grid = given
    with pytest.raises(UserError) as error:
        CellGrid(stride, multiple).side("net", size, grid)
    assert message in str(error.value)


def test_a_grid_is_kept_by_the_backbone():
    backbone = lite0(size=None, grid=5)

    assert backbone.size == 80
    assert backbone(torch.rand(1, 3, 80, 80)).values.shape[-2:] == (5, 5)
