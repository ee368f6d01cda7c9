"""Pictures of matches: pairs side by side, correct matches green, wrong ones red."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from PIL import Image, ImageDraw

from semcorr.core.files import replace_file
from semcorr.core.text_files import JsonMapping
from semcorr.data.record import PairRecord
from semcorr.data.views import load_image

HEIGHT = 200  # pixels of every image in the page
RIGHT, WRONG = (40, 190, 70), (220, 50, 50)


def plot_predictions(pairs: Sequence[PairRecord], table: pa.Table, alpha: float = 0.1, columns: int = 2) -> Image.Image:
    """Draw one tile per pair: source left, target right, a line from each keypoint to its prediction.

    Args:
        pairs: Pairs to draw.
        table: Predictions of the pairs.
        alpha: Tolerance of a correct match; drawn as a hollow ring around the truth of a wrong one.
        columns: Tiles in a row.
    """
    rows_by_pair: dict[str, list[JsonMapping]] = {pair.name: [] for pair in pairs}
    for row in table.to_pylist():
        if row["pair"] in rows_by_pair:
            rows_by_pair[row["pair"]].append(row)
    tiles = [plot_pair(pair, rows_by_pair[pair.name], alpha) for pair in pairs]
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


def plot_pair(pair: PairRecord, rows: Sequence[JsonMapping], alpha: float) -> Image.Image:
    """Draw one pair at three times the size, and reduce it for smooth lines."""
    zoom = 3
    a, b = (load_image(image.path, image.upright) for image in (pair.source, pair.target))
    scales = [zoom * HEIGHT / image.height for image in (a, b)]
    a, b = (i.resize((round(i.width * s), zoom * HEIGHT)) for i, s in zip((a, b), scales, strict=True))
    canvas = Image.new("RGB", (a.width + b.width, zoom * HEIGHT))
    canvas.paste(a, (0, 0))
    canvas.paste(b, (a.width, 0))
    draw = ImageDraw.Draw(canvas)
    for row in rows:
        start = _canvas_point(row, "source", scales[0], 0)
        end, truth = (_canvas_point(row, what, scales[1], a.width) for what in ("predicted", "target"))
        correct = row["error"] <= alpha
        colour = RIGHT if correct else WRONG
        if not correct:
            _draw_ring(draw, truth, alpha * row["extent"] * scales[1], colour, zoom)
        draw.line((*start, *end), fill=colour, width=zoom)
        for x, y in (start, end):
            r = 2 * zoom + 1
            draw.ellipse((x - r, y - r, x + r, y + r), fill=colour, outline="white", width=zoom // 2)
    return canvas.resize((canvas.width // zoom, HEIGHT), Image.Resampling.LANCZOS)


def evenly_spaced(pairs: Sequence[PairRecord], count: int = 10) -> list[PairRecord]:
    """Select a few pairs evenly from the whole list, so that every category has its turn."""
    step = max(1, len(pairs) // count)
    return list(pairs[step // 2 :: step][:count])


def save_plot(image: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    with replace_file(path) as temporary:
        image.save(temporary, format="PNG")


def _canvas_point(row: JsonMapping, what: str, scale: float, left: int) -> tuple[float, float]:
    """Convert a row's point to the canvas."""
    return left + (row[f"{what}_x"] + 0.5) * scale, (row[f"{what}_y"] + 0.5) * scale


def _draw_ring(
    draw: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float, colour: tuple[int, int, int], width: int
) -> None:
    """Draw a ring."""
    x, y = centre
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=max(1, width // 2))
