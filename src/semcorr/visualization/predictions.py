"""Pictures of matches: pairs side by side, what is right as blue discs and what is wrong as red crosses."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from semcorr.core.files import replace_file
from semcorr.core.terminal import escape_controls
from semcorr.core.text_files import JsonMapping
from semcorr.data.record import PairRecord
from semcorr.data.views import load_record
from semcorr.metrics.pck import INCLUSIVE, Tolerance
from semcorr.visualization.canvas import (
    PAPER,
    QUIET,
    RIGHT,
    WRONG,
    ZOOM,
    Point,
    draw_cross,
    draw_dashes,
    draw_disc,
    draw_ring,
    draw_text_line,
    fit_size,
    resize_enlarged,
    shorten_text,
    stack_grid,
    text_width,
)

SIDE = 360  # longer side of an image, in pixels of the page
GAP = 12  # between source and target
MARGIN = 24  # between tiles
HEAD = 44  # height of a tile's title and names
MARK = 5.5  # radius of a mark
LINE = 0.6  # opacity of a line from source to target


def plot_predictions(
    pairs: Sequence[PairRecord],
    table: pa.Table,
    alpha: float = 0.1,
    columns: int = 2,
    tolerance: Tolerance = INCLUSIVE,
) -> Image.Image:
    """Draw a grid with a tile per pair, titled by its category and PCK, below a legend.

    Args:
        pairs: Pairs to draw.
        table: Predictions of the pairs.
        alpha: Tolerance of a correct match, as a share of the extent.
        columns: Tiles in a row.
        tolerance: The protocol's comparison of errors with alpha.
    """
    rows_by_pair: dict[str, list[JsonMapping]] = {pair.name: [] for pair in pairs}
    for row in table.to_pylist():
        if row["pair"] in rows_by_pair:
            rows_by_pair[row["pair"]].append(row)
    tiles = [_draw_tile(pair, rows_by_pair[pair.name], alpha, tolerance) for pair in pairs]
    grid = stack_grid(tiles, columns, MARGIN)
    legend = _draw_legend(alpha, tolerance, grid.width)
    sheet = Image.new("RGB", (grid.width, grid.height + legend.height), PAPER)
    sheet.paste(legend, (0, 0))
    sheet.paste(grid, (0, legend.height))
    return sheet


def plot_pair(
    pair: PairRecord, rows: Sequence[JsonMapping], alpha: float, tolerance: Tolerance = INCLUSIVE
) -> Image.Image:
    """Draw source and target of one pair, each in the middle of its half, with a line from keypoint to prediction.

    Around each true point of the target is a ring of the tolerance, `alpha` times the extent; from that of a wrong
    match a dashed line leads to the prediction.

    Args:
        pair: The pair.
        rows: Its rows of the predictions.
        alpha: Tolerance of a correct match, as a share of the extent.
        tolerance: The protocol's comparison of errors with alpha.
    """
    sizes = [fit_size(image.size, SIDE, SIDE) for image in (pair.source, pair.target)]
    height, width = max(h for _, h in sizes), 2 * SIDE + GAP
    canvas = Image.new("RGB", (ZOOM * width, ZOOM * height), PAPER)
    places = [
        (side * (SIDE + GAP) + (SIDE - w) // 2, (height - h) // 2) for side, (w, h) in enumerate(sizes)
    ]  # upper left corners
    for image, size, (x, y) in zip((pair.source, pair.target), sizes, places, strict=True):
        canvas.paste(resize_enlarged(load_record(image), size), (ZOOM * x, ZOOM * y))
    draw = ImageDraw.Draw(canvas, "RGBA")
    scales = [size[0] / image.size[0] for size, image in zip(sizes, (pair.source, pair.target), strict=True)]
    ends = [
        (
            _canvas_point(row, "source", scales[0], places[0]),
            _canvas_point(row, "predicted", scales[1], places[1]),
            _canvas_point(row, "target", scales[1], places[1]),
            is_within(row, alpha, tolerance),
        )
        for row in rows
    ]
    for row, (start, predicted, truth, correct) in zip(rows, ends, strict=True):
        colour = RIGHT if correct else WRONG
        draw.line((*start, *predicted), fill=(*colour, round(255 * LINE)), width=ZOOM)
        draw_ring(draw, truth, ZOOM * alpha * row["extent"] * scales[1], colour, 2 * ZOOM)
        if not correct:
            draw_dashes(draw, truth, predicted, colour, 2 * ZOOM)
    for start, predicted, _, correct in ends:
        for point in (start, predicted):
            (draw_disc if correct else draw_cross)(draw, point, MARK * ZOOM, RIGHT if correct else WRONG)
    return canvas.reduce(ZOOM)


def is_within(row: JsonMapping, alpha: float, tolerance: Tolerance = INCLUSIVE) -> bool:
    """Tell whether a row's prediction is right at a tolerance, as `semcorr.metrics.predictions.is_correct` does."""
    return bool(tolerance.is_correct(np.array(row["error"]), np.array(tolerance.round_alphas([alpha]))))


