"""Tracks as a picture: a video's query frame and later ones, every point in its own colour."""

import colorsys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw

from semcorr.data.tapvid_videos import SIDE

HEIGHT, GAP = 200, 8  # pixels of every frame in the page, and between them
ZOOM = 3  # drawn larger and reduced, for smooth lines
COLUMNS, POINTS = 4, 24  # frames of a video, points of a frame

Row = Mapping[str, Any]


def plot_tracks(videos: Mapping[str, np.ndarray], table: pa.Table) -> Image.Image:
    """A line per video: its busiest query frame, and later frames evenly spread.

    A disc is where a point was found, a ring where it was found but called hidden; a line leads to where
    it truly is, if it is visible.

    Args:
        videos: Frames (t h w 3) by name, of those to be shown.
        table: Their predictions.
    """
    lines = [_line(frames, table.filter(pc.equal(table["video"], name))) for name, frames in videos.items()]
    sheet = Image.new("RGB", (max(line.width for line in lines), sum(line.height for line in lines) + GAP), "white")
    for i, line in enumerate(lines):
        sheet.paste(line, (0, GAP + i * line.height))
    return sheet


def _line(frames: np.ndarray, table: pa.Table) -> Image.Image:
    asked = Counter(table["query_frame"].to_pylist()).most_common(1)[0][0]
    table = table.filter(pc.equal(table["query_frame"], asked))
    queries = _spread(sorted(set(table["query"].to_pylist())), POINTS)
    rows = [row for row in table.to_pylist() if row["query"] in queries]
    colours = {query: _colour(i / len(queries)) for i, query in enumerate(queries)}
    seen = sorted({row["frame"] for row in rows if row["frame"] > asked} or {row["frame"] for row in rows})
    shown = [seen[round((i + 1) * (len(seen) - 1) / (COLUMNS - 1))] for i in range(COLUMNS - 1)]
    tiles = [_query_tile(frames[asked], rows, colours)]
    tiles += [_tile(frames[t], [row for row in rows if row["frame"] == t], colours) for t in dict.fromkeys(shown)]
    line = Image.new("RGB", (COLUMNS * (tiles[0].width + GAP) + GAP, HEIGHT + GAP), "white")
    for i, tile in enumerate(tiles):
        line.paste(tile, (GAP + i * (tile.width + GAP), 0))
    return line


def _query_tile(frame: np.ndarray, rows: Iterable[Row], colours: Mapping[int, tuple[int, int, int]]) -> Image.Image:
    canvas = _canvas(frame)
    for row in {row["query"]: row for row in rows}.values():
        _dot(canvas, _at(canvas, row, "query"), colours[row["query"]], hidden=False)
    return _reduced(canvas)


def _tile(frame: np.ndarray, rows: Iterable[Row], colours: Mapping[int, tuple[int, int, int]]) -> Image.Image:
    canvas = _canvas(frame)
    for row in rows:
        colour, found = colours[row["query"]], _at(canvas, row, "predicted")
        if not row["true_occluded"]:
            ImageDraw.Draw(canvas).line((*found, *_at(canvas, row, "true")), fill=colour, width=ZOOM)
        _dot(canvas, found, colour, row["predicted_occluded"])
    return _reduced(canvas)


def _dot(canvas: Image.Image, centre: tuple[float, float], colour: tuple[int, int, int], hidden: bool) -> None:
    (x, y), r = centre, 3 * ZOOM
    box, draw = (x - r, y - r, x + r, y + r), ImageDraw.Draw(canvas)
    if hidden:
        draw.ellipse(box, outline=colour, width=ZOOM)
    else:
        draw.ellipse(box, fill=colour, outline="white", width=ZOOM // 2)


def _at(canvas: Image.Image, row: Row, what: str) -> tuple[float, float]:
    """From the official frame, whose corner is at 0, to the canvas."""
    return row[f"{what}_x"] * canvas.width / SIDE, row[f"{what}_y"] * canvas.height / SIDE


def _canvas(frame: np.ndarray) -> Image.Image:
    height, width = frame.shape[:2]
    return Image.fromarray(frame).resize((round(ZOOM * HEIGHT * width / height), ZOOM * HEIGHT))


def _reduced(canvas: Image.Image) -> Image.Image:
    return canvas.resize((round(canvas.width / ZOOM), HEIGHT), Image.Resampling.LANCZOS)


def _spread(values: Sequence[int], count: int) -> list[int]:
    """At most `count` of them, evenly."""
    step = max(1.0, len(values) / count)
    return [values[int(i * step)] for i in range(min(count, len(values)))]


def _colour(hue: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
