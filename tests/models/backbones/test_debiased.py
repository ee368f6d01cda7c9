"""Debiasing: what a blank image shows of position is taken out of every map, by the weights of the moment."""

import copy

import numpy as np
import pytest
import torch
from backbone_cases import FORMULAS, IMAGE, PROMISES, lite0, resnet, tiny
from pair_backbones import HalfMixed
from torch import nn
from torch.nn.functional import normalize, pixel_unshuffle
from torch.testing import assert_close

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.core.types import FeatureMap, ImageMaps
from semcorr.matching.similarity import cosine_similarity
from semcorr.models.backbones.debiased import DebiasedBackbone, evaluation_mode, leading_directions, project_out
from semcorr.models.backbones.fuse import FusedBackbone
from semcorr.models.backbones.steps import add_steps
from semcorr.models.backbones.wrapped import unwrap_backbone

pytestmark = pytest.mark.integration

# With random weights all biases of a ConvNeXt are zero, and so is what it makes of a blank image; and rotations, the
# only positions of timm's DINOv3, change nothing between tokens that are all alike.
SEEING = {name: promise for name, promise in PROMISES.items() if "convnext" not in name and name != "dinov3"}
CONTRACT = pytest.mark.parametrize("promise", SEEING.values(), ids=SEEING)


def debiased_slowly(features: np.ndarray, blank: np.ndarray, components: int) -> np.ndarray:
    """INSID3, cell by cell: unit length, centred, singular vectors, and their parts subtracted one by one."""
    channels, rows, columns = blank.shape
    cells = [blank[:, y, x] / np.linalg.norm(blank[:, y, x]) for y in range(rows) for x in range(columns)]
    mean = sum(cells) / len(cells)
    left, _, _ = np.linalg.svd(np.stack([cell - mean for cell in cells], axis=1))
    result = features.copy()
    for image in result:
        for y in range(image.shape[1]):
            for x in range(image.shape[2]):
                for k in range(components):
                    image[:, y, x] -= (left[:, k] @ image[:, y, x]) * left[:, k]
    assert left.shape == (channels, channels)
    return result


def fused(**options) -> FusedBackbone:
    return FusedBackbone([tiny(layers=[1, -1]), resnet(layers=[2])]).eval()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("several", [False, True], ids=["one layer", "two layers"])
@CONTRACT
def test_features_are_those_of_the_slow_reference_on_an_image_that_is_not_square(promise, several):
    backbone = promise.build(**({"layers": list(promise.several)} if several else {}))
    debiased = DebiasedBackbone(backbone, 3)

    with torch.no_grad():
        values, stride = debiased(IMAGE)
        plain, blank = backbone(IMAGE), backbone(torch.zeros(1, 3, 64, 96))
    expected = debiased_slowly(plain.values.double().numpy(), blank.values[0].double().numpy(), 3)

    assert_close(values.double(), torch.from_numpy(expected), atol=1e-4 * float(plain.values.abs().max()), rtol=0)
    assert stride == plain.stride
    assert not torch.allclose(values, plain.values, atol=1e-3 * float(plain.values.abs().max()))


@pytest.mark.parametrize("build", [tiny, fused], ids=["tiny", "fused"])
def test_the_halves_are_the_whole_at_every_depth_and_maps_are_joined_to_it(build):
    backbone = DebiasedBackbone(build(), 3)

    with torch.no_grad():
        whole = backbone(IMAGE)
        maps = backbone.read_maps(IMAGE)
        one = ImageMaps({key: value[:1] for key, value in maps.values.items()})
        sources, targets = backbone.join_pair(maps, backbone.prepare_target(one))
        for depth in range(len(backbone.blocks) + 1):
            assert torch.equal(backbone.suffix(backbone.prefix(IMAGE, depth), depth).values, whole.values), depth

    assert torch.equal(sources.values, whole.values)
    assert_close(targets.values, whole.values[:1].expand_as(whole.values), atol=1e-5, rtol=1e-5)
    assert (sum(backbone.widths), backbone.stride) == (backbone.channels, whole.stride)


