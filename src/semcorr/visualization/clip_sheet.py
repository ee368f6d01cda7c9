"""An overview of a labelled clip: frames evenly spaced, and below them the score of each keypoint in every frame."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw
from torch import Tensor

from semcorr.core.terminal import escape_controls
from semcorr.data.pictures import Picture
from semcorr.visualization.canvas import (
    INK,
    PAPER,
    QUIET,
    RIGHT,
    ZOOM,
    Colour,
    colour_values,
    draw_colour_bar,
    draw_disc,
    draw_ring,
    draw_text_line,
    fit_size,
    point_colour,
    resize_enlarged,
    shorten_text,
    stack_grid,
    text_colour,
    text_width,
)

TILES, COLUMNS = 12, 4  # most frames of a sheet, and in a row
WIDTH, HEIGHT = 320, 240  # largest size of a frame, in pixels of the sheet
GAP, HEAD = 12, 18  # between frames, and height of a name
MARK, DIGITS = 7, 9  # radius of a mark, and size of the number in it
ROW, TEXT, NAMES = 15, 12, 150  # height of a keypoint's row, size of its name, and widest name
HIDDEN: Colour = (206, 210, 214)
LEGEND = (
    "Score of each keypoint in every frame; grey: hidden or not found; blue: annotated. A ring is a hidden keypoint."
)


class FrameScores(NamedTuple):
    """Scores of the keypoints of a frame."""

    scores: Float[np.ndarray, " k"]
    valid: Bool[np.ndarray, " k"]
    annotated: Bool[np.ndarray, " k"]


class ClipSheet:
    """An overview that frames are added to one after the other: of a clip of any length, few are in memory.

    Args:
        names: Names of the keypoints.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.rows: list[FrameScores] = []
        self.tiles: list[tuple[int, Image.Image]] = []  # frames whose number is a multiple of `step`
        self.step = 1

    def add(
        self,
        picture: Picture,
        name: str,
        points: Float[Tensor, "k 2"],
        scores: Float[Tensor, " k"],
        valid: Bool[Tensor, " k"],
        annotated: Bool[Tensor, " k"],
    ) -> None:
        """Add the next frame.

        Args:
            picture: The frame.
            name: Its name.
            points: Keypoints in its pixels.
            scores: Their scores in [0, 1].
            valid: Keypoints that are found or annotated.
            annotated: Keypoints of objects that are annotated in this frame.
        """
        row = FrameScores(scores.numpy(), valid.numpy(), annotated.numpy())
        if len(self.rows) % self.step == 0:
            title = f"{name} (annotated)" if bool(annotated.all()) else name
            self.tiles.append((len(self.rows), _draw_frame(picture, title, points, row)))
            if len(self.tiles) > 2 * TILES:
                self.tiles, self.step = self.tiles[::2], 2 * self.step
        self.rows.append(row)

    def draw(self) -> Image.Image:
        """Draw the sheet: frames above, scores below."""
        places = sorted({round(i) for i in np.linspace(0, len(self.tiles) - 1, min(TILES, len(self.tiles)))})
        tiles = [self.tiles[i] for i in places]
        frames = stack_grid([tile for _, tile in tiles], COLUMNS, GAP)
        width = max(frames.width, NAMES + 2 * WIDTH)
        scores = _draw_scores(self.names, self.rows, [index for index, _ in tiles], width)
        sheet = Image.new("RGB", (width, frames.height + scores.height), PAPER)
        sheet.paste(frames, (0, 0))
        sheet.paste(scores, (0, frames.height))
        return sheet


def _draw_frame(picture: Picture, title: str, points: Float[Tensor, "k 2"], row: FrameScores) -> Image.Image:
    """Draw a frame below its name: discs are found or annotated, rings are hidden."""
    width, height = fit_size(picture.size, WIDTH, HEIGHT)
    canvas = resize_enlarged(picture.image, (width, height))
    draw = ImageDraw.Draw(canvas)
    places = (points.numpy() + 0.5) * (np.array(canvas.size) / np.array(picture.size))
    for i, (x, y) in enumerate(places.tolist()):
        colour = point_colour(i)
        if row.valid[i]:
            draw_disc(draw, (x, y), MARK * ZOOM, colour)
            draw_text_line(draw, (x, y), str(i + 1), DIGITS * ZOOM, text_colour(colour), "mm")
        elif row.scores[i] > 0:
            draw_ring(draw, (x, y), MARK * ZOOM * 0.7, colour, ZOOM * 1.5)
    tile = Image.new("RGB", (width, height + HEAD), PAPER)
    draw_text_line(ImageDraw.Draw(tile), (0, 1), shorten_text(escape_controls(title), TEXT, width), TEXT)
    tile.paste(canvas.reduce(ZOOM), (0, HEAD))
    return tile


def _draw_scores(names: Sequence[str], rows: Sequence[FrameScores], frames: Sequence[int], width: int) -> Image.Image:
    """Draw a row per keypoint, with the frames from left to right; ticks are at `frames`."""
    numbers = [i for i in range(len(names)) if any(row.valid[i] for row in rows)]  # of those that any frame shows
    left = GAP + 2 * ROW + min(NAMES, round(max((text_width(name, TEXT) for name in names), default=0)) + 6)
    bar = draw_colour_bar(max(ROW * len(numbers), 60), 0.0, 1.0)
    right = width - GAP - bar.width - GAP
    strips = colour_scores(rows, right - left)
    canvas = Image.new("RGB", (width, bar.height + 3 * ROW + GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw_text_line(draw, (GAP, 2), LEGEND, TEXT, QUIET)
    for row, i in enumerate(numbers):
        top, colour = 2 * ROW + row * ROW, point_colour(i)
        draw.rectangle((GAP, top + 1, GAP + 1.5 * ROW, top + ROW - 2), fill=colour)
        draw_text_line(draw, (GAP + 0.75 * ROW, top + ROW / 2), str(i + 1), DIGITS, text_colour(colour), "mm")
        shortened = shorten_text(escape_controls(names[i]), TEXT, NAMES - 6)
        draw_text_line(draw, (GAP + 2 * ROW, top + ROW / 2), shortened, TEXT, anchor="lm")
        canvas.paste(Image.fromarray(strips[i][None].repeat(ROW - 2, axis=0)), (left, top + 1))
    for index in frames:
        x = left + (index + 0.5) * (right - left) / len(rows)
        draw.line((x, 2 * ROW - 5, x, 2 * ROW - 1), fill=INK)
    canvas.paste(bar, (right + GAP, 2 * ROW))
    return canvas


def colour_scores(rows: Sequence[FrameScores], width: int) -> np.ndarray:
    """Return the colours (keypoints, width, 3) of the scores of all frames, from left to right.

    Where several frames share a column, it has the mean score of those that show the keypoint, it is grey if most of
    them do not, and blue if one of them is annotated.

    Args:
        rows: Scores of each frame.
        width: Number of columns.
    """
    scores, valid, annotated = (np.stack(values, axis=1) for values in zip(*rows, strict=True))  # (k, t)
    first = np.arange(width) * len(rows) // width
    last = np.maximum(first + 1, np.arange(1, width + 1) * len(rows) // width)

    def count(values: np.ndarray) -> np.ndarray:
        sums = np.pad(values.astype(float).cumsum(axis=1), ((0, 0), (1, 0)))
        return sums[:, last] - sums[:, first]

    valid_count = count(valid)
    colours = colour_values((count(scores * valid) / np.maximum(valid_count, 1)).clip(0, 1))
    colours[2 * valid_count < last - first] = HIDDEN
    colours[(count(annotated & valid) > 0)] = RIGHT
    return colours
