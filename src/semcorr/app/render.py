"""Pictures of a session with its points, tables and hints as HTML, and the example pairs."""

import math
from collections.abc import Iterable, Sequence
from html import escape

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
from semcorr.inference.matches import Match
from semcorr.inference.plots import draw_point_label, plot_matches
from semcorr.visualization.canvas import Colour, colour_values, point_colour

SIDE = 900  # pixels of the longer side of a picture in the page


def page_image_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return width and height of a picture in the page."""
    scale = SIDE / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def click_to_pixel(index: object, size: tuple[int, int]) -> Point:
    """Convert a click, in pixels from the corner of the displayed picture, to original pixels.

    >>> click_to_pixel((450, 0), (100, 50))
    (49.5, -0.5)

    Raises:
        UserError: The click is not inside the picture, or not two numbers: a browser may send anything.
    """
    coordinates = index if isinstance(index, Iterable) else ()
    lengths = page_image_size(size)
    try:
        x, y = (float(i) / length * side for i, length, side in zip(coordinates, lengths, size, strict=True))
        is_inside = 0 <= x <= size[0] and 0 <= y <= size[1]
    except (TypeError, ValueError, OverflowError):
        is_inside = False
    if not is_inside:
        raise UserError("A click must be two numbers, a place in the picture")
    point = from_corner(torch.tensor([x, y], dtype=torch.float64)).tolist()
    return point[0], point[1]


def point_colours(count: int) -> list[Colour]:
    """Return the colours of `plot_matches`; a point keeps its colour when more are added."""
    return [point_colour(i) for i in range(count)]


def draw_source(session: Session, answer: Answer) -> Image.Image | None:
    """Draw the source and its points."""
    if session.a is None:
        return None
    image = session.a.image.resize(page_image_size(session.a.size))
    consistent = [True] * len(session.marks.points) if answer.match is None else answer.match.consistent.tolist()
    _draw_points(image, session.a.size, session.marks.points, consistent, session.marks.chosen)
    return image


def draw_target(session: Session, answer: Answer, opacity: float) -> Image.Image | None:
    """Draw the target under the similarity map of the chosen point, with its window, the matches and annotations.

    Args:
        session: The session; without a target, nothing is drawn.
        answer: Matches of its points.
        opacity: Opacity of the map, from 0 to 1.
    """
    if session.b is None:
        return None
    image = session.b.image.resize(page_image_size(session.b.size))
    if answer.heat is not None and opacity > 0:
        image = Image.blend(image, draw_heat_map(answer.heat).resize(image.size), opacity)
    if answer.match is None:
        return image
    draw, size = ImageDraw.Draw(image), session.b.size
    if answer.window is not None:
        box = [
            *_to_displayed_point(answer.window[:2], size, image.size),
            *_to_displayed_point(answer.window[2:], size, image.size),
        ]
        draw.rectangle(box, outline="black", width=5)
        draw.rectangle([box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1], outline="white", width=3)
    matches = [(float(x), float(y)) for x, y in answer.match.points.tolist()]
    for colour, point, truth in zip(point_colours(len(matches)), matches, session.marks.truths, strict=True):
        if truth is not None:
            _draw_cross(
                draw, _to_displayed_point(truth, size, image.size), _to_displayed_point(point, size, image.size), colour
            )
    _draw_points(image, size, matches, answer.match.consistent.tolist(), session.marks.chosen)
    return image


def draw_heat_map(heat: Float[Tensor, "h w"]) -> Image.Image:
    """Colour a similarity map from its least to its greatest value."""
    low, high = heat.min(), heat.max()
    return Image.fromarray(colour_values(((heat - low) / (high - low).clamp_min(1e-12)).numpy()))


def draw_export(session: Session, answer: Answer) -> Image.Image:
    """Draw both pictures side by side, with the matches in the colours of the page."""
    assert session.a is not None
    assert session.b is not None
    assert answer.match is not None
    return plot_matches(session.a, session.b, answer.match, point_colours(len(answer.match.points)))


def format_point_table(session: Session, answer: Answer) -> str:
    """Format the table of points as HTML, a row per point."""
    match = answer.match
    if match is None:
        return ""
    head = "<tr><th></th><th>left</th><th>right</th><th>score</th><th>returns</th><th>off</th></tr>"
    return f'<div class="table"><table>{head}{"".join(_format_rows(session, match))}</table></div>'


def _format_rows(session: Session, match: Match) -> list[str]:
    """Format the rows of the table."""
    rows = []
    columns = (match.source, match.points, match.scores, match.consistent, match.returned)
    colours = point_colours(len(match.points))
    points = zip(*(values.tolist() for values in columns), session.marks.truths, colours, strict=True)
    for i, (source, target, score, consistent, returned, truth, colour) in enumerate(points):
        distance = math.dist(source, returned)
        error = f"{math.dist(target, truth):.0f} px" if truth else ""
        data = f'data-source="{source[0]},{source[1]}" data-match="{target[0]},{target[1]}" data-score="{score}"'
        rows.append(
            f'<tr class="{"chosen" if i == session.marks.chosen else ""}" {data}>'
            f'<td><span class="disc" style="background: rgb{colour}">{i + 1}</span></td>'
            f"<td>{source[0]:.0f}, {source[1]:.0f}</td><td>{target[0]:.0f}, {target[1]:.0f}</td><td>{score:.2f}</td>"
            f'<td class="{"" if consistent else "doubt"}">{"yes" if consistent else f"no, {distance:.0f} px"}</td>'
            f"<td>{error}</td></tr>"
        )
    return rows


def format_accuracy(session: Session, answer: Answer, of: str) -> str:
    """Format PCK as HTML, or what is missing to compute it.

    Args:
        session: The session.
        answer: Matches of its points.
        of: Extent that alpha is a fraction of: `image` or `box`, see `score_points`.
    """
    scores = score_points(session, answer.match, of)
    if not scores.annotated:
        return '<p class="note">To measure: click in the right picture where the chosen point truly is.</p>'
    side = {IMAGE: "the right picture's longer side", BOX: "the longer side of the box around the true places"}[of]
    if scores.pck is None:
        return '<p class="note">The box around the true places takes two of them.</p>'
    cells = "".join(
        f"<div><b>{100 * value:.0f} %</b><span>PCK@{alpha}</span></div>" for alpha, value in scores.pck.items()
    )
    points = f"{scores.annotated} annotated point{'s'[: scores.annotated > 1]}"
    return f'<div class="pck">{cells}</div><p class="note">{points}; alpha of {side}, {scores.extent:.0f} px.</p>'


def format_hint(session: Session, answer: Answer) -> str:
    """Format a hint at the next step as HTML."""
    if session.a is None or session.b is None:
        text = "Open a picture on either side."
    elif answer.match is None:
        text = "Click a point in the left picture."
    else:
        box = ": the whole map" if answer.window is None else ": the white box"
        text = f"Point {session.marks.chosen + 1} is chosen, read by {escape(answer.readout_shorthand)}{box}."
        if not all(answer.match.consistent.tolist()):
            text += " Rings do not come back: do not trust them."
    for side, picture in (("left", session.a), ("right", session.b)):
        if picture is not None and picture.image.size != picture.size:
            w, h = picture.size
            text += f" The {side} picture is kept reduced; points are in its own {w} x {h} pixels."
    return f'<p class="hint">{text}</p>'


def _to_displayed_point(point: Sequence[float], size: tuple[int, int], length: tuple[int, int]) -> tuple[float, float]:
    """Convert a point in original pixels to the displayed picture."""
    x, y = ((coordinate + 0.5) * pixels / side for coordinate, pixels, side in zip(point, length, size, strict=True))
    return x, y


def _draw_points(
    image: Image.Image, size: tuple[int, int], points: Sequence[Point], consistent: Sequence[bool], chosen: int
) -> None:
    """Draw numbered points, the chosen one last and in a ring."""
    draw = ImageDraw.Draw(image)
    order = sorted(range(len(points)), key=lambda i: i == chosen)  # the chosen point on top
    for i in order:
        centre = _to_displayed_point(points[i], size, image.size)
        if i == chosen:
            x, y = centre
            draw.ellipse((x - 34, y - 34, x + 34, y + 34), outline="black", width=5)
            draw.ellipse((x - 33, y - 33, x + 33, y + 33), outline="white", width=3)
        draw_point_label(draw, centre, str(i + 1), point_colours(len(points))[i], consistent[i])


def _draw_cross(draw: ImageDraw.ImageDraw, truth: Point, match: Point, colour: Colour) -> None:
    """Draw a cross at a true point, and a line to its match."""
    draw.line((*truth, *match), fill=colour, width=3)
    x, y = truth
    for width, fill in ((9, "black"), (5, colour)):
        draw.line((x - 14, y - 14, x + 14, y + 14), fill=fill, width=width)
        draw.line((x - 14, y + 14, x + 14, y - 14), fill=fill, width=width)


def draw_examples() -> dict[str, tuple[Picture, Picture]]:
    """Render the example pairs: two creatures of the same category each."""
    from semcorr.data.creatures.photograph import render_photo

    pairs = {"Horses": ("horse", 1, (1, 1)), "Sheep": ("sheep", 1, (1, 1)), "Cats": ("cat", 1, (2, 2))}
    examples = {}
    for name, (category, seed, azimuths) in pairs.items():
        photos = [
            render_photo(category, azimuth, 420, np.random.default_rng([seed, side]))
            for side, azimuth in enumerate(azimuths)
        ]
        a, b = (Picture(photo.image, photo.image.size, f"{category} {i}") for i, photo in enumerate(photos, 1))
        examples[name] = (a, b)
    return examples
