"""Matches as a picture: pairs side by side, green right, red wrong."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image, ImageDraw

from semcorr.core.files import replace_file
from semcorr.data.record import PairRecord
from semcorr.data.transforms import load_image

HEIGHT = 200  # pixels of every image in the page
RIGHT, WRONG = (40, 190, 70), (220, 50, 50)


def plot_predictions(pairs: Sequence[PairRecord], table: pa.Table, alpha: float = 0.1, columns: int = 2) -> Image.Image:
    """One tile per pair: source left, target right, a line from each keypoint to where it was found.

    Args:
        pairs: What to show.
        table: Their predictions.
        alpha: Tolerance of a right match; drawn as a hollow ring around the truth of a wrong one.
        columns: Tiles in a row.
    """
    found: dict[str, list[Mapping[str, Any]]] = {pair.name: [] for pair in pairs}
    for row in table.to_pylist():
        if row["pair"] in found:
            found[row["pair"]].append(row)
    tiles = [plot_pair(pair, found[pair.name], alpha) for pair in pairs]
    lines = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    gap = 8
    widths = [sum(t.width + gap for t in line) for line in lines]
    sheet = Image.new("RGB", (max(widths) + gap, len(lines) * (HEIGHT + gap) + gap), "white")
    for r, line in enumerate(lines):
        x = gap
        for t in line:
            sheet.paste(t, (x, gap + r * (HEIGHT + gap)))
            x += t.width + gap
    return sheet


def plot_pair(pair: PairRecord, rows: Sequence[Mapping[str, Any]], alpha: float) -> Image.Image:
    """One pair. Drawn at three times the size and reduced, for smooth lines."""
    zoom = 3
    a, b = (load_image(image.path, image.upright) for image in (pair.source, pair.target))
    scales = [zoom * HEIGHT / image.height for image in (a, b)]
    a, b = (i.resize((round(i.width * s), zoom * HEIGHT)) for i, s in zip((a, b), scales, strict=True))
    canvas = Image.new("RGB", (a.width + b.width, zoom * HEIGHT))
    canvas.paste(a, (0, 0))
    canvas.paste(b, (a.width, 0))
    draw = ImageDraw.Draw(canvas)
    for row in rows:
        start = _at(row, "source", scales[0], 0)
        end, truth = (_at(row, what, scales[1], a.width) for what in ("predicted", "target"))
        right = row["error"] <= alpha
        colour = RIGHT if right else WRONG
        if not right:
            _ring(draw, truth, alpha * row["extent"] * scales[1], colour, zoom)
        draw.line((*start, *end), fill=colour, width=zoom)
        for x, y in (start, end):
            r = 2 * zoom + 1
            draw.ellipse((x - r, y - r, x + r, y + r), fill=colour, outline="white", width=zoom // 2)
    return canvas.resize((canvas.width // zoom, HEIGHT), Image.Resampling.LANCZOS)


def evenly_spaced(pairs: Sequence[PairRecord], count: int = 10) -> list[PairRecord]:
    """A few pairs evenly from the whole list, so that every category has its turn."""
    step = max(1, len(pairs) // count)
    return list(pairs[step // 2 :: step][:count])


def save_plot(image: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    with replace_file(path) as beside:
        image.save(beside, format="PNG")


def _at(row: Mapping[str, Any], what: str, scale: float, left: int) -> tuple[float, float]:
    return left + (row[f"{what}_x"] + 0.5) * scale, (row[f"{what}_y"] + 0.5) * scale


def _ring(
    draw: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float, colour: tuple[int, int, int], width: int
) -> None:
    x, y = centre
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=max(1, width // 2))
