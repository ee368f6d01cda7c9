"""Plug-ins of other packages that break what they promise are refused in a sentence, before any image is read."""

import re

import pytest
import torch
from backbone_cases import VIT
from hydra import initialize
from hydra.core.global_hydra import GlobalHydra
from torch import nn

from semcorr import Matcher
from semcorr.cli.compose import compose_config
from semcorr.core import interfaces
from semcorr.core.errors import UserError
from semcorr.core.types import FeatureMap
from semcorr.engine.contracts import require_backbone, require_head, require_terms
from semcorr.models.backbones.timm_model import TimmModel
from semcorr.models.heads.cosine import Cosine


class Backbone(TimmModel):
    """A backbone of this file, as one of another package, which changes its map."""

    def __init__(self, change=lambda maps: maps, runs_without_values: bool = True):
        super().__init__("vit_tiny_patch16_224", size=64, pretrained=False, **VIT)
        self.change, self.runs_without_values = change, runs_without_values

    def forward(self, image):
        if not self.runs_without_values:
            image.mean().item()  # fails on the meta device
        return self.change(super().forward(image))


class Siamese(Cosine):
    """A head of this file, which takes one image at a time."""

    def __init__(self, change=lambda maps: maps, similarity=lambda values: values):
        super().__init__()
        self.change, self.similarity = change, similarity
        self.inner = nn.Dropout(0.5)

    def transform(self, maps):
        return self.change(maps)

    def compare(self, descriptors, target):
        return self.similarity(super().compare(descriptors, target))


class Pairs(nn.Module):
    """A head of this file, which takes both images at once."""

    def __init__(self, similarity=lambda values: values, **attributes):
        super().__init__()
        self.similarity = similarity
        vars(self).update(attributes)

    def forward(self, source, target, points):
        return self.similarity(Cosine()(source, target, points))


def resized(maps: FeatureMap, factor: float, stride: float) -> FeatureMap:
    return FeatureMap(nn.functional.interpolate(maps.values, scale_factor=factor), maps.stride * stride)


@pytest.mark.parametrize("runs_without_values", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda maps: maps.values, r"must return a FeatureMap of an image, got \(2, \d+, 8, 8\) of float32"),
        (lambda maps: None, "must return a FeatureMap of an image, got None"),
        (lambda maps: resized(maps, 0.5, 1), r"its map must be \(2, \d+, 8, 8\) of stride 8, got \(2, \d+, 4, 4\)"),
        (lambda maps: FeatureMap(maps.values[..., :-1], maps.stride), r"got \(2, \d+, 8, 7\) of float32 of stride 8"),
        (lambda maps: FeatureMap(maps.values[:1], maps.stride), r"got \(1, \d+, 8, 8\)"),
        (lambda maps: FeatureMap(torch.cat([maps.values] * 2, 1), maps.stride), "says that it has"),
        (lambda maps: FeatureMap(maps.values, 16), "of stride 16"),
        (lambda maps: FeatureMap(maps.values.int(), maps.stride), "of int32"),
    ],
)
def test_a_backbone_of_another_map_than_it_says_is_refused(change, message, runs_without_values):
    with pytest.raises(UserError, match=message) as error:
        require_backbone(Backbone(change, runs_without_values))

    assert str(error.value).startswith(f"`backbone._target_`: {__name__}.Backbone ")


@pytest.mark.parametrize("runs_without_values", [True, False])
def test_a_backbone_that_keeps_its_word_is_left_as_it_was(runs_without_values):
    backbone = Backbone(runs_without_values=runs_without_values).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)

    require_backbone(backbone)

    assert torch.equal(torch.rand(1), expected)
    assert backbone.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


class Nameless(interfaces.Backbone):
    """A backbone of this file without most attributes."""

    size, stride = 64, 8


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (nn.Conv2d(3, 8, 8, 8), r"Conv2d is not a backbone\. Inherit semcorr\.core\.interfaces\.Backbone"),
        (Nameless(), r"Nameless has no name, channels, widths, blocks, sha256\. Add what"),
    ],
)
def test_a_network_that_is_no_backbone_is_refused_with_what_it_lacks(backbone, message):
    with pytest.raises(UserError, match=message):
        require_backbone(backbone)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (Siamese(lambda maps: maps.values), "transform must return a FeatureMap, got"),
        (Siamese(lambda maps: resized(maps, 2, 1)), "stride is its pixels per cell: of 2 images of 64 x 64 pixels got"),
        (Siamese(lambda maps: FeatureMap(maps.values[..., :-1], maps.stride)), "must return a map of the whole image"),
        (Siamese(similarity=lambda values: values.flatten(2)), "must return similarities"),
        (
            Siamese(similarity=lambda values: values[..., :-1]),
            r"of 2 pairs of 3 points \(2, 3, 8, 8\), got \(2, 3, 8, 7\)",
        ),
        (Pairs(lambda values: None), "must return similarities .* got None"),
        (Pairs(lambda values: values[:, 1:]), r"got \(2, 2, 8, 8\)"),
        (Pairs(lambda values: values > 0), "of bool"),
        (Pairs(lambda values: values[..., :4, :4]), r"got \(2, 3, 4, 4\)"),
        (Pairs(lambda values: nn.functional.interpolate(values, scale_factor=2)), "attribute fineness = 2"),
    ],
)
def test_a_head_whose_similarities_are_on_no_grid_of_the_image_is_refused(head, message):
    with pytest.raises(UserError, match=message) as error:
        require_head(head, Backbone())

    assert re.match(rf"`head\._target_`: {re.escape(__name__)}\.(Siamese|Pairs)", str(error.value))


@pytest.mark.parametrize(
    "head",
    [
        Siamese(),
        Siamese(lambda maps: resized(maps, 2, 0.5)),  # a finer grid, and its stride
        Pairs(),
        Pairs(lambda values: nn.functional.interpolate(values, scale_factor=2), fineness=2),
    ],
)
def test_a_head_on_the_grid_or_a_finer_one_is_taken(head):
    require_head(head.train(), Backbone())

    assert all(module.training for module in head.modules())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(3, requires_grad=True), r"own must return a tensor of one number, got \(3,\) of float32"),
        (0.5, "got a float"),
        (None, "got None"),
        ({"loss": 1}, "got a dict"),
        (torch.tensor(1), "of int64"),
        (torch.tensor(1.0), "depends on no trainable weight"),
    ],
)
def test_a_loss_that_nothing_can_follow_is_refused(value, message):
    with pytest.raises(UserError, match=message):
        require_terms({"own": value})


def test_one_term_with_a_gradient_is_enough():
    require_terms({"own": torch.tensor(1.0), "other": torch.tensor(1.0, requires_grad=True)})


def test_a_configuration_is_composed_inside_a_hydra_application_of_the_users():
    with initialize(version_base="1.3", config_path=None):
        own = GlobalHydra.instance().hydra

        cfg = compose_config("evaluate", ["backbone=tiny"])
        Matcher.load("backbone=tiny")

        assert cfg.backbone.size
        assert GlobalHydra.instance().hydra is own
    assert not GlobalHydra.instance().is_initialized()


def test_similarities_that_are_no_numbers_are_reported_before_points_are_matched_back():
    matcher = Matcher.load("backbone=tiny")
    matcher.module.head = Siamese(similarity=lambda values: values * torch.nan)

    with pytest.raises(UserError, match="the similarities of these pictures are not finite"):
        matcher.match(*(torch.rand(3, 40, 60) for _ in range(2)), [(20, 20)])
