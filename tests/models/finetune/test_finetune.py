from collections.abc import Callable

import pytest
import torch
from torch import nn

from semcorr.models.backbones.efficientnet_lite0 import EfficientNetLite0
from semcorr.models.backbones.squeezenet import SqueezeNet
from semcorr.models.backbones.timm_model import TimmModel
from semcorr.models.finetune.last_blocks import last_blocks
from semcorr.models.finetune.state import keep_frozen_in_eval


def tiny() -> TimmModel:
    shape = {"patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
    return TimmModel("vit_tiny_patch16_224", size=64, pretrained=False, **shape)


def lite0() -> EfficientNetLite0:
    return EfficientNetLite0(size=64, pretrained=False)


def squeezenet() -> SqueezeNet:
    return SqueezeNet(size=64, pretrained=False)


MOVING = {  # the beginnings of the names of what may move
    (tiny, 1): ("model.blocks.3.", "model.norm."),
    (tiny, 2): ("model.blocks.2.", "model.blocks.3.", "model.norm."),
    (lite0, 2): ("model.blocks.3.", "model.blocks.4."),
    (squeezenet, 3): ("features.10.", "features.11.", "features.12."),
}
CASES = pytest.mark.parametrize(("build", "blocks"), MOVING, ids=lambda value: getattr(value, "__name__", value))


def train_a_step(backbone: nn.Module) -> None:
    """As the Lightning module does: training mode, but not where nothing trains."""
    backbone.train()
    keep_frozen_in_eval(backbone)
    moving = [p for p in backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=1e-2, weight_decay=0.1)
    values = backbone(torch.rand(2, 3, 64, 64)).values
    (values * torch.randn_like(values)).sum().backward()
    optimizer.step()


@CASES
def test_the_last_blocks_and_the_norm_after_them_are_free_and_no_other(build: Callable, blocks: int):
    backbone = build()

    last_blocks(backbone, blocks)

    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad == name.startswith(MOVING[build, blocks]), name


def test_the_norm_may_stay_as_it_is_under_tuned_blocks():
    backbone = tiny()

    last_blocks(backbone, 2, norm=False)

    assert backbone.norm is not None
    assert not any(parameter.requires_grad for parameter in backbone.norm.parameters())
    assert all(parameter.requires_grad for block in backbone.blocks[-2:] for parameter in block.parameters())


@CASES
def test_a_step_moves_what_is_free_and_not_a_bit_of_the_rest(build: Callable, blocks: int):
    torch.manual_seed(0)
    backbone = build()
    last_blocks(backbone, blocks)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}

    train_a_step(backbone)

    free = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    for name, value in backbone.state_dict().items():  # buffers too: the statistics of batch norms
        assert torch.equal(value, before[name]) != (name in free), name


@pytest.mark.parametrize("build", [tiny, lite0, squeezenet])
def test_zero_blocks_are_a_frozen_backbone(build: Callable):
    backbone = build()

    last_blocks(backbone, 0)

    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_all_blocks_leave_the_embedding_frozen():
    backbone = tiny()

    last_blocks(backbone, 4)

    frozen = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        "model.cls_token",
        "model.pos_embed",
        "model.patch_embed.proj.weight",
        "model.patch_embed.proj.bias",
    }


def test_choosing_again_forgets_the_first_choice():
    backbone = tiny()

    last_blocks(backbone, 3)
    last_blocks(backbone, 1)

    assert not any(parameter.requires_grad for parameter in backbone.blocks[-2].parameters())


def test_frozen_blocks_stay_in_eval_and_free_ones_train():
    backbone = tiny()
    last_blocks(backbone, 2)

    backbone.train()
    keep_frozen_in_eval(backbone)

    assert [block.training for block in backbone.blocks] == [False, False, True, True]
    assert [block.attn.training for block in backbone.blocks] == [False, False, True, True]
    assert not backbone.model.patch_embed.training


def test_no_batch_norm_trains_its_statistics_even_in_a_free_block():
    backbone = lite0()
    last_blocks(backbone, 2)

    backbone.train()
    keep_frozen_in_eval(backbone)

    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) > 20
    assert not any(norm.training for norm in norms)
    assert backbone.blocks[-1].training


def test_dropout_of_a_moving_block_trains_and_that_of_a_frozen_one_does_not():
    backbone = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)) for _ in range(2)))
    backbone[0].requires_grad_(False)

    backbone.train()
    keep_frozen_in_eval(backbone)

    assert [block[1].training for block in backbone] == [False, True]
