"""Noise: independent errors of every value of every pixel (ImageNet-C)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from semcorr.data.corruptions.corruption import Corruption

Pixels = Float[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class GaussianNoise(Corruption):
    """Add normal noise, as sensors do in low light."""

    def change(self, image: Pixels, generator: np.random.Generator) -> Pixels:
        """Add noise of a fixed standard deviation."""
        deviation = (0.08, 0.12, 0.18, 0.26, 0.38)[self.severity - 1]
        return image + generator.normal(scale=deviation, size=image.shape)


@dataclass(frozen=True)
class ShotNoise(Corruption):
    """Count photons: each value is drawn from a Poisson distribution."""

    def change(self, image: Pixels, generator: np.random.Generator) -> Pixels:
        """Draw the number of photons, of which white has a fixed mean number."""
        photons = (60, 25, 12, 5, 3)[self.severity - 1]
        return generator.poisson(image * photons) / photons


@dataclass(frozen=True)
class ImpulseNoise(Corruption):
    """Replace a share of the values by 0 or 1, as bit errors do: salt and pepper in colour."""

    def change(self, image: Pixels, generator: np.random.Generator) -> Pixels:
        """Replace values, each by itself, by 0 or 1 with the same chance."""
        share = (0.03, 0.06, 0.09, 0.17, 0.27)[self.severity - 1]
        is_replaced, is_salt = generator.random(image.shape) <= share, generator.random(image.shape) <= 0.5
        return np.where(is_replaced, is_salt.astype(image.dtype), image)
