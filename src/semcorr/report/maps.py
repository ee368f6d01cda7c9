"""Similarity maps of a few points: where the features of the target look like the marked one."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import default_collate

from semcorr.audit import built
from semcorr.cli import explained
from semcorr.coords import to_view
from semcorr.data.dataset import PairDataset
from semcorr.data.record import PairRecord
from semcorr.metrics.scored import Scored
from semcorr.report.entries import Entry
from semcorr.report.parts import Figure
from semcorr.report.pictures import embedded

SIDE = 260  # pixels of a picture, which is square as what the network sees
EACH = 2  # maps of a kind
QUERY, TRUTH, FOUND = (255, 225, 60), (255, 255, 255), (235, 70, 60)
COLD, HOT = np.array([18, 22, 60]), np.array([255, 190, 60])


def similarity_maps(entry: Entry, pairs: Mapping[str, PairRecord], root: Path | None) -> Figure | str:
    """Of the best configuration; or why it cannot be computed again."""
    run = entry.runs[0]
    rows = run.evaluated.rows
    cfg = run.cfg.copy()
    if root is not None:
        cfg.data.root = str(root)
    cfg.compile = None
    try:
        module, data = built(run.folder, cfg)
    except Exception as error:  # a mistake in a part's arguments comes wrapped
        if (reason := explained(error, "evaluate")) is None:
            raise
        return reason
    chosen = queries(rows)
    panels = []
    for row, kind in chosen:
        pair = pairs[rows.pairs[rows.pair[row]]]
        image = _drawn(module, data, pair, int(rows.keypoint[row]), rows.predicted[row])
        said = f"{kind}: keypoint {rows.keypoint[row]}, off by {rows.error[row]:.2f} of the extent"
        about = f"{pair.source.name} to {pair.target.name}"
        panels.append(f"{embedded(image, about)}\n<p>{escape(said)}<br>{escape(about)}</p>")
    caption = (
        f"{entry.label}: left the source with the query (yellow ring), right the target, brighter where its features "
        "are more similar to the query's; from the least to the greatest similarity of each map. White ring: where the "
        "keypoint is; red cross: where it was found. Images are as the network sees them, resized to a square. Shown "
        "are keypoints of the geometry-aware subset with the largest errors, and others with the smallest; each target "
        "once."
    )
    return Figure("Similarity maps", caption, panels, layout="wide")


def queries(rows: Scored) -> list[tuple[int, str]]:
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
def _drawn(module: Any, data: Any, pair: PairRecord, keypoint: int, predicted: Float[np.ndarray, "2"]) -> Image.Image:
    batch = default_collate([PairDataset([pair], data.size, data.resize)[0]])
    similarity = module.eval()(batch.source, batch.target)[0, keypoint]
    target = batch.target
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
