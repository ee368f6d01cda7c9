"""Stable Diffusion as a backbone: repeatable, split at any depth, with every promise of the others."""

import pytest
import torch
from hydra.utils import instantiate
from tiny_diffusion import IMAGE, parts, tiny_sd
from torch.nn.functional import interpolate, normalize
from torch.testing import assert_close

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.core.types import BackboneState
from semcorr.models.backbones.diffusion_networks import PUBLISHED
from semcorr.models.finetune.last_blocks import last_blocks

pytestmark = pytest.mark.integration


def test_features_are_the_same_every_time_and_in_every_batch():
    backbone = tiny_sd(ensemble=2)

    with torch.no_grad():
        torch.manual_seed(1)
        once = backbone(IMAGE).values
        torch.manual_seed(2)
        assert torch.equal(backbone(IMAGE).values, once)
        assert_close(backbone(IMAGE[1:]).values, once[1:], atol=1e-5, rtol=1e-5)
        assert (tiny_sd(ensemble=2, seed=43)(IMAGE).values - once).abs().max() > 0.01


def test_the_prompt_is_seen():
    with torch.no_grad():
        empty, cat, long = (tiny_sd(prompt=prompt)(IMAGE).values for prompt in ("", "a cat", "a cat" * 40))

    assert (empty - cat).abs().max() > 1e-3
    assert (long - cat).abs().max() > 1e-3


@pytest.mark.sampled(8)
@pytest.mark.parametrize(("layers", "freeu"), [([1, 4, 7], "channels"), ([5], None), ([-1, 2], "blocks")])
def test_the_halves_are_the_whole_at_every_depth(layers, freeu):
    backbone = tiny_sd(layers=layers, freeu=freeu, freeu_in_features=freeu is not None, ensemble=2)

    with torch.no_grad():
        whole = backbone(IMAGE)
        for depth in range(len(backbone.blocks) + 1):
            state = backbone.prefix(IMAGE, depth)
            halves = backbone.suffix(state, depth)
            alone = BackboneState({key: value[1:] for key, value in state.values.items()}, state.size)
            assert torch.equal(halves.values, whole.values), depth
            assert_close(backbone.suffix(alone, depth).values, whole.values[1:], atol=1e-5, rtol=1e-5)
            assert halves.stride == whole.stride


def test_a_state_holds_no_more_than_the_rest_needs():
    backbone = tiny_sd(layers=[5])

    with torch.no_grad():
        kept = [set(backbone.prefix(IMAGE, depth).values) for depth in range(12)]

    assert kept[0] == {"latent"}
    assert kept[5] == {"hidden", *(f"skip.{i}" for i in range(6, 12))}  # after the middle
    assert kept[10] == {"hidden", "skip.6"}
    assert kept[11] == {"map.5"}


def test_several_layers_are_unit_parts_side_by_side_on_the_finest_grid():
    with torch.no_grad():
        values, stride = tiny_sd(layers=[1, 7])(IMAGE)
        coarse, fine = (tiny_sd(layers=[layer])(IMAGE).values for layer in (1, 7))

    coarse = interpolate(normalize(coarse, dim=1), size=(4, 8), mode="bilinear")
    assert_close(values, torch.cat((coarse, normalize(fine, dim=1)), dim=1))
    assert stride == 16


@pytest.mark.parametrize("options", [{}, {"ensemble": 2}, {"freeu": "channels", "freeu_in_features": True}], ids=str)
def test_a_layer_at_several_timesteps_has_the_maps_of_each_side_by_side(options):
    """Against a backbone of each timestep; cut anywhere it is the same."""
    backbone = tiny_sd(layers=[4, 7], timestep=[261, 50, 0], **options)
    ones = [tiny_sd(layers=[4, 7], timestep=timestep, **options) for timestep in (261, 50, 0)]

    with torch.no_grad():
        whole, found = backbone(IMAGE), backbone.read_maps(IMAGE).values
        each = [one.read_maps(IMAGE).values for one in ones]
        cut = [backbone.suffix(backbone.prefix(IMAGE, depth), depth) for depth in (0, 5, len(backbone.blocks))]

    for key in ("map.4", "map.7"):
        assert_close(found[key], torch.cat([maps[key] for maps in each], dim=1), atol=1e-5, rtol=1e-4)
        assert (each[0][key] - each[1][key]).abs().max() > 1e-3
    assert backbone.widths == [width for width in ones[0].widths for _ in range(3)]
    assert whole.values.shape[1] == backbone.channels == sum(backbone.widths)
    for one in cut:
        assert_close(one.values, whole.values, atol=1e-5, rtol=1e-4)


