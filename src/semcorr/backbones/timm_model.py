"""Any timm model as a backbone: Vision Transformers and convolutional networks alike."""

import re
import sys
from collections.abc import Sequence
from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from semcorr.backbones.layers import concatenate, indices
from semcorr.backbones.weights import fill, read_weights, sha256
from semcorr.errors import UserError
from semcorr.types import FeatureMap


class TimmModel(nn.Module):
    """Dense features of a timm model.

    Args:
        name: timm's name, with or without the tag of its weights.
        size: Side of the square images are resized to, in pixels.
        pretrained: Download the weights by name. Without them, and without `weights`, they are random.
        weights: A local file instead: timm's own layout, or any that timm knows how to convert.
        layers: Which blocks' (transformers) or stages' (convolutional networks) outputs to read;
            negatives count from the end.
        norm: Apply a transformer's final LayerNorm to what is read. DINOv2's own feature extractor and
            the unified benchmark do, GeoAware-SC does not.
        options: Anything else timm's constructor takes.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        size: int,
        pretrained: bool = True,
        weights: str | None = None,
        layers: Sequence[int] = (-1,),
        norm: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        model: Any = create(name, pretrained and weights is None, **options)
        if weights is not None:
            fill(model, _converted(model, read_weights(weights)), weights)
        self.name, self.size, self.sha256 = name, size, sha256(model)
        self.layers = indices(layers, len(model.feature_info))
        info = [model.feature_info[i] for i in self.layers]
        self.channels = sum(entry["num_chs"] for entry in info)
        self.stride = min(int(entry["reduction"]) for entry in info)
        self.multiple = max(int(entry["reduction"]) for entry in info)
        if size % self.multiple:
            raise UserError(f"`backbone.size` must be a multiple of {self.multiple} for {name}, got {size}")
        self.apply_norm = norm
        model.prune_intermediate_layers(self.layers, prune_norm=not norm, prune_head=True)
        self.model: Any = model.to(memory_format=torch.channels_last)  # convolutions: 1.4 times faster on a CPU
        self.register_buffer("mean", torch.tensor(model.pretrained_cfg["mean"])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(model.pretrained_cfg["std"])[:, None, None], persistent=False)

    @property
    def blocks(self) -> list[nn.Module]:
        """Transformer blocks or stages, up to the last layer read."""
        return units(self.model, self.model.feature_info[self.layers[-1]]["module"])

    @property
    def norm(self) -> nn.Module | None:
        """The final LayerNorm, where there is one and it is applied."""
        return getattr(self.model, "norm", None) if self.apply_norm else None

    def forward(self, image: Float[Tensor, "b 3 height width"]) -> FeatureMap:
        """RGB in [0, 1] to features."""
        maps = self.model.forward_intermediates(
            (image - self.mean) / self.std,
            indices=self.layers,
            norm=self.apply_norm,
            output_fmt="NCHW",
            intermediates_only=True,
            stop_early=True,
        )
        return FeatureMap(concatenate(maps), self.stride)


def create(name: str, pretrained: bool, **options: Any) -> nn.Module:
    """Build a timm model for any image size, or say why not."""
    if not timm.is_model(name.split(".")[0]):
        near = timm.list_models(f"*{name.split('.')[0][:12]}*")[:3]
        raise UserError(f"timm has no model {name!r}." + (f" It has {', '.join(near)}." if near else ""))
    try:
        return _create(name, pretrained, **options)
    except (OSError, RuntimeError) as error:  # every failure of the hub client is one of the two
        if not pretrained:
            raise
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"The weights of {name} could not be downloaded ({reason}). Three ways out: connect to the internet and "
            "run again, or download them elsewhere and set HF_HUB_CACHE to that cache; backbone.weights=FILE with "
            "a local file; backbone.pretrained=false for random weights."
        ) from error


def units(model: nn.Module, last: str) -> list[nn.Module]:
    """The module named `last` and its numbered siblings before it.

    `blocks.4` gives blocks 0 to 4 of a list; `layer3` gives layer1 to layer3.
    """
    path, stem = re.sub(r"\d+$", "", last).rpartition(".")[::2]
    children = dict(model.get_submodule(path).named_children())
    siblings = [(int(key[len(stem) :]), child) for key, child in children.items() if re.fullmatch(rf"{stem}\d+", key)]
    end = int(last[len(last) - len(re.search(r"\d+$", last)[0]) :])  # type: ignore[index]
    return [child for number, child in siblings if number <= end]


def _create(name: str, pretrained: bool, **options: Any) -> nn.Module:
    try:  # transformers: position embeddings for any image size
        return timm.create_model(name, pretrained=pretrained, num_classes=0, dynamic_img_size=True, **options)
    except TypeError:  # convolutional networks take any size as they are
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)


def _converted(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Through timm's own converter for official checkpoints of this family, where it has one."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    return convert(weights, model) if convert else weights
