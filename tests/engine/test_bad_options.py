"""Weights that do not fit and options out of range end in a sentence that says what is allowed."""

import pytest
import torch
from torch import nn

from semcorr.core.errors import UserError
from semcorr.data.coco_keypoints import COCOKeypoints
from semcorr.data.proposal_flow import PFWillow
from semcorr.data.spair import SPair
from semcorr.models.backbones.timm_model import TimmModel
from semcorr.models.finetune.last_blocks import last_blocks
from semcorr.models.weights.checkpoints import read_weights
from semcorr.models.weights.loading import load_weights

TINY = {"name": "vit_tiny_patch16_224", "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
SMALL = {"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(3)}


def names_parts(error: pytest.ExceptionInfo, parts: list[str]) -> bool:
    return all(part in str(error.value) for part in parts)


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ({"0.weight": SMALL["0.weight"]}, ["1 missing: 0.bias"]),
        (SMALL | {"9.weight": torch.zeros(1)}, ["1 not known to this backbone: 9.weight"]),
        (SMALL | {"0.bias": torch.zeros(4)}, ["1 of another shape: 0.bias (4,) for (3,)"]),
        ({}, ["2 missing: 0.weight, 0.bias"]),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(weights, parts):
    module = nn.Sequential(nn.Linear(2, 3))
    before = module[0].weight.clone()

    with pytest.raises(UserError) as error:
        load_weights(module, weights, "some/file.pth")

    assert names_parts(error, ["`backbone.weights`", "some/file.pth", "same model", *parts]), error.value
    assert torch.equal(module[0].weight, before)  # nothing was loaded


def test_a_classifier_in_the_weights_is_no_misfit():
    module = nn.Sequential(nn.Linear(2, 3))

    load_weights(module, SMALL | {"head.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, "file.pth")

    assert not module[0].weight.any()


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"", "is empty"), (b"no weights at all", "is a text"), (b"PK\x03\x04 a cut archive", "is cut short")],
)
def test_a_file_without_weights_is_refused(tmp_path, name, content, kind):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(UserError) as error:
        read_weights(tmp_path / name)

    assert names_parts(error, ["`backbone.weights`", name, kind, "Download the weights file itself"]), error.value


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"epoch": 3}, nn.Linear(1, 1)])
def test_a_pickle_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pth")

    with pytest.raises(UserError) as error:
        load_weights(nn.Linear(1, 1), read_weights(tmp_path / "model.pth"), tmp_path / "model.pth")

    assert names_parts(error, ["`backbone.weights`", "model.pth", "Give"]), error.value


def test_absent_weights_are_named(tmp_path):
    with pytest.raises(UserError) as error:
        TimmModel(size=64, weights=str(tmp_path / "absent.pth"), **TINY)

    assert names_parts(error, ["`backbone.weights`", "absent.pth", "does not exist", "Give the path"])


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (
            lambda: last_blocks(TimmModel(size=64, pretrained=False, **TINY), 5),
            "`finetune.blocks` must be between 0 and 4, the depth of this backbone, got 5",
        ),
        (
            lambda: last_blocks(TimmModel(size=64, pretrained=False, **TINY), -1),
            "`finetune.blocks` must be between 0 and 4, the depth of this backbone, got -1",
        ),
        (
            lambda: TimmModel(size=64, pretrained=False, layers=[4], **TINY),
            "`backbone.layers` must be between -4 and 3 here, got [4]",
        ),
        (
            lambda: TimmModel(size=64, pretrained=False, layers=[], **TINY),
            "`backbone.layers` must be between -4 and 3 here, got []",
        ),
        (
            lambda: TimmModel(size=60, pretrained=False, **TINY),
            "`backbone.size`: the image side of vit_tiny_patch16_224 must be a multiple of 8 pixels, got 60. "
            "Set `backbone.size` to 56 or 64, for instance.",
        ),
        (
            lambda: TimmModel(size=64, pretrained=False, facet="keys", **TINY),
            "`backbone.facet` must be one of token, query, key, value, got 'keys'",
        ),
        (
            lambda: TimmModel("resnet18", size=64, pretrained=False, facet="key"),
            "`backbone.facet`: resnet18 has no queries, keys and values, only `token`",
        ),
        (
            lambda: TimmModel("resnet18", size=64, pretrained=False, layers=[0, 3]),
            "`backbone.layers`: layer 0 of resnet18 has no block before it to be read after; choose from 1 to 4",
        ),
        (
            lambda: TimmModel(size=64, pretrained=False, facet="key", layers=[0], **TINY),
            "`backbone.layers`: layer 0 of vit_tiny_patch16_224 has no block before it to be read after; "
            "choose from 1 to 3",
        ),
        (
            lambda: SPair(root=".", size=32, split="trian"),
            "`data.split` of spair must be one of train, val, test, got 'trian'",
        ),
        (lambda: PFWillow(root=".", size=32, split="val"), "`data.split` of pf_willow must be one of test, got 'val'"),
        (
            lambda: SPair(root=".", size=32, resize="stretch"),
            "`data.resize` must be one of squash, letterbox, corner or corner+PIXELS, "
            "a margin on all sides, got 'stretch'",
        ),
        (lambda: SPair(root=".", size=32, batch_size=0), "`data.batch_size` must be at least 1 or null, got 0"),
        (
            lambda: SPair(root=".", size=32, batch_size=4, global_batch_size=8),
            "`data.global_batch_size` is 8, the pairs of a step in all, and data.batch_size is 4, the pairs of a step "
            "on each process. Give one of them; data.batch_size=null leaves it out",
        ),
        (
            lambda: SPair(root=".", size=32, all_pairs=4, global_batch_size=8),
            "`data.global_batch_size` is 8, the pairs of a step in all, and data.all_pairs is 4, the images of a step "
            "on each process. Give one of them; data.all_pairs=null leaves it out",
        ),
        (lambda: COCOKeypoints(root=".", size=32, box="cxcywh"), "`data.box` must be one of xywh, xyxy, got 'cxcywh'"),
    ],
)
def test_an_option_out_of_range_is_refused_with_its_range(attempt, message):
    with pytest.raises(UserError) as error:
        attempt()

    assert str(error.value) == message
