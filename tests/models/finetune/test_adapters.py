"""Houlsby's and AdaptFormer's bottlenecks: where they go, how they start, what they leave alone."""

from copy import deepcopy

import pytest
import torch
from backbone_cases import IMAGE, dinov3, lite0, resnet, squeezenet, tiny
from test_adapter_blocks import C, Stack, bottleneck, randomised
from torch import Tensor, nn
from torch.nn.functional import gelu
from torch.testing import assert_close

from semcorr.core.errors import UserError
from semcorr.models.backbones.timm_model import TimmModel
from semcorr.models.finetune.adapters import AdapterBottleneck, adaptformer, houlsby
from semcorr.models.finetune.state import keep_frozen_in_eval


@pytest.mark.parametrize(("build", "place"), [(squeezenet, -1), (resnet, 1), (lite0, 3)])
def test_a_convolutional_block_is_followed_by_a_bottleneck_of_its_maps(build, place):
    backbone = build()
    plain, x = deepcopy(backbone.blocks[place]), {}
    houlsby(backbone, width=3)
    (weights,) = randomised(backbone.blocks[place])
    backbone.blocks[place].register_forward_pre_hook(lambda _, args: x.update(input=args[0]))
    backbone(IMAGE)

    out = plain.eval()(x["input"])
    weights = {key: value.flatten(1) if value.ndim == 4 else value for key, value in weights.items()}
    expected = out + bottleneck(out.movedim(1, -1), weights, gelu).movedim(-1, 1)
    assert_close(backbone.blocks[place](x["input"]), expected, atol=1e-3, rtol=1e-3)


def test_looking_at_a_convolutional_network_to_size_its_adapters_changes_no_statistic():
    backbone = lite0().train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}

    houlsby(backbone)

    assert all(torch.equal(backbone.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("tune", [houlsby, adaptformer])
@pytest.mark.parametrize("build", [tiny, dinov3])
def test_no_weight_of_the_base_is_renamed(build, tune):
    backbone, plain = build(), build()

    tune(backbone)

    own = {key: value for key, value in backbone.state_dict().items() if ".adapter." not in key}
    plain.load_state_dict(own)


@pytest.mark.parametrize("tune", [houlsby, adaptformer])
def test_a_copy_has_adapters_of_its_own(tune):
    backbone = tiny()
    tune(backbone)
    before, copy = backbone(IMAGE).values, deepcopy(backbone)

    randomised(copy)

    assert torch.equal(backbone(IMAGE).values, before)
    assert not torch.allclose(copy(IMAGE).values, before)
    randomised(backbone)
    assert torch.equal(copy(IMAGE).values, backbone(IMAGE).values)


@pytest.mark.parametrize("blocks", [1, 3])
def test_blocks_before_the_last_ones_get_none(blocks):
    for tune, each in ((houlsby, 2), (adaptformer, 1)):
        backbone = tiny()
        tune(backbone, blocks=blocks)
        counts = [sum(isinstance(m, AdapterBottleneck) for m in block.modules()) for block in backbone.blocks]
        assert counts == [0] * (4 - blocks) + [each] * blocks


def test_adaptformer_starts_as_published_and_drops_out_only_while_training():
    backbone = tiny()
    adaptformer(backbone)
    adapter = next(module for module in backbone.modules() if isinstance(module, AdapterBottleneck))

    assert (adapter.scale, adapter.dropout.p, adapter.down.out_features) == (0.1, 0.1, 64)
    assert adapter.down.weight.abs().max() <= 48**-0.5  # Kaiming with a = sqrt(5) is uniform up to 1 / sqrt(fan in)
    assert adapter.down.weight.std().item() == pytest.approx((3 * 48) ** -0.5, rel=0.05)
    assert not any(p.any() for p in (adapter.down.bias, adapter.up.weight, adapter.up.bias))
    assert not adapter.training
    backbone.train()
    keep_frozen_in_eval(backbone)
    assert adapter.dropout.training
    assert not backbone.blocks[0].mlp.training
    assert not backbone.blocks[0].attn.training


def test_members_of_a_stage_are_adapted_where_blocks_are_stages():
    sizes = {"embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2), "window_size": 4, "img_size": 64}
    backbone = TimmModel("swin_tiny_patch4_window7_224", size=64, pretrained=False, **sizes).eval()
    before = backbone(IMAGE[..., :64]).values

    houlsby(backbone, width=2)

    widths = [len(m.up.bias) for m in backbone.modules() if isinstance(m, AdapterBottleneck)]
    assert widths == [8, 8, 16, 16, 16, 16]
    assert torch.equal(backbone(IMAGE[..., :64]).values, before)


@pytest.mark.parametrize("tune", [houlsby, adaptformer])
def test_adapters_leave_nothing_behind_after_a_step(tune):
    """What AdaptFormer remembers between its two ends would hold a graph, and stop a copy."""
    backbone = tiny()
    tune(backbone)

    backbone(IMAGE).values.sum().backward()

    assert all(m.branch_input is None for m in backbone.modules() if isinstance(m, AdapterBottleneck))
    deepcopy(backbone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_adapters_have_the_precision_of_the_base(dtype):
    for build in (tiny, resnet):
        backbone = build().to(dtype)
        houlsby(backbone, width=2)
        assert {parameter.dtype for parameter in backbone.parameters()} == {dtype}


def post_normed() -> Stack:
    block = nn.Module()
    block.attn, block.norm1, block.mlp, block.norm2 = nn.Linear(C, C), nn.LayerNorm(C), nn.Linear(C, C), nn.LayerNorm(C)
    return Stack(block)


class Odd(Stack):
    """Its block puts out tokens and has no names that are known."""

    def forward(self, image: Tensor) -> Tensor:
        return self.blocks[0](image.flatten(2))


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: houlsby(tiny(), width=0), "`finetune.width` must be at least 1, got 0"),
        (lambda: adaptformer(tiny(), width=-1), "`finetune.width` must be at least 1, got -1"),
        (lambda: adaptformer(tiny(), dropout=1.5), "`finetune.dropout` must be at least 0 and below 1, got 1.5"),
        (lambda: adaptformer(tiny(), layernorm="out"), "`finetune.layernorm` must be one of none, in, got 'out'"),
        (lambda: houlsby(tiny(), blocks=9), "between 1 and 4, the depth of this backbone, or null, got 9"),
        (lambda: adaptformer(post_normed()), "stack has none with a norm before it. Use finetune=houlsby"),
        (lambda: houlsby(Odd(nn.Identity(), nn.Linear(1, 1))), "Identity of stack has neither attention"),
    ],
)
def test_what_cannot_be_done_is_reported_with_what_can(attempt, message):
    with pytest.raises(UserError) as error:
        attempt()
    assert message in str(error.value)


@pytest.mark.parametrize("tune", [houlsby, adaptformer])
def test_a_backbone_with_adapters_takes_no_more(tune):
    backbone = tiny()
    tune(backbone)

    with pytest.raises(UserError, match="has adapters already"):
        tune(backbone)
