"""LoRA and DoRA: what they compute, where they go, what they refuse."""

import pytest
import torch
from backbone_cases import IMAGE, dinov3, lite0, resnet, squeezenet, tiny
from torch import nn
from torch.nn.functional import conv2d, linear
from torch.testing import assert_close

from semcorr.core.errors import UserError
from semcorr.models.finetune.peft_tuners import lora
from semcorr.models.finetune.state import keep_frozen_in_eval


def adapted(backbone: nn.Module) -> list[str]:
    """Names of the layers that LoRA wraps."""
    return [name.removesuffix(".lora_A") for name, _ in backbone.named_modules() if name.endswith(".lora_A")]


def randomise(backbone: nn.Module) -> None:
    """Any values but those at the start."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)


# -- what LoRA computes --


@pytest.mark.parametrize(("rank", "alpha", "scale"), [(4, None, 1), (7, None, 1), (4, 8, 2), (4, 2.0, 0.5)])
def test_a_layer_adds_b_times_a_scaled_by_alpha_over_rank(rank, alpha, scale):
    backbone = tiny()
    lora(backbone, rank=rank, alpha=alpha)
    randomise(backbone)
    layer, x = backbone.blocks[1].attn.qkv, torch.randn(2, 5, 48)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight

    assert (a.shape, b.shape) == ((rank, 48), (144, rank))
    expected = linear(x, layer.base_layer.weight + scale * b @ a, layer.base_layer.bias)
    assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)


def test_a_convolution_adds_a_convolution_of_low_rank():
    backbone = resnet()
    lora(backbone, rank=3, blocks=1)
    randomise(backbone)
    layer, x = backbone.blocks[-1][1].conv1, torch.randn(1, 256, 6, 5)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight

    low = torch.einsum("or,rihw->oihw", b[:, :, 0, 0], a)
    expected = conv2d(x, layer.base_layer.weight + low, stride=1, padding=1)
    assert_close(layer(x), expected, atol=1e-3, rtol=1e-3)


def test_dora_learns_the_length_and_the_direction_of_every_row_apart():
    backbone = tiny()
    lora(backbone, rank=4, dora=True)
    randomise(backbone)
    layer, x = backbone.blocks[0].attn.qkv.eval(), torch.randn(2, 5, 48)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    length = layer.lora_magnitude_vector["default"].weight

    direction = layer.base_layer.weight + b @ a
    expected = linear(x, length[:, None] * direction / direction.norm(dim=1, keepdim=True), layer.base_layer.bias)
    assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)


def test_dropout_works_while_training_in_the_update_only():
    backbone = tiny()
    lora(backbone, dropout=0.5)
    backbone.train()
    keep_frozen_in_eval(backbone)
    layer, x = backbone.blocks[0].attn.qkv, torch.randn(1, 4, 48)

    assert layer.lora_dropout["default"].training
    assert not layer.base_layer.training
    assert torch.equal(layer(x), layer(x))  # B is zero: nothing of the base is dropped
    randomise(backbone)
    assert not torch.equal(layer(x), layer(x))
    backbone.eval()
    assert torch.equal(layer(x), layer(x))


def test_what_is_added_to_a_backbone_in_eval_mode_is_in_eval_mode():
    backbone = tiny()

    lora(backbone, dropout=0.5)

    assert not any(module.training for module in backbone.modules())


# -- where it goes --


@pytest.mark.parametrize(
    ("targets", "blocks", "expected"),
    [
        (None, None, [f"model.blocks.{i}.attn.qkv" for i in range(4)]),
        (None, 1, ["model.blocks.3.attn.qkv"]),
        (["attn.proj"], 2, ["model.blocks.2.attn.proj", "model.blocks.3.attn.proj"]),
        (["fc1", "mlp.fc2"], 1, ["model.blocks.3.mlp.fc1", "model.blocks.3.mlp.fc2"]),
        ("qkv", 1, ["model.blocks.3.attn.qkv"]),
        (["model.blocks.2.attn.qkv"], None, ["model.blocks.2.attn.qkv"]),
    ],
)
def test_targets_are_endings_of_names_within_the_last_blocks(targets, blocks, expected):
    backbone = tiny()

    lora(backbone, targets=targets, blocks=blocks)

    assert adapted(backbone) == expected


@pytest.mark.parametrize("build", [lite0, squeezenet, resnet])
def test_in_a_convolutional_network_every_convolution_with_a_low_rank_is_adapted(build):
    backbone = build()
    full = {module: name for name, module in backbone.named_modules()}
    whole = [m for block in backbone.blocks for m in block.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]

    lora(backbone)

    assert len(whole) > 10
    assert adapted(backbone) == [full[module] for module in whole]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["kv"], "ends with kv. There are qkv, proj, fc1, fc2."),  # not at a dot
        (["qkv", "query"], "ends with query. There are qkv, proj, fc1, fc2."),
        (["norm1"], "ends with norm1."),
        ([], "ends with nothing."),
    ],
)
def test_a_target_that_matches_nothing_is_refused_with_what_there_is(targets, message):
    backbone = tiny()

    with pytest.raises(UserError) as error:
        lora(backbone, targets=targets)

    assert message in str(error.value)
    assert all(parameter.requires_grad for parameter in backbone.parameters())  # nothing has changed


def test_a_depthwise_convolution_is_no_target():
    with pytest.raises(UserError, match=r"ends with conv_dw\. There are conv_pw, conv_pwl"):
        lora(lite0(), targets=["conv_dw"])


def test_a_layer_whose_weight_is_read_without_a_call_is_no_target():
    backbone = dinov3(qkv_bias=True)  # timm then adds queries' and values' bias by itself

    with pytest.raises(UserError, match="There are proj, fc1, fc2"):
        lora(backbone, targets=["qkv"])


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "`finetune.rank` must be at least 1, got 0"),
        ({"dropout": 1.0}, "`finetune.dropout` must be at least 0 and below 1, got 1.0"),
        ({"blocks": 5}, "`finetune.blocks` must be between 1 and 4, the depth of this backbone, or null, got 5"),
        ({"blocks": 0}, "`finetune.blocks` must be between 1 and 4, the depth of this backbone, or null, got 0"),
    ],
)
def test_an_option_out_of_range_is_refused_with_its_range(options, message):
    with pytest.raises(UserError) as error:
        lora(tiny(), **options)
    assert str(error.value) == message


def test_a_facet_is_read_from_the_adapted_layer():
    backbone = tiny(facet="key")
    before = backbone(IMAGE).values

    lora(backbone)
    assert torch.equal(backbone(IMAGE).values, before)
    randomise(backbone)
    assert not torch.allclose(backbone(IMAGE).values, before)
