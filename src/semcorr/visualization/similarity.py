"""Pictures of similarity maps: where the features of the target resemble the marked point of the source."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from lightning import LightningModule
from lightning.fabric.utilities import move_data_to_device
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import default_collate

from semcorr.core.coords import to_view
from semcorr.data.datamodule import PairDataModule
from semcorr.data.dataset import PairDataset
from semcorr.data.record import PairRecord
from semcorr.metrics.predictions import Predictions

EACH = 2  # maps of either kind
SIDE = 260  # pixels of a picture, which is square as the network's input
QUERY, TRUTH, FOUND = (255, 225, 60), (255, 255, 255), (235, 70, 60)
COLD, HOT = np.array([18, 22, 60]), np.array([255, 190, 60])
SIMILARITY_LEGEND = (
    "left the source with the query (yellow ring), right the target, brighter where its features "
    "are more similar to the query's; from the least to the greatest similarity of each map. White ring: where the "
    "keypoint is; red cross: where it was found. Images are as the network sees them, resized to a square."
)


def plot_similarity_page(
    module: LightningModule, data: PairDataModule, pairs: Mapping[str, PairRecord], rows: Predictions
) -> Image.Image:
    """Draw the maps of some rows, below one another; see `choose_queries` and `plot_similarity`."""
    tiles = [
        plot_similarity(module, data, pairs[rows.pairs[rows.pair[row]]], int(rows.keypoint[row]), rows.predicted[row])
        for row, _ in choose_queries(rows)
    ]
    sheet = Image.new("RGB", (tiles[0].width, sum(tile.height + 4 for tile in tiles) - 4), "white")
    for index, tile in enumerate(tiles):
        sheet.paste(tile, (0, index * (tile.height + 4)))
    return sheet


def choose_queries(rows: Predictions) -> list[tuple[int, str]]:
    """Choose rows to draw, each of another target: geometry-aware with large errors, then accurate ones of the rest."""
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
def plot_similarity(
    module: LightningModule, data: PairDataModule, pair: PairRecord, keypoint: int, predicted: Float[np.ndarray, "2"]
) -> Image.Image:
    """Draw both images, the target under its map.

    Args:
        module: Module in eval mode.
        data: The benchmark.
        pair: Pair of the benchmark.
        keypoint: Index of the keypoint.
        predicted: Predicted point, in pixels of the target.
    """
    batch = default_collate([PairDataset([pair], data.size, data.resize)[0]])
    on_device = move_data_to_device(batch, module.device)
    similarity, target = module(on_device.source, on_device.target)[0, keypoint].cpu(), batch.target
    predicted_view = to_view(
        torch.from_numpy(predicted).float()[None, None], target.scale.float(), target.offset.float()
    )[0, 0]
    left, right = (_to_picture(view.image[0]) for view in (batch.source, target))
    heat = interpolate(similarity[None, None].float(), (SIDE, SIDE), mode="bilinear", align_corners=False)[0, 0]
    right = Image.blend(right.convert("L").convert("RGB"), _colour_map(heat.numpy()), 0.62)
    zoom = SIDE / data.size
    _draw_ring(left, (batch.source.keypoints[0, keypoint] + 0.5) * zoom, QUERY)
    _draw_ring(right, (target.keypoints[0, keypoint] + 0.5) * zoom, TRUTH)
    _draw_cross(right, (predicted_view + 0.5) * zoom)
    sheet = Image.new("RGB", (2 * SIDE + 4, SIDE), "white")
    sheet.paste(left, (0, 0))
    sheet.paste(right, (SIDE + 4, 0))
    return sheet


def _to_picture(image: Float[Tensor, "3 h w"]) -> Image.Image:
    """Convert an image tensor to a picture."""
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _colour_map(values: Float[np.ndarray, "h w"]) -> Image.Image:
    """Colour a map from its least to its greatest value."""
    low, high = float(values.min()), float(values.max())
    share = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return Image.fromarray((COLD + (HOT - COLD) * share[..., None] ** 2).astype(np.uint8))


def _draw_ring(image: Image.Image, centre: Float[Tensor, "2"], colour: tuple[int, int, int]) -> None:
    """Draw a ring."""
    x, y = centre.tolist()
    draw = ImageDraw.Draw(image)
    draw.ellipse((x - 9, y - 9, x + 9, y + 9), outline="black", width=5)
    draw.ellipse((x - 8, y - 8, x + 8, y + 8), outline=colour, width=3)


def _draw_cross(image: Image.Image, centre: Float[Tensor, "2"]) -> None:
    """Draw a cross."""
    x, y = centre.tolist()
    draw = ImageDraw.Draw(image)
    for width, colour in ((5, (0, 0, 0)), (3, FOUND)):
        draw.line((x - 7, y - 7, x + 7, y + 7), fill=colour, width=width)
        draw.line((x - 7, y + 7, x + 7, y - 7), fill=colour, width=width)