def test_weights_have_the_same_names_and_owners_with_debiasing_and_without():
    plain, debiased = tiny(), DebiasedBackbone(tiny(seed=1), 3)

    debiased.load_state_dict(plain.state_dict())

    assert [name for name, _ in debiased.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert list(debiased.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in debiased.named_buffers()] == [name for name, _ in plain.named_buffers()]
    assert torch.equal(unwrap_backbone(debiased)(IMAGE).values, plain(IMAGE).values)
    assert debiased.double().inner(IMAGE.double()).values.dtype == torch.float64
    assert (debiased.train().inner.training, debiased.eval().inner.training) == (True, False)
    assert (debiased.sha256, debiased.layers, debiased.multiple) == (debiased.inner.sha256, [3], 8)


# -- the basis --


def test_directions_are_orthonormal_and_the_leading_ones_whichever_matrix_is_smaller():
    cells = torch.randn(40, 30, dtype=torch.float64) * torch.logspace(0, -2, 30, dtype=torch.float64)
    wide, tall = cells.view(40, 5, 6), torch.cat((cells, torch.randn(40, 30) * cells), dim=1).view(40, 10, 6)

    for features in (wide, tall):
        found = leading_directions(features, 7)
        unit = normalize(features.flatten(1), dim=0)
        left = torch.linalg.svd(unit - unit.mean(1, keepdim=True)).U[:, :7]
        assert_close(found.mT @ found, torch.eye(7, dtype=torch.float64), atol=1e-10, rtol=0)
        assert_close(found @ found.mT, left @ left.mT, atol=1e-10, rtol=0)


def test_a_direction_that_is_only_rounding_is_none():
    strong = torch.randn(24, 2) @ torch.randn(2, 48)
    features = (strong + 1e-7 * torch.randn(24, 48)).view(24, 6, 8)

    assert leading_directions(features, 9).shape == (24, 2)
    assert leading_directions(torch.ones(24, 6, 8), 9).shape == (24, 0)


def test_what_is_left_has_no_part_in_the_basis_and_gradients_are_those_of_the_projection():
    basis = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64)).Q
    values = torch.randn(2, 6, 2, 3, dtype=torch.float64, requires_grad=True)

    left = project_out(values, basis)

    assert_close(torch.einsum("ck,bchw->bkhw", basis, left), torch.zeros(2, 2, 2, 3, dtype=torch.float64))
    assert_close(project_out(left, basis), left)
    assert torch.autograd.gradcheck(lambda x: project_out(x, basis), values)
    assert project_out(values.detach().bfloat16(), basis.float()).dtype == torch.bfloat16


