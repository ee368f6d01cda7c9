"""Digital artefacts: contrast, saturation, large pixels and strong JPEG compression (ImageNet-C)."""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from jaxtyping import Float
from PIL import Image

from semcorr.data.corruptions.corruption import Corruption

Pixels = Float[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Contrast(Corruption):
    """Lower the contrast."""

    def change(self, image: Pixels, generator: np.random.Generator) -> Pixels:
        """Draw all values towards the mean of their channel."""
        share = (0.4, 0.3, 0.2, 0.1, 0.05)[self.severity - 1]
        means = image.mean((0, 1))
        return (image - means) * share + means


@dataclass(frozen=True)
class Saturate(Corruption):
    """Take colours away (severity 1 and 2) or make them stronger (3 to 5)."""

    def change(self, image: Pixels, generator: np.random.Generator) -> Pixels:
        """Change the saturation of HSV, in which grey is a red of no saturation; hue and value stay unchanged."""
        factor, added = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))[self.severity - 1]
        value, spread = image.max(-1, keepdims=True), np.ptp(image, -1, keepdims=True)
        saturation = spread / np.where(value > 0, value, 1)
        is_colour = saturation > 0
        changed = (saturation * factor + added).clip(0, 1)
        red = np.concatenate((value, value * (1 - changed), value * (1 - changed)), -1)
        return np.where(is_colour, value - (value - image) * changed / np.where(is_colour, saturation, 1), red)


@dataclass(frozen=True)
class Pixelate(Corruption):
    """Lower the resolution: pixels become visible."""

    def change(self, image: Pixels, generator: np.random.Generator) -> Pixels:
        """Average over boxes, and enlarge again."""
        share = (0.6, 0.5, 0.4, 0.3, 0.25)[self.severity - 1]
        picture = _to_picture(image)
        small = (max(1, int(picture.width * share)), max(1, int(picture.height * share)))
        boxed = picture.resize(small, Image.Resampling.BOX).resize(picture.size, Image.Resampling.BOX)
        return np.asarray(boxed, dtype=np.float64) / 255


@dataclass(frozen=True)
class JpegCompression(Corruption):
    """Compress strongly, by JPEG."""

    def change(self, image: Pixels, generator: np.random.Generator) -> Pixels:
        """Compress and decode."""
        quality = (25, 18, 15, 10, 7)[self.severity - 1]
        file = BytesIO()
        _to_picture(image).save(file, "JPEG", quality=quality)
        with Image.open(file) as compressed:
            return np.asarray(compressed, dtype=np.float64) / 255


def _to_picture(image: Pixels) -> Image.Image:
    return Image.fromarray(np.round(image * 255).astype(np.uint8))
