"""The backbone of ../shared/facts/rivals: SqueezeNet through a fixed random projection, of any view and grid."""

import torch
from torch.nn.functional import interpolate, layer_norm

from semcorr.core.types import BackboneState, FeatureMap
from semcorr.models.backbones.squeezenet import SqueezeNet

CHANNELS = 64


class ProjectedSqueezeNet(SqueezeNet):
    """Maps of 64 channels whose lengths differ; image by image, so that a batch does not change a bit.

    Args:
        view: Side of the square that images come in, in pixels.
        cells: Cells along a side of the map.
        inner: Side at which SqueezeNet sees the square.
        weights: Its weight file.
        layernorm: Normalise every cell as a LayerNorm without weights does.
    """

    def __init__(self, view, cells, inner, weights, layernorm=False):
        super().__init__(size=inner, weights=weights, layers=(-1,))
        self.inner, self.cells, self.layernorm = inner, cells, layernorm
        self.size, self.stride = view, view / cells
        mix = torch.randn(CHANNELS, self.channels, generator=torch.Generator().manual_seed(0)) / 8
        self.register_buffer("mix", mix, persistent=False)
        self.channels = CHANNELS

    def prefix(self, image, depth):
        parts = [
            super(ProjectedSqueezeNet, self).prefix(
                interpolate(one[None], (self.inner, self.inner), mode="bilinear"), depth
            )
            for one in image
        ]
        values = {key: torch.cat([part.values[key] for part in parts]) for key in parts[0].values}
        return BackboneState(values, parts[0].size)

    def suffix(self, state, depth):
        maps = []
        for i in range(len(next(iter(state.values.values())))):
            one = BackboneState({key: value[i : i + 1] for key, value in state.values.items()}, state.size)
            values = torch.einsum("oc,bchw->bohw", self.mix, super().suffix(one, depth).values)
            if values.shape[-1] != self.cells:
                values = interpolate(values, (self.cells, self.cells), mode="bilinear")
            if self.layernorm:
                values = layer_norm(values.movedim(1, -1), (CHANNELS,), eps=1e-6).movedim(-1, 1).contiguous()
            maps.append(values)
        return FeatureMap(torch.cat(maps), self.stride)
