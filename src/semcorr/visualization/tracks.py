"""Pictures of tracks: a video's query frame and later ones, every point in its own colour."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw

from semcorr.core.text_files import JsonObject
from semcorr.data.tapvid import SIDE
from semcorr.visualization.canvas import ZOOM, Colour, bright_colour, resize_enlarged

HEIGHT, GAP = 200, 8  # pixels: height of every frame in the page, and space between frames
COLUMNS, POINTS = 4, 24  # frames of a video, most points of a frame


def plot_tracks(videos: Mapping[str, np.ndarray], table: pa.Table) -> Image.Image:
    """Draw a row per video: the frame with the most queries, and later frames, evenly spaced.

    A disc is a prediction, a ring a prediction of an occluded point; a line leads to the true point, if it is visible.

    Args:
        videos: Frames (t h w 3) of the videos to draw, by name.
        table: Predictions of the videos.
    """
    lines = [_draw_line(frames, table.filter(pc.equal(table["video"], name))) for name, frames in videos.items()]
    sheet = Image.new("RGB", (max(line.width for line in lines), sum(line.height for line in lines) + GAP), "white")
    for i, line in enumerate(lines):
        sheet.paste(line, (0, GAP + i * line.height))
    return sheet


def _draw_line(frames: np.ndarray, table: pa.Table) -> Image.Image:
    """Draw the frames of a video in a row."""
    query_frame = Counter(table["query_frame"].to_pylist()).most_common(1)[0][0]
    table = table.filter(pc.equal(table["query_frame"], query_frame))
    queries = _evenly_spaced(sorted(set(table["query"].to_pylist())), POINTS)
    rows = [row for row in table.to_pylist() if row["query"] in queries]
    colours = {query: bright_colour(i / len(queries)) for i, query in enumerate(queries)}
    later_frames = sorted(
        {row["frame"] for row in rows if row["frame"] > query_frame} or {row["frame"] for row in rows}
    )
    displayed = [later_frames[round((i + 1) * (len(later_frames) - 1) / (COLUMNS - 1))] for i in range(COLUMNS - 1)]
    tiles = [_draw_query_tile(frames[query_frame], rows, colours)]
    tiles += [
        _draw_tile(frames[t], [row for row in rows if row["frame"] == t], colours) for t in dict.fromkeys(displayed)
    ]
    line = Image.new("RGB", (COLUMNS * (tiles[0].width + GAP) + GAP, HEIGHT + GAP), "white")
    for i, tile in enumerate(tiles):
        line.paste(tile, (GAP + i * (tile.width + GAP), 0))
    return line


def _draw_query_tile(frame: np.ndarray, rows: Iterable[JsonObject], colours: Mapping[int, Colour]) -> Image.Image:
    """Draw the queries in their frame."""
    canvas = _make_canvas(frame)
    for row in {row["query"]: row for row in rows}.values():
        _draw_dot(canvas, _canvas_point(canvas, row, "query"), colours[row["query"]], hidden=False)
    return canvas.reduce(ZOOM)


def _draw_tile(frame: np.ndarray, rows: Iterable[JsonObject], colours: Mapping[int, Colour]) -> Image.Image:
    """Draw the predictions in a frame."""
    canvas = _make_canvas(frame)
    for row in rows:
        colour, predicted = colours[row["query"]], _canvas_point(canvas, row, "predicted")
        if not row["true_occluded"]:
            ImageDraw.Draw(canvas).line((*predicted, *_canvas_point(canvas, row, "true")), fill=colour, width=ZOOM)
        _draw_dot(canvas, predicted, colour, row["predicted_occluded"])
    return canvas.reduce(ZOOM)


def _draw_dot(canvas: Image.Image, centre: tuple[float, float], colour: Colour, hidden: bool) -> None:
    """Draw a disc, or a ring for an occluded point."""
    (x, y), r = centre, 3 * ZOOM
    box, draw = (x - r, y - r, x + r, y + r), ImageDraw.Draw(canvas)
    if hidden:
        draw.ellipse(box, outline=colour, width=ZOOM)
    else:
        draw.ellipse(box, fill=colour, outline="white", width=ZOOM // 2)


def _canvas_point(canvas: Image.Image, row: JsonObject, what: str) -> tuple[float, float]:
    """Convert from the official frame, whose corner is at 0, to the canvas."""
    return row[f"{what}_x"] * canvas.width / SIDE, row[f"{what}_y"] * canvas.height / SIDE


def _make_canvas(frame: np.ndarray) -> Image.Image:
    """Enlarge a frame to draw on."""
    height, width = frame.shape[:2]
    return resize_enlarged(Image.fromarray(frame), (max(1, round(HEIGHT * width / height)), HEIGHT))


def _evenly_spaced(values: Sequence[int], count: int) -> list[int]:
    """Select at most `count` values, evenly spaced."""
    step = max(1.0, len(values) / count)
    return [values[int(i * step)] for i in range(min(count, len(values)))]
