"""A match as a picture: numbered points side by side, one picture warped onto the other, features in colours."""

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
from semcorr.inference.encoded import EncodedPicture
from semcorr.inference.matches import Flow, Match
from semcorr.models.backbones.joint_pca import joint_pca

HEIGHT, WIDEST = 480, 960  # pixels of a picture in the page, at most
GAP = 8
ZOOM = 3  # drawn larger and reduced, for smooth lines
LINES = 12  # points up to which lines lead from one picture to the other
FADED = 0.25  # of the target's greys, where the warp is not to be trusted
SIDE = 2  # of a square that stands for a picture
SURE = 0.2  # confidence from which it is shown in full


Colour = tuple[int, int, int]


def plot_matches(a: Picture, b: Picture, match: Match, colours: Sequence[Colour] | None = None) -> Image.Image:
    """Source left, target right, every point in its own colour with its number: discs; rings where inconsistent."""
    sizes = [displayed_size(one.size) for one in (a, b)]
    images = [one.image.resize((w * ZOOM, h * ZOOM)) for one, (w, h) in zip((a, b), sizes, strict=True)]
    sheet = hstack_images(images, GAP * ZOOM)
    draw = ImageDraw.Draw(sheet)
    left = [0, images[0].width + GAP * ZOOM]
    ends = [
        (points + 0.5) * torch.tensor([image.width / one.size[0], image.height / one.size[1]]) + torch.tensor([x, 0])
        for points, one, image, x in zip((match.source, match.points), (a, b), images, left, strict=True)
    ]
    colours = colours or [bright_colour(i / max(1, len(match.points))) for i in range(len(match.points))]
    starts, stops = (end.tolist() for end in ends)
    if len(colours) <= LINES:
        for start, stop, colour in zip(starts, stops, colours, strict=True):
            draw.line((*start, *stop), fill=colour, width=ZOOM)
    sure = match.consistent.tolist()
    for i, (start, stop, colour) in enumerate(zip(starts, stops, colours, strict=True)):
        for point in (start, stop):
            draw_label(draw, point, str(i + 1), colour, sure[i])
    return sheet.resize((sheet.width // ZOOM, sheet.height // ZOOM), Image.Resampling.LANCZOS)


def draw_label(draw: ImageDraw.ImageDraw, point: Sequence[float], text: str, colour: Colour, filled: bool) -> None:
    """The number stands in the disc, its centre at the point."""
    x, y = point
    r = 9 * ZOOM
    font = ImageFont.load_default(size=(11 if len(text) < 3 else 8) * ZOOM)
    box = (x - r, y - r, x + r, y + r)
    draw.ellipse(box, fill=colour if filled else "white", outline="white" if filled else colour, width=2 * ZOOM)
    draw.text((x, y), text, fill="black", anchor="mm", font=font)


def plot_warp(a: Picture, b: Picture, flow: Flow) -> Image.Image:
    """The source, the source as it lies on the target, the target; faded where matches do not come back.

    Args:
        a: The source.
        b: The target.
        flow: From the target to the source, over the whole of the target.
    """
    h, w = flow.confidence.shape
    x, y = pixel_grid((w, h), b.size)
    places = flow.flow + torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    square = to_view(places.flatten(0, 1), SIDE / torch.tensor(a.size), torch.zeros(2))
    unit = to_unit(square, SIDE).view_as(places)
    colours = torch.from_numpy(np.array(a.image)).permute(2, 0, 1)[None].float()
    read = grid_sample(colours, unit[None], align_corners=False, padding_mode="border")[0]
    sure = (flow.confidence / SURE).clamp(0, 1)
    grey = torch.from_numpy(np.array(b.image.resize((w, h)).convert("L"))).float()
    read = torch.lerp((grey * FADED + 255 * (1 - FADED)).expand_as(read), read, sure)
    middle = Image.fromarray(read.round().byte().permute(1, 2, 0).numpy())
    return hstack_images([a.image.resize(displayed_size(a.size)), middle, b.image.resize((w, h))])


def plot_features(
    a: Picture, b: Picture, encoded: tuple[EncodedPicture, EncodedPicture], maps: tuple[FeatureMap, FeatureMap]
) -> Image.Image:
    """Each picture and its features: their first three principal components, the same for both, as red, green, blue."""
    cells = [normalize(one.values.float(), dim=1) for one in maps]
    parts = [part[0].cpu() for part in joint_pca(cells[0], cells[1], 3)]
    every = torch.cat([part.flatten(1) for part in parts], dim=1)
    low, high = every.quantile(torch.tensor([0.01, 0.99]), dim=1)
    tiles: list[Image.Image] = []
    for one, part, image, own in zip((a, b), parts, encoded, maps, strict=True):
        size = displayed_size(one.size)
        share = ((part - low[:, None, None]) / (high - low).clamp_min(1e-12)[:, None, None]).clamp(0, 1)
        x, y = image.placed.cells(*pixel_grid(size, one.size), own.stride)
        colours = sample_bilinear(share.permute(1, 2, 0), x.round(), y.round()).clamp(0, 1)  # cells as they are
        tiles += [one.image.resize(size), Image.fromarray((colours * 255).round().byte().numpy())]
    return hstack_images(tiles)


def displayed_size(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height in the page."""
    share = min(HEIGHT / size[1], WIDEST / size[0])
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def hstack_images(images: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """In a row, on white."""
    sheet = Image.new(
        "RGB", (sum(i.width for i in images) + gap * (len(images) - 1), max(i.height for i in images)), "white"
    )
    x = 0
    for image in images:
        sheet.paste(image, (x, 0))
        x += image.width + gap
    return sheet


def bright_colour(share: float) -> Colour:
    """Bright colours around the circle."""
    red, green, blue = colorsys.hsv_to_rgb(share, 0.65, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
