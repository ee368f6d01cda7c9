"""Pictures of similarity maps: where the features of the target resemble the marked point of the source."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from lightning import LightningModule
from lightning.fabric.utilities import move_data_to_device
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import default_collate

from semcorr.data.datamodule import PairDataModule
from semcorr.data.dataset import PairDataset
from semcorr.data.record import PairRecord
from semcorr.data.views import SquareFit, fit_to_square, load_record
from semcorr.metrics.predictions import Predictions
from semcorr.visualization.canvas import (
    PAPER,
    POINT_COLOURS,
    Colour,
    draw_cross,
    draw_ring,
    fit_size,
    hstack_images,
    overlay_map,
    stack_grid,
)

EACH = 2  # maps of either kind
SIDE = 360  # longer side of a picture, in pixels
GAP = 12  # between pictures
OPACITY = 0.7  # of a map over its target
QUERY, TRUTH, PREDICTION = POINT_COLOURS[3], PAPER, POINT_COLOURS[0]
SIMILARITY_LEGEND = (
    "left the source with the query (yellow ring), right the target, lighter where its features are more similar to "
    "the query's; the colour bar has the least and the greatest similarity of each map. White ring: where the keypoint "
    "is; blue cross: where it was found."
)


def plot_similarity_page(
    module: LightningModule, data: PairDataModule, pairs: Mapping[str, PairRecord], rows: Predictions
) -> Image.Image:
    """Draw the maps of some rows, below one another; see `choose_queries` and `plot_similarity_row`.

    Args:
        module: Module in eval mode.
        data: The benchmark.
        pairs: Pairs of the benchmark by name, with those of all rows.
        rows: Predictions to choose from.
    """
    tiles = [
        plot_similarity_row(
            module, data, pairs[rows.pairs[rows.pair[row]]], int(rows.keypoint[row]), rows.predicted[row]
        )
        for row, _ in choose_queries(rows)
    ]
    return stack_grid(tiles, 1, GAP)


def choose_queries(rows: Predictions) -> list[tuple[int, str]]:
    """Choose rows to draw, each of another target: geometry-aware with large errors, then accurate ones of the rest.

    Returns:
        Indices of rows, each with what it shows: `far off` or `found`.
    """
    chosen: list[tuple[int, str]] = []
    used_targets: set[int] = set()
    for mask, sign, kind in ((rows.ambiguous, -1, "far off"), (~rows.ambiguous, 1, "found")):
        order = np.lexsort((rows.keypoint, rows.pair, sign * rows.error))
        count = 0
        for row in order[mask[order]].tolist():
            target = int(rows.target_image[rows.pair[row]])
            if target not in used_targets and count < EACH:
                chosen.append((row, kind))
                used_targets.add(target)
                count += 1
    return chosen


@torch.no_grad()
def plot_similarity_row(
    module: LightningModule, data: PairDataModule, pair: PairRecord, keypoint: int, predicted: Float[np.ndarray, "2"]
) -> Image.Image:
    """Draw both images in their own aspect, the target under its map, and the colour bar of the map.

    Args:
        module: Module in eval mode.
        data: The benchmark.
        pair: Pair of the benchmark.
        keypoint: Index of the keypoint.
        predicted: Predicted point, in pixels of the target.
    """
    batch = default_collate([PairDataset([pair], data.size, data.resize)[0]])
    on_device = move_data_to_device(batch, module.device)
    similarity = module(on_device.source, on_device.target)[0, keypoint].float().cpu()
    left, right = (load_record(image).resize(fit_size(image.size, SIDE, SIDE)) for image in (pair.source, pair.target))
    values = crop_to_image(similarity, fit_to_square(pair.target.size, data.size, data.resize), data.size, right.size)
    right, bar = overlay_map(right, values, OPACITY)
    _mark(left, pair.source.keypoints[keypoint].tolist(), pair.source.size, QUERY)
    _mark(right, pair.target.keypoints[keypoint].tolist(), pair.target.size, TRUTH)
    _mark(right, predicted.tolist(), pair.target.size, PREDICTION, cross=True)
    place = Image.new("RGB", (SIDE, max(left.height, right.height)), PAPER)
    halves = []
    for image in (left, right):
        half = place.copy()
        half.paste(image, ((SIDE - image.width) // 2, (place.height - image.height) // 2))
        halves.append(half)
    return hstack_images([*halves, bar], GAP)


def crop_to_image(
    similarity: Float[Tensor, "h w"], fit: SquareFit, side: int, size: tuple[int, int]
) -> Float[np.ndarray, "height width"]:
    """Interpolate a map at the pixels of a picture of the image: without padding, in the image's own aspect.

    Args:
        similarity: Map over the square that the network sees.
        fit: Placement of the image in the square.
        side: Side of the square in pixels.
        size: Width and height of the picture.
    """
    square = interpolate(similarity[None, None], (side, side), mode="bilinear", align_corners=False)
    (x, y), (w, h) = fit.offset, fit.size
    inside = square[..., y : y + h, x : x + w]
    values: np.ndarray = interpolate(inside, size[::-1], mode="bilinear", align_corners=False)[0, 0].numpy()
    return values


def _mark(
    image: Image.Image, point: Sequence[float], size: tuple[int, int], colour: Colour, cross: bool = False
) -> None:
    """Draw a ring or a cross at a point of the original, which is `size` pixels large."""
    x, y = ((at + 0.5) * pixels / side for at, pixels, side in zip(point, image.size, size, strict=True))
    draw = ImageDraw.Draw(image)
    if cross:
        draw_cross(draw, (x, y), 7, colour)
    else:
        draw_ring(draw, (x, y), 9, colour, 3)
