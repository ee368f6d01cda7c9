import pytest
import torch
from backbone_cases import lite0, tiny
from hydra.utils import instantiate
from tiny_diffusion import parts, tiny_sd
from torch.nn.functional import interpolate, normalize
from torch.testing import assert_close

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.core.types import BackboneState
from semcorr.models.backbones.fuse import FusedBackbone, resize_image, sd_dinov2
from semcorr.models.finetune.last_blocks import last_blocks

pytestmark = pytest.mark.integration

IMAGE = torch.rand(2, 3, 128, 256, generator=torch.Generator().manual_seed(0))
DINO = {"dino": "vit_tiny_patch16_224", "pretrained": False}


def vit(**options):
    return tiny(**({"patch_size": 14} | options))


def fused(balance=(1, 1), layers=(1, 7), normalise="layer", vit_layers=(-1,), **options) -> FusedBackbone:
    """Stable Diffusion on 16 cells of 16 pixels, a transformer on 16 cells of 14."""
    parts = [tiny_sd(size=256, layers=layers, **options), vit(size=224, layers=vit_layers)]
    return FusedBackbone(parts, balance, normalise).eval()


def cosines(a, b):
    return torch.einsum("bcn,bcm->bnm", normalize(a.flatten(2), dim=1), normalize(b.flatten(2), dim=1))


def test_fusion_keeps_a_backbones_promises_on_an_image_that_is_not_square():
    backbone = fused()

    with torch.no_grad():
        values, stride = backbone(IMAGE)

    sd, dino = backbone.parts
    assert isinstance(backbone, Backbone)
    assert (backbone.size, backbone.stride, stride, backbone.multiple) == (256, 16, 16, 64)
    assert values.shape == (2, backbone.channels, 8, 16)
    assert backbone.channels == sd.channels + dino.channels
    assert backbone.widths == [*sd.widths, *dino.widths]
    assert backbone.blocks == [*sd.blocks, *dino.blocks]
    assert backbone.norm is dino.norm
    assert backbone.lora_targets == ["to_q", "to_k", "to_v", "to_out.0", "qkv"]
    assert not backbone.pairwise


def test_each_part_sees_the_image_at_its_own_size():
    backbone, seen = fused(), []
    for part in backbone.parts:
        part.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape[-2:])))

    with torch.no_grad():
        values = backbone(IMAGE).values
        sd, dino = backbone.parts
        alone = [sd(IMAGE).values, dino(interpolate(IMAGE, (112, 224), mode="bilinear", antialias=True)).values]

    assert seen[:2] == [(128, 256), (112, 224)]
    assert_close(values, torch.cat([normalize(part, dim=1) for part in alone], dim=1) * 0.5**0.5)


@pytest.mark.parametrize("balance", [(1, 1), (3, 1), (0, 2)])
def test_a_cosine_of_the_whole_is_the_weighted_mean_of_the_parts_cosines(balance):
    backbone = fused(balance)

    with torch.no_grad():
        whole = backbone(IMAGE).values
        sd, dino = backbone.parts
        sd, dino = sd(IMAGE).values, dino(resize_image(IMAGE, (112, 224))).values

    mean = (balance[0] * cosines(sd[:1], sd[1:]) + balance[1] * cosines(dino[:1], dino[1:])) / sum(balance)
    assert_close(cosines(whole[:1], whole[1:]), mean, atol=1e-5, rtol=1e-5)
    assert_close(whole.norm(dim=1), torch.ones(2, 8, 16))


def as_stated(maps, units):
    """Maps of layers, on one grid, side by side: `units` are the groups of layers with unit length, cell by cell."""
    values = [layer.clone() for layer in maps]
    for y in range(maps[0].shape[-2]):
        for x in range(maps[0].shape[-1]):
            for unit in units:
                length = sum(values[i][0, :, y, x].square().sum() for i in unit).sqrt()
                for i in unit:
                    values[i][0, :, y, x] /= length
    return torch.cat(values, dim=1)


