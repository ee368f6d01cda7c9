"""Weather: snow, fog and glaring light (ImageNet-C)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from semcorr.data.colours import LUMA_WEIGHTS
from semcorr.data.corruptions.blur import blur_along_line, magnify
from semcorr.data.corruptions.corruption import Corruption

Pixels = Float[np.ndarray, "h w 3"]
ROUGHNESS = 100.0  # of the first steps of a plasma


@dataclass(frozen=True)
class Snow(Corruption):
    """Whiten the image, and let flakes fall on it."""

    def change(self, image: Pixels, generator: np.random.Generator) -> Pixels:
        """Add flakes, and the same turned by 180 degrees: magnified noise above a threshold, blurred downwards."""
        mean, deviation, factor, threshold, radius, length, share = (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        )[self.severity - 1]
        flakes = magnify(generator.normal(mean, deviation, image.shape[:2]), factor)
        flakes = np.floor(np.where(flakes < threshold, 0, flakes).clip(0, 1) * 255) / 255
        flakes = blur_along_line(flakes, int(radius), length, generator.uniform(-135, -45))
        flakes = np.round(flakes * 255) / 255
        white = np.maximum(image, (image @ LUMA_WEIGHTS)[..., None] * 1.5 + 0.5)
        return share * image + (1 - share) * white + (flakes + flakes[::-1, ::-1])[..., None]


@dataclass(frozen=True)
class Fog(Corruption):
    """Cover the image by clouds."""

    def change(self, image: Pixels, generator: np.random.Generator) -> Pixels:
        """Add a plasma and scale the brightest value back to what it was."""
        density, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[self.severity - 1]
        height, width = image.shape[:2]
        plasma = draw_plasma(1 << (max(height, width, 2) - 1).bit_length(), decay, generator)[:height, :width, None]
        brightest = image.max()
        return (image + density * plasma) * brightest / (brightest + density)


@dataclass(frozen=True)
class Brightness(Corruption):
    """Brighten the image, as glaring light does."""

    def change(self, image: Pixels, generator: np.random.Generator) -> Pixels:
        """Add to the value of HSV; hue and saturation stay unchanged."""
        added = (0.1, 0.2, 0.3, 0.4, 0.5)[self.severity - 1]
        value = image.max(-1, keepdims=True)
        brighter = (value + added).clip(0, 1)
        return np.where(value > 0, image * brighter / np.where(value > 0, value, 1), brighter)


def draw_plasma(side: int, decay: float, generator: np.random.Generator) -> Float[np.ndarray, "s s"]:
    """Draw a fractal from 0 to 1 on a torus, by the diamond-square algorithm.

    Args:
        side: Side of the fractal, a power of two of at least 2.
        decay: Roughness of each step, over that of the next finer one.
        generator: Source of everything random.
    """
    plasma, step, roughness = np.zeros((side, side)), side, ROUGHNESS

    def jitter(total: Float[np.ndarray, "a b"]) -> Float[np.ndarray, "a b"]:
        """Return the mean of four, with noise; the published code multiplies by the roughness twice."""
        return total / 4 + roughness * generator.uniform(-roughness, roughness, total.shape)

    while step >= 2:
        half = step // 2
        corners = plasma[::step, ::step]
        rows = corners + np.roll(corners, -1, axis=0)
        plasma[half::step, half::step] = jitter(rows + np.roll(rows, -1, axis=1))
        centres = plasma[half::step, half::step]
        beside, above = corners + np.roll(corners, -1, axis=1), centres + np.roll(centres, 1, axis=0)
        plasma[::step, half::step] = jitter(beside + above)
        below, around = corners + np.roll(corners, -1, axis=0), centres + np.roll(centres, 1, axis=1)
        plasma[half::step, ::step] = jitter(below + around)
        step, roughness = half, roughness / decay
    plasma -= plasma.min()
    return plasma / plasma.max()
