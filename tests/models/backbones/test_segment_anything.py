import copy

import pytest
import torch
from backbone_cases import IMAGE, sam
from timm.models.vision_transformer_sam import Attention
from torch.nn.functional import pad
from torch.testing import assert_close

from semcorr.core.errors import UserError
from semcorr.engine.options import check_options
from semcorr.models.backbones import segment_anything
from semcorr.models.backbones.segment_anything import (
    FILES,
    HeadwiseAttention,
    SegmentAnything,
    resize_position_embeddings,
)

SQUARE = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))  # what `sam`'s positions are for


def reference(backbone: SegmentAnything, image: torch.Tensor, layer: int) -> torch.Tensor:
    """As timm's own forward, to the end of one block."""
    x = backbone.model.patch_embed((image - backbone.mean) / backbone.std) + backbone.model.pos_embed
    for block in backbone.model.blocks[: layer + 1]:
        x = block(x)
    return x.permute(0, 3, 1, 2)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_tokens_of_a_block_are_read_before_the_neck(layer):
    backbone = sam(layers=[layer])

    with torch.no_grad():
        assert_close(backbone(SQUARE).values, reference(sam(), SQUARE, layer), atol=1e-5, rtol=1e-5)


def test_the_neck_is_timms_own_output():
    backbone = sam(neck=True, neck_chans=24)

    with torch.no_grad():
        expected = backbone.model.forward_features((SQUARE - backbone.mean) / backbone.std)
        features = backbone(SQUARE)

    assert torch.equal(features.values, expected)
    assert backbone.channels == features.values.shape[1] == 24


def test_the_statistics_are_the_authors_in_255ths():
    backbone = sam()

    assert_close(backbone.mean.flatten() * 255, torch.tensor([123.675, 116.28, 103.53]))
    assert_close(backbone.std.flatten() * 255, torch.tensor([58.395, 57.12, 57.375]))


@pytest.mark.parametrize(("height", "width"), [(128, 128), (16, 16), (208, 48), (96, 256)])
def test_any_multiple_of_16_gives_its_own_grid(height, width):
    with torch.no_grad():
        assert sam()(torch.rand(1, 3, height, width)).values.shape == (1, 48, height // 16, width // 16)


def test_positions_of_another_grid_are_the_same_function_of_place():
    """A plane stays a plane away from the rim, along its own axis."""
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    plane = torch.stack([rows, columns], dim=-1)[None]

    other = resize_position_embeddings(plane, 32, 24)

    assert other.shape == (1, 32, 24, 2)
    expected = (torch.arange(32) + 0.5) * 16 / 32 - 0.5, (torch.arange(24) + 0.5) * 16 / 24 - 0.5
    assert_close(other[0, 4:-4, 10, 0], expected[0][4:-4], atol=1e-2, rtol=0)
    assert_close(other[0, 10, 4:-4, 1], expected[1][4:-4], atol=1e-2, rtol=0)
    assert resize_position_embeddings(plane, 16, 16) is plane


def test_relative_positions_tell_rows_from_columns():
    backbone = sam()
    with torch.no_grad():
        before = backbone(IMAGE).values
        backbone.model.blocks[1].attn.rel_pos_h.neg_()  # of a global block
        along_rows = backbone(IMAGE).values
        transposed = backbone(IMAGE.mT).values.mT

    assert (before - along_rows).abs().max() > 1e-3
    assert (along_rows - transposed).abs().max() > 1e-3


def test_windows_do_not_see_beyond_themselves():
    """Three cells wide, zeros beyond the rim: a change in the first window stays in it."""
    backbone = sam(layers=[0])
    changed = IMAGE.clone()
    changed[:, :, :48, :48] = 0

    with torch.no_grad():
        difference = (backbone(IMAGE).values - backbone(changed).values).abs().sum(1)

    assert (difference[:, :3, :3] > 0).all()
    assert difference[:, 3:].sum() == difference[:, :, 3:].sum() == 0


def test_an_image_filled_up_elsewhere_is_an_image():
    """The authors normalise first and fill up with zeros; here a letterbox fills up, then all is normalised."""
    backbone = sam()
    grey = backbone.mean.expand(1, 3, 128, 128).clone()
    grey[..., :80, :] = SQUARE[..., :80, :]

    with torch.no_grad():
        normalised = pad((SQUARE[..., :80, :] - backbone.mean) / backbone.std, (0, 0, 0, 48))
        x = backbone.model.patch_embed(normalised) + backbone.model.pos_embed
        for block in backbone.model.blocks:
            x = block(x)
        assert_close(backbone(grey).values, x.movedim(-1, 1), atol=1e-4, rtol=1e-4)


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "vit_g"}, "`backbone.name` must be one of vit_b, vit_l, vit_h, got 'vit_g'"),
        ({"layers": [0], "neck": True}, "`backbone.neck` follows the last block"),
        ({"layers": [3]}, "`backbone.layers` must be between -3 and 2 here, got [3]"),
        ({"size": 100}, "must be a multiple of 16 pixels, got 100. Set `backbone.size` to 96 or 112"),
    ],
)
def test_an_option_out_of_range_is_refused_with_its_range(options, message):
    with pytest.raises(UserError) as error:
        sam(**options)

    assert message in str(error.value)


