"""Hand-crafted descriptors on a grid of cells, upright and without weights: SIFT, HOG and DAISY.

Each counts the orientations of gradients around the middle of every cell, near it and further away. What a pixel counts
depends only on its distance from that cell along x and along y, so all cells are two products of matrices.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from semcorr.core.device import full_float32
from semcorr.core.interfaces import Backbone
from semcorr.core.ranges import Range, check_arguments
from semcorr.core.types import BackboneState, FeatureMap
from semcorr.models.backbones.sequential import CellGrid

Stride = Annotated[int, Range(least=1, most=128)]
Window = Annotated[int, Range(least=4, most=1024)]
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601
SEEN = 0.5  # blur of any image, in pixels, as Lowe assumes it
CLIP = 0.2  # of a unit descriptor: no single strong edge decides
# Mean gradient under a histogram's weights below which it is of rounding alone. SIFT's blur of one colour leaves up to
# 3e-8. An edge of 1/255 is 5e-6 or more in a window of 1024; a single pixel of 1/255 is seen in small windows only.
FLAT = 2e-7


class HandCrafted(Backbone, ABC):
    """A descriptor of the pixels around the middle of every cell. There is nothing in it to be trained.

    Args:
        size: Side of the square images are resized to, in pixels.
        grid: Cells along the side of an image, given instead of `size`.
        stride: Pixels between the middles of two cells.
        window: Side of the square that a descriptor looks at, in pixels.
    """

    norm = None
    pairwise = False

    @check_arguments("backbone")
    def __init__(self, size: int | None, grid: int | None = None, stride: Stride = 8, window: Window = 96) -> None:
        super().__init__()
        self.stride, self.window, self.widths = stride, window, [self.channels]
        self.size = CellGrid(stride, stride).side(self.name, size, grid)
        self.sha256 = hashlib.sha256(f"{self.name} stride {stride} window {window}".encode()).hexdigest()

    @property
    def blocks(self) -> list[nn.Module]:
        """No blocks: a formula has nothing to be trained."""
        return []

    @property
    def lora_targets(self) -> list[str]:
        """No names: a formula has no layers to be adapted."""
        return []

    @abstractmethod
    def describe(self, image: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b _ h w"]:
        """Compute the descriptor of every cell."""

    def forward(self, image: Float[Tensor, "b 3 height width"]) -> FeatureMap:
        """Compute the descriptors of RGB images in [0, 1], in single precision at least.

        A gradient is a small difference of large numbers, of which bfloat16 keeps 8 bits: autocast is left.
        """
        with full_float32(image.device.type):
            values = self.describe(image.to(torch.promote_types(image.dtype, torch.float32)))
        return FeatureMap(values, self.stride)

    def prefix(self, image: Float[Tensor, "b 3 height width"], depth: int) -> BackboneState:
        """Return the image: there are no blocks to run before the rest, so `depth` must be 0."""
        if depth:
            raise ValueError(f"{self.name} has no blocks to be cut after, got depth {depth}")
        return BackboneState({"image": image}, (image.shape[-2], image.shape[-1]))

    def suffix(self, state: BackboneState, depth: int) -> FeatureMap:
        """Compute the descriptors of the images in the state."""
        return self(state.values["image"])


class SIFT(HandCrafted):
    """SIFT's descriptor (Lowe 2004, section 6): 4 x 4 histograms of 8 orientations, under a Gaussian window.

    Every cell is a keypoint of the scale that the window is made for, three times its blur to a histogram, and upright.
    """

    name = "sift"
    channels = 4 * 4 * 8

    def describe(self, image: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b 128 h w"]:
        """Compute the descriptor of every cell: at unit length, clipped, and at unit length again."""
        side = self.window / 4  # of a histogram
        grey = blur(to_grey(image), math.sqrt(max((side / 3) ** 2 - SEEN**2, 0)))
        votes = vote(*gradients(grey), bins=8, period=2 * math.pi)
        rows, columns = (self.weigh(pixel_distances(pixels, self.stride, image)) for pixels in image.shape[-2:])
        histograms = pool_outer(votes, rows, columns)
        weight = rows.sum((0, 2))[:, None] * columns.sum((0, 2))
        return clip_and_normalise(histograms.flatten(1, 3), weight, dim=1)

    def weigh(self, distances: Float[Tensor, "cells pixels"]) -> Float[Tensor, "4 cells pixels"]:
        """Compute the share of a pixel in each of four histograms, which is linear between their middles."""
        side = self.window / 4
        window = torch.exp(-0.5 * (distances / (self.window / 2)) ** 2)
        return torch.stack([tent(distances - k * side, side) * window for k in (-1.5, -0.5, 0.5, 1.5)])


class HOG(HandCrafted):
    """Histograms of oriented gradients (Dalal and Triggs 2005): 3 x 3 overlapping blocks of 2 x 2 histograms.

    Orientations without their sign in 9 bins, from the colour whose gradient is the longest at each pixel; a Gaussian
    window on each block, and each block normalised by itself (L2-Hys).
    """

    name = "hog"
    channels = 3 * 3 * 2 * 2 * 9

    def describe(self, image: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b 324 h w"]:
        """Compute the blocks around every cell."""
        dx, dy = gradients(image)
        longest = (dx**2 + dy**2).argmax(dim=1, keepdim=True)
        dx, dy = (values.gather(1, longest) for values in (dx, dy))
        votes = vote(dx, dy, bins=9, period=math.pi, start=0.5)
        rows, columns = (self.weigh(pixel_distances(pixels, self.stride, image)) for pixels in image.shape[-2:])
        histograms = pool_outer(votes, rows, columns).unflatten(3, (3, 2)).unflatten(2, (3, 2))
        blocks = histograms.permute(0, 2, 4, 1, 3, 5, 6, 7).flatten(3, 5)  # batch, block (y, x), its values, cell
        down, across = (weights.sum(2).unflatten(0, (3, 2)).sum(1) for weights in (rows, columns))
        weight = down[:, None, None, :, None] * across[:, None, None]
        return clip_and_normalise(blocks, weight, dim=3).flatten(1, 3)

    def weigh(self, distances: Float[Tensor, "cells pixels"]) -> Float[Tensor, "6 cells pixels"]:
        """Compute the share of a pixel in both histograms of each of three blocks; none outside a block."""
        side = self.window / 4
        weights = []
        for middle in (-side, 0, side):
            apart = distances - middle
            window = torch.exp(-0.5 * (apart / side) ** 2) * (apart.abs() <= side)
            weights += [tent(apart - place, side) * window for place in (-side / 2, side / 2)]
        return torch.stack(weights)


class DAISY(HandCrafted):
    """DAISY (Tola et al. 2010): histograms of 8 orientations in the middle and at 8 places on each of three rings.

    A ring is blurred by half of its radius, and every histogram is normalised by itself.
    """

    name = "daisy"
    channels = (3 * 8 + 1) * 8

    def describe(self, image: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b 200 h w"]:
        """Compute the descriptor of every cell, from the middle outwards."""
        dx, dy = gradients(to_grey(image))
        angles = [k * math.pi / 4 for k in range(8)]
        maps = torch.cat([(math.cos(angle) * dx + math.sin(angle) * dy).clamp(min=0) for angle in angles], dim=1)
        rows, columns = (
            self.weigh(pixel_distances(pixels, self.stride, image), axis)
            for pixels, axis in zip(image.shape[-2:], (1, 0), strict=True)
        )
        weight = rows.sum(2)[:, None, :, None] * columns.sum(2)[:, None, None]
        return to_unit_or_zero(pool_pairs(maps, rows, columns), FLAT * weight, dim=2).flatten(1, 2)

    def weigh(self, distances: Float[Tensor, "cells pixels"], axis: int) -> Float[Tensor, "25 cells pixels"]:
        """Compute the share of a pixel in the histogram at each place, as far as it depends on x (axis 0) or y (1)."""
        turn, radii = (math.cos, math.sin)[axis], [self.window / 2 * ring / 3 for ring in (1, 2, 3)]
        places = [(0.0, radii[0] / 2), *((r * turn(k * math.pi / 4), r / 2) for r in radii for k in range(8))]
        return torch.stack([bell(distances - place, sigma) for place, sigma in places])


def to_grey(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Compute the luminance of RGB."""
    red, green, blue = image.split(1, dim=1)
    return GREY[0] * red + GREY[1] * green + GREY[2] * blue


