"""Principal components of two images together: one basis for both."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate


def joint_pca(
    source: Float[Tensor, "b c h w"], target: Float[Tensor, "b c i j"], components: int
) -> tuple[Float[Tensor, "b {components} h w"], Float[Tensor, "b {components} i j"]]:
    """Project both maps of each pair onto the first `components` principal directions of the two together.

    As sd-dino (Zhang et al. 2023) reduces each layer of Stable Diffusion, centred by the common mean; there by
    a randomised decomposition, here by an exact one, so that a pair always gives the same result. The basis is
    a constant to gradients. Where there are fewer directions than `components`, the rest is zero.
    """
    cells = torch.cat((source.flatten(2), target.flatten(2)), dim=2).float()
    centred = cells - cells.mean(dim=2, keepdim=True)
    with torch.no_grad(), torch.autocast(cells.device.type, enabled=False):
        covariance = centred.double() @ centred.double().mT
        basis = torch.linalg.eigh(covariance).eigenvectors[..., -components:].flip(-1)  # ascending, in columns
    reduced = basis.mT.to(centred) @ centred
    a, b = reduced.split((source[0, 0].numel(), target[0, 0].numel()), dim=2)
    return a.unflatten(2, source.shape[2:]).to(source), b.unflatten(2, target.shape[2:]).to(target)


def concatenate_on_finest_grid(maps: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b c h w"]:
    """Concatenate maps on the finest grid, not normalised: the components of each layer have its scale."""
    finest = max((values.shape[-2:] for values in maps), key=lambda size: size[0] * size[1])
    return torch.cat([interpolate(values, size=tuple(finest), mode="bilinear") for values in maps], dim=1)
