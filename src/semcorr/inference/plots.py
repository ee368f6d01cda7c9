"""Plots of matches: numbered points side by side, one picture warped onto the other, features in colours."""

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn.functional import grid_sample, normalize

from semcorr.core.coords import to_unit, to_view
from semcorr.core.types import FeatureMap
from semcorr.data.pictures import Picture
from semcorr.inference.dense import pixel_grid, sample_bilinear
from semcorr.inference.encoded import EncodedPicture, Flow, Match
from semcorr.models.backbones.features import joint_pca

HEIGHT, WIDEST = 480, 960  # largest size of a displayed picture, in pixels
GAP = 8
ZOOM = 3  # drawn larger and reduced, for smooth lines
LINES = 12  # number of points up to which lines connect the pictures
FADED = 0.25  # contrast of the grey target where the warp is not reliable
SIDE = 2  # of the square to which a picture is scaled for `to_unit`
SURE = 0.2  # confidence from which the warp is opaque


Colour = tuple[int, int, int]


def plot_matches(a: Picture, b: Picture, match: Match, colours: Sequence[Colour] | None = None) -> Image.Image:
    """Plot source and target side by side, with numbered points: discs if consistent, rings if not."""
    sizes = [displayed_size(picture.size) for picture in (a, b)]
    images = [picture.image.resize((w * ZOOM, h * ZOOM)) for picture, (w, h) in zip((a, b), sizes, strict=True)]
    canvas = hstack_images(images, GAP * ZOOM)
    draw = ImageDraw.Draw(canvas)
    left = [0, images[0].width + GAP * ZOOM]
    ends = [
        (points + 0.5) * torch.tensor([image.width / picture.size[0], image.height / picture.size[1]])
        + torch.tensor([x, 0])
        for points, picture, image, x in zip((match.source, match.points), (a, b), images, left, strict=True)
    ]
    colours = colours or [bright_colour(i / max(1, len(match.points))) for i in range(len(match.points))]
    source_points, target_points = (end.tolist() for end in ends)
    if len(colours) <= LINES:
        for start, stop, colour in zip(source_points, target_points, colours, strict=True):
            draw.line((*start, *stop), fill=colour, width=ZOOM)
    consistent = match.consistent.tolist()
    for i, (start, stop, colour) in enumerate(zip(source_points, target_points, colours, strict=True)):
        for point in (start, stop):
            draw_point_label(draw, point, str(i + 1), colour, consistent[i])
    return canvas.resize((canvas.width // ZOOM, canvas.height // ZOOM), Image.Resampling.LANCZOS)


def draw_point_label(
    draw: ImageDraw.ImageDraw, point: Sequence[float], text: str, colour: Colour, filled: bool
) -> None:
    """Draw a disc or a ring centred at a point, with a text inside."""
    x, y = point
    r = 9 * ZOOM
    font = ImageFont.load_default(size=(11 if len(text) < 3 else 8) * ZOOM)
    box = (x - r, y - r, x + r, y + r)
    draw.ellipse(box, fill=colour if filled else "white", outline="white" if filled else colour, width=2 * ZOOM)
    draw.text((x, y), text, fill="black", anchor="mm", font=font)


def plot_warp(a: Picture, b: Picture, flow: Flow) -> Image.Image:
    """Plot the source, the source warped onto the target, and the target; faded where matches are inconsistent.

    Args:
        a: The source.
        b: The target.
        flow: Flow from the target to the source, over the whole target.
    """
    h, w = flow.confidence.shape
    x, y = pixel_grid((w, h), b.size)
    coordinates = flow.flow + torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    square = to_view(coordinates.flatten(0, 1), SIDE / torch.tensor(a.size), torch.zeros(2))
    unit = to_unit(square, SIDE).view_as(coordinates)
    colours = torch.from_numpy(np.array(a.image)).permute(2, 0, 1)[None].float()
    warped = grid_sample(colours, unit[None], align_corners=False, padding_mode="border")[0]
    opacity = (flow.confidence / SURE).clamp(0, 1)
    grey = torch.from_numpy(np.array(b.image.resize((w, h)).convert("L"))).float()
    warped = torch.lerp((grey * FADED + 255 * (1 - FADED)).expand_as(warped), warped, opacity)
    middle = Image.fromarray(warped.round().byte().permute(1, 2, 0).numpy())
    return hstack_images([a.image.resize(displayed_size(a.size)), middle, b.image.resize((w, h))])


def plot_features(
    a: Picture, b: Picture, encoded_pictures: tuple[EncodedPicture, EncodedPicture], maps: tuple[FeatureMap, FeatureMap]
) -> Image.Image:
    """Plot each picture and its features, the first three joint principal components as red, green and blue."""
    cells = [normalize(features.values.float(), dim=1) for features in maps]
    components = [component[0].cpu() for component in joint_pca(cells[0], cells[1], 3)]
    values = torch.cat([component.flatten(1) for component in components], dim=1)
    low, high = values.quantile(torch.tensor([0.01, 0.99]), dim=1)
    tiles: list[Image.Image] = []
    for picture, component, image, features in zip((a, b), components, encoded_pictures, maps, strict=True):
        size = displayed_size(picture.size)
        share = ((component - low[:, None, None]) / (high - low).clamp_min(1e-12)[:, None, None]).clamp(0, 1)
        x, y = image.placement.cells(*pixel_grid(size, picture.size), features.stride)
        colours = sample_bilinear(share.permute(1, 2, 0), x.round(), y.round()).clamp(0, 1)  # of the nearest cells
        tiles += [picture.image.resize(size), Image.fromarray((colours * 255).round().byte().numpy())]
    return hstack_images(tiles)


def displayed_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the width and height at which a picture is displayed."""
    share = min(HEIGHT / size[1], WIDEST / size[0])
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def hstack_images(images: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """Place images in a row, on white."""
    canvas = Image.new(
        "RGB", (sum(i.width for i in images) + gap * (len(images) - 1), max(i.height for i in images)), "white"
    )
    x = 0
    for image in images:
        canvas.paste(image, (x, 0))
        x += image.width + gap
    return canvas


def bright_colour(share: float) -> Colour:
    """Return a bright colour by its share of the colour circle."""
    red, green, blue = colorsys.hsv_to_rgb(share, 0.65, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
