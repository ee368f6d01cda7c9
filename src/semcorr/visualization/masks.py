"""Pictures of segmented videos: frames with their objects tinted."""

import colorsys
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

HEIGHT, GAP = 200, 8  # pixels: height of every frame in the page, and space between frames
TINT = 0.55  # share of an object's colour in its pixels
GOLDEN = 0.618034  # of the circle of hues between one object and the next


def plot_masks(
    videos: Sequence[Sequence[tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]]],
) -> Image.Image:
    """Draw a row per video: frames with their predicted objects, each in its own colour.

    Args:
        videos: Frames and masks of each video; 0 is background.
    """
    rows = [[_tint_frame(frame, mask) for frame, mask in video] for video in videos]
    width = max(sum(tile.width + GAP for tile in row) for row in rows) + GAP
    sheet = Image.new("RGB", (width, len(rows) * (HEIGHT + GAP) + GAP), "white")
    for i, row in enumerate(rows):
        x = GAP
        for tile in row:
            sheet.paste(tile, (x, GAP + i * (HEIGHT + GAP)))
            x += tile.width + GAP
    return sheet


def _tint_frame(frame: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"]) -> Image.Image:
    """Tint the objects of a frame."""
    pixels = frame.astype(np.float64)
    for number in np.unique(mask[mask > 0]).tolist():
        colour = np.array(colorsys.hsv_to_rgb(number * GOLDEN % 1, 0.85, 1.0)) * 255
        pixels[mask == number] = (1 - TINT) * pixels[mask == number] + TINT * colour
    image = Image.fromarray(pixels.round().astype(np.uint8))
    return image.resize((max(1, round(image.width * HEIGHT / image.height)), HEIGHT), Image.Resampling.LANCZOS)
