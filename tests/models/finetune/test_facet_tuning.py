"""Tuning under a facet moves what the facet depends on, and nothing behind it."""

from functools import partial

import pytest
import torch
from backbone_cases import hf_vit
from backbone_cases import tiny as vit
from torch import nn

from semcorr.core.errors import UserError
from semcorr.engine.build import build_datamodule_and_module
from semcorr.evaluate import evaluate
from semcorr.models.backbones.features import parameters_unused_by_facet
from semcorr.models.backbones.fuse import FusedBackbone
from semcorr.models.backbones.timm_model import TimmModel
from semcorr.models.finetune.adapters import adaptformer, houlsby
from semcorr.models.finetune.last_blocks import last_blocks
from semcorr.models.finetune.peft_tuners import lora, peft_tuner
from semcorr.models.finetune.targets import freeze_unused

IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def eva(**options) -> TimmModel:
    """Its biases of queries and values are apart from their layer."""
    given = {"embed_dim": 48, "depth": 3, "num_heads": 3, "use_rot_pos_emb": True, "qkv_fused": True}
    return TimmModel("eva02_tiny_patch14_224", 56, pretrained=False, **given, **options)


BUILDS = {"timm": vit, "eva": eva, "transformers": hf_vit("dinov2")}


def reached(backbone: nn.Module) -> set[str]:
    """Names of the weights that a gradient of the features comes to."""
    backbone(IMAGE[..., : backbone.size, : backbone.size]).values.square().sum().backward()
    return {name for name, parameter in backbone.named_parameters() if parameter.grad is not None}


def moving(backbone: nn.Module) -> set[str]:
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("facet", ["query", "key", "value"])
@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_what_is_behind_a_facet_is_what_no_gradient_comes_to(build, facet):
    backbone = build(facet=facet)
    names = {parameter: name for name, parameter in backbone.named_parameters()}
    everything = {names[parameter] for parameter in backbone.blocks[-1].parameters()}

    unread = {names[parameter] for parameter in parameters_unused_by_facet(backbone.blocks[-1], facet)}

    assert unread == everything - reached(backbone)
    assert unread < everything


ADAPTERS = (houlsby, adaptformer)
TUNINGS = {
    "last_blocks": partial(last_blocks, blocks=2),
    "houlsby": houlsby,
    "adaptformer": adaptformer,
    "lora": lora,
    "lora everywhere": partial(lora, targets=["qkv", "proj", "fc1", "fc2"]),
    "ln_tuning": partial(peft_tuner, tuner="ln_tuning"),
}


@pytest.mark.parametrize("tune", TUNINGS.values(), ids=TUNINGS)
@pytest.mark.parametrize("facet", ["token", "key"])
def test_all_that_moves_has_a_gradient(tune, facet):
    backbone = vit(facet=facet)

    tune(backbone)
    freeze_unused(backbone)

    assert moving(backbone) == reached(backbone)
    assert any(".blocks.3." in name for name in moving(backbone)) == (facet == "token" or tune not in ADAPTERS)


def test_of_queries_and_values_in_layers_of_their_own_the_one_that_is_read_is_adapted():
    backbone = hf_vit("dinov2")(facet="value")

    lora(backbone)
    freeze_unused(backbone)

    assert moving(backbone) == reached(backbone)


def test_a_part_of_a_fused_backbone_is_read_by_its_own_facet():
    backbone = FusedBackbone([vit(facet="key"), vit()])

    last_blocks(backbone, 8)
    freeze_unused(backbone)

    assert moving(backbone) == reached(backbone)


@pytest.mark.parametrize("tune", ADAPTERS)
def test_adapters_that_would_all_be_behind_the_facet_are_refused(tune):
    backbone = vit(facet="key")
    tune(backbone, blocks=1)

    with pytest.raises(UserError, match=r"`backbone.facet=key` is read at the projection .*finetune.blocks=2"):
        freeze_unused(backbone)


def test_a_run_counts_and_saves_what_moves(config, tiny):
    """Of the last block the norm and the projection, of the one before it everything."""
    line = [*tiny, "+backbone.facet=key", "finetune=last_blocks", "finetune.blocks=2"]

    module, _ = build_datamodule_and_module(config("evaluate", *line))

    saved = {name.split("blocks.3.")[1] for name in module.saved_keys if "blocks.3." in name}
    assert saved == {"norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias"}
    counted = evaluate(config("evaluate", *line))["trained_parameters"]
    assert counted == sum(value.numel() for value in module.trainable_state_dict().values())
