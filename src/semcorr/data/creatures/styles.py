"""Four styles of one scene: the photograph, and a painting, a drawing and a cartoon of it.

A style changes colours, textures and lines and moves nothing: masks and keypoints are those of the photograph. Sizes of
brushes and pens are shares of the image's longer side.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from semcorr.data.colours import LUMA_WEIGHTS
from semcorr.data.creatures.scenery import Picture, apply_camera, cloud_noise

Style = Literal["photo", "painting", "drawing", "cartoon"]
STYLES: tuple[Style, ...] = ("photo", "painting", "drawing", "cartoon")
BRUSHES = (0.05, 0.025, 0.012)  # widths, from coarse to fine
REPAINTED = 0.06  # a finer brush only touches where the coarser ones are this far off
LEVELS = 6  # of a cartoon, in lightness and in colour


class Scene(NamedTuple):
    """What stands before the camera."""

    picture: Picture  # without noise and blur of a lens, and without what stands in front
    depth: Float[np.ndarray, "h w"]  # of the creature; -inf where there is none
    front: Image.Image  # RGBA: what stands in front


def draw_scene(scene: Scene, style: Style, rng: Generator) -> Image.Image:
    """Draw a scene in one of the four styles; all but the cartoon draw random numbers from `rng`."""
    if style == "photo":
        return apply_camera(scene.picture, scene.front, rng)
    image = Image.fromarray((np.clip(scene.picture, 0, 1) * 255).astype(np.uint8))
    image.paste(scene.front, mask=scene.front)
    if style == "painting":
        return paint_picture(image, rng)
    if style == "drawing":
        return draw_pencil(image, rng)
    outline = find_outline(scene.depth) | find_outline(np.asarray(scene.front)[..., 3].astype(float))
    return draw_cartoon(image, outline)


def paint_picture(image: Image.Image, rng: Generator) -> Image.Image:
    """Paint a picture with strokes along its edges, with three brushes from coarse to fine, on a canvas.

    A stroke has one colour, that of the image at its middle, a little off.
    """
    w, h = image.size
    canvas = Image.new("RGB", (w, h), tuple(int(v) for v in np.asarray(image).reshape(-1, 3).mean(0)))
    for width in (max(2.0, share * max(w, h)) for share in BRUSHES):
        smooth = image.filter(ImageFilter.GaussianBlur(width / 2))
        wanted = np.asarray(smooth, np.float32) / 255
        slope_y, slope_x = np.gradient(wanted @ LUMA_WEIGHTS)
        off = np.abs(wanted - np.asarray(canvas, np.float32) / 255).mean(-1)
        xs, ys = np.meshgrid(np.arange(0, w, width * 0.7), np.arange(0, h, width * 0.7))
        middles = np.stack([xs.ravel(), ys.ravel()], 1) + rng.normal(0, width / 3, (xs.size, 2))
        pen = ImageDraw.Draw(canvas)
        for x, y in rng.permutation(middles):
            column, row = int(np.clip(x, 0, w - 1)), int(np.clip(y, 0, h - 1))
            if off[row, column] < REPAINTED:
                continue
            way = np.arctan2(slope_x[row, column], -slope_y[row, column]) + rng.normal(0, 0.25)
            reach = width * rng.uniform(0.8, 1.8) * np.array([np.cos(way), np.sin(way)])
            colour = _saturate(wanted[row, column], 1.35) + rng.normal(0, 0.025, 3)
            fill = tuple(int(v) for v in np.clip(255 * colour, 0, 255))
            pen.line([(x - reach[0], y - reach[1]), (x + reach[0], y + reach[1])], fill, round(width))
    weave = 1 + 0.025 * np.sin(np.arange(w) * 2.1) + 0.025 * np.sin(np.arange(h) * 2.1)[:, None]
    return Image.fromarray(np.clip(np.asarray(canvas, np.float32) * weave[..., None], 0, 255).astype(np.uint8))


def draw_pencil(image: Image.Image, rng: Generator) -> Image.Image:
    """Draw a picture in grey on paper: lines where it is darker than around, hatching where it is dark."""
    w, h = image.size
    grey = image.convert("L").filter(ImageFilter.BoxBlur(0.7))
    light = np.asarray(grey, np.float32) / 255
    around = np.asarray(grey.filter(ImageFilter.GaussianBlur(0.016 * max(w, h))), np.float32) / 255
    lines = np.clip(1 - 2.2 * np.clip(0.96 - light / np.maximum(around, 0.04), 0, 1), 0.1, 1)
    x, y = np.meshgrid(np.arange(w), np.arange(h))
    wobble = 0.6 * cloud_noise((h, w), 9, rng)
    hatch = np.ones((h, w), np.float32)
    for level, slant in ((0.5, 1.0), (0.28, -1.0)):  # darker places are hatched twice
        strokes = 0.5 + 0.5 * np.sin(1.5 * (x + slant * y) + wobble)
        hatch *= 1 - 0.38 * strokes * np.clip((level - around) / 0.12, 0, 1)
    paper = 0.95 + 0.02 * cloud_noise((h, w), 3, rng)
    return Image.fromarray(np.clip(255 * paper * lines * hatch, 0, 255).astype(np.uint8)).convert("RGB")


def draw_cartoon(image: Image.Image, outline: Bool[np.ndarray, "h w"]) -> Image.Image:
    """Draw a picture in a few flat, strong colours, with a black line as thick as a pen along its outline."""
    w, h = image.size
    smooth = image.filter(ImageFilter.GaussianBlur(0.006 * max(w, h))).filter(ImageFilter.ModeFilter(5))
    colour = np.asarray(smooth, np.float32) / 255
    grey = (colour @ LUMA_WEIGHTS)[..., None]
    steps = [np.round(LEVELS * part) / LEVELS for part in (grey, 1.8 * (colour - grey))]
    flat = Image.fromarray(np.clip(255 * (steps[0] + steps[1]), 0, 255).astype(np.uint8))
    flat = flat.filter(ImageFilter.ModeFilter(7))
    pen = 2 * round(0.004 * max(w, h)) + 1  # an odd number of pixels
    lines = Image.fromarray(np.where(outline, 255, 0).astype(np.uint8)).filter(ImageFilter.MaxFilter(pen))
    flat.paste((15, 12, 20), mask=lines.filter(ImageFilter.BoxBlur(0.5)))
    return flat


def find_outline(depth: Float[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Find the pixels whose right or lower neighbour is much nearer or farther: the silhouette, and limbs before it.

    >>> find_outline(np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])).astype(int)
    array([[0, 1, 0],
           [0, 1, 0]])
    """
    outline = np.zeros(depth.shape, bool)
    solid = np.where(np.isfinite(depth), depth, -1e3)
    outline[:, :-1] |= np.abs(np.diff(solid, axis=1)) > JUMP
    outline[:-1] |= np.abs(np.diff(solid, axis=0)) > JUMP
    return outline


JUMP = 0.1  # difference of depth that is an edge, in trunk lengths


def _saturate(colour: Float[np.ndarray, "*any 3"], factor: float) -> Float[np.ndarray, "*any 3"]:
    """Move colours away from their grey."""
    grey = (colour @ LUMA_WEIGHTS)[..., None]
    return grey + factor * (colour - grey)
