"""What all corruptions share: severity, which images of a pair, and randomness that depends on the image alone.

Strengths are those of ImageNet-C (Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations"), as the authors' code has them; lengths are pixels of the image as it is stored, as in
Michaelis et al. 2019 ("Benchmarking Robustness in Object Detection"), whatever its size. No corruption moves a point.
"""

import hashlib
import re
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Annotated

import numpy as np
from jaxtyping import Float
from PIL import Image

from semcorr.core.errors import UserError
from semcorr.core.ranges import Range, Seed, require_fields
from semcorr.core.text_files import JsonObject

SEVERITIES = (1, 2, 3, 4, 5)
IMAGES = ("both", "target")
ROUNDING = 1e-6  # x / 255 * 255 may be a little less than x, and is rounded down
Severity = Annotated[int, Range(least=SEVERITIES[0], most=SEVERITIES[-1])]


def name_corruption(target: str) -> str:
    """Return the name of a corruption for a reader, from its class or the path of it.

    >>> name_corruption("semcorr.data.corruptions.noise.GaussianNoise")
    'gaussian noise'
    """
    return re.sub(r"(?<!^)(?=[A-Z])", " ", target.rpartition(".")[2]).lower()


class Uncorrupted:
    """Leave images as they are."""


@dataclass(frozen=True)
class Corruption(ABC):
    """Change images by one kind of corruption. A kind defines `change`.

    Args:
        severity: Strength, from 1, the weakest, to 5.
        images: Which images of a pair are changed: `both`, or the `target` alone.
        seed: Seed of what is random, together with the image's name.
    """

    severity: Severity = 3
    images: str = "both"
    seed: Seed = 0

    def __post_init__(self) -> None:
        """Refuse values outside of their range."""
        require_fields(self, "corrupt")
        if self.images not in IMAGES:
            raise UserError(f"`corrupt.images` must be one of {', '.join(IMAGES)}, got {self.images!r}")

    @abstractmethod
    def change(self, image: Float[np.ndarray, "h w 3"], generator: np.random.Generator) -> Float[np.ndarray, "h w 3"]:
        """Return the corrupted image; values below 0 and above 1 are cut off afterwards.

        Args:
            image: Red, green and blue, from 0 to 1. It is not to be written to.
            generator: Source of everything random.
        """

    def identity(self, name: str) -> str:
        """Return a text that is the same for the same change of the image of this name, and for no other."""
        kind = type(self)
        return f"{kind.__module__}.{kind.__qualname__}/{self.severity}/{self.seed}/{name}"

    def to_dict(self) -> JsonObject:
        """Return the kind, by its name for a reader, and the options, as metrics.json has them."""
        return {"kind": name_corruption(type(self).__name__), **asdict(self)}

    def __call__(self, image: Image.Image, name: str) -> Image.Image:
        """Return the corrupted picture, in bytes rounded down as ImageNet-C's are.

        Args:
            image: The picture in RGB.
            name: The image's name, on which its noise depends.
        """
        digest = hashlib.sha256(self.identity(name).encode()).digest()
        generator = np.random.default_rng(int.from_bytes(digest[:16], "little"))
        changed = self.change(np.asarray(image, dtype=np.float64) / 255, generator)
        return Image.fromarray((changed.clip(0, 1) * 255 + ROUNDING).astype(np.uint8))
