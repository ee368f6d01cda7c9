"""A similarity map as a picture: where the features of the target look like the marked point of the source."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lightning.fabric.utilities import move_data_to_device
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import default_collate

from semcorr.core.coords import to_view
from semcorr.data.dataset import PairDataset
from semcorr.data.record import PairRecord
from semcorr.metrics.predictions import Predictions

EACH = 2  # maps of a kind
SIDE = 260  # pixels of a picture, which is square as what the network sees
QUERY, TRUTH, FOUND = (255, 225, 60), (255, 255, 255), (235, 70, 60)
COLD, HOT = np.array([18, 22, 60]), np.array([255, 190, 60])
LEGEND = (
    "left the source with the query (yellow ring), right the target, brighter where its features "
    "are more similar to the query's; from the least to the greatest similarity of each map. White ring: where the "
    "keypoint is; red cross: where it was found. Images are as the network sees them, resized to a square."
)


def plot_similarity_page(module: Any, data: Any, pairs: Mapping[str, PairRecord], rows: Predictions) -> Image.Image:
    """Maps of some rows, below one another; see `queries` and `drawn`."""
    tiles = [
        plot_similarity(module, data, pairs[rows.pairs[rows.pair[row]]], int(rows.keypoint[row]), rows.predicted[row])
        for row, _ in choose_queries(rows)
    ]
    sheet = Image.new("RGB", (tiles[0].width, sum(tile.height + 4 for tile in tiles) - 4), "white")
    for place, tile in enumerate(tiles):
        sheet.paste(tile, (0, place * (tile.height + 4)))
    return sheet


def choose_queries(rows: Predictions) -> list[tuple[int, str]]:
    """Rows to show, each of another target: geometry-aware and far off, then the nearest of the rest."""
    chosen: list[tuple[int, str]] = []
    seen: set[int] = set()
    for mask, sign, kind in ((rows.ambiguous, -1, "far off"), (~rows.ambiguous, 1, "found")):
        order = np.lexsort((rows.keypoint, rows.pair, sign * rows.error))
        count = 0
        for row in order[mask[order]].tolist():
            target = int(rows.target_image[rows.pair[row]])
            if target not in seen and count < EACH:
                chosen.append((row, kind))
                seen.add(target)
                count += 1
    return chosen


@torch.no_grad()
def plot_similarity(
    module: Any, data: Any, pair: PairRecord, keypoint: int, predicted: Float[np.ndarray, "2"]
) -> Image.Image:
    """Both images, the target under its map.

    Args:
        module: In eval mode.
        data: Its benchmark.
        pair: Of it.
        keypoint: Its number.
        predicted: Where it was found, in pixels of the target.
    """
    batch = default_collate([PairDataset([pair], data.size, data.resize)[0]])
    there = move_data_to_device(batch, module.device)
    similarity, target = module(there.source, there.target)[0, keypoint].cpu(), batch.target
    found = to_view(torch.from_numpy(predicted).float()[None, None], target.scale.float(), target.offset.float())[0, 0]
    left, right = (_picture(view.image[0]) for view in (batch.source, target))
    heat = interpolate(similarity[None, None].float(), (SIDE, SIDE), mode="bilinear", align_corners=False)[0, 0]
    right = Image.blend(right.convert("L").convert("RGB"), _heat(heat.numpy()), 0.62)
    zoom = SIDE / data.size
    _ring(left, (batch.source.keypoints[0, keypoint] + 0.5) * zoom, QUERY)
    _ring(right, (target.keypoints[0, keypoint] + 0.5) * zoom, TRUTH)
    _cross(right, (found + 0.5) * zoom)
    sheet = Image.new("RGB", (2 * SIDE + 4, SIDE), "white")
    sheet.paste(left, (0, 0))
    sheet.paste(right, (SIDE + 4, 0))
    return sheet


def _picture(image: Float[Tensor, "3 h w"]) -> Image.Image:
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _heat(values: Float[np.ndarray, "h w"]) -> Image.Image:
    low, high = float(values.min()), float(values.max())
    share = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return Image.fromarray((COLD + (HOT - COLD) * share[..., None] ** 2).astype(np.uint8))


def _ring(image: Image.Image, at: Float[Tensor, "2"], colour: tuple[int, int, int]) -> None:
    x, y = at.tolist()
    draw = ImageDraw.Draw(image)
    draw.ellipse((x - 9, y - 9, x + 9, y + 9), outline="black", width=5)
    draw.ellipse((x - 8, y - 8, x + 8, y + 8), outline=colour, width=3)


def _cross(image: Image.Image, at: Float[Tensor, "2"]) -> None:
    x, y = at.tolist()
    draw = ImageDraw.Draw(image)
    for width, colour in ((5, (0, 0, 0)), (3, FOUND)):
        draw.line((x - 7, y - 7, x + 7, y + 7), fill=colour, width=width)
        draw.line((x - 7, y + 7, x + 7, y - 7), fill=colour, width=width)
