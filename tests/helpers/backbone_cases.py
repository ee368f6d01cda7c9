"""Tiny backbones with random weights, always the same for a seed: one row for each kind, for every contract test."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from semcorr.core.interfaces import Backbone
from semcorr.models.backbones.efficientnet_lite0 import EfficientNetLite0
from semcorr.models.backbones.handcrafted import DAISY, HOG, SIFT
from semcorr.models.backbones.segment_anything import SegmentAnything
from semcorr.models.backbones.squeezenet import SqueezeNet
from semcorr.models.backbones.timm_model import TimmModel
from semcorr.models.backbones.transformers_model import TransformersModel
from semcorr.models.weights.loading import weights_sha256

VIT = {"patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
DINOV3 = {"embed_dim": 48, "depth": 3, "num_heads": 3}
SAM = {"embed_dim": 48, "depth": 3, "num_heads": 3, "img_size": 128, "window_size": 3, "global_attn_indexes": (1,)}
HUGGING_FACE = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "patch_size": 8, "image_size": 32}
STATISTICS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (8, 16, 32, 48)}


def tiny(seed: int = 0, **options: object) -> TimmModel:
    torch.manual_seed(seed)  # the same weights every time
    return TimmModel("vit_tiny_patch16_224", **({"size": 64, "pretrained": False} | VIT | options)).eval()


def dinov3(seed: int = 0, **options: object) -> TimmModel:
    torch.manual_seed(seed)
    return TimmModel("vit_small_patch16_dinov3", **({"size": 64, "pretrained": False} | DINOV3 | options)).eval()


def convnext(seed: int = 0, **options: object) -> TimmModel:
    torch.manual_seed(seed)
    return TimmModel("convnext_atto", **({"size": 64, "pretrained": False, "layers": [2]} | CONVNEXT | options)).eval()


def squeezenet(seed: int = 0, **options: object) -> SqueezeNet:
    torch.manual_seed(seed)
    return SqueezeNet(**({"size": 64, "pretrained": False} | options)).eval()


def resnet(seed: int = 0, **options: object) -> TimmModel:
    torch.manual_seed(seed)
    return TimmModel("resnet18", **({"size": 64, "pretrained": False, "layers": [3]} | options)).eval()


def resnet_blocks(seed: int = 0, **options: object) -> TimmModel:
    return resnet(seed, **({"layers": [6], "each_block": True} | options))


def lite0(seed: int = 0, **options: object) -> EfficientNetLite0:
    torch.manual_seed(seed)
    return EfficientNetLite0(**({"size": 64, "pretrained": False} | options)).eval()


def sam(seed: int = 0, **options: object) -> SegmentAnything:
    torch.manual_seed(seed)
    backbone = SegmentAnything(**({"size": 64, "pretrained": False} | SAM | options)).eval()
    if "weights" not in options:
        for name, parameter in backbone.model.named_parameters():
            if "_pos" in name or "pos_embed" in name:  # zero at the start
                torch.nn.init.normal_(parameter, std=0.5)
        backbone.sha256 = weights_sha256(backbone.model)
    return backbone


def hugging_face(model_type: str, seed: int = 0, **options: object) -> TransformersModel:
    torch.manual_seed(seed)
    given = {"name": "tiny", "size": 64, "pretrained": False, "model_type": model_type, **STATISTICS} | options
    return TransformersModel(**given).eval()


def hf_vit(model_type: str) -> Callable[..., TransformersModel]:
    return lambda **options: hugging_face(model_type, **(HUGGING_FACE | options))


def hf_convnext(**options: object) -> TransformersModel:
    shape = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 32, 48], "layers": [2]}
    return hugging_face("convnext", **(shape | options))


class Promise(NamedTuple):
    """How to build one, and what its contract test expects of it."""

    build: Callable[..., Backbone]  # build(seed=0, **options)
    channels: int
    stride: int
    blocks: int
    norm: bool
    several: tuple[int, int] = (1, -1)  # two layers to read at once
    whole: Callable[[], nn.Module] | None = None  # the network with all its parts, where it is not timm's


def hf_promise(model_type: str) -> Promise:
    build = hf_vit(model_type)
    return Promise(build, channels=48, stride=8, blocks=3, norm=True, whole=lambda: build().model)


PROMISES = {
    "tiny": Promise(tiny, channels=48, stride=8, blocks=4, norm=True),
    "dinov3": Promise(dinov3, channels=48, stride=16, blocks=3, norm=True),
    "squeezenet": Promise(squeezenet, channels=512, stride=16, blocks=8, norm=False, several=(3, 6)),
    "efficientnet_lite0": Promise(lite0, channels=112, stride=16, blocks=5, norm=False, several=(2, 3)),
    "resnet18": Promise(resnet, channels=256, stride=16, blocks=3, norm=False, several=(2, 3)),
    "resnet18_blocks": Promise(resnet_blocks, channels=256, stride=16, blocks=6, norm=False, several=(2, 5)),
    "convnext": Promise(convnext, channels=32, stride=16, blocks=3, norm=False, several=(1, 2)),
    "sam": Promise(sam, channels=48, stride=16, blocks=3, norm=False, whole=lambda: sam(neck=True).model),
    "hf_dinov2": hf_promise("dinov2"),
    "hf_dinov3": hf_promise("dinov3_vit"),
    "hf_clip": hf_promise("clip_vision_model"),
    "hf_convnext": Promise(
        *(hf_convnext, 32, 16, 3, False), several=(1, 2), whole=lambda: hf_convnext(layers=[-1]).model
    ),
}
FORMULAS = {  # without weights: what is asked of files, blocks and tuning does not concern them
    "sift": Promise(lambda **options: SIFT(**({"size": 64} | options)), channels=128, stride=8, blocks=0, norm=False),
    "hog": Promise(lambda **options: HOG(**({"size": 64} | options)), channels=324, stride=8, blocks=0, norm=False),
    "daisy": Promise(lambda **options: DAISY(**({"size": 64} | options)), channels=200, stride=8, blocks=0, norm=False),
}
IMAGE = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
