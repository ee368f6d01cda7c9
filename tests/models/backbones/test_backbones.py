import pytest
import torch
from backbone_cases import (
    CONVNEXT,
    DINOV3,
    FORMULAS,
    IMAGE,
    PROMISES,
    VIT,
    convnext,
    dinov3,
    lite0,
    resnet,
    squeezenet,
    tiny,
)
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import interpolate, normalize
from torch.testing import assert_close
from torchvision.models import squeezenet1_1

from semcorr.core.interfaces import Backbone
from semcorr.models.backbones.squeezenet import STRIDES, SqueezeNet
from semcorr.models.backbones.timm_model import TimmModel, create_timm_model

pytestmark = pytest.mark.integration

CONTRACT = pytest.mark.parametrize("promise", PROMISES.values(), ids=PROMISES)
ALL = PROMISES | FORMULAS
EVERY = pytest.mark.parametrize("promise", ALL.values(), ids=ALL)


@EVERY
def test_a_backbone_keeps_its_promises_on_an_image_that_is_not_square(promise):
    backbone = promise.build()

    with torch.no_grad():
        features = backbone(IMAGE)

    assert isinstance(backbone, Backbone)
    assert features.values.shape == (2, promise.channels, 64 // promise.stride, 96 // promise.stride)
    assert sum(backbone.widths) == backbone.channels
    assert (backbone.channels, backbone.stride, features.stride) == (promise.channels, promise.stride, promise.stride)
    assert len(backbone.blocks) == promise.blocks
    assert isinstance(backbone.norm, nn.LayerNorm) == promise.norm


@EVERY
def test_the_features_of_an_image_do_not_depend_on_its_batch(promise):
    backbone = promise.build()

    with torch.no_grad():
        assert_close(backbone(IMAGE).values[1:], backbone(IMAGE[1:]).values, atol=1e-4, rtol=1e-4)


@CONTRACT
def test_every_block_and_the_norm_take_part_in_the_features(promise):
    backbone = promise.build()

    backbone(IMAGE[:1]).values.square().sum().backward()

    for module in [*backbone.blocks, *filter(None, [backbone.norm])]:
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize(
    ("build", "layers", "sizes"),
    [
        (tiny, [1, 3], [(8, 12), (8, 12)]),
        (resnet, [2, 3], [(8, 12), (4, 6)]),
        (squeezenet, [3, -1], [(8, 12), (4, 6)]),
        (lite0, [2, 3], [(8, 12), (4, 6)]),
    ],
)
def test_several_layers_are_unit_parts_side_by_side_on_the_finest_grid(build, layers, sizes):
    with torch.no_grad():
        together = build(layers=layers)
        alone = [build(layers=[layer])(IMAGE).values for layer in layers]
        values, stride = together(IMAGE)

    assert [tuple(values.shape[-2:]) for values in alone] == sizes
    parts = [normalize(part, dim=1) for part in alone]
    parts[1] = interpolate(parts[1], size=sizes[0], mode="bilinear")
    assert_close(values, torch.cat(parts, dim=1), atol=1e-5, rtol=1e-4)
    assert (together.channels, together.stride, stride) == (values.shape[1], 8, 8)


def test_transformer_features_are_the_patch_tokens_in_reading_order():
    backbone = tiny()
    image = (IMAGE - backbone.mean) / backbone.std

    with torch.no_grad():
        tokens = backbone.model.forward_features(image)[:, 1:]  # without the class token
        values = backbone(IMAGE).values

    for y in range(8):
        for x in range(12):
            assert_close(values[:, :, y, x], tokens[:, 12 * y + x], atol=1e-5, rtol=1e-4)


def test_norm_is_the_final_layer_norm_and_nothing_else():
    raw, normed = tiny(norm=False), tiny(norm=True)
    normed.norm.weight.data.uniform_(0.5, 2)

    with torch.no_grad():
        before, after = raw(IMAGE).values, normed(IMAGE).values
        assert_close(normed.norm(before.movedim(1, -1)).movedim(-1, 1), after, atol=1e-5, rtol=1e-4)
    assert raw.norm is None


@pytest.mark.parametrize("build", [tiny, dinov3])
@pytest.mark.parametrize(("facet", "part"), [("query", 0), ("key", 1), ("value", 2)])
def test_a_facet_is_its_third_of_the_projection_in_reading_order(build, facet, part):
    backbone = build(facet=facet, layers=[1])
    seen = []
    backbone.blocks[1].attn.qkv.register_forward_hook(lambda module, args, out: seen.append(out))

    with torch.no_grad():
        values = backbone(IMAGE).values

    channels, special = backbone.channels, backbone.model.num_prefix_tokens
    expected = seen[0][:, special:, part * channels : (part + 1) * channels]
    assert_close(values.flatten(2).mT, expected, atol=1e-6, rtol=1e-6)
    assert backbone.norm is None


def test_a_facet_has_the_biases_that_some_networks_keep_apart():
    """EVA: the projection has no bias of its own, queries and values have one each."""
    torch.manual_seed(0)
    shape = {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 8}
    backbone = TimmModel("eva02_tiny_patch14_224", size=64, pretrained=False, facet="value", layers=[1], **shape)
    attention = backbone.blocks[1].attn
    if attention.qkv is None:
        pytest.fail("this network projects separately; choose another for this test")
    before = backbone(IMAGE).values

    attention.v_bias.data += 3
    assert_close(backbone(IMAGE).values, before + 3)
    attention.q_bias.data += 5
    assert_close(backbone(IMAGE).values, before + 3)


@pytest.mark.parametrize(("norm", "channels"), [(True, 256), (False, 24)])
def test_timms_sam_has_a_neck_for_a_norm(norm, channels):
    shape = {"embed_dim": 24, "depth": 2, "num_heads": 2, "global_attn_indexes": (1,)}
    backbone = TimmModel("samvit_base_patch16", size=64, pretrained=False, norm=norm, **shape).eval()

    assert backbone.channels == channels == backbone(IMAGE).values.shape[1]
    assert (backbone.norm is not None) == norm


def test_the_blocks_end_with_the_last_layer_read():
    assert len(tiny(layers=[1]).blocks) == 2
    assert len(squeezenet(layers=[0, 3]).blocks) == 4
    assert len(resnet(layers=[2]).blocks) == 2


@pytest.mark.parametrize("layer", range(8))
def test_a_cell_of_squeezenet_looks_at_its_own_centre(layer):
    """With equal weights and mean pooling the gradient of a cell is its receptive field, and symmetric."""
    backbone = squeezenet(layers=[layer])
    for parameter in backbone.parameters():
        nn.init.constant_(parameter, 0.01)
    for i, module in enumerate(backbone.features):
        if isinstance(module, nn.MaxPool2d):
            backbone.features[i] = nn.AvgPool2d(3, 2, ceil_mode=True)
    image = torch.ones(1, 3, 256, 320, requires_grad=True)  # the widest field is 190 pixels
    values, stride = backbone(image)
    y, x = values.shape[2] // 2, values.shape[3] // 2 - 1

    values[0, :, y, x].sum().backward()

    field = image.grad[0].sum(0)
    centre = (field.sum(0) @ torch.arange(320.0) / field.sum(), field.sum(1) @ torch.arange(256.0) / field.sum())
    assert stride == STRIDES[layer]
    assert centre[0].item() == pytest.approx((x + 0.5) * stride - 0.5, abs=0.6)
    assert centre[1].item() == pytest.approx((y + 0.5) * stride - 0.5, abs=0.6)


@pytest.mark.sampled(4)
@CONTRACT
def test_weights_from_a_file_of_either_kind_give_the_same_features_and_the_same_hash(tmp_path, promise):
    original = promise.build()
    torch.manual_seed(0)
    shape = {tiny: VIT, dinov3: DINOV3, convnext: CONVNEXT}.get(promise.build, {})
    if promise.whole is not None:
        whole = promise.whole()
    else:
        whole = (
            squeezenet1_1().features
            if promise.build is squeezenet
            else create_timm_model(original.name, False, **shape)
        )
    state = {key: value.contiguous() for key, value in whole.state_dict().items()}
    torch.save(state, tmp_path / "weights.pth")
    save_file(state, tmp_path / "weights.safetensors")

    for path in tmp_path.iterdir():
        loaded = promise.build(seed=1, weights=str(path))

        assert loaded.sha256 == original.sha256
        with torch.no_grad():
            assert torch.equal(loaded(IMAGE).values, original(IMAGE).values)


@CONTRACT
def test_a_file_of_the_parts_that_are_read_is_enough(tmp_path, promise):
    """What `export --format merged` writes."""
    original = promise.build()
    network = original.features if promise.build is squeezenet else original.model
    torch.save(network.state_dict(), tmp_path / "weights.pth")

    loaded = promise.build(seed=1, weights=str(tmp_path / "weights.pth"))

    assert loaded.sha256 == original.sha256
    with torch.no_grad():
        assert torch.equal(loaded(IMAGE).values, original(IMAGE).values)


def test_one_changed_value_changes_the_hash(tmp_path):
    original = tiny()
    state = {key: value.clone() for key, value in original.model.state_dict().items()}
    state["blocks.2.mlp.fc1.weight"][3, 4] += 1e-6
    torch.save(state, tmp_path / "weights.pth")

    assert tiny(weights=str(tmp_path / "weights.pth")).sha256 != original.sha256


def test_squeezenet_reads_torchvisions_own_keys(tmp_path):
    original = squeezenet()
    state = {f"features.{key}": value for key, value in original.features.state_dict().items()}
    torch.save(state | {"classifier.1.weight": torch.zeros(1)}, tmp_path / "whole.pth")

    torch.manual_seed(1)
    loaded = SqueezeNet(size=64, weights=str(tmp_path / "whole.pth")).eval()

    with torch.no_grad():
        assert torch.equal(loaded(IMAGE).values, original(IMAGE).values)


def test_a_name_of_before_that_timm_still_knows_is_built():
    with pytest.warns(UserWarning, match="deprecated"):
        assert create_timm_model("vit_tiny_patch16_224_in21k", False).embed_dim == 192