def test_layers_are_normalised_alone_with_their_part_or_not_at_all():
    """Written out for layers 1 (4 x 8 cells), 4 and 7 of the decoder and 1 and 3 of the transformer."""
    image, finest = IMAGE[:1, :, :64, :128], (4, 8)

    with torch.no_grad():
        sd = [tiny_sd(size=256, layers=[layer])(image).values for layer in (1, 4, 7)]
        small = resize_image(image, (56, 112))
        dino = [vit(size=224, layers=[layer])(small).values for layer in (1, 3)]
        resized = [interpolate(layer, finest, mode="bilinear") for layer in (*sd, *dino)]
        unit = [interpolate(normalize(layer, dim=1), finest, mode="bilinear") for layer in (*sd, *dino)]
        both = {"layers": (1, 4, 7), "vit_layers": (1, 3)}
        layer, part, none = (fused(**both, normalise=how)(image).values for how in ("layer", "part", "none"))

    parts = [(0, 1, 2), (3, 4)]
    assert_close(none, torch.cat(resized, dim=1))
    assert_close(part, as_stated(resized, parts) * 0.5**0.5)
    assert_close(layer, as_stated(unit, parts) * 0.5**0.5)
    assert (layer - part).abs().max() > 0.01


@pytest.mark.parametrize("normalise", ["part", "none"])
def test_the_halves_are_the_whole_without_normalised_layers(normalise):
    backbone = fused(normalise=normalise, vit_layers=(1, 3))

    with torch.no_grad():
        whole = backbone(IMAGE).values
        for depth in (0, len(backbone.parts[0].blocks), len(backbone.blocks) - 2, len(backbone.blocks)):
            assert torch.equal(backbone.suffix(backbone.prefix(IMAGE, depth), depth).values, whole), depth


def test_principal_components_keep_the_scale_of_their_layer():
    with torch.no_grad():
        layer, part, none = (
            fused(components=6, normalise=how).pair(IMAGE, IMAGE.flip(-1))[0].values
            for how in ("layer", "part", "none")
        )

    assert torch.equal(layer, part)
    assert_close(normalize(none[:, :12], dim=1) * 0.5**0.5, part[:, :12])


def test_a_coarser_part_is_brought_to_the_finest_grid():
    backbone = fused(layers=[4])  # 8 cells

    with torch.no_grad():
        values = backbone(IMAGE).values
        coarse = backbone.parts[0](IMAGE).values

    assert coarse.shape[-2:] == (4, 8)
    assert_close(values[:, :24], normalize(interpolate(coarse, (8, 16), mode="bilinear"), dim=1) * 0.5**0.5)


@pytest.mark.sampled(8)
def test_the_halves_are_the_whole_at_every_depth():
    backbone = fused(ensemble=2)

    with torch.no_grad():
        whole = backbone(IMAGE)
        for depth in range(len(backbone.blocks) + 1):
            state = backbone.prefix(IMAGE, depth)
            alone = BackboneState({key: value[1:] for key, value in state.values.items()}, state.size)
            assert torch.equal(backbone.suffix(state, depth).values, whole.values), depth
            assert_close(backbone.suffix(alone, depth).values, whole.values[1:], atol=1e-4, rtol=1e-4)


def test_the_last_blocks_are_the_last_parts():
    backbone = fused()

    last_blocks(backbone, 2)

    free = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert all(
        name.startswith(("parts.1.model.blocks.2.", "parts.1.model.blocks.3.", "parts.1.model.norm")) for name in free
    )
    assert len({name.split(".")[4] for name in free if "blocks" in name}) == 2
    assert backbone.norm.weight.requires_grad


def test_the_hash_is_of_all_parts():
    assert fused().sha256 == fused().sha256
    assert len({fused().sha256, FusedBackbone([tiny_sd(size=256), vit(seed=1, size=224)]).sha256}) == 2


def test_where_one_part_needs_both_images_the_whole_does():
    backbone = fused(layers=[5], components=6)

    with torch.no_grad():
        a, b = backbone.pair(IMAGE, IMAGE[..., :128])
        sd = backbone.parts[0].pair(IMAGE, IMAGE[..., :128])
        dino = fused(layers=[5])(IMAGE[..., :128]).values[:, -48:]

    assert (backbone.joint, backbone.pairwise) == (True, False)
    assert (a.values.shape, b.values.shape) == ((2, 54, 8, 16), (2, 54, 8, 8))
    assert_close(a.values[:, :6], normalize(sd[0].values, dim=1) * 0.5**0.5)
    assert_close(b.values[:, 6:], dino)
    for attempt in (backbone, lambda image: backbone.suffix(backbone.prefix(image, 0), 0)):
        with pytest.raises(UserError, match="depend on both images"):
            attempt(IMAGE)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: fused((1,)), "`backbone.balance` must be 2 weights"),
        (lambda: fused((-1, 2)), "none negative"),
        (lambda: fused((1, 2), normalise="none"), "give equal weights, or normalise by layer or part"),
        (lambda: fused(normalise="cell"), "`backbone.normalise` must be one of layer, part, none, got 'cell'"),
        (lambda: FusedBackbone([tiny(size=56), lite0(size=96)]), "a grid that divides the largest image"),
        (lambda: fused()(IMAGE[..., :100]), "multiples of 64 pixels"),
        (lambda: fused().prefix(IMAGE, 99), "`depth` must be between 0 and 17"),
    ],
)
def test_parts_that_do_not_go_together_are_refused_with_the_reason(attempt, message):
    with pytest.raises(UserError) as error:
        attempt()

    assert message in str(error.value)


