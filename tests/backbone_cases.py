"""Tiny backbones with random weights, always the same for a seed: one row for each kind, for every contract test."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from semcorr.backbones import Backbone
from semcorr.backbones.efficientnet_lite0 import EfficientNetLite0
from semcorr.backbones.squeezenet import SqueezeNet
from semcorr.backbones.timm_model import TimmModel

VIT = {"patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
DINOV3 = {"embed_dim": 48, "depth": 3, "num_heads": 3}
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


def lite0(seed: int = 0, **options: object) -> EfficientNetLite0:
    torch.manual_seed(seed)
    return EfficientNetLite0(**({"size": 64, "pretrained": False} | options)).eval()


class Promise(NamedTuple):
    """How to build one, and what its contract test expects of it."""

    build: Callable[..., Backbone]  # build(seed=0, **options)
    channels: int
    stride: int
    blocks: int
    norm: bool
    several: tuple[int, int] = (1, -1)  # two layers to read at once


PROMISES = {
    "tiny": Promise(tiny, channels=48, stride=8, blocks=4, norm=True),
    "dinov3": Promise(dinov3, channels=48, stride=16, blocks=3, norm=True),
    "squeezenet": Promise(squeezenet, channels=512, stride=16, blocks=8, norm=False, several=(3, 6)),
    "efficientnet_lite0": Promise(lite0, channels=112, stride=16, blocks=5, norm=False, several=(2, 3)),
    "resnet18": Promise(resnet, channels=256, stride=16, blocks=3, norm=False, several=(2, 3)),
    "convnext": Promise(convnext, channels=32, stride=16, blocks=3, norm=False, several=(1, 2)),
}
IMAGE = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
