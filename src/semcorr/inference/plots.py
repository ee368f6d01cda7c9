"""Plots of matches: numbered points side by side, one picture warped onto the other, features in colours."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, normalize

from semcorr.core.coords import to_unit, to_view
from semcorr.core.types import FeatureMap
from semcorr.data.pictures import Picture
from semcorr.inference.dense import pixel_grid, smooth_flow
from semcorr.inference.displayed import displayed_size
from semcorr.inference.encoded import EncodedPicture, Flow
from semcorr.matching.dense import sample_bilinear
from semcorr.models.backbones.features import joint_pca
from semcorr.visualization.canvas import (
    EDGE,
    PAPER,
    POINT_COLOURS,
    ZOOM,
    Colour,
    Point,
    draw_dashes,
    draw_disc,
    draw_ring,
    draw_text_line,
    hstack_images,
    overlay_map,
    point_colour,
    resize_enlarged,
    text_colour,
    text_width,
)

if TYPE_CHECKING:  # a match draws itself by this module
    from semcorr.inference.matches import Match

GAP = 12  # between pictures
LEGEND = 32  # height of the legend
LINES = 12  # number of points up to which lines connect the pictures
FADED_CONTRAST = 0.25  # contrast of the grey target where the warp is not reliable
SIDE = 2  # of the square to which a picture is scaled for `to_unit`
OPAQUE_CONFIDENCE = 0.2  # confidence from which the warp is opaque


def plot_matches(a: Picture, b: Picture, match: "Match", colours: Sequence[Colour] | None = None) -> Image.Image:
    """Plot source and target side by side, with numbered points: discs if they come back, white rings if not.

    Args:
        a: The source.
        b: The target.
        match: Matches of points of the source in the target.
        colours: A colour for each point; None, those of `point_colour`.
    """
    sizes = [displayed_size(picture.size) for picture in (a, b)]
    images = [resize_enlarged(picture.image, size) for picture, size in zip((a, b), sizes, strict=True)]
    canvas = hstack_images(images, GAP * ZOOM)
    draw = ImageDraw.Draw(canvas)
    left = [0, images[0].width + GAP * ZOOM]
    ends = [
        (points + 0.5)
        * torch.tensor([image.width / picture.size[0], image.height / picture.size[1]], dtype=torch.float32)
        + torch.tensor([x, 0])
        for points, picture, image, x in zip((match.source, match.points), (a, b), images, left, strict=True)
    ]
    colours = colours or [point_colour(i) for i in range(len(match.points))]
    source_points, target_points = (end.tolist() for end in ends)
    consistent = match.consistent.tolist()
    if len(colours) <= LINES:
        for start, stop, colour, is_sure in zip(source_points, target_points, colours, consistent, strict=True):
            if is_sure:
                draw.line((*start, *stop), fill=colour, width=2 * ZOOM)
            else:
                draw_dashes(draw, start, stop, colour, 2 * ZOOM)
    for i, (start, stop, colour) in enumerate(zip(source_points, target_points, colours, strict=True)):
        for point in (start, stop):
            draw_point_label(draw, point, str(i + 1), colour, consistent[i])
    return _add_legend(canvas.reduce(ZOOM)) if colours else canvas.reduce(ZOOM)


def draw_point_label(
    draw: ImageDraw.ImageDraw, point: Sequence[float], text: str, colour: Colour, filled: bool
) -> None:
    """Draw a disc or a ring centred at a point, with a text inside and a dark edge around.

    Args:
        draw: Pillow's drawing context; sizes are those for a canvas that is later reduced by `ZOOM`.
        point: (x, y) in pixels of the canvas.
        text: The text, which is written smaller from three characters on.
        colour: Colour of the disc or ring.
        filled: Whether a disc is drawn, and not a ring.
    """
    x, y = point
    r = 9 * ZOOM
    font = ImageFont.load_default(size=(11 if len(text) < 3 else 8) * ZOOM)
    edge = r + ZOOM / 2
    draw.ellipse((x - edge, y - edge, x + edge, y + edge), fill=EDGE)
    draw.ellipse(
        (x - r, y - r, x + r, y + r), fill=colour if filled else PAPER, outline=colour, width=round(2.5 * ZOOM)
    )
    draw.text((x, y), text, fill=text_colour(colour) if filled else EDGE, anchor="mm", font=font)


def _add_legend(plot: Image.Image) -> Image.Image:
    """Place what the marks mean below a plot, smaller where it is narrow."""
    captions = ("comes back when matched back", "does not: do not trust it")
    size = 14.0
    needed = [24 + text_width(text, size) + 24 for text in captions]
    shrink = min(1.0, plot.width / sum(needed))
    legend = Image.new("RGB", (ZOOM * plot.width, ZOOM * LEGEND), PAPER)
    draw, x = ImageDraw.Draw(legend), 0.0
    for text, width, filled in zip(captions, needed, (True, False), strict=True):
        place = (ZOOM * shrink * (x + 10), ZOOM * LEGEND / 2)
        if filled:
            draw_disc(draw, place, ZOOM * shrink * 8, point_colour(0))
        else:
            draw_ring(draw, place, ZOOM * shrink * 6, point_colour(0), 2.5 * ZOOM * shrink)
        draw_text_line(draw, (ZOOM * shrink * (x + 24), place[1]), text, ZOOM * shrink * size, anchor="lm")
        x += width
    sheet = Image.new("RGB", (plot.width, plot.height + LEGEND), PAPER)
    sheet.paste(plot, (0, 0))
    sheet.paste(legend.reduce(ZOOM), (0, plot.height))
    return sheet


def plot_similarity(
    a: Picture, b: Picture, point: Point, similarity: Float[Tensor, "h w"], opacity: float = 0.7
) -> Image.Image:
    """Plot the source with a point, and the target under the point's similarity map, with a colour bar.

    Args:
        a: The source.
        b: The target.
        point: (x, y) in original pixels of the source.
        similarity: Map over the whole target, as of `Matcher.similarity`.
        opacity: Opacity of the map.
    """
    left, right = (picture.image.resize(displayed_size(picture.size)) for picture in (a, b))
    values = interpolate(similarity[None, None], right.size[::-1], mode="bilinear", align_corners=False)[0, 0]
    right, bar = overlay_map(right, values.numpy(), opacity)
    x, y = ((at + 0.5) * pixels / side for at, pixels, side in zip(point, left.size, a.size, strict=True))
    draw_ring(ImageDraw.Draw(left), (x, y), 10, POINT_COLOURS[3], 4)
    return hstack_images([left, right, bar], GAP)


def plot_warp(a: Picture, b: Picture, flow: Flow) -> Image.Image:
    """Plot the source, the source warped onto the target, and the target; faded where matches are inconsistent.

    The flow is smoothed for the picture, see `smooth_flow`.

    Args:
        a: The source.
        b: The target.
        flow: Flow from the target to the source, over the whole target.
    """
    size = displayed_size(b.size)
    x, y = pixel_grid(size, b.size)
    smooth = smooth_flow(flow, max(a.size) / max(flow.confidence.shape), size)
    coordinates = smooth.flow + torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    square = to_view(
        coordinates.flatten(0, 1), SIDE / torch.tensor(a.size, dtype=torch.float32), torch.zeros(2, dtype=torch.float32)
    )
    unit = to_unit(square, SIDE).view_as(coordinates)
    left = a.image.resize(displayed_size(a.size))
    source = left if a.image.width > left.width else a.image  # reduced, or a large picture's warp is grainy
    colours = torch.from_numpy(np.array(source)).permute(2, 0, 1)[None].float()
    warped = grid_sample(colours, unit[None], align_corners=False, padding_mode="border")[0]
    opacity = (smooth.confidence / OPAQUE_CONFIDENCE).clamp(0, 1)
    grey = torch.from_numpy(np.array(b.image.resize(size).convert("L"))).float()
    warped = torch.lerp((grey * FADED_CONTRAST + 255 * (1 - FADED_CONTRAST)).expand_as(warped), warped, opacity)
    middle = Image.fromarray(warped.round().byte().permute(1, 2, 0).numpy())
    return hstack_images([left, middle, b.image.resize(size)], GAP)


def plot_features(
    a: Picture, b: Picture, encoded_pictures: tuple[EncodedPicture, EncodedPicture], maps: tuple[FeatureMap, FeatureMap]
) -> Image.Image:
    """Plot each picture and its features, the first three joint principal components as red, green and blue.

    Args:
        a: The source.
        b: The target.
        encoded_pictures: Both pictures encoded, of which only the placements are used.
        maps: Features of both, as `Matcher.features` returns them.
    """
    cells = [normalize(features.values.float(), dim=1) for features in maps]
    components = [component[0].cpu() for component in joint_pca(cells[0], cells[1], 3)]
    values = torch.cat([component.flatten(1) for component in components], dim=1)
    low, high = values.quantile(torch.tensor([0.01, 0.99], dtype=torch.float32), dim=1)
    tiles: list[Image.Image] = []
    for picture, component, image, features in zip((a, b), components, encoded_pictures, maps, strict=True):
        size = displayed_size(picture.size)
        share = ((component - low[:, None, None]) / (high - low).clamp_min(1e-12)[:, None, None]).clamp(0, 1)
        x, y = image.placement.cells(*pixel_grid(size, picture.size), features.stride)
        colours = sample_bilinear(share.permute(1, 2, 0), x.round(), y.round()).clamp(0, 1)  # of the nearest cells
        tiles += [picture.image.resize(size), Image.fromarray((colours * 255).round().byte().numpy())]
    return hstack_images(tiles, GAP)
