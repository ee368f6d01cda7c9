"""The foreground of a picture, estimated from its features alone; and a grid of points over it."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import normalize

from semcorr.core.types import FeatureMap
from semcorr.inference.encoded import EncodedPicture
from semcorr.matching.dense import centres_of


def foreground_cells(maps: FeatureMap, visible: Bool[Tensor, "h w"]) -> Bool[Tensor, "h w"]:
    """Estimate the cells of the object: those in the middle that are unlike the picture's border.

    One minus the mean cosine with the border's cells is smoothed and weighted by a Gaussian around the middle; of the
    cells above Otsu's threshold the largest connected component is taken, its holes filled. With EfficientNet-Lite0 on
    SPair-71k's cats, 90 % of these cells lie in the box; of the first principal component's larger part it is 66 to
    87 %.

    Args:
        maps: Features of one image.
        visible: Cells that show the picture, and not padding.
    """
    inside = visible.cpu().numpy()
    edge = inside & ~ndimage.binary_erosion(inside)
    if min(np.ptp(np.nonzero(inside), axis=1)) < 4:
        return visible.cpu()
    cells = normalize(maps.values[0].flatten(1).T.float(), dim=1).cpu()
    border = normalize(cells[torch.from_numpy(edge).flatten()].mean(0), dim=0)
    dissimilarity = ndimage.gaussian_filter((1 - cells @ border).double().view(visible.shape).numpy(), sigma=1)
    score = (dissimilarity - dissimilarity[inside].min()) * _centre_weight(inside)
    components, count = ndimage.label((score > otsu_threshold(score[inside])) & inside)
    if not count:
        return visible.cpu()
    largest = components == 1 + np.argmax(np.bincount(components.ravel())[1:])
    return torch.from_numpy(ndimage.binary_fill_holes(largest)) & visible.cpu()


def _centre_weight(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Return a Gaussian around the middle, whose sigma is a third of the picture's sides."""
    exponent = np.zeros(mask.shape)
    for axis, indices in enumerate(np.nonzero(mask)):
        low, high = indices.min(), indices.max()
        along = (np.arange(mask.shape[axis]) - (low + high) / 2) / (high - low + 1)
        exponent += np.expand_dims((along / 0.33) ** 2 / 2, 1 - axis)
    return np.exp(-exponent)


def otsu_threshold(values: Float[np.ndarray, " n"]) -> float:
    """Return the threshold with the least variance within both sides (Otsu 1979).

    >>> otsu_threshold(np.array([0.0, 1.0, 9.0, 10.0]))
    5.0
    """
    ordered = np.sort(values)
    count = np.arange(1, len(ordered))
    total = np.cumsum(ordered)
    low, high = total[:-1] / count, (total[-1] - total[:-1]) / (len(ordered) - count)
    best = int(np.argmax(count * (len(ordered) - count) * (high - low) ** 2))
    return float(ordered[best : best + 2].mean())


def foreground_grid(image: EncodedPicture, maps: FeatureMap, count: int = 30) -> Float[Tensor, "n 2"]:
    """Return about `count` points in rows and columns over the object, in original pixels.

    In a picture so thin that no cell's centre lies on it, the grid covers the cells that it touches.

    Args:
        image: The picture.
        maps: Its features, as `Matcher.features` returns them.
        count: Number of points, of which there may be a few more or less.
    """
    h, w = maps.values.shape[-2:]
    centres = centres_of(maps)
    visible = image.placement.shows(centres).view(h, w)
    inside = foreground_cells(maps, visible) if bool(visible.any()) else cells_in_picture(image, maps)
    step = max(1.0, (int(inside.sum()) / count) ** 0.5)
    rows, columns = (_spaced_indices(inside.any(axis), step) for axis in (1, 0))
    selected = [row * w + column for row in rows for column in columns if inside[row, column]]
    return image.placement.from_view(centres[selected].cpu())


def cells_in_picture(image: EncodedPicture, maps: FeatureMap) -> Bool[Tensor, "h w"]:
    """Return the cells that show any of the picture."""
    h, w = maps.values.shape[-2:]
    return image.placement.covers(torch.arange(w).float(), torch.arange(h).float(), maps.stride)


def _spaced_indices(mask: Bool[Tensor, " n"], step: float) -> list[int]:
    """Return indices a step apart from the first cell of a mask to the last, with equal margins at both ends."""
    first, last = int(mask.nonzero()[0]), int(mask.nonzero()[-1])
    count = int((last - first) / step)
    start = (first + last - count * step) / 2
    return sorted({round(start + i * step) for i in range(count + 1)})
