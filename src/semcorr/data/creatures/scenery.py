"""Everything around a creature's shape: its coat's colours, the light, the background, occluders."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from semcorr.data.creatures.anatomy import DARK, FUR, HOOF, HORN, IRIS, MANE, SKIN
from semcorr.data.creatures.raster import Raster

Colour = Float[np.ndarray, "3"]  # RGB in [0, 1]
Picture = Float[np.ndarray, "h w 3"]
Waves = Float[np.ndarray, "_ 4"]  # frequency (3) and phase

FURS = {  # ground colours and marking colours found in real animals, RGB 0..255
    "cat": ((205, 130, 65), (120, 118, 118), (45, 42, 42), (235, 228, 220), (140, 108, 78), (215, 190, 150)),
    "dog": ((180, 130, 80), (45, 40, 38), (232, 225, 215), (120, 80, 50), (215, 180, 130), (110, 108, 110)),
    "horse": ((125, 72, 40), (80, 50, 35), (50, 42, 40), (205, 198, 190), (165, 105, 55), (200, 165, 110)),
    "cow": ((235, 230, 224), (40, 36, 36), (130, 70, 40), (95, 65, 48), (205, 175, 130)),
    "sheep": ((228, 218, 198), (205, 196, 182), (238, 232, 222), (90, 78, 70), (175, 155, 130)),
}
PATTERNS = {
    "cat": ("stripes", "stripes", "patches", "points", "plain"),
    "dog": ("patches", "plain", "spots", "points", "stripes"),
    "horse": ("plain", "plain", "patches", "points", "spots"),
    "cow": ("patches", "patches", "patches", "plain", "spots"),
    "sheep": ("plain", "points", "points"),
}


@dataclass(frozen=True)
class Coat:
    """Colour as a function of a point in coat space: nothing in it depends on the side."""

    ground: Colour
    marking: Colour
    pattern: str
    contrast: float
    belly: float  # how much lighter the underside is
    rough: float  # brightness noise of the fur
    coarse: Waves
    fine: Waves
    solids: Float[np.ndarray, "m 3"]  # colour per material

    @classmethod
    def draw(cls, category: str, rng: Generator) -> "Coat":
        """Sample a random coat of a category."""
        ground, marking = np.array(FURS[category])[rng.permutation(len(FURS[category]))[:2]] / 255
        ground, marking = (
            np.clip(c * rng.uniform(0.8, 1.1) + rng.normal(0, 0.02, 3), 0.03, 0.97) for c in (ground, marking)
        )
        solids = np.zeros((7, 3))
        solids[DARK] = rng.uniform(0.02, 0.10)
        solids[HORN] = np.array([0.80, 0.74, 0.60]) * rng.uniform(0.4, 1.0)
        solids[HOOF] = np.array([0.25, 0.21, 0.18]) * rng.uniform(0.5, 1.7)
        solids[MANE] = marking * rng.uniform(0.4, 1.0)
        solids[SKIN] = 0.45 * ground + 0.55 * np.array([0.80, 0.55, 0.50])
        amber, brown = np.array([0.75, 0.68, 0.25]), np.array([0.30, 0.18, 0.08])
        solids[IRIS] = amber * rng.uniform(0.7, 1.1) if category == "cat" else brown * rng.uniform(0.6, 1.5)
        rough = rng.uniform(0.04, 0.13) * (1.6 if category == "sheep" else 1.0)
        return cls(
            ground,
            marking,
            str(rng.choice(PATTERNS[category])),
            rng.uniform(0.6, 1.0),
            rng.uniform(0.0, 0.4),
            rough,
            sample_waves(rng, 6, 5.0),
            sample_waves(rng, 7, 60.0),
            solids,
        )

    def paint(
        self, point: Float[np.ndarray, "n 3"], tip: Float[np.ndarray, " n"], under: Float[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n 3"]:
        """Return the colour of the fur, RGB in [0, 1].

        Args:
            point: Points in coat space.
            tip: How far out each point is: 0 on the trunk to 1 at the extremities.
            under: 1 where the surface faces the ground, 0 where it faces the sky.
        """
        broad = wave_noise(point, self.coarse)
        if self.pattern == "stripes":
            amount = 0.5 + 0.5 * np.tanh(2.5 * np.sin(34 * point[:, 0] + 2.2 * broad) + 0.6)
        elif self.pattern == "patches":
            amount = 0.5 + 0.5 * np.tanh(9 * broad)
        elif self.pattern == "spots":
            amount = 0.5 + 0.5 * np.tanh(6 * (wave_noise(2.6 * point, self.coarse) - 0.9))
        elif self.pattern == "points":
            amount = np.clip(1.6 * tip - 0.5 + 0.15 * broad, 0, 1)
        else:
            amount = 0.25 + 0.2 * np.tanh(broad)
        amount = (self.contrast * amount)[:, None]
        colour = (1 - amount) * self.ground + amount * self.marking
        return colour + (self.belly * np.clip(1.5 * under - 0.75, 0, 1))[:, None] * (0.9 - colour)


def sample_waves(rng: Generator, count: int, frequency: float) -> Waves:
    """Sample random plane waves for `wave_noise`.

    Args:
        rng: Source of everything random.
        count: Number of waves.
        frequency: Standard deviation of the frequencies along each axis, in radians per trunk length.
    """
    return np.concatenate([rng.normal(0, frequency, (count, 3)), rng.uniform(0, 2 * np.pi, (count, 1))], 1)


def wave_noise(point: Float[np.ndarray, "n 3"], wave: Waves) -> Float[np.ndarray, " n"]:
    """Evaluate a smooth random function with zero mean and unit variance."""
    phase = (wave[:, :3] @ point.T + wave[:, 3:]).astype(np.float32)  # cosines are half the cost
    return np.cos(phase).sum(0) * np.float32(np.sqrt(2 / len(wave)))


class Light(NamedTuple):
    """A soft lamp and the sky."""

    direction: tuple[float, float, float] = (0.0, -0.6, 0.8)  # to the lamp: right, down, to the viewer
    lamp: float = 0.6
    sky: float = 0.5
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @classmethod
    def draw(cls, rng: Generator) -> "Light":
        """Sample a random light from above, warm or cold, hard or dull."""
        warm = rng.normal(0, 0.06)
        way = (rng.normal(0, 0.7), -rng.uniform(0.1, 1.0), rng.uniform(0.2, 1.0))
        return cls(way, rng.uniform(0.3, 0.9), rng.uniform(0.4, 0.75), (1 + warm, 1.0, 1 - warm))


def shade_creature(raster: Raster, coat: Coat, light: Light) -> Picture:
    """Shade the creature; black where there is none."""
    material, way = raster.material, np.array(light.direction) / np.linalg.norm(light.direction)
    under, facing = 0.5 + 0.5 * raster.normal[:, 1], raster.normal @ way
    colour, fur = coat.solids[material], material == FUR
    colour[fur] = coat.paint(raster.coat[fur], raster.tip[fur], under[fur])
    colour *= (1 + coat.rough * wave_noise(raster.coat, coat.fine))[:, None]
    bright = light.sky * (1.2 - 0.65 * under) + light.lamp * np.clip(0.15 + 0.85 * facing, 0, 1)
    wet = (material == IRIS) | (material == DARK)
    shine = np.where(wet, 0.6 * np.clip(facing, 0, 1) ** 20, 0)
    picture = np.zeros((*raster.depth.shape, 3))
    picture[raster.mask] = np.clip(colour * bright[:, None] * np.array(light.tint) + shine[:, None], 0, 1)
    return picture


def draw_backdrop(category: str, shape: tuple[int, int], light: Light, rng: Generator) -> Picture:
    """Draw a wall or sky above a floor, with texture, clutter (some of it fur-coloured) and blur.

    Args:
        category: Category of the creature, in whose colours some clutter is.
        shape: Height and width of the image, in pixels.
        light: Light that falls on it.
        rng: Source of everything random.
    """
    h, w = shape
    horizon = h * rng.uniform(0.15, 0.75)
    far, near = rng.uniform(0.15, 0.95, 3), rng.uniform(0.1, 0.85, 3)
    far, near = (0.35 * c + 0.65 * c.mean() for c in (far, near))
    image = Image.new("RGB", (w, h), _rgb(far))
    draw = ImageDraw.Draw(image)
    draw.polygon([(0, horizon), (w, horizon + rng.normal(0, 12)), (w, h), (0, h)], _rgb(near))
    if rng.random() < 0.4:  # planks, tiles, a fence
        step, lean = rng.uniform(7, 40), rng.normal(0, 40)
        stripe, top = _rgb(near * rng.uniform(0.6, 1.3)), float(rng.choice([0.0, horizon]))
        for x in np.arange(-60, w + 60, step):
            draw.line([(x, top), (x + lean, h)], stripe, int(rng.integers(1, 7)))
    furs = np.array(FURS[category]) / 255
    for _ in range(rng.integers(2, 12)):
        colour = furs[rng.integers(len(furs))] if rng.random() < 0.4 else rng.uniform(0, 1, 3)
        colour = 0.6 * colour + 0.4 * colour.mean()
        draw_blob(draw, (rng.uniform(0, w), rng.uniform(0, h)), rng.uniform(8, 60, 2), _rgb(colour), rng)
    image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.3, 3.5)))
    picture = np.asarray(image, np.float32) / 255
    bright = np.full(shape, light.sky + 0.6 * light.lamp, np.float32)
    for cell in (3, 7, 18, 45):
        bright *= 1 + rng.uniform(0, 0.17) * cloud_noise(shape, cell, rng)
    return np.clip(picture * bright[..., None] * np.array(light.tint, np.float32), 0, 1)


def cloud_noise(shape: tuple[int, int], cell: int, rng: Generator) -> Float[np.ndarray, "h w"]:
    """Sample smooth noise with features about `cell` pixels wide."""
    small = rng.standard_normal((shape[0] // cell + 2, shape[1] // cell + 2), np.float32)
    return np.asarray(Image.fromarray(small).resize(shape[::-1], Image.Resampling.BICUBIC))


def draw_blob(
    draw: ImageDraw.ImageDraw,
    centre: tuple[float, float] | Float[np.ndarray, "2"],
    radii: Float[np.ndarray, "2"],
    colour: tuple[int, ...],
    rng: Generator,
) -> None:
    """Draw a lumpy disc, a box, or a slanted pole, if one radius is much larger than the other.

    Args:
        draw: Canvas to draw on.
        centre: Centre (x, y), in pixels.
        radii: Radii along x and y, in pixels.
        colour: Values of the canvas's channels, from 0 to 255.
        rng: Source of everything random.
    """
    angle = np.arange(0, 2 * np.pi, 2 * np.pi / (4 if rng.random() < 0.5 else 11)) + rng.uniform(0, np.pi)
    lump = rng.uniform(0.75, 1.25, len(angle))[:, None]
    points = centre + radii * lump * np.stack([np.cos(angle), np.sin(angle)], 1)
    draw.polygon([(float(x), float(y)) for x, y in points], colour)


def cast_shadow(picture: Picture, feet: Float[np.ndarray, "k 2"], scale: float, rng: Generator) -> Picture:
    """Darken the floor around the feet, softly.

    Args:
        picture: Picture of the floor.
        feet: Positions (x, y) of the feet, in pixels.
        scale: Pixels per trunk length.
        rng: Source of the darkness.
    """
    h, w = picture.shape[:2]
    (x1, y1), (x2, y2) = feet.min(0) - 0.12 * scale, feet.max(0) + 0.10 * scale
    dark = Image.new("L", (w // 4, h // 4))
    ImageDraw.Draw(dark).ellipse([x1 / 4, (y1 + y2) / 8 - 0.25 * (y2 - y1) / 4, x2 / 4, y2 / 4], 255)
    dark = dark.filter(ImageFilter.GaussianBlur(2.0)).resize((w, h), Image.Resampling.BILINEAR)
    return picture * (1 - rng.uniform(0.1, 0.6) / 255 * np.asarray(dark, np.float32))[..., None]


def draw_occluder(shape: tuple[int, int], rng: Generator) -> Image.Image:
    """Draw a transparent RGBA layer that sometimes holds grass, poles or boxes."""
    h, w = shape
    layer = Image.new("RGBA", (w, h))
    draw, kind = ImageDraw.Draw(layer), rng.choice(["nothing", "grass", "clutter"], p=[0.45, 0.3, 0.25])
    if kind == "grass":
        green, floor = rng.uniform([0.1, 0.25, 0.05], [0.5, 0.6, 0.25]), h * rng.uniform(0.88, 1.0)
        for x in rng.uniform(0, w, rng.integers(20, 90)):
            tip = (x + rng.normal(0, 9), floor - rng.uniform(0.03, 0.2) * h)
            draw.line([(x, h), tip], (*_rgb(green * rng.uniform(0.5, 1.3)), 255), int(rng.integers(1, 4)))
    elif kind == "clutter":
        for _ in range(rng.integers(1, 4)):
            centre, radii = rng.uniform(0, 1, 2) * (w, h), rng.uniform(6, 34, 2)
            radii = radii * ((0.2, 9.0) if rng.random() < 0.3 else (1.0, 1.0))  # a pole
            draw_blob(draw, centre, radii, (*_rgb(rng.uniform(0.1, 0.9, 3)), 255), rng)
    return layer


def apply_camera(picture: Picture, layer: Image.Image, rng: Generator) -> Image.Image:
    """Put the occluders in front, then blur by the lens (which also softens jagged outlines) and add noise."""
    image = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    image.paste(layer, mask=layer)
    image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.5, 0.9)))
    grain = rng.uniform(1, 5) * rng.standard_normal(picture.shape[:2], np.float32)
    noisy = np.asarray(image, np.float32) + grain[..., None]
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def _rgb(colour: Colour) -> tuple[int, ...]:
    return tuple(int(v) for v in np.clip(colour * 255, 0, 255))