def evenly_spaced(pairs: Sequence[PairRecord], count: int = 10) -> list[PairRecord]:
    """Select at most `count` pairs evenly from the whole list, and not those of its first categories alone."""
    step = max(1, len(pairs) // count)
    return list(pairs[step // 2 :: step][:count])


def save_plot(image: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    with replace_file(path) as temporary:
        image.save(
            temporary, format="PNG", compress_level=1
        )  # a tenth larger than by default, in a quarter of the time


def _draw_tile(pair: PairRecord, rows: Sequence[JsonMapping], alpha: float, tolerance: Tolerance) -> Image.Image:
    """Draw a pair below its title and the names of its images."""
    picture = plot_pair(pair, rows, alpha, tolerance)
    tile = Image.new("RGB", (picture.width, picture.height + HEAD), PAPER)
    right = sum(is_within(row, alpha, tolerance) for row in rows)
    score = f"PCK@{alpha:g} {100 * right / len(rows):.1f} % ({right} of {len(rows)})" if rows else "no keypoints"
    title, names = escape_controls(f"{pair.category}: {score}"), f"{pair.source.name} to {pair.target.name}"
    draw = ImageDraw.Draw(tile)
    draw_text_line(draw, (0, 2), shorten_text(title, 18, tile.width), 18)
    draw_text_line(draw, (0, 25), shorten_text(escape_controls(names), 12, tile.width), 12, QUIET)
    tile.paste(picture, (0, HEAD))
    return tile


def _draw_legend(alpha: float, tolerance: Tolerance, width: int) -> Image.Image:
    """Draw what the marks mean, in as many lines as the width takes."""
    bound = "less than" if tolerance.strict else "at most"
    entries = (
        (draw_disc, RIGHT, f"right: {bound} {alpha:g} of the extent from the true point"),
        (draw_cross, WRONG, "wrong: a dashed line comes from the true point"),
        (None, QUIET, f"tolerance: a ring of {alpha:g} of the extent around the true point"),
    )
    size, x, y, places = 15, MARGIN, MARGIN + 6, []
    for mark, colour, text in entries:
        needed = 24 + text_width(text, size)
        if x > MARGIN and x + needed > width - MARGIN:
            x, y = MARGIN, y + 24
        places.append((mark, colour, text, x, y))
        x += round(needed) + 32
    legend = Image.new("RGB", (ZOOM * width, ZOOM * (y + 10)), PAPER)
    draw = ImageDraw.Draw(legend)
    for mark, colour, text, x, y in places:
        centre = (ZOOM * (x + 8), ZOOM * y)
        if mark is None:
            draw_ring(draw, centre, 7 * ZOOM, colour, 1.5 * ZOOM)
        else:
            mark(draw, centre, MARK * ZOOM, colour)
        draw_text_line(draw, (ZOOM * (x + 24), ZOOM * y), text, ZOOM * size, anchor="lm")
    return legend.reduce(ZOOM)


def _canvas_point(row: JsonMapping, what: str, scale: float, corner: tuple[int, int]) -> Point:
    """Convert a row's point to the enlarged canvas."""
    x, y = ((row[f"{what}_{axis}"] + 0.5) * scale + start for axis, start in zip("xy", corner, strict=True))
    return ZOOM * x, ZOOM * y