def pixel_distances(pixels: int, stride: int, like: Tensor) -> Float[Tensor, "cells {pixels}"]:
    """Compute how far the middle of every pixel lies beyond the middle of every cell, along a side."""
    middles = torch.arange(pixels, device=like.device, dtype=like.dtype) + 0.5
    cells = torch.arange(pixels // stride, device=like.device, dtype=like.dtype) + 0.5
    return middles - cells[:, None] * stride


def tent(distances: Float[Tensor, "*n"], width: float) -> Float[Tensor, "*n"]:
    """Compute the weights of linear interpolation between places that are `width` apart."""
    return (1 - distances.abs() / width).clamp(min=0)


def bell(distances: Float[Tensor, "*n"], sigma: float) -> Float[Tensor, "*n"]:
    """Compute a Gaussian of integral one."""
    return torch.exp(-0.5 * (distances / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))


def blur(image: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, "b c h w"]:
    """Blur by a Gaussian; at the border, by the part of it that lies inside."""
    if sigma == 0:
        return image
    weights = [bell(pixel_distances(pixels, 1, image), sigma) for pixels in image.shape[-2:]]
    rows, columns = (each / each.sum(dim=1, keepdim=True) for each in weights)
    return rows @ image @ columns.mT


def gradients(image: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """Compute central differences along x and y; the border continues."""
    x, y = pad(image, (1, 1, 0, 0), mode="replicate"), pad(image, (0, 0, 1, 1), mode="replicate")
    return (x[..., 2:] - x[..., :-2]) / 2, (y[..., 2:, :] - y[..., :-2, :]) / 2


def vote(
    dx: Float[Tensor, "b 1 h w"], dy: Float[Tensor, "b 1 h w"], bins: int, period: float, start: float = 0.0
) -> Float[Tensor, "b {bins} h w"]:
    """Divide the length of each gradient between the two orientations next to its own.

    Args:
        dx: Derivative along x.
        dy: Derivative along y.
        bins: Number of orientations.
        period: Angle that the orientations divide: 2 pi, or pi where a gradient and its opposite are the same.
        start: Direction of the first orientation, in bins from the direction of x.
    """
    position = torch.atan2(dy, dx) * (bins / period) - start
    centres = torch.arange(bins, device=dx.device, dtype=dx.dtype)[:, None, None]
    apart = torch.remainder(position - centres + bins / 2, bins) - bins / 2
    return torch.sqrt(dx**2 + dy**2) * tent(apart, 1.0)


def to_unit_or_zero(
    histograms: Float[Tensor, "*n"], least: Float[Tensor, "..."] | float, dim: int
) -> Float[Tensor, "*n"]:
    """Bring histograms to unit length, and to zero those that are no longer than `least`.

    >>> to_unit_or_zero(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0, dim=1)
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    length = histograms.norm(dim=dim, keepdim=True)
    has_edges = length > least
    return histograms / length.where(has_edges, 1) * has_edges


def clip_and_normalise(histograms: Float[Tensor, "*n"], weight: Float[Tensor, "..."], dim: int) -> Float[Tensor, "*n"]:
    """Bring histograms to unit length, clip what is large, and bring them there again.

    Args:
        histograms: Weighted sums of gradients; those without an edge to count become zero.
        weight: Sum of the weights of each histogram.
        dim: Axis of the values of a histogram.
    """
    return to_unit_or_zero(to_unit_or_zero(histograms, FLAT * weight, dim).clamp(max=CLIP), 0.0, dim)


def pool_outer(
    maps: Float[Tensor, "b o y x"], rows: Float[Tensor, "k h y"], columns: Float[Tensor, "l w x"]
) -> Float[Tensor, "b o k l h w"]:
    """Sum maps around every cell by each weight along y with each along x."""
    return torch.einsum("khy,boylw->boklhw", rows, torch.einsum("boyx,lwx->boylw", maps, columns))


def pool_pairs(
    maps: Float[Tensor, "b o y x"], rows: Float[Tensor, "p h y"], columns: Float[Tensor, "p w x"]
) -> Float[Tensor, "b p o h w"]:
    """Sum maps around every cell by each weight along y with its own along x."""
    return torch.einsum("phy,boypw->bpohw", rows, torch.einsum("boyx,pwx->boypw", maps, columns))
