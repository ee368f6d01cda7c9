"""Drawing with Pillow: colours for every reader, marks that are seen on any photo, text, and grids of tiles.

Colours are of the palette of Okabe and Ito ("Color Universal Design", 2008), which readers with red-green blindness
tell apart; a second channel, a shape or a number, always says the same.
"""

import colorsys
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Point = Sequence[float]  # x, y

POINT_COLOURS: tuple[Colour, ...] = (
    (86, 180, 233), (230, 159, 0), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0), (0, 114, 178),
)  # fmt: skip
RIGHT, WRONG = POINT_COLOURS[0], POINT_COLOURS[5]
INK, QUIET, EDGE, PAPER = (29, 36, 41), (91, 103, 112), (0, 0, 0), (255, 255, 255)
MIDDLE = (128, 128, 128)
CONTRAST = 0.6  # of a picture below a map
ZOOM = 3  # drawn larger and reduced, for smooth lines
RAMP = np.array(
    [[18, 22, 60], [110, 35, 110], [225, 85, 60], [255, 220, 110]]
)  # from small values to large, ever lighter
BAR, TICKS, SMALL = 14, 3, 12  # width of a colour bar in pixels, how many numbers it has, and their size


def point_colour(index: int) -> Colour:
    """Return the colour of a numbered point; colours repeat after seven, numbers do not."""
    return POINT_COLOURS[index % len(POINT_COLOURS)]


def bright_colour(hue: float) -> Colour:
    """Return the bright colour of a hue in [0, 1], the share of the colour circle."""
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def text_colour(background: Colour) -> Colour:
    """Return black or white, whichever has more contrast with a colour (relative luminance of WCAG 2).

    >>> text_colour((240, 228, 66)), text_colour((0, 114, 178))
    ((0, 0, 0), (255, 255, 255))
    """
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return EDGE if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else PAPER


