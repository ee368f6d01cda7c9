"""What is saved of a tuned backbone, what folds back into its weights, and what is told where it cannot."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from backbone_cases import IMAGE, lite0, squeezenet, tiny
from tiny_diffusion import tiny_sd
from torch import Tensor, nn
from torch.testing import assert_close

from semcorr.core.errors import UserError
from semcorr.models.finetune.adapters import adaptformer, houlsby
from semcorr.models.finetune.last_blocks import last_blocks
from semcorr.models.finetune.merge import merge_adapters
from semcorr.models.finetune.peft_tuners import lora, peft_tuner
from semcorr.models.finetune.prompts import prompt
from semcorr.models.finetune.state import checkpoint_keys

pytestmark = pytest.mark.integration


def features(backbone: nn.Module) -> Tensor:
    with torch.no_grad():
        return backbone(IMAGE).values


def randomise(backbone: nn.Module) -> None:
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)


def buffers(backbone: nn.Module) -> list[str]:
    return [name for name, _ in backbone.named_buffers()]


# -- what folds --


def test_a_folded_weight_is_the_old_one_and_the_update():
    backbone, plain = tiny(), tiny()
    lora(backbone, rank=2, alpha=6, blocks=1)
    randomise(backbone)
    layer = backbone.blocks[-1].attn.qkv
    update = 3 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight

    merge_adapters(backbone)

    old, new = plain.state_dict(), backbone.state_dict()
    assert_close(new["model.blocks.3.attn.qkv.weight"], old["model.blocks.3.attn.qkv.weight"] + update)
    changed = [name for name, value in new.items() if not torch.equal(value, old[name])]
    assert changed == ["model.blocks.3.attn.qkv.weight"]


def test_a_folded_backbone_is_as_plain_as_an_untuned_one_and_can_be_tuned_again():
    backbone = tiny()
    lora(backbone, rank=2)
    randomise(backbone)
    merge_adapters(backbone)
    once = features(backbone)

    assert repr(backbone) == repr(tiny())
    assert backbone.__dict__.keys() == tiny().__dict__.keys()
    lora(backbone, rank=3)
    assert torch.equal(features(backbone), once)
    randomise(backbone)
    assert not torch.allclose(features(backbone), once)


@pytest.mark.parametrize("tune", [partial(last_blocks, blocks=2), partial(last_blocks, blocks=0)])
def test_blocks_tuned_as_they_are_need_no_folding(tune):
    backbone = tiny()
    tune(backbone)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}

    merge_adapters(backbone)

    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_folding_twice_changes_nothing_the_second_time():
    backbone = squeezenet()
    lora(backbone, rank=2, blocks=2)
    randomise(backbone)
    merge_adapters(backbone)
    once = features(backbone)

    merge_adapters(backbone)

    assert torch.equal(features(backbone), once)


# -- what does not --


@pytest.mark.parametrize(
    ("build", "tune", "reason"),
    [
        (tiny, houlsby, "adapters are not linear"),
        (tiny, adaptformer, "adapters are not linear"),
        (lite0, houlsby, "adapters are not linear"),
        (tiny, partial(peft_tuner, tuner="lily"), "peft cannot do it for lily"),
        (partial(tiny_sd, layers=[2]), partial(prompt, tokens=3), "a prompt is not a weight of the network"),
    ],
)
def test_what_cannot_be_folded_is_reported_with_what_can_be_done_and_left_as_it_was(build, tune, reason):
    backbone = build()
    tune(backbone)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}

    with pytest.raises(UserError) as error:
        merge_adapters(backbone)

    assert reason in str(error.value)
    assert "--format onnx" in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


# -- what is saved --


def test_of_blocks_their_parameters_are_saved_and_no_buffer():
    backbone = lite0()
    before = buffers(backbone)
    last_blocks(backbone, blocks=1)

    names = checkpoint_keys(backbone, before)

    assert names == {name for name, _ in backbone.named_parameters() if name.startswith("model.blocks.4.")}


def test_buffers_that_tuning_added_are_saved_with_what_moves():
    backbone = tiny()
    before = buffers(backbone)
    peft_tuner(backbone, "vera", blocks=2)

    names = checkpoint_keys(backbone, before)

    kinds = {name.split(".qkv.")[1] for name in names}
    assert kinds == {"vera_A.default", "vera_B.default", "vera_lambda_b.default", "vera_lambda_d.default"}
    assert sum("vera_A" in name for name in names) == 1  # shared by the layers


@pytest.mark.filterwarnings("ignore:Specified to not save")  # peft's own advice
def test_buffers_that_are_not_persistent_are_not_saved():
    backbone = tiny()
    before = buffers(backbone)
    peft_tuner(backbone, "vera", blocks=2, save_projection=False)

    assert {name.split(".")[-2] for name in checkpoint_keys(backbone, before)} == {"vera_lambda_b", "vera_lambda_d"}


def test_a_buffer_of_the_base_is_not_taken_for_a_new_one_when_its_layer_is_wrapped():
    class Wrapped(nn.Module):
        def __init__(self, base_layer: nn.Module) -> None:
            super().__init__()
            self.base_layer = base_layer

    backbone = nn.Sequential(nn.BatchNorm2d(2).requires_grad_(False))
    before = buffers(backbone)
    backbone[0] = Wrapped(backbone[0])

    assert checkpoint_keys(backbone, before) == set()


def test_a_frozen_backbone_leaves_nothing_to_save():
    backbone = lite0()
    before = buffers(backbone)
    last_blocks(backbone, blocks=0)

    assert checkpoint_keys(backbone, before) == set()


def test_saving_copies_of_a_backbone_names_the_same():
    backbone = tiny()
    before = buffers(backbone)
    lora(backbone)

    assert checkpoint_keys(deepcopy(backbone), before) == checkpoint_keys(backbone, before)