@pytest.mark.parametrize("option", ["qk_norm", "pre_norm", "num_classes", "use_rel_pos", "out_chans"])
def test_an_option_that_would_have_no_effect_is_refused(option):
    node = {"_target_": f"{SegmentAnything.__module__}.SegmentAnything", "name": "vit_b", "depth": 3, option: 1}

    with pytest.raises(UserError, match=f"backbone.{option}"):
        check_options({"backbone": node})


def test_without_a_network_there_are_three_ways_out(monkeypatch, tmp_path):
    requested = []

    def refuse(url: str, path: str, hash_prefix: str) -> None:
        requested.append((url, hash_prefix))
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)

    with pytest.raises(UserError, match=r"sam_vit_l could not be downloaded \(no route to host\)\. Three ways out"):
        SegmentAnything("vit_l", embed_dim=16, depth=1, num_heads=1)

    file, digest = FILES["vit_l"]
    assert requested == [(f"https://dl.fbaipublicfiles.com/segment_anything/{file}", digest)]
    assert len(digest) == 64  # all of it: the digits in the name are of another kind


def test_a_download_is_kept_and_read_once(monkeypatch, tmp_path):
    state = {f"image_encoder.{key}": value for key, value in sam(neck=True).model.state_dict().items()}
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    calls = []

    def deliver(url: str, path: str, hash_prefix: str) -> None:
        calls.append(url)
        torch.save(state | {"mask_decoder.weight": torch.ones(1)}, path)

    monkeypatch.setattr(segment_anything.torch.hub, "download_url_to_file", deliver)
    loaded = [sam(seed=seed, pretrained=True, weights=None).eval() for seed in (1, 2)]

    assert len(calls) == 1
    assert torch.equal(loaded[0].model.blocks[2].mlp.lin1.weight, loaded[1].model.blocks[2].mlp.lin1.weight)
    assert torch.equal(loaded[0].model.blocks[2].mlp.lin1.weight, state["image_encoder.blocks.2.mlp.lin1.weight"])


def test_global_attention_head_by_head_is_timms_own_gradients_too():
    """Also with attention kept for the backward pass as timm does."""
    backbone = sam(layers=[-1])
    image = torch.rand(2, 3, 64, 96)
    plain = copy.deepcopy(backbone)
    replaced = [block.attn for block in plain.model.blocks if isinstance(block.attn, HeadwiseAttention)]
    for attention in replaced:
        attention.__class__ = Attention

    results = []
    for network in (backbone, plain):
        network.requires_grad_(True)
        values = network(image).values
        (values * torch.linspace(-1, 1, values.numel()).view_as(values)).sum().backward()
        results.append((values, [parameter.grad for parameter in network.parameters()]))

    assert replaced
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)
    for ours, released in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(ours, released, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (128, 128)])
def test_global_attention_without_matrices_is_timms_own_gradients_too(height, width):
    """As on a GPU; also where the stored positions are resized to another grid."""
    attention = sam().model.blocks[1].attn
    plain = copy.deepcopy(attention)
    plain.__class__ = Attention
    x = torch.randn(2, height // 16, width // 16, 48)

    results = []
    for module, attend in ((attention, attention._attend_without_matrices), (plain, plain.forward)):
        module.requires_grad_(True)
        source = x.clone().requires_grad_()
        values = attend(source)
        (values * torch.linspace(-1, 1, values.numel()).view_as(values)).sum().backward()
        results.append([values, source.grad, *(parameter.grad for parameter in module.parameters())])

    assert isinstance(attention, HeadwiseAttention)
    for ours, released in zip(*results, strict=True):
        assert_close(ours, released, rtol=1e-5, atol=1e-5)
