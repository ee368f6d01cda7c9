"""A backbone whose descriptors are the pixels themselves."""

import torch
from torch.nn.functional import pixel_unshuffle

from semcorr.core.interfaces import Backbone
from semcorr.core.types import BackboneState, FeatureMap


class Patches(Backbone):
    """The pixels of each 8 x 8 patch as its descriptor: as distinctive as the image is."""

    name, size, stride, channels, widths, blocks, norm, sha256 = "patches", 96, 8, 192, (192,), (), None, ""
    lora_targets, pairwise = (), False

    def forward(self, image: torch.Tensor) -> FeatureMap:
        return self.suffix(self.prefix(image, 0), 0)

    def prefix(self, image: torch.Tensor, depth: int) -> BackboneState:
        return BackboneState({"0": pixel_unshuffle(image - 0.5, self.stride)}, image.shape[-2:])

    def suffix(self, state: BackboneState, depth: int) -> FeatureMap:
        return FeatureMap(state.values["0"], self.stride)
