"""The noise under which Stable Diffusion's features are computed: fixed, and scaled by a timestep."""

import torch
from jaxtyping import Float
from torch import Tensor

TIMESTEPS, BETAS = 1000, (0.00085, 0.012)  # the schedule of every Stable Diffusion 1 and 2


def add_noise(
    latent: Float[Tensor, "b c h w"], timestep: int, ensemble: int, seed: int
) -> Float[Tensor, "b {ensemble} c h w"]:
    """Add `ensemble` noises, which depend on `seed` and the latent's shape alone, to each latent.

    >>> latents = torch.zeros(2, 4, 8, 8)
    >>> torch.equal(*add_noise(latents, timestep=261, ensemble=3, seed=0))
    True
    """
    generator = torch.Generator().manual_seed(seed)  # on the CPU, where it is the same everywhere
    noise = torch.randn(ensemble, *latent.shape[1:], generator=generator).to(latent)
    signal_scale, noise_scale = noise_scales(timestep)
    return signal_scale * latent[:, None] + noise_scale * noise


def noise_scales(timestep: int) -> tuple[float, float]:
    """Return the factors of a latent and of its noise: the roots of alpha bar and of one minus it.

    Alpha bar is the running product of 1 - beta, with betas that are linear in their roots.

    >>> [f"{share:.4f}" for timestep in (0, 261, 999) for share in noise_scales(timestep)]
    ['0.9996', '0.0292', '0.8097', '0.5868', '0.0683', '0.9977']
    """
    betas = torch.linspace(BETAS[0] ** 0.5, BETAS[1] ** 0.5, TIMESTEPS) ** 2
    alpha_bar = (1 - betas).cumprod(dim=0)[timestep]
    return float(alpha_bar**0.5), float((1 - alpha_bar) ** 0.5)