@pytest.mark.parametrize("given", [{"size": 192}, {"size": None, "grid": 12}])
def test_sd_dinov2_puts_both_on_one_grid(given):
    backbone = sd_dinov2(**given, **DINO, name="tiny", parts=parts(), ensemble=1)

    sd, dino = backbone.parts
    assert (backbone.size, backbone.stride, backbone.multiple) == (192, 16, 64)
    assert (sd.size, dino.size, sd.size // sd.stride, dino.size // dino.stride) == (192, 192, 12, 12)
    assert dino.norm is None


def test_the_yaml_is_a_constructor_call(config):
    chosen = config("train", "backbone=sd_dinov2", "backbone.grid=4", "backbone.pretrained=false").backbone

    backbone = instantiate(chosen, dino="vit_tiny_patch16_224", parts=parts())

    assert backbone.size == 64
    assert backbone.parts[0].layers == [1, 4, 7]
    assert backbone.parts[0].timestep == 100
    assert backbone.normalise == "layer"


@pytest.mark.parametrize(
    ("experiment", "normalise"),
    [("sd_dino", "layer"), ("zero_shot", "part"), ("baseline", "none"), ("released", "none")],
)
def test_geo_aware_experiments_normalise_as_their_code(config, experiment, normalise):
    chosen = config(
        "train", f"experiment=geo_aware/{experiment}", "backbone.grid=4", "backbone.pretrained=false"
    ).backbone

    backbone = instantiate(chosen, dino="vit_tiny_patch16_224", parts=parts(), components=None)

    assert backbone.normalise == normalise
    assert [part.unit_layers for part in backbone.parts] == [normalise == "layer"] * 2
    factors = [backbone.parts[0].factors[layer] for layer in (1, 4, 7)]
    assert factors == ([1, 1, 1] if experiment == "sd_dino" else [1.2, 1.2, 1.4])


@pytest.mark.parametrize("depth", [0, 3, 9, 15, 17])
def test_what_is_computed_of_each_image_can_be_cut_after_any_block_and_joined(depth):
    backbone = fused(layers=(1, 4, 7), components=6)

    with torch.no_grad():
        whole = backbone.pair(IMAGE, IMAGE.flip(0))
        alone = [backbone.finish_maps(backbone.prefix(image, depth), depth) for image in (IMAGE, IMAGE.flip(0))]
        joined = backbone.join_pair(*alone)

    assert all(torch.equal(*(m.values for m in maps)) for maps in zip(whole, joined, strict=True))


def test_one_target_is_joined_with_many_sources_as_with_each():
    backbone = fused(layers=(1, 4, 7), components=6)

    with torch.no_grad():
        sources, target = (backbone.read_maps(image) for image in (IMAGE, IMAGE[:1].flip(-1)))
        prepared = backbone.prepare_target(target)
        together = backbone.join_pair(sources, prepared)
        alone = [backbone.pair(IMAGE[i, None], IMAGE[:1].flip(-1)) for i in (0, 1)]

    assert prepared.values.keys() > target.values.keys()
    for i, pair in enumerate(alone):
        for found, expected in zip(together, pair, strict=True):
            assert found.stride == expected.stride == 16
            assert_close(found.values[i, None], expected.values, atol=1e-4, rtol=0)


def test_layers_are_kept_on_their_own_grids():
    """Layer 1 on 2 x 4 cells, layer 4 on 4 x 8, layer 7 on 8 x 16, as the transformer: nothing is kept twice."""
    backbone = fused(layers=(1, 4, 7), components=6)

    with torch.no_grad():
        alone = backbone.read_maps(IMAGE[:1]).values

    assert sum(value.numel() for value in alone.values()) == 24 * 8 + 24 * 32 + 16 * 128 + 48 * 128
