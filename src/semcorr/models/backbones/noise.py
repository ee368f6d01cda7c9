"""The noise Stable Diffusion's features are read under: fixed, and as much of it as a timestep says."""

import torch
from jaxtyping import Float
from torch import Tensor

TIMESTEPS, BETAS = 1000, (0.00085, 0.012)  # the schedule of every Stable Diffusion 1 and 2


def add_noise(
    latent: Float[Tensor, "b c h w"], timestep: int, ensemble: int, seed: int
) -> Float[Tensor, "b {ensemble} c h w"]:
    """A latent under `ensemble` noises that depend on `seed` and its shape alone.

    >>> latents = torch.zeros(2, 4, 8, 8)
    >>> torch.equal(*add_noise(latents, timestep=261, ensemble=3, seed=0))
    True
    """
    draw = torch.Generator().manual_seed(seed)  # on the CPU, where it is the same everywhere
    noise = torch.randn(ensemble, *latent.shape[1:], generator=draw).to(latent)
    signal, rest = noise_scales(timestep)
    return signal * latent[:, None] + rest * noise


def noise_scales(timestep: int) -> tuple[float, float]:
    """What a latent and its noise are multiplied by: the roots of alpha bar and of one minus it.

    Alpha bar is the running product of 1 - beta, with betas that are linear in their roots.

    >>> [f"{share:.4f}" for timestep in (0, 261, 999) for share in noise_scales(timestep)]
    ['0.9996', '0.0292', '0.8097', '0.5868', '0.0683', '0.9977']
    """
    betas = torch.linspace(BETAS[0] ** 0.5, BETAS[1] ** 0.5, TIMESTEPS) ** 2
    power = (1 - betas).cumprod(dim=0)[timestep]
    return float(power**0.5), float((1 - power) ** 0.5)