def test_components_are_of_all_timesteps_together():
    backbone = tiny_sd(layers=[4, 7], timestep=[261, 50], components=6)

    with torch.no_grad():
        source, target = backbone.pair(IMAGE, IMAGE.flip(-1))

    assert backbone.widths == [6, 6]
    assert source.values.shape[1] == target.values.shape[1] == 12


@pytest.mark.parametrize(
    ("layers", "channels", "stride", "blocks"),
    [([5], 24, 16, 11), ([1, 4, 7], 64, 16, 13), ([0], 24, 64, 6), ([2], 24, 32, 8), ([11], 8, 8, 17)],
)
def test_diffusion_keeps_a_backbones_promises_on_an_image_that_is_not_square(layers, channels, stride, blocks):
    backbone = tiny_sd(layers=layers)

    with torch.no_grad():
        values, own = backbone(IMAGE)

    assert isinstance(backbone, Backbone)
    assert not backbone.pairwise
    assert values.shape == (2, channels, 64 // stride, 128 // stride)
    assert (backbone.channels, backbone.stride, own, len(backbone.blocks)) == (channels, stride, stride, blocks)


def test_nothing_is_kept_that_is_not_used():
    backbone = tiny_sd(layers=[5])

    backbone(IMAGE).values.square().sum().backward()

    unused = {name for name, p in backbone.named_parameters() if p.grad is None}
    assert all(name.startswith(("encoder.", "to_moments.")) for name in unused)  # the autoencoder never trains
    assert len({id(p) for p in backbone.parameters()}) == len(list(backbone.state_dict()))  # each under one name
    assert not any("decoder" in name for name in backbone.state_dict())


def test_the_last_blocks_are_free_and_no_other():
    backbone = tiny_sd(layers=[5])

    last_blocks(backbone, 2)

    free = {name.split(".")[1] for name, p in backbone.named_parameters() if p.requires_grad}
    assert free == {"9", "10"}


def test_the_projections_of_attention_are_there_for_lora():
    names = [name for block in tiny_sd().blocks for name, _ in block.named_modules()]

    for target in tiny_sd().lora_targets:
        assert sum(name.endswith(f".{target}") for name in names) == 2 * (6 + 1 + 3)  # to itself, and to the text


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timestep": 1000}, "`backbone.timestep` must be between 0 and 999, got 1000"),
        ({"timestep": [50, 50]}, "`backbone.timestep` must be a timestep, or several without repetition, got [50, 50]"),
        ({"timestep": []}, "`backbone.timestep` must be a timestep, or several without repetition, got []"),
        ({"timestep": [50, -1]}, "`backbone.timestep` must be between 0 and 999, got -1"),
        ({"ensemble": 0}, "`backbone.ensemble` must be at least 1, got 0"),
        ({"layers": [12]}, "`backbone.layers` must be between -12 and 11 here, got [12]"),
        ({"components": 25}, "`backbone.components` must be between 1 and 24, got 25"),
        (
            {"freeu_in_features": True},
            "`backbone.freeu_in_features` needs FreeU: give `backbone.freeu`, blocks or chann",
        ),
        ({"freeu": "yes"}, "`backbone.freeu` must be null, blocks or channels, got yes"),
        ({"size": 96}, "must be a multiple of 64 pixels, got 96"),
        ({"parts": None, "pretrained": False}, "must end in stable-diffusion-2-1 or stable-diffusion-v1-5, got tiny"),
    ],
)
def test_an_option_out_of_range_is_refused_with_its_range(options, message):
    with pytest.raises(UserError) as error:
        tiny_sd(**options)

    assert message in str(error.value)


@pytest.mark.parametrize(
    ("choice", "layers", "timestep", "ensemble", "freeu"),
    [("sd", [5], 261, 8, False), ("sd15", [1, 4, 7], 50, 1, True)],
)
def test_the_yaml_is_the_published_setting(config, choice, layers, timestep, ensemble, freeu):
    chosen = config("train", f"backbone={choice}", "backbone.grid=4").backbone

    backbone = instantiate(chosen, parts=parts())

    assert (backbone.layers, backbone.timestep, backbone.ensemble, backbone.size) == (layers, timestep, ensemble, 64)
    assert (backbone.units[-1].freeu is not None) == freeu
    assert chosen.name.rpartition("/")[2] in PUBLISHED
