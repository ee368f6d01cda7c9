"""Backbones whose maps are upsampled: the image travels with the maps, whole or in halves, and AnyUp is a guest."""

import urllib.error
from pathlib import Path

import pytest
import torch
from backbone_cases import IMAGE, lite0, resnet, tiny
from pair_backbones import HalfMixed
from torch.testing import assert_close

from semcorr.core.errors import UserError
from semcorr.core.types import BackboneState, ImageMaps
from semcorr.models.backbones.anyup import REPOSITORY, AnyUp
from semcorr.models.backbones.debiased import DebiasedBackbone
from semcorr.models.backbones.joint_bilateral import JointBilateral
from semcorr.models.backbones.steps import add_steps
from semcorr.models.backbones.upsampled import UpsampledBackbone
from semcorr.models.backbones.wrapped import unwrap_backbone

pytestmark = pytest.mark.integration

HUBCONF = '''
import torch
from torch.nn.functional import adaptive_avg_pool2d, interpolate


class Network(torch.nn.Module):
    """Upsamples by repetition, and adds what it sees of the image."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, image, features, output_size=None, vis_attn=False, q_chunk_size=None):
        assert q_chunk_size == 7
        seen = adaptive_avg_pool2d(image, output_size).mean(1, keepdim=True)
        return interpolate(features, output_size) + self.gain * seen


def anyup(use_natten=False, pretrained=True, device="cpu"):
    return Network()


def anyup_multi_backbone(use_natten=False, pretrained=True, device="cpu"):
    raise OSError("no weights here")
'''


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub, and no way to the network."""

    def refuse(*args: object, **kwargs: object):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    return tmp_path


@pytest.fixture
def stand_in(hub: Path) -> Path:
    """A repository that is called as AnyUp is, where torch.hub has downloaded it."""
    repository = hub / REPOSITORY.replace("/", "_").replace(":", "_")
    repository.mkdir()
    (repository / "hubconf.py").write_text(HUBCONF)
    return repository


@pytest.mark.parametrize("layers", [[-1], [1, -1]], ids=["one layer", "two layers"])
@pytest.mark.parametrize("build", [tiny, resnet])
def test_the_halves_are_the_whole_at_every_depth_and_maps_are_joined_to_it(build, layers):
    inner = build(layers=layers if build is tiny else [2, 3][-len(layers) :])
    backbone = add_steps(inner, upsample=JointBilateral(factor=4))

    with torch.no_grad():
        whole = backbone(IMAGE)
        maps = backbone.read_maps(IMAGE)
        one = ImageMaps({key: value[:1] for key, value in maps.values.items()})
        sources, targets = backbone.join_pair(maps, backbone.prepare_target(one))
        coarse = inner(IMAGE)
        for depth in range(len(backbone.blocks) + 1):
            state = backbone.prefix(IMAGE, depth)
            assert torch.equal(backbone.suffix(state, depth).values, whole.values), depth
            second = BackboneState({key: value[1:] for key, value in state.values.items()}, state.size)
            assert_close(backbone.suffix(second, depth).values, whole.values[1:], atol=1e-4, rtol=1e-4)

    assert torch.equal(sources.values, whole.values)
    assert_close(targets.values, whole.values[:1].expand_as(whole.values), atol=1e-5, rtol=1e-5)
    assert whole.values.shape[-2:] == tuple(4 * cells for cells in coarse.values.shape[-2:])
    assert (whole.stride, backbone.stride, backbone.multiple) == (coarse.stride / 4, inner.stride / 4, inner.multiple)
    assert (backbone.channels, backbone.widths, backbone.sha256) == (inner.channels, inner.widths, inner.sha256)


def test_debiasing_comes_before_upsampling():
    both = add_steps(tiny(), debias=3, upsample=JointBilateral())

    assert isinstance(both, UpsampledBackbone)
    assert isinstance(both.inner, DebiasedBackbone)
    with torch.no_grad():
        values = both(IMAGE).values
        basis = both.inner.positional_basis(both.inner(IMAGE))
    assert_close(torch.einsum("ck,bchw->bkhw", basis, values), torch.zeros(2, 3, 16, 24), atol=1e-4, rtol=0)
    assert unwrap_backbone(both) is both.inner.inner


def test_features_of_a_pair_are_refused():
    backbone = HalfMixed("vit_tiny_patch16_224", size=64, pretrained=False, depth=1, embed_dim=48, num_heads=3)

    with pytest.raises(UserError, match=r"`backbone.upsample` changes the features of one image.* depend on both"):
        add_steps(backbone, upsample=JointBilateral())


# -- AnyUp --


def test_anyup_gets_a_normalised_image_and_the_features_and_is_frozen(stand_in):
    inner = lite0()
    backbone = UpsampledBackbone(inner, AnyUp(factor=2, entry="anyup", chunk=7)).eval()

    with torch.no_grad():
        fine, coarse = backbone(IMAGE), inner(IMAGE)

    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    seen = torch.nn.functional.adaptive_avg_pool2d((IMAGE - mean[:, None, None]) / std[:, None, None], (8, 12))
    expected = coarse.values.repeat_interleave(2, 2).repeat_interleave(2, 3) + 0.5 * seen.mean(1, keepdim=True)
    assert_close(fine.values, expected, atol=1e-4, rtol=1e-4)
    assert fine.stride == 8
    assert not any(weight.requires_grad for weight in backbone.upsampler.parameters())
    assert backbone.sha256 != inner.sha256


def test_features_through_anyup_are_halves_and_whole_and_have_gradients(stand_in):
    backbone = UpsampledBackbone(tiny(), AnyUp(factor=2, entry="anyup", chunk=7))

    whole = backbone(IMAGE).values
    whole.sum().backward()

    assert backbone.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    with torch.no_grad():
        assert torch.equal(backbone.suffix(backbone.prefix(IMAGE, 2), 2).values, whole)


def test_anyup_that_cannot_be_downloaded_is_refused_with_a_message(hub):
    with pytest.raises(UserError, match=r"anyup of github.com/wimmerth/anyup could not be loaded .*no route to host"):
        AnyUp(entry="anyup")
    assert [path.name for path in hub.iterdir()] == ["trusted_list"]  # torch.hub's own, and nothing half-written


def test_what_their_code_raises_is_reported_with_the_ways_out(stand_in):
    with pytest.raises(UserError, match=r"\(no weights here\)\. .*TORCH_HOME.*backbone.upsample=joint_bilateral"):
        AnyUp()


def test_a_configuration_cannot_name_another_repository():
    with pytest.raises(TypeError):
        AnyUp(repository="somebody/else")
    with pytest.raises(UserError, match=r"`backbone.upsample.entry` must be one of anyup, anyup_multi_backbone"):
        AnyUp(entry="other")
