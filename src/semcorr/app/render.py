"""A session's pictures with marks, its table, and pictures to begin with."""

import colorsys
import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from semcorr.app.inference import BOX, IMAGE, Answer, score_points
from semcorr.app.session import Point, Session
from semcorr.core.coords import from_corner
from semcorr.core.errors import UserError
from semcorr.data.pictures import Picture
from semcorr.inference.plots import Colour, draw_label, plot_matches

SIDE = 900  # pixels of the longer side in the page, at least as many as it shows
GOLDEN = (5**0.5 - 1) / 2
MAP = np.array([[18, 22, 60], [110, 35, 110], [225, 85, 60], [255, 220, 110]])  # from unlike to like


def displayed_size(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of a picture in the page."""
    share = SIDE / max(size)
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def click_to_pixel(index: Any, size: tuple[int, int]) -> Point:
    """From a browser's count of pixels, from the corner of what is shown, to original pixels.

    >>> click_to_pixel((450, 0), (100, 50))
    (49.5, -0.5)

    Raises:
        UserError: That is no place in the picture; what a browser says may be anything.
    """
    try:
        x, y = (float(at) / length * side for at, length, side in zip(index, displayed_size(size), size, strict=True))
        inside = 0 <= x <= size[0] and 0 <= y <= size[1]
    except (TypeError, ValueError, OverflowError):
        inside = False
    if not inside:
        raise UserError("A click must be two numbers, a place in the picture")
    found = from_corner(torch.tensor([x, y], dtype=torch.float64)).tolist()
    return found[0], found[1]


def point_colours(count: int) -> list[Colour]:
    """Bright, as in `draw_matches`; a point's does not change when there are more."""
    rounds = ((i * GOLDEN) % 1.0 for i in range(count))
    return [tuple(round(255 * part) for part in colorsys.hsv_to_rgb(share, 0.65, 1.0)) for share in rounds]  # type: ignore[misc]


def draw_source(session: Session, answer: Answer) -> Image.Image | None:
    """The source and its points."""
    if session.a is None:
        return None
    image = session.a.image.resize(displayed_size(session.a.size))
    sure = [True] * len(session.marks.points) if answer.match is None else answer.match.consistent.tolist()
    _marks(image, session.a.size, session.marks.points, sure, session.marks.chosen)
    return image


def draw_target(session: Session, answer: Answer, opacity: float) -> Image.Image | None:
    """The target under the map of the chosen point, with its window, the matches, and where points truly are."""
    if session.b is None:
        return None
    image = session.b.image.resize(displayed_size(session.b.size))
    if answer.heat is not None and opacity > 0:
        image = Image.blend(image, draw_heat_map(answer.heat).resize(image.size), opacity)
    if answer.match is None:
        return image
    draw, size = ImageDraw.Draw(image), session.b.size
    if answer.window is not None:
        box = [*_shown(answer.window[:2], size, image.size), *_shown(answer.window[2:], size, image.size)]
        draw.rectangle(box, outline="black", width=5)
        draw.rectangle([box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1], outline="white", width=3)
    found = [(float(x), float(y)) for x, y in answer.match.points.tolist()]
    for colour, point, truth in zip(point_colours(len(found)), found, session.marks.truths, strict=True):
        if truth is not None:
            _cross(draw, _shown(truth, size, image.size), _shown(point, size, image.size), colour)
    _marks(image, size, found, answer.match.consistent.tolist(), session.marks.chosen)
    return image


def draw_heat_map(heat: Float[Tensor, "h w"]) -> Image.Image:
    """From the map's least to its greatest similarity."""
    low, high = heat.min(), heat.max()
    share = ((heat - low) / (high - low).clamp_min(1e-12)).numpy()
    steps = np.linspace(0, 1, len(MAP))
    channels = [np.interp(share, steps, MAP[:, i]) for i in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))


def draw_export(session: Session, answer: Answer) -> Image.Image:
    """Both, side by side, in the page's colours."""
    assert session.a is not None
    assert session.b is not None
    assert answer.match is not None
    return plot_matches(session.a, session.b, answer.match, point_colours(len(answer.match.points)))


def format_point_table(session: Session, answer: Answer) -> str:
    """A row per point, as HTML."""
    match = answer.match
    if match is None:
        return ""
    head = "<tr><th></th><th>left</th><th>right</th><th>score</th><th>returns</th><th>off</th></tr>"
    return f'<div class="table"><table>{head}{"".join(_rows(session, match))}</table></div>'


