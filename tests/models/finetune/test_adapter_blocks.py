"""Adapters in every kind of transformer block, against that block written out by hand."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from jaxtyping import Float
from timm.layers import LayerNorm
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from timm.models.vision_transformer_sam import Block as SegmentAnythingBlock
from timm.models.vision_transformer_sam import window_partition, window_unpartition
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, relu
from torch.testing import assert_close
from transformers.models.clip.modeling_clip import CLIPEncoderLayer, CLIPVisionConfig
from transformers.models.dinov2.modeling_dinov2 import Dinov2Config, Dinov2Layer
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTConfig, DINOv3ViTLayer
from transformers.models.vit.modeling_vit import ViTConfig, ViTLayer

from semcorr.core.interfaces import Backbone
from semcorr.models.finetune.adapters import AdapterBottleneck, adaptformer, houlsby

C = 16
SIZES = {"hidden_size": C, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 1}
EAGER = {"attn_implementation": "eager"}


class Stack(Backbone):
    """Blocks, and as little else as a backbone can have."""

    name, size, norm, pairwise, sha256, lora_targets = "stack", 16, None, False, "", ("qkv",)
    channels = stride = 0
    widths = ()

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)


Branch = Callable[[Tensor], Tensor]


def timm_block(b: Block) -> tuple[Branch, Branch]:
    return lambda x: b.ls1(b.attn(b.norm1(x))), lambda x: b.ls2(b.mlp(b.norm2(x)))


def eva_block(b: EvaBlock) -> tuple[Branch, Branch]:
    return lambda x: b.gamma_1 * b.attn(b.norm1(x)), lambda x: b.gamma_2 * b.mlp(b.norm2(x))


def sam_block(b: SegmentAnythingBlock) -> tuple[Branch, Branch]:
    def attention(x: Tensor) -> Tensor:
        windows, padded = window_partition(b.norm1(x), b.window_size)
        return window_unpartition(b.attn(windows), b.window_size, x.shape[1:3], padded)

    return attention, lambda x: b.mlp(b.norm2(x))


def dinov2_layer(b: Dinov2Layer) -> tuple[Branch, Branch]:
    return (
        lambda x: b.layer_scale1(b.attention(b.norm1(x))[0]),
        lambda x: b.layer_scale2(b.mlp(b.norm2(x))),
    )


def dinov3_layer(b: DINOv3ViTLayer) -> tuple[Branch, Branch]:
    return (
        lambda x: b.layer_scale1(b.attention(b.norm1(x), position_embeddings=ROTATION)[0]),
        lambda x: b.layer_scale2(b.mlp(b.norm2(x))),
    )


def clip_layer(b: CLIPEncoderLayer) -> tuple[Branch, Branch]:
    return lambda x: b.self_attn(b.layer_norm1(x), attention_mask=None)[0], lambda x: b.mlp(b.layer_norm2(x))


def vit_layer(b: ViTLayer) -> tuple[Branch, Branch]:
    return lambda x: b.attention(b.layernorm_before(x))[0], lambda x: b.mlp(b.layernorm_after(x))


ROTATION = (torch.ones(5, C // 2), torch.zeros(5, C // 2))  # by no angle
TOKENS, MAP = torch.Size((2, 5, C)), torch.Size((2, 5, 6, C))
KINDS = {  # how to build it, its two branches by hand, the shape of its stream, what its forward takes besides
    "timm": (lambda: Block(C, 2, init_values=0.5), timm_block, TOKENS, {}),
    "timm without LayerScale": (lambda: Block(C, 2), timm_block, TOKENS, {}),
    "timm's EVA": (lambda: EvaBlock(C, 2, init_values=0.5, norm_layer=LayerNorm), eva_block, TOKENS, {}),
    "segment anything": (lambda: SegmentAnythingBlock(C, 2, window_size=4), sam_block, MAP, {}),
    "transformers' DINOv2": (lambda: Dinov2Layer(Dinov2Config(**SIZES, **EAGER)), dinov2_layer, TOKENS, {}),
    "transformers' DINOv3": (
        lambda: DINOv3ViTLayer(DINOv3ViTConfig(**SIZES, **EAGER)),
        dinov3_layer,
        TOKENS,
        {"position_embeddings": ROTATION},
    ),
    "transformers' CLIP": (
        lambda: CLIPEncoderLayer(CLIPVisionConfig(**SIZES, **EAGER)),
        clip_layer,
        TOKENS,
        {"attention_mask": None},
    ),
    "transformers' ViT": (lambda: ViTLayer(ViTConfig(**SIZES, **EAGER)), vit_layer, TOKENS, {}),
}
KIND = pytest.mark.parametrize("kind", KINDS)


def untrained(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    block = KINDS[kind][0]().eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.2)
    return block, torch.randn(KINDS[kind][2])


def randomised(block: nn.Module) -> list[dict[str, Tensor]]:
    """The weights of the block's adapters, in order, with any values but those at the start."""
    adapters = [module for module in block.modules() if isinstance(module, AdapterBottleneck)]
    torch.manual_seed(1)
    for parameter in [p for adapter in adapters for p in adapter.parameters()]:
        nn.init.normal_(parameter, std=0.3)
    return [dict(adapter.named_parameters()) for adapter in adapters]


def bottleneck(x: Float[Tensor, "... c"], weights: dict[str, Tensor], activation: Branch) -> Float[Tensor, "... c"]:
    """Independently of the module."""
    middle = activation(x @ weights["down.weight"].T + weights["down.bias"])
    return middle @ weights["up.weight"].T + weights["up.bias"]


@KIND
def test_houlsby_changes_each_branch_before_it_is_added(kind):
    (block, x), (_, by_hand, _, options) = untrained(kind), KINDS[kind]
    attention, feed_forward = by_hand(deepcopy(block))
    plain = block(x, **options)

    houlsby(Stack(block), width=3)
    assert torch.equal(block(x, **options), plain)
    first, second = randomised(block)

    a = attention(x)
    y = x + a + bottleneck(a, first, gelu)
    f = feed_forward(y)
    assert_close(block(x, **options), y + f + bottleneck(f, second, gelu), atol=1e-4, rtol=1e-4)


@KIND
@pytest.mark.parametrize("layernorm", ["none", "in"])
def test_adaptformer_reads_the_stream_before_the_norm_and_adds_outside_of_any_scale(kind, layernorm):
    (block, x), (_, by_hand, _, options) = untrained(kind), KINDS[kind]
    attention, feed_forward = by_hand(deepcopy(block))
    plain = block(x, **options)

    stack = Stack(block)
    stack.eval()
    adaptformer(stack, width=3, scale=0.3, layernorm=layernorm)
    assert torch.equal(block(x, **options), plain)
    (weights,) = randomised(block)

    y = x + attention(x)
    read = layer_norm(y, (C,), weights["norm.weight"], weights["norm.bias"]) if layernorm == "in" else y
    expected = y + feed_forward(y) + 0.3 * bottleneck(read, weights, relu)
    assert_close(block(x, **options), expected, atol=1e-4, rtol=1e-4)