def fit_size(size: tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """Return the largest size of the same aspect within a box.

    >>> fit_size((500, 250), 360, 360), fit_size((100, 300), 360, 360)
    ((360, 180), (120, 360))
    """
    share = min(width / size[0], height / size[1])
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def resize_enlarged(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize a picture to draw on: to `size`, with each pixel repeated `ZOOM` times along both axes.

    Interpolating to the enlarged size would take `ZOOM` squared times as long, and look the same once reduced.

    Args:
        image: The picture.
        size: Width and height after it is reduced by `ZOOM`, in pixels.
    """
    small = image.resize(size)
    return small.resize((ZOOM * small.width, ZOOM * small.height), Image.Resampling.NEAREST)


def draw_disc(draw: ImageDraw.ImageDraw, centre: Point, radius: float, colour: Colour) -> None:
    """Draw a disc with a dark edge.

    Args:
        draw: Pillow's drawing context.
        centre: (x, y) in pixels.
        radius: Radius in pixels, with the edge.
        colour: Colour inside the edge.
    """
    draw.ellipse(_box(centre, radius), fill=EDGE)
    draw.ellipse(_box(centre, radius * 0.74), fill=colour)


def draw_cross(draw: ImageDraw.ImageDraw, centre: Point, radius: float, colour: Colour) -> None:
    """Draw a diagonal cross with a dark edge.

    Args:
        draw: Pillow's drawing context.
        centre: (x, y) in pixels.
        radius: Pixels from the centre to the end of an arm in x and in y, without the edge.
        colour: Colour inside the edge.
    """
    x, y = centre
    for reach, width, fill in ((radius * 1.12, radius * 0.86, EDGE), (radius, radius * 0.44, colour)):
        for sign in (1, -1):
            draw.line((x - reach, y - sign * reach, x + reach, y + sign * reach), fill=fill, width=round(width))


def draw_ring(draw: ImageDraw.ImageDraw, centre: Point, radius: float, colour: Colour, width: float) -> None:
    """Draw a ring whose line is centred on the radius, with a thin dark edge outside.

    Args:
        draw: Pillow's drawing context.
        centre: (x, y) in pixels.
        radius: Radius in pixels.
        colour: Colour of the line.
        width: Width of the line in pixels.
    """
    draw.ellipse(_box(centre, radius + width), outline=EDGE, width=max(1, round(width)))
    draw.ellipse(_box(centre, radius + width / 2), outline=colour, width=max(1, round(width)))


def draw_dashes(draw: ImageDraw.ImageDraw, start: Point, stop: Point, colour: Colour, width: int) -> None:
    """Draw a dashed line, with dashes and gaps of four times its width; none of a line to where there is no number.

    Args:
        draw: Pillow's drawing context.
        start: (x, y) in pixels.
        stop: (x, y) in pixels.
        colour: Colour of the dashes.
        width: Width of the line in pixels.
    """
    length, dash = math.dist(start, stop), 4.0 * width
    if not math.isfinite(length):
        return
    near, far = 0.0, 1.0
    for s, e, side in zip(start, stop, draw.im.size, strict=True):  # the share of the line that is on the picture
        if far and e != s:
            bounds = sorted(((-dash - s) / (e - s), (side + dash - s) / (e - s)))
            near, far = max(near, bounds[0]), min(far, bounds[1])
        elif not -dash <= s <= side + dash:
            far = 0.0
    for i in range(math.floor(near * length / (2 * dash)), math.ceil(far * length / (2 * dash)) if far > near else 0):
        low, high = (min(1.0, at * dash / length) for at in (2 * i, 2 * i + 1))
        ends = [s + share * (e - s) for share in (low, high) for s, e in zip(start, stop, strict=True)]
        draw.line(ends, fill=colour, width=width)


def draw_text_line(
    draw: ImageDraw.ImageDraw, place: Point, text: str, size: float, colour: Colour = INK, anchor: str = "lt"
) -> None:
    """Write a line of text in Pillow's default font.

    Args:
        draw: Pillow's drawing context.
        place: (x, y) in pixels.
        text: The text.
        size: Size of the font in pixels.
        colour: Colour of the text.
        anchor: What of the text lies at `place`, as Pillow names it: `lt`, left and top; `mm`, the middle.
    """
    draw.text((place[0], place[1]), text, fill=colour, font=ImageFont.load_default(size=size), anchor=anchor)


def shorten_text(text: str, size: float, width: float) -> str:
    """Shorten a text to a width in pixels, by leaving out its middle."""
    font, length = ImageFont.load_default(size=size), len(text)
    shortened = text
    while length > 2 and font.getlength(shortened) > width:
        length -= 1
        shortened = f"{text[: (length + 1) // 2]}...{text[len(text) - length // 2 :]}"
    return shortened


def text_width(text: str, size: float) -> float:
    """Return the width of a line of text in pixels."""
    return ImageFont.load_default(size=size).getlength(text)


def colour_values(share: Float[np.ndarray, "..."]) -> np.ndarray:
    """Return the colours of values in [0, 1]: dark for small ones and light for large ones, for every kind of vision.

    Returns:
        RGB bytes, along a last axis of three.
    """
    steps = np.linspace(0, 1, len(RAMP))
    return np.stack([np.interp(share, steps, RAMP[:, i]) for i in range(3)], axis=-1).round().astype(np.uint8)


def overlay_map(
    image: Image.Image, values: Float[np.ndarray, "h w"], opacity: float
) -> tuple[Image.Image, Image.Image]:
    """Lay a map over a grey picture of the same size; return it and its colour bar, which has the same height.

    Colours are spread from the least to the greatest value. Those of the bar are as faded as those of the map.

    Args:
        image: The picture.
        values: The map, a value for each pixel.
        opacity: Opacity of the map, from 0 to 1.
    """
    low, high = float(values.min()), float(values.max())
    share = (values - low) / (high - low) if high > low else np.zeros_like(values)
    middle = Image.new("RGB", image.size, MIDDLE)
    pale = Image.blend(middle, image.convert("L").convert("RGB"), CONTRAST)  # or its lights look like high values
    overlay = Image.blend(pale, Image.fromarray(colour_values(share)), opacity)
    return overlay, draw_colour_bar(image.height, low, high, opacity)


def draw_colour_bar(height: int, low: float, high: float, opacity: float = 1.0) -> Image.Image:
    """Draw the colours from a low value at the bottom to a high one at the top, with numbers beside them.

    Args:
        height: Height of the bar in pixels.
        low: Number at the bottom.
        high: Number at the top.
        opacity: Opacity of the colours over grey, from 0 to 1, as that of a map over a picture.
    """
    colours = Image.fromarray(colour_values(np.linspace(1, 0, height)[:, None].repeat(BAR, axis=1)))
    numbers = [f"{low + (high - low) * i / (TICKS - 1):.2f}" for i in range(TICKS)]
    bar = Image.new("RGB", (BAR + 8 + math.ceil(max(text_width(n, SMALL) for n in numbers)), height), PAPER)
    bar.paste(Image.blend(Image.new("RGB", colours.size, MIDDLE), colours, opacity), (0, 0))
    draw = ImageDraw.Draw(bar)
    for i, number in enumerate(numbers):
        y = (height - 1) * (1 - i / (TICKS - 1))
        draw.line((BAR, y, BAR + 3, y), fill=INK)
        draw_text_line(draw, (BAR + 6, y), number, SMALL, anchor="lb" if i == 0 else "lt" if i == TICKS - 1 else "lm")
    return bar


def hstack_images(images: Sequence[Image.Image], gap: int) -> Image.Image:
    """Place images in a row on white, aligned at the top, with `gap` pixels between them."""
    width = sum(image.width for image in images) + gap * (len(images) - 1)
    canvas, x = Image.new("RGB", (width, max(image.height for image in images)), PAPER), 0
    for image in images:
        canvas.paste(image, (x, 0))
        x += image.width + gap
    return canvas


def stack_grid(tiles: Sequence[Image.Image], columns: int, gap: int) -> Image.Image:
    """Place tiles in rows: columns of one width, rows of the height of their highest tile, on white with a margin."""
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    width, heights = max(tile.width for tile in tiles), [max(tile.height for tile in row) for row in rows]
    across = min(columns, len(tiles))
    canvas = Image.new("RGB", (across * (width + gap) + gap, sum(heights) + gap * (len(rows) + 1)), PAPER)
    y = gap
    for row, height in zip(rows, heights, strict=True):
        for i, tile in enumerate(row):
            canvas.paste(tile, (gap + i * (width + gap), y))
        y += height + gap
    return canvas


def _box(centre: Point, radius: float) -> tuple[float, float, float, float]:
    """Return the box of a circle."""
    x, y = centre
    return x - radius, y - radius, x + radius, y + radius