def _rows(session: Session, match: "tuple[Tensor, ...]") -> list[str]:
    rows = []
    each = zip(*(one.tolist() for one in match), session.marks.truths, point_colours(len(match[0])), strict=True)
    for i, (source, found, score, sure, back, truth, colour) in enumerate(each):
        away = math.dist(source, back)
        off = f"{math.dist(found, truth):.0f} px" if truth else ""
        data = f'data-source="{source[0]},{source[1]}" data-match="{found[0]},{found[1]}" data-score="{score}"'
        rows.append(
            f'<tr class="{"chosen" if i == session.marks.chosen else ""}" {data}>'
            f'<td><span class="disc" style="background: rgb{colour}">{i + 1}</span></td>'
            f"<td>{source[0]:.0f}, {source[1]:.0f}</td><td>{found[0]:.0f}, {found[1]:.0f}</td><td>{score:.2f}</td>"
            f'<td class="{"" if sure else "doubt"}">{"yes" if sure else f"no, {away:.0f} px"}</td>'
            f"<td>{off}</td></tr>"
        )
    return rows


def format_accuracy(session: Session, answer: Answer, of: str) -> str:
    """PCK, or what it takes."""
    found = score_points(session, answer.match, of)
    if not found.annotated:
        return '<p class="note">To measure: click in the right picture where the chosen point truly is.</p>'
    of_what = {IMAGE: "the right picture's longer side", BOX: "the longer side of the box around the true places"}[of]
    if found.pck is None:
        return '<p class="note">The box around the true places takes two of them.</p>'
    cells = "".join(
        f"<div><b>{100 * value:.0f} %</b><span>PCK@{alpha}</span></div>" for alpha, value in found.pck.items()
    )
    points = f"{found.annotated} annotated point{'s'[: found.annotated > 1]}"
    return f'<div class="pck">{cells}</div><p class="note">{points}; alpha of {of_what}, {found.extent:.0f} px.</p>'


def format_hint(session: Session, answer: Answer) -> str:
    """What can be done next."""
    if session.a is None or session.b is None:
        text = "Open a picture on either side."
    elif answer.match is None:
        text = "Click a point in the left picture."
    else:
        box = ": the whole map" if answer.window is None else ": the white box"
        text = f"Point {session.marks.chosen + 1} is chosen, read by {escape(answer.read_out)}{box}."
        if not all(answer.match.consistent.tolist()):
            text += " Rings do not come back: do not trust them."
    for side, picture in (("left", session.a), ("right", session.b)):
        if picture is not None and picture.image.size != picture.size:
            w, h = picture.size
            text += f" The {side} picture is kept reduced; points are in its own {w} x {h} pixels."
    return f'<p class="hint">{text}</p>'


def _shown(point: Sequence[float], size: tuple[int, int], length: tuple[int, int]) -> tuple[float, float]:
    x, y = ((at + 0.5) * pixels / side for at, pixels, side in zip(point, length, size, strict=True))
    return x, y


def _marks(
    image: Image.Image, size: tuple[int, int], points: Sequence[Point], sure: Sequence[bool], chosen: int
) -> None:
    draw = ImageDraw.Draw(image)
    order = sorted(range(len(points)), key=lambda i: i == chosen)  # it lies on top
    for i in order:
        place = _shown(points[i], size, image.size)
        if i == chosen:
            x, y = place
            draw.ellipse((x - 34, y - 34, x + 34, y + 34), outline="black", width=5)
            draw.ellipse((x - 33, y - 33, x + 33, y + 33), outline="white", width=3)
        draw_label(draw, place, str(i + 1), point_colours(len(points))[i], sure[i])


def _cross(draw: ImageDraw.ImageDraw, at: Point, found: Point, colour: Colour) -> None:
    draw.line((*at, *found), fill=colour, width=3)
    x, y = at
    for width, fill in ((9, "black"), (5, colour)):
        draw.line((x - 14, y - 14, x + 14, y + 14), fill=fill, width=width)
        draw.line((x - 14, y + 14, x + 14, y - 14), fill=fill, width=width)


def draw_examples() -> dict[str, tuple[Picture, Picture]]:
    """Drawn creatures, two of a kind."""
    from semcorr.data.creatures.photograph import render_photo

    pairs = {"Horses": ("horse", 1, (1, 1)), "Sheep": ("sheep", 1, (1, 1)), "Cats": ("cat", 1, (2, 2))}
    found = {}
    for name, (category, seed, azimuths) in pairs.items():
        shots = [
            render_photo(category, azimuth, 420, np.random.default_rng([seed, side]))
            for side, azimuth in enumerate(azimuths)
        ]
        one, other = (Picture(shot.image, shot.image.size, f"{category} {i}") for i, shot in enumerate(shots, 1))
        found[name] = (one, other)
    return found
