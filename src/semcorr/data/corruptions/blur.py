"""Blur: out of focus, through frosted glass, moved sideways and moved forwards (ImageNet-C)."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage

from semcorr.data.corruptions.corruption import Corruption

Pixels = Float[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class DefocusBlur(Corruption):
    """Blur by a disk, as a lens that is out of focus."""

    def change(self, image: Pixels, generator: np.random.Generator) -> Pixels:
        """Average over a disk; the image goes on mirrored beyond its border."""
        radius, softening = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[self.severity - 1]
        return ndimage.correlate(image, disk_kernel(radius, softening)[..., None], mode="mirror")


@dataclass(frozen=True)
class GlassBlur(Corruption):
    """Blur, move pixels to near places, and blur again, as frosted glass."""

    def change(self, image: Pixels, generator: np.random.Generator) -> Pixels:
        """Blur twice, with pixels displaced in between."""
        deviation, reach, passes = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[self.severity - 1]
        blurred = np.floor(smooth(image, deviation) * 255) / 255
        for _ in range(passes):
            blurred = displace_pixels(blurred, reach, generator)
        return smooth(blurred, deviation)


@dataclass(frozen=True)
class MotionBlur(Corruption):
    """Blur along a line of a random direction, as a camera that moves sideways."""

    def change(self, image: Pixels, generator: np.random.Generator) -> Pixels:
        """Blur along a line within 45 degrees of the horizontal."""
        radius, deviation = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[self.severity - 1]
        return blur_along_line(image, radius, deviation, generator.uniform(-45, 45))


@dataclass(frozen=True)
class ZoomBlur(Corruption):
    """Average over growing magnifications, as a camera that moves forwards."""

    def change(self, image: Pixels, generator: np.random.Generator) -> Pixels:
        """Average the image and its magnifications about its centre."""
        end, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[self.severity - 1]
        factors = np.arange(1, end, step)
        return sum((magnify(image, factor) for factor in factors), image) / (len(factors) + 1)


def disk_kernel(radius: int, softening: float) -> Float[np.ndarray, "k k"]:
    """Return a disk of sum 1 whose edge is softened by a Gaussian of this standard deviation.

    The Gaussian has 3 x 3 cells for a radius of up to 8, and 5 x 5 above, as in ImageNet-C.
    """
    reach, half = (8, 1) if radius <= 8 else (radius, 2)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.float64)
    weights = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * softening**2))
    weights /= weights.sum()
    return ndimage.correlate(disk / disk.sum(), np.outer(weights, weights), mode="mirror")


def smooth(image: Pixels, deviation: float) -> Pixels:
    """Blur by a Gaussian of this standard deviation in pixels, cut off at four of them."""
    return ndimage.gaussian_filter(image, (deviation, deviation, 0), mode="nearest", truncate=4.0)


def displace_pixels(image: Pixels, reach: int, generator: np.random.Generator) -> Pixels:
    """Let each pixel, from the last to the first, take the colour of one at most `reach` pixels away.

    ImageNet-C's code exchanges two views of one array, by which the second keeps its colour: so pixels are copied, not
    exchanged, and a pixel may take a colour that has been moved before. All at once here: the way of a colour is
    followed back by doubling, in as many steps as the logarithm of its length.
    """
    height, width = image.shape[:2]
    rows, columns = np.arange(reach + 1, height - reach + 1), np.arange(reach + 1, width - reach + 1)
    if not len(rows) or not len(columns):
        return image
    steps = generator.integers(-reach, reach, size=(2, len(rows), len(columns)))
    origins = np.arange(height * width).reshape(height, width)
    inside = np.ix_(rows, columns)
    is_moved = np.zeros((height, width), bool)
    is_moved[inside] = True
    origins[inside] = (rows[:, None] + steps[0]) * width + columns + steps[1]
    return image.reshape(-1, 3)[follow_copies(origins.ravel(), is_moved.ravel())].reshape(image.shape)


def follow_copies(origins: Int[np.ndarray, " n"], is_moved: np.ndarray) -> Int[np.ndarray, " n"]:
    """Return whose value each cell has in the end, if cells take their origin's value one by one, the last first.

    Args:
        origins: Index of the cell whose value each cell takes.
        is_moved: Whether a cell takes another's value at all.
    """
    is_open = is_moved & is_moved[origins] & (origins > np.arange(len(origins)))  # the origin has changed before
    while is_open.any():
        origins, is_open = np.where(is_open, origins[origins], origins), is_open & is_open[origins]
    return origins


def blur_along_line(
    image: Float[np.ndarray, "h w *c"], radius: int, deviation: float, degrees: float
) -> Float[np.ndarray, "h w *c"]:
    """Blur along a line by the falling half of a Gaussian; beyond its border the image goes on as its border.

    As ImageMagick's motion blur: 2 radius + 1 weights, and steps rounded to whole pixels.

    Args:
        image: The image.
        radius: Half the length of the line, in pixels.
        deviation: Standard deviation of the Gaussian, in pixels.
        degrees: Direction of the line; 0 is horizontal.
    """
    count, angle = 2 * radius + 1, math.radians(degrees)
    weights = np.exp(-(np.arange(count) ** 2) / (2 * deviation**2))
    height, width = image.shape[:2]
    blurred = np.zeros_like(image)
    for i, weight in enumerate(weights / weights.sum()):
        down, right = math.ceil(i * math.sin(angle) - 0.5), math.ceil(i * math.cos(angle) - 0.5)
        rows, columns = (np.arange(height) + down).clip(0, height - 1), (np.arange(width) + right).clip(0, width - 1)
        blurred += weight * image[rows[:, None], columns]
    return blurred


def magnify(image: Float[np.ndarray, "h w *c"], factor: float) -> Float[np.ndarray, "h w *c"]:
    """Magnify an image about its centre, bilinearly, without changing its size."""
    height, width = image.shape[:2]
    crop = [math.ceil(side / factor) for side in (height, width)]
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    middle = image[top : top + crop[0], left : left + crop[1]]
    zoomed = ndimage.zoom(middle, (factor, factor, *[1] * (image.ndim - 2)), order=1)
    top, left = (zoomed.shape[0] - height) // 2, (zoomed.shape[1] - width) // 2
    return zoomed[top : top + height, left : left + width]
