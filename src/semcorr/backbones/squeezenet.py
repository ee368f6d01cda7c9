"""SqueezeNet 1.1 (torchvision): 1.2 million parameters, features at stride 16."""

from collections.abc import Sequence
from urllib.error import URLError

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

from semcorr.backbones.layers import concatenate, indices
from semcorr.backbones.weights import fill, read_weights, sha256
from semcorr.errors import UserError
from semcorr.types import FeatureMap

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FIRE = (3, 4, 6, 7, 9, 10, 11, 12)  # places of the eight fire modules in torchvision's `features`
STRIDES = (4, 4, 8, 8, 16, 16, 16, 16)
CHANNELS = (128, 128, 256, 256, 384, 384, 512, 512)


class SqueezeNet(nn.Module):
    """The convolutional part of torchvision's `squeezenet1_1`.

    Args:
        size: Side of the square images are resized to, in pixels.
        pretrained: Download torchvision's ImageNet weights.
        weights: A local file instead, with `features.`'s keys, prefixed or not.
        layers: Which of the eight fire modules to read.
    """

    name = "squeezenet1_1"
    mean: Tensor
    std: Tensor

    def __init__(
        self, size: int, pretrained: bool = True, weights: str | None = None, layers: Sequence[int] = (-1,)
    ) -> None:
        super().__init__()
        self.features = squeezenet1_1().features
        if weights is not None:
            content = {key.removeprefix("features."): value for key, value in read_weights(weights).items()}
            fill(self.features, content, weights)
        elif pretrained:
            self.features.load_state_dict(_download())
        self.features.to(memory_format=torch.channels_last)
        self.size, self.sha256 = size, sha256(self.features)
        self.layers = indices(layers, len(FIRE))
        self.features = self.features[: FIRE[self.layers[-1]] + 1]
        self.channels = sum(CHANNELS[i] for i in self.layers)
        self.stride = min(STRIDES[i] for i in self.layers)
        self.blocks: list[nn.Module] = [self.features[i] for i in FIRE[: self.layers[-1] + 1]]
        self.norm = None
        if size % 16:
            raise UserError(f"`backbone.size` must be a multiple of 16 for {self.name}, got {size}")
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def forward(self, image: Float[Tensor, "b 3 height width"]) -> FeatureMap:
        """RGB in [0, 1] to features.

        Nothing in this network pads, so a cell of stride s sees the pixels around s - 1 and not around
        its own centre (s - 1) / 2: half a cell too far. Padding by half a stride puts that right to half
        a pixel, and gives exactly size / stride cells; hence a pass for every stride that is read.
        """
        normalised, maps = (image - self.mean) / self.std, []
        for stride in sorted({STRIDES[i] for i in self.layers}):
            read = [FIRE[i] for i in self.layers if STRIDES[i] == stride]
            x = pad(normalised, (stride // 2,) * 4)
            for i, module in enumerate(self.features[: read[-1] + 1]):
                x = module(x)
                if i in read:
                    maps.append(x)
        return FeatureMap(concatenate(maps), self.stride)


def _download() -> dict[str, Tensor]:
    try:
        state = SqueezeNet1_1_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError) as error:
        raise UserError(
            f"The weights of squeezenet1_1 could not be downloaded ({error}). Three ways out: connect to the internet "
            "and run again; backbone.weights=FILE with a local file; backbone.pretrained=false for random weights."
        ) from error
    return {k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")}
