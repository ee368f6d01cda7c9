"""SqueezeNet 1.1 (torchvision): 1.2 million parameters, features at stride 16."""

from collections.abc import Sequence
from urllib.error import URLError

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

from semcorr.core.interfaces import Backbone
from semcorr.core.ranges import check_arguments
from semcorr.core.types import BackboneState, FeatureMap, ImageMaps
from semcorr.models.backbones.features import concatenate_layers, normalise_layer_indices
from semcorr.models.backbones.sequential import CellGrid, default_lora_targets
from semcorr.models.weights.checkpoints import read_weights
from semcorr.models.weights.hub import download_error
from semcorr.models.weights.loading import load_weights, weights_sha256
from semcorr.models.weights.networks import recognise_weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FIRE = (3, 4, 6, 7, 9, 10, 11, 12)  # indices of the eight fire modules in torchvision's `features`
STRIDES = (4, 4, 8, 8, 16, 16, 16, 16)
CHANNELS = (128, 128, 256, 256, 384, 384, 512, 512)


class SqueezeNet(Backbone):
    """The convolutional part of torchvision's `squeezenet1_1`.

    Nothing in this network pads, so a cell of stride s sees the pixels around s - 1 and not around its
    own centre (s - 1) / 2: half a cell too far. Padding by half a stride puts that right to half a
    pixel, and gives exactly size / stride cells; hence a pass for every stride that is read.

    Args:
        size: Side of the square images are resized to, in pixels.
        grid: Cells along the side of an image, given instead of `size`.
        pretrained: Download torchvision's ImageNet weights. If false, and without `weights`, they are random.
        weights: Local file to read instead, with the keys of `features`, with that prefix or without.
        layers: Fire modules, of eight, whose outputs are read; negative numbers count from the end.
    """

    name = "squeezenet1_1"
    norm = None
    pairwise = False
    mean: Tensor
    std: Tensor

    @check_arguments("backbone")
    def __init__(
        self,
        size: int | None,
        grid: int | None = None,
        pretrained: bool = True,
        weights: str | None = None,
        layers: Sequence[int] = (-1,),
    ) -> None:
        super().__init__()
        self.layers, self.layer_choices = normalise_layer_indices(layers, len(FIRE)), range(len(FIRE))
        self.widths = [CHANNELS[i] for i in self.layers]
        self.channels = sum(self.widths)
        self.strides = sorted({STRIDES[i] for i in self.layers})
        self.stride = self.strides[0]
        self.size = CellGrid(self.stride, 16).side(self.name, size, grid)
        state = None if weights is None else read_weights(weights)
        full = squeezenet1_1().features
        self.features = full[: FIRE[self.layers[-1]] + 1]
        if weights is not None and state is not None:
            content = {key.removeprefix("features."): value for key, value in state.items()}
            diagnosis = "" if any("squeeze" in key for key in state) else recognise_weights(state)
            load_weights(self.features, content, weights, spare=set(full.state_dict()), diagnosis=diagnosis)
        elif pretrained:
            load_weights(self.features, _download(), self.name, spare=set(full.state_dict()))
        self.features.to(memory_format=torch.channels_last)
        self.sha256 = weights_sha256(self.features)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    @property
    def blocks(self) -> list[nn.Module]:
        """The fire modules, up to the last one read."""
        return [self.features[i] for i in FIRE[: self.layers[-1] + 1]]

    @property
    def lora_targets(self) -> list[str]:
        """The names of all convolutions of a fire module."""
        return default_lora_targets(self.blocks)

    def forward(self, image: Float[Tensor, "b 3 height width"]) -> FeatureMap:
        """Compute the features of RGB images in [0, 1]."""
        return self.suffix(self.prefix(image, 0), 0)

    def read_maps(self, image: Float[Tensor, "b 3 height width"]) -> ImageMaps:
        """Compute the maps of all layers, each on its own grid."""
        return self.finish_maps(self.prefix(image, 0), 0)

    def join_maps(self, maps: ImageMaps) -> FeatureMap:
        """Concatenate the maps of all layers."""
        layers = [maps.values[f"layer{i}"] for i in self.layers]
        return FeatureMap(concatenate_layers(layers, self.unit_layers), self.stride)

    def prefix(self, image: Float[Tensor, "b 3 height width"], depth: int) -> BackboneState:
        """Compute the stem and the first `depth` fire modules, of each pass."""
        values: dict[str, Tensor] = {}
        normalised = (image - self.mean) / self.std
        for stride in self.strides:
            values |= self._run(pad(normalised, (stride // 2,) * 4), stride, 0, self._next_module(depth))
        return BackboneState(values, (image.shape[-2], image.shape[-1]))

    def suffix(self, state: BackboneState, depth: int) -> FeatureMap:
        """Compute the features from the state after `depth` fire modules."""
        return self.join_maps(self.finish_maps(state, depth))

    def finish_maps(self, state: BackboneState, depth: int) -> ImageMaps:
        """Compute the maps of all layers from the state after `depth` fire modules."""
        values = dict(state.values)
        for stride in self.strides:
            values |= self._run(values[f"stride{stride}"], stride, self._next_module(depth), len(self.features))
        return ImageMaps({f"layer{i}": values[f"layer{i}"] for i in self.layers})

    def _run(self, x: Tensor, stride: int, start: int, end: int) -> dict[str, Tensor]:
        """Run the modules from `start` to before `end` in the pass for one stride, and record the layers among them."""
        layer_keys = {FIRE[i]: f"layer{i}" for i in self.layers if STRIDES[i] == stride}
        values = {}
        for i in range(start, min(end, max(layer_keys) + 1)):
            x = self.features[i](x)
            if i in layer_keys:
                values[layer_keys[i]] = x
        return values | {f"stride{stride}": x}

    def _next_module(self, depth: int) -> int:
        """Return the first module not yet run after `depth` fire modules."""
        return FIRE[depth - 1] + 1 if depth else FIRE[0]


def _download() -> dict[str, Tensor]:
    """Download torchvision's weights, and return those of `features`."""
    official = SqueezeNet1_1_Weights.IMAGENET1K_V1
    try:
        state = official.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:  # RuntimeError: another file than the official one
        raise download_error(error, SqueezeNet.name, file=official.url) from error
    return {k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")}
