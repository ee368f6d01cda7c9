"""What of Stable Diffusion runs how often, and its features of pairs the slow way: pair by pair, all again."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from semcorr.core.types import FeatureMap
from semcorr.models.backbones.diffusion import StableDiffusion
from semcorr.models.backbones.features import concatenate_layers


@dataclass
class Passes:
    """Images in each call of the autoencoder and of the UNet."""

    vae: list[int] = field(default_factory=list)
    unet: list[int] = field(default_factory=list)


@contextmanager
def count_passes(module: nn.Module) -> Iterator[Passes]:
    """Count the images that go through the one Stable Diffusion in a module, which must have one noise."""
    passes = Passes()
    (network,) = (part for part in module.modules() if isinstance(part, StableDiffusion))
    assert network.ensemble == 1
    hooks = [
        network.encoder.register_forward_pre_hook(lambda _, given: passes.vae.append(len(given[0]))),
        network.conv_in.register_forward_pre_hook(lambda _, given: passes.unet.append(len(given[0]))),
    ]
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()


def slow_joint_pca(source: Tensor, target: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """Principal components of the cells of one pair, side by side and in double precision.

    Their sign is that with which the largest entry of their direction is positive.
    """
    (first, second), split = (maps[0].flatten(1).T.double() for maps in (source, target)), source[0, 0].numel()
    cells = torch.cat((first, second))
    cells = cells - cells.mean(0)
    directions = torch.linalg.eigh(cells.T @ cells).eigenvectors.flip(-1)[:, :components]
    for column in range(components):
        if directions[directions[:, column].abs().argmax(), column] < 0:
            directions[:, column] *= -1
    reduced = (cells @ directions).float()
    a, b = reduced[:split].T.reshape(1, -1, *source.shape[2:]), reduced[split:].T.reshape(1, -1, *target.shape[2:])
    return a, b


class PixelPairs(StableDiffusion):
    """Sees the pixels of each pair, one at a time: nothing is kept of an image, nothing is shared."""

    pairwise = True
    joint = False

    @torch.no_grad()
    def pair(self, source: Tensor, target: Tensor) -> tuple[FeatureMap, FeatureMap]:
        pairs = [self.pair_alone(source[i, None], target[i, None]) for i in range(len(source))]
        a, b = (torch.cat(maps) for maps in zip(*pairs, strict=True))
        return FeatureMap(a, self.stride), FeatureMap(b, self.stride)

    def pair_alone(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        text = self.prompt(*map(self.prompt.encode_cells, (source, target))) if self.prompt.pairwise else self.prompt()
        layers = [self._read(self.encode(image), text) for image in (source, target)]
        unit = self.components is None and self.unit_layers
        if self.components is not None:
            layers = list(
                zip(*(slow_joint_pca(x, y, self.components) for x, y in zip(*layers, strict=True)), strict=True)
            )
        a, b = (concatenate_layers(maps, unit) for maps in layers)
        return a, b
