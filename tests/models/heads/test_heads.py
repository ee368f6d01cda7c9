"""What every head that ends in cosines promises, whatever is inside."""

from collections.abc import Sequence

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch.testing import assert_close

from semcorr.core.coords import to_image
from semcorr.core.errors import UserError
from semcorr.core.interfaces import SiameseHead
from semcorr.core.types import FeatureMap
from semcorr.engine.build import build_head
from semcorr.engine.known_targets import conf_dir
from semcorr.engine.module import CorrespondenceModule
from semcorr.matching.readouts import argmax
from semcorr.models.backbones.timm_model import TimmModel
from semcorr.models.finetune.last_blocks import last_blocks
from semcorr.models.heads.cosine import Cosine

WIDTHS = [16, 32]  # of two maps, side by side
CHANNELS = sum(WIDTHS)
HEADS = {  # name: what makes conf/head/NAME.yaml small
    "cosine": [],
    "bottleneck": [],
    "aggregation": ["out=32", "width=8", "groups=4"],
    "self_attention": ["depth=2"],
    "cross_attention": ["depth=2"],
    "upsample": [],
    "decoder": [],
}
IDENTITIES = ["cosine", "self_attention", "cross_attention"]  # before training
PRECISIONS = [torch.float32, torch.float16, torch.bfloat16]

heads = pytest.mark.parametrize("name", HEADS)


def yaml(name: str) -> DictConfig:
    return OmegaConf.load(conf_dir() / "head" / f"{name}.yaml")


def built(name: str, *more: str, widths: Sequence[int] = WIDTHS, trained: bool = True) -> torch.nn.Module:
    """Of the configuration, with weights away from where they start."""
    torch.manual_seed(0)
    head = build_head(OmegaConf.merge(yaml(name), OmegaConf.from_dotlist([*HEADS[name], *more])), widths, 4)
    if trained:
        with torch.no_grad():
            for parameter in head.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return head.eval()


def maps(batch: int, h: int, w: int, precision: torch.dtype = torch.float32) -> FeatureMap:
    return FeatureMap(torch.randn(batch, CHANNELS, h, w).to(precision), 8)


def points(batch: int, n: int) -> torch.Tensor:
    return torch.rand(batch, n, 2) * 40 - 0.5


def fineness(head: torch.nn.Module) -> int:
    """Cells that a head makes of one, along a side."""
    return round(8 / head.transform(maps(1, 2, 2)).stride) if isinstance(head, SiameseHead) else 1


@heads
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_similarity_is_in_single_precision_on_the_targets_grid(name, precision):
    """Features may be kept in half precision; the two images may have other shapes; neither is square."""
    head = built(name)

    similarity = head(maps(2, 5, 3, precision), maps(2, 4, 6, precision), points(2, 7))

    fine = fineness(head)
    assert similarity.shape == (2, 7, 4 * fine, 6 * fine)
    assert similarity.dtype == torch.float32
    assert similarity.isfinite().all()


@heads
def test_no_points_have_no_similarity(name):
    head = built(name)

    assert head(maps(1, 4, 6), maps(1, 4, 6), points(1, 0)).shape == (1, 0, 4 * fineness(head), 6 * fineness(head))


@heads
@pytest.mark.parametrize("autocast", [False, True], ids=["single precision", "bf16 autocast"])
def test_gradients_reach_every_weight_and_the_features(name, autocast):
    head = built(name).train()
    source, target = maps(2, 4, 6), maps(2, 4, 6)
    for each in (source, target):
        each.values.requires_grad_()

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        similarity = head(source, target, points(2, 5))
    similarity.square().sum().backward()

    assert similarity.dtype == torch.float32
    for key, value in {**dict(head.named_parameters()), "source": source.values, "target": target.values}.items():
        assert value.grad is not None, key
        assert value.grad.isfinite().all(), key
        assert value.grad.any(), key


@heads
def test_bf16_autocast_changes_a_similarity_by_little(name):
    head, source, target, requested = built(name), maps(1, 4, 6), maps(1, 4, 6), points(1, 5)

    with torch.autocast("cpu", torch.bfloat16):
        similarity = head(source, target, requested)

    assert_close(similarity, head(source, target, requested), atol=0.05, rtol=0)


@pytest.mark.parametrize("name", [name for name in HEADS if isinstance(built(name), SiameseHead)])
def test_an_image_adapted_alone_is_what_it_is_in_a_batch(name):
    """And a call is its three parts."""
    head, source, target, requested = built(name), maps(3, 4, 6), maps(3, 4, 6), points(3, 5)

    together = head.transform(source)
    alone = [head.transform(FeatureMap(one[None], 8)) for one in source.values]

    assert_close(torch.cat([one.values for one in alone]), together.values, atol=1e-5, rtol=1e-5)
    assert {one.stride for one in alone} == {together.stride}
    assert together.stride * together.values.shape[-1] == 8 * 6  # the grid still spans the image
    in_parts = head.compare(head.describe(together, requested), head.transform(target))
    assert_close(in_parts, head(source, target, requested), atol=1e-6, rtol=0)


@heads
def test_exchanging_the_images_transposes_the_similarity_of_cells(name):
    head, a, b = built(name), maps(1, 4, 3), maps(1, 2, 5)

    def cell_by_cell(source: FeatureMap, target: FeatureMap) -> torch.Tensor:
        fine = fineness(head)
        h, w = (side * fine for side in source.values.shape[-2:])
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        centres = to_image(torch.stack((x, y), dim=-1).flatten(0, 1)[None].float(), 8 / fine)
        return head(source, target, centres)[0].flatten(1)

    assert_close(cell_by_cell(a, b), cell_by_cell(b, a).T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", IDENTITIES)
def test_before_training_it_is_the_cosine_of_the_features(name):
    head, source, target, requested = built(name, trained=False), maps(2, 4, 6), maps(2, 5, 3), points(2, 7)

    assert torch.equal(head(source, target, requested), Cosine()(source, target, requested))


@heads
def test_a_checkpoint_brings_the_trained_head_back(name):
    def module(head: torch.nn.Module) -> CorrespondenceModule:
        tiny = {"patch_size": 8, "embed_dim": CHANNELS, "depth": 2, "num_heads": 3}
        torch.manual_seed(0)
        backbone = TimmModel("vit_tiny_patch16_224", size=32, pretrained=False, **tiny)
        return CorrespondenceModule(backbone, head, argmax, lambda backbone: last_blocks(backbone, 0)).eval()

    trained, fresh = module(built(name)), module(built(name, trained=False))
    checkpoint = {"state_dict": trained.state_dict()}
    trained.on_save_checkpoint(checkpoint)
    fresh.on_load_checkpoint(checkpoint)
    fresh.load_state_dict(checkpoint["state_dict"], strict=False)

    assert set(checkpoint["state_dict"]) == {f"head.{key}" for key in trained.head.state_dict()}
    source, target, requested = maps(1, 4, 4), maps(1, 4, 4), points(1, 5)
    assert torch.equal(fresh.head(source, target, requested), trained.head(source, target, requested))


@pytest.mark.parametrize("name", [name for name in HEADS if {"channels", "maps"} & yaml(name).keys()])
def test_features_of_other_channels_are_refused_before_it_is_built(name):
    key, message, own = ("maps", "[32,16]", r"\[16, 32\]") if name == "aggregation" else ("channels", "32", "48")

    with pytest.raises(UserError, match=rf"`head\.{key}` must be {own} for this backbone, .* got (32|\[32, 16\])"):
        built(name, f"{key}={message}")