class Counted(nn.Module):
    """How often a backbone has seen a blank image."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.blank, real = [], backbone.forward

        def forward(image):
            self.blank += [tuple(image.shape[-2:])] if not image.any() else []
            return real(image)

        backbone.forward = forward


def test_a_frozen_backbone_sees_one_blank_image_of_each_size():
    backbone = tiny().requires_grad_(False)
    debiased, counted = DebiasedBackbone(backbone, 3), Counted(backbone)

    for image in (IMAGE, IMAGE[..., :64], IMAGE + 0.1, IMAGE[..., :64]):
        debiased(image)

    assert counted.blank == [(64, 96), (64, 64)]


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}], ids=["plain", "foreach", "fused"])
def test_the_basis_of_a_tuned_backbone_is_that_of_its_present_weights(options):
    debiased = DebiasedBackbone(tiny(), 3)
    optimizer = torch.optim.AdamW(debiased.blocks[-1].parameters(), lr=0.1, **options)
    debiased(IMAGE).values.square().sum().backward()
    before = debiased(IMAGE)
    optimizer.step()

    after = debiased(IMAGE)
    with torch.no_grad():
        evaluated = debiased(IMAGE)

    fresh = DebiasedBackbone(copy.deepcopy(debiased.inner), 3)
    assert torch.equal(after.values, fresh(IMAGE).values)
    assert torch.equal(after.values, evaluated.values)
    assert not debiased.positional_basis(after).requires_grad
    assert not torch.allclose(before.values, after.values, atol=1e-2)


def test_weights_that_are_loaded_change_the_basis():
    debiased, other = DebiasedBackbone(tiny(), 3), DebiasedBackbone(tiny(seed=1), 3)
    debiased(IMAGE)

    debiased.load_state_dict(other.state_dict())

    assert torch.equal(debiased(IMAGE).values, other(IMAGE).values)


def test_a_blank_image_leaves_no_trace_in_a_backbone_in_training():
    """Neither in running statistics nor in the modes, and its own basis is that of evaluation."""
    debiased = DebiasedBackbone(lite0(), 3).train()
    debiased.inner.model.blocks.eval()
    modes = {name: part.training for name, part in debiased.named_modules()}
    before = {name: value.clone() for name, value in debiased.named_buffers()}
    maps = FeatureMap(torch.zeros(1, 112, 4, 6), 16)

    basis = debiased.positional_basis(maps)

    assert {name: part.training for name, part in debiased.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in debiased.named_buffers())
    assert torch.equal(basis, DebiasedBackbone(debiased.inner, 3).eval().positional_basis(maps))
    with evaluation_mode(debiased):
        assert not any(part.training for part in debiased.modules())


# -- what it is for --


class Planted(Backbone):
    """Descriptors of patches, and on top of them a component that only depends on the position."""

    name, size, stride, channels, widths, blocks, norm, sha256 = "planted", 96, 8, 192, (192,), (), None, ""
    lora_targets, pairwise = (), False

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength
        self.register_buffer("mix", torch.randn(192, 4, generator=torch.Generator().manual_seed(2)))

    def forward(self, image: torch.Tensor) -> FeatureMap:
        content = pixel_unshuffle(image - 0.5, 8)
        rows, columns = (torch.linspace(-1, 1, cells) for cells in content.shape[-2:])
        waves = [rows[:, None].expand(-1, len(columns)), columns.expand(len(rows), -1)]
        waves += [torch.cos(3 * wave) for wave in waves]
        return FeatureMap(content + self.strength * torch.einsum("ck,khw->chw", self.mix, torch.stack(waves)), 8)


def moved_share(backbone: Backbone) -> float:
    """The share of cells that are found again, in percent, where a noisy copy of the image moved by whole cells."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(8, 3, 96, 96, generator=generator)
    moved = image.roll((24, -32), dims=(-2, -1)) + 0.85 * torch.randn(image.shape, generator=generator)
    source, target = backbone(image).values, backbone(moved).values
    found = cosine_similarity(source.flatten(2).mT, target).flatten(2).argmax(-1)
    cells = torch.arange(144).view(12, 12).roll((-3, 4), dims=(0, 1)).flatten()
    return float((found == cells).float().mean() * 100)


def test_debiasing_restores_what_a_planted_positional_component_has_spoilt():
    plain, spoilt = moved_share(Planted(0)), moved_share(Planted(1))

    restored = moved_share(DebiasedBackbone(Planted(1), 5))  # four directions of position, one of the lengths

    assert spoilt < plain - 20
    assert 50 < plain < 99
    assert abs(restored - plain) < 1


# -- what cannot be --


def test_more_directions_than_there_are_are_refused():
    with pytest.raises(UserError, match=r"`backbone.debias` must be at most 47 .* 48 channels and 64 cells, got 48"):
        add_steps(tiny(), debias=48)
    with pytest.raises(UserError, match=r"must be at most 15 .* 112 channels and 16 cells, got 16"):
        add_steps(lite0(), debias=16)
    with pytest.raises(
        UserError, match=r"one cell, .* no positional direction\. Leave out backbone\.debias, or give a l"
    ):
        add_steps(tiny(size=8), debias=1)
    with pytest.raises(UserError, match=r"`backbone.debias` must be at least 1 or null, got 0"):
        add_steps(tiny(), debias=0)


@pytest.mark.parametrize("promise", FORMULAS.values(), ids=FORMULAS)
def test_a_descriptor_that_is_the_same_everywhere_on_a_blank_image_has_nothing_to_remove(promise):
    with pytest.raises(UserError, match=r"`backbone.debias` must be at most 0 here.*leave out backbone.debias"):
        DebiasedBackbone(promise.build(), 1)(IMAGE)


def test_features_of_a_pair_are_refused():
    backbone = HalfMixed("vit_tiny_patch16_224", size=64, pretrained=False, depth=1, embed_dim=48, num_heads=3)

    with pytest.raises(UserError, match=r"`backbone.debias` changes the features of one image.* depend on both"):
        add_steps(backbone, debias=2)


def test_without_steps_a_backbone_is_itself():
    backbone = tiny()

    assert add_steps(backbone) is backbone is unwrap_backbone(backbone)
